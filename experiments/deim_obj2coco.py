"""DEIM on COCO from D-FINE-X's Objects365 weights.

Published AP: X 59.5 (D-FINE: 59.3).

The one DEIM recipe that keeps ReLU and frozen batch norms, because its weights were trained with them. Constant rate
without warm-up; the reference's own file divides by that zero and cannot start.

    dfine train experiments/deim_obj2coco.py --data coco --out runs/x --weights dfine-x-obj365
"""

from __future__ import annotations

from dfine_jax.config import Config
from dfine_jax.families.dfine.tables import published


def get_config(variant: str = "x") -> Config:
    """The recipe for a variant: ``x``."""
    return published("deim_obj2coco", variant)
