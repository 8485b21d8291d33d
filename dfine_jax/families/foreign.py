"""What weights are that no family reads, told by their names."""

from __future__ import annotations

import re
from collections.abc import Collection

from dfine_jax.families.state_dict import listed

# What other programs' names look like, and whose they are; the first that fits is told.
_OTHER_MODELS: tuple[tuple[str, str], ...] = (
    (r"(^|\.)model\.\d+\.(conv|cv1|m)\.", "a YOLO model"),
    (r"(^|\.)backbone\.(dinov3|sta)\.", "DEIMv2 with DINOv3"),
    (r"(^|\.)decoder\.enc_output\.0\.", "RT-DETR's first version"),
    (r"(^|\.)backbone\.res_layers\.|(^|\.)backbone\.conv1\.conv1_1\.", "RT-DETR with ResNet"),
    (r"(^|\.)backbone\.model\.embedder\.embedder\.", "transformers' RT-DETR"),
    (r"(^|\.)backbone\.model\.", "another model of transformers, or of a part of one"),
    (r"(^|\.)roi_heads\.", "a Faster or Mask R-CNN"),
    (r"(^|\.)transformer\.(encoder|decoder)\.", "a DETR"),
    (
        r"^(stem\.stem1|backbone\.stem\.stem1|(dinov2\.)?embeddings\.patch_embeddings)\.",
        "weights of the backbone alone, without a detector (see --backbone)",
    ),
    (r"^(layer1\.0|conv1)\.|^stages\.\d+\.", "an image classifier"),
    (r"(exp_avg|momentum_buffer)", "the state of an optimiser, without weights"),
)


def not_known(names: Collection[str], titles: str) -> str:
    """Why a state dict is not read.

    Args:
      titles: of the families, in words.
    """
    entries = f"{len(names)} entries such as {listed(list(names))}"
    for pattern, whose in _OTHER_MODELS:
        if any(re.search(pattern, name) for name in names):
            return f"not a state dict of {titles}: the names are those of {whose} ({entries})"
    return f"not a state dict of {titles}: {entries}"
