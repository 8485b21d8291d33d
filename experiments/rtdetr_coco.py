"""RT-DETRv2 on COCO train2017 from an ImageNet backbone (arXiv 2407.17140).

Published AP: r18 48.1, r34 49.9, r50m 51.9, r50 53.4, r101 54.3 (a T4 with TensorRT in float16: 217, 161, 145, 108 and
74 images a second). Not trained here.

    dfine train experiments/rtdetr_coco.py:r18 --data coco --out runs/r18 --backbone imagenet
"""

from __future__ import annotations

from dfine_jax.config import Config
from dfine_jax.families.rtdetr.recipes import published


def get_config(variant: str = "r50") -> Config:
    """The recipe for a variant: ``r18``, ``r34``, ``r50m``, ``r50``, ``r101``, ``l``, ``x`` or ``h``."""
    return published("rtdetrv2_coco", variant)
