"""D-FINE on CrowdHuman, one class.

Crowded images have hundreds of people: the slots for objects, and with them the denoising queries, follow the fullest
image; the first lines of the log say how many there are. DEIM's paper gives L as 56.0 / 87.2 / 59.4 (AP, AP50, AP75)
after 120 epochs.

    dfine train experiments/dfine_crowdhuman.py:l --data crowdhuman --out runs/crowd --backbone imagenet
"""

from __future__ import annotations

from dfine_jax.config import Config
from dfine_jax.families.dfine.tables import published


def get_config(variant: str = "l") -> Config:
    """The recipe for a variant: ``n``, ``s``, ``m``, ``l``, ``x``."""
    return published("dfine_crowdhuman", variant)
