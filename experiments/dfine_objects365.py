"""D-FINE on Objects365, the pretraining of the strongest published weights.

| | N | S | M | L | X |
|---|---|---|---|---|---|
| lr | 8e-4 | 2.5e-4 | 2.5e-4 | 2.5e-4 | 2.5e-4 |
| backbone lr | 4e-4 | 1.25e-4 | 2.5e-5 | 1.25e-5 | 2.5e-6 |
| weight decay | 1e-4 | 1.25e-4 | 1.25e-4 | 1.25e-4 | 1.25e-4 |
| batch | 128 | 32 | 32 | 32 | 32 |
| epochs | 48 | 36 | 36 | 24 | 24 |
| weight of 640 among the sizes | one size | 20 | 6 | 4 | 3 |
| published AP (first 5000 of val) | - | 30.5 | 37.4 | 40.6 | 46.5 |

One stage only: augmentation never ends and nothing is undone (the table's stop epoch, 500, lies beyond the run). The
reference counts 366 classes, number 0 unused; here the classes are those of the annotation file. Its preparation of the
data moves all but the first 5000 validation images to training and shrinks images to 640 pixels on the longer side.

    dfine train experiments/dfine_objects365.py:s --data objects365 --out runs/o365 --backbone imagenet
"""

from __future__ import annotations

from dfine_jax.config import Config
from dfine_jax.families.dfine.tables import published


def get_config(variant: str = "l") -> Config:
    """The recipe for a variant: ``n``, ``s``, ``m``, ``l``, ``x``."""
    return published("dfine_objects365", variant)
