"""RF-DETR on data of one's own, as its package fine-tunes.

``dfine train rfdetr-nano`` starts from this table too and fits it to the data; this file is the table as it stands.

    dfine train experiments/rfdetr_custom.py:nano --data mine --out runs/mine --weights rfdetr-nano-coco
"""

from __future__ import annotations

from dfine_jax.config import Config
from dfine_jax.families.rfdetr.recipes import published


def get_config(variant: str = "medium") -> Config:
    """The recipe for a variant, such as ``nano`` or ``seg-nano``."""
    return published("rfdetr_custom", variant)
