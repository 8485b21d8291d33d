"""D-FINE on data of one's own from an ImageNet backbone.

For some ten thousand images. ``dfine train s`` starts from this table too and fits it to smaller data; this file is the
table as it stands. The reference's class count of 777 is a placeholder, as it is here.

    dfine train experiments/dfine_custom.py:s --data mine --out runs/mine --backbone imagenet
"""

from __future__ import annotations

from dfine_jax.config import Config
from dfine_jax.families.dfine.tables import published


def get_config(variant: str = "l") -> Config:
    """The recipe for a variant: ``n``, ``s``, ``m``, ``l``, ``x``."""
    return published("dfine_custom", variant)
