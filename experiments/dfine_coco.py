"""D-FINE on COCO train2017 from an ImageNet backbone (arXiv 2410.13842).

Published AP: N 42.8, S 48.5, M 52.3, L 54.0, X 55.8.

Constant rate after 500 steps of warm-up. Stage 2 starts from the best weights, without strong augmentation and at one
size; an epoch that does not improve is undone. X restarts its average with decay 0.9998 where the others have 0.9999;
the reference means to and does not (``optim.ema_restart=ignore`` does as it does).

    dfine train experiments/dfine_coco.py:s --data coco --out runs/s --backbone imagenet
"""

from __future__ import annotations

from dfine_jax.config import Config
from dfine_jax.families.dfine.tables import published


def get_config(variant: str = "l") -> Config:
    """The recipe for a variant: ``n``, ``s``, ``m``, ``l``, ``x``."""
    return published("dfine_coco", variant)
