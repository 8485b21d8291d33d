"""RT-DETRv2 on COCO train2017 as DEIM trains it (arXiv 2412.04234).

Published AP: r18 49.0, r34 50.9, r50m 53.2, r50 54.3, r101 55.5. Not trained here.

    dfine train experiments/deim_rtdetr_coco.py:r18 --data coco --out runs/r18-deim --backbone imagenet
"""

from __future__ import annotations

from dfine_jax.config import Config
from dfine_jax.families.rtdetr.recipes import published


def get_config(variant: str = "r50") -> Config:
    """The recipe for a variant: ``r18``, ``r34``, ``r50m``, ``r50`` or ``r101``."""
    return published("deim_rtdetrv2_coco", variant)
