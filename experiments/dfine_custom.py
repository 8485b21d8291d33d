"""D-FINE on data of one's own from an ImageNet backbone.

| | N | S | M | L | X |
|---|---|---|---|---|---|
| lr | 8e-4 | 4e-4 | 2.5e-4 | 2.5e-4 | 2.5e-4 |
| backbone lr | 4e-4 | 2e-4 | 2.5e-5 | 1.25e-5 | 2.5e-6 |
| weight decay | 1e-4 | 1e-4 | 1.25e-4 | 1.25e-4 | 1.25e-4 |
| batch | 128 | 64 | 32 | 32 | 32 |
| epochs, stage 2 from | 220, 200 | 220, 200 | 132, 120 | 80, 72 | 80, 72 |
| weight of 640 among the sizes | one size | 20 | 6 | 4 | 3 |

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
