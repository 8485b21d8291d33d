"""DEIM on COCO: dense one-to-one matching and the matchability-aware loss (arXiv 2412.04234).

Published AP: N 43.0, S 49.0, M 52.7, L 54.7, X 56.5.

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
