"""D-FINE on COCO train2017 from an ImageNet backbone (arXiv 2410.13842).

| | N | S | M | L | X |
|---|---|---|---|---|---|
| lr | 8e-4 | 2e-4 | 2e-4 | 2.5e-4 | 2.5e-4 |
| backbone lr | 4e-4 | 1e-4 | 2e-5 | 1.25e-5 | 2.5e-6 |
| weight decay | 1e-4 | 1e-4 | 1e-4 | 1.25e-4 | 1.25e-4 |
| batch | 128 | 32 | 32 | 32 | 32 |
| epochs, stage 2 from | 160, 148 | 132, 120 | 132, 120 | 80, 72 | 80, 72 |
| weight of 640 among the sizes | one size | 20 | 6 | 4 | 3 |
| published AP | 42.8 | 48.5 | 52.3 | 54.0 | 55.8 |

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
