"""RF-DETR on COCO train2017 from a pretrained DINOv2 backbone (package rfdetr 1.11.2).

Published AP: nano 48.4, small 53.0, medium 54.7, large 56.5
(T4 with TensorRT in float16: 2.3, 3.5, 4.4 and 6.8 ms an image); of masks: seg-nano 40.3, seg-small 43.1, seg-medium
45.3, seg-large 47.1, seg-xlarge 48.8, seg-2xlarge 49.9. Not trained here.

    dfine train experiments/rfdetr_coco.py:nano --data coco --out runs/nano --backbone dinov2-small.safetensors
"""

from __future__ import annotations

from dfine_jax.config import Config
from dfine_jax.families.rfdetr.recipes import published


def get_config(variant: str = "medium") -> Config:
    """The recipe for a variant, such as ``nano`` or ``seg-nano``."""
    return published("rfdetr_coco", variant)
