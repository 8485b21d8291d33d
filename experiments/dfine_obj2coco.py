"""D-FINE on COCO from Objects365 weights.

| | N | S | M | L | X |
|---|---|---|---|---|---|
| lr | 8e-4 | 2.5e-4 | 2.5e-4 | 2.5e-4 | 2.5e-4 |
| backbone lr | 4e-4 | 1.25e-4 | 2.5e-5 | 1.25e-5 | 2.5e-6 |
| weight decay | 1e-4 | 1.25e-4 | 1.25e-4 | 1.25e-4 | 1.25e-4 |
| batch | 128 | 32 | 32 | 32 | 32 |
| epochs, stage 2 from | 64, 56 | 64, 56 | 56, 48 | 36, 30 | 36, 30 |
| weight of 640 among the sizes | one size | 10 | 6 | 4 | 3 |
| published AP | - | 50.7 | 55.1 | 57.3 | 59.3 |

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
