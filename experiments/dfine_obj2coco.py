"""D-FINE on COCO from Objects365 weights.

Published AP: S 50.7, M 55.1, L 57.3, X 59.3.

No warm-up, neither of the rate nor of the average: both continue a finished training. The rows of the class heads are
taken over by name (80 of Objects365's classes are COCO's); the printed table shows which. The reference fine-tunes on
data of one's own with the same values (its obj2custom files, S to X).

    dfine train experiments/dfine_obj2coco.py:s --data coco --out runs/s --weights dfine-s-obj365
"""

from __future__ import annotations

from dfine_jax.config import Config
from dfine_jax.families.dfine.tables import published


def get_config(variant: str = "l") -> Config:
    """The recipe for a variant: ``n``, ``s``, ``m``, ``l``, ``x``."""
    return published("dfine_obj2coco", variant)
