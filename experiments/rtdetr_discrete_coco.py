"""RT-DETRv2 fine-tuned for discrete sampling, for runtimes that interpolate badly (arXiv 2407.17140, section 3).

Published AP: r18 47.4, r34 49.2, r50m 51.4, r50 52.9. Not trained here.

    dfine train experiments/rtdetr_discrete_coco.py:r18 --data coco --out runs/r18-discrete --weights rtdetrv2-r18-coco
"""

from __future__ import annotations

from dfine_jax.config import Config
from dfine_jax.families.rtdetr.recipes import published


def get_config(variant: str = "r50") -> Config:
    """The recipe for a variant: ``r18``, ``r34``, ``r50m`` or ``r50``."""
    return published("rtdetrv2_discrete_coco", variant)
