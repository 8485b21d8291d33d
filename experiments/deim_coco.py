"""DEIM on COCO: dense one-to-one matching and the matchability-aware loss (arXiv 2412.04234).

| | N | S | M | L | X |
|---|---|---|---|---|---|
| lr | 8e-4 | 4e-4 | 4e-4 | 5e-4 | 5e-4 |
| backbone lr | 4e-4 | 2e-4 | 4e-5 | 2.5e-5 | 5e-6 |
| weight decay | 1e-4 | 1e-4 | 1e-4 | 1.25e-4 | 1.25e-4 |
| batch | 128 | 32 | 32 | 32 | 32 |
| epochs | 160 | 132 | 102 | 58 | 58 |
| augmentation: from, mosaic until, until | 4, 78, 148 | 4, 64, 120 | 4, 49, 90 | 4, 29, 50 | 4, 29, 50 |
| full rate until, smallest rate | always | 64, half | 49, half | 29, half | 29, half |
| weight of 640 among the sizes | one size | 20 | 6 | 4 | 3 |
| published AP | 43.0 | 49.0 | 52.7 | 54.7 | 56.5 |

Half the epochs of D-FINE for more AP. Mosaic in every second image and MixUp in every second batch put more objects
before each query in the first half; SiLU replaces ReLU in the decoder; L and X train the batch norms of the backbone.
Warm-up 2000 steps, quadratic. The papers count epochs without the closing ones (50 for L). Batch norms of the backbone
are without decay in S and M only, where they also get the full rate: the reference's patterns do so.

    dfine train experiments/deim_coco.py:s --data coco --out runs/s --backbone imagenet
"""

from __future__ import annotations

from dfine_jax.config import Config
from dfine_jax.families.dfine.tables import published


def get_config(variant: str = "l") -> Config:
    """The recipe for a variant: ``n``, ``s``, ``m``, ``l``, ``x``."""
    return published("deim_coco", variant)
