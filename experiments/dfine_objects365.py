"""D-FINE on Objects365, the pretraining of the strongest published weights.

Published AP (first 5000 images of val): S 30.5, M 37.4, L 40.6, X 46.5.

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
