"""Anchor boxes of the encoder tokens, computed from the map sizes alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

BASE_SIZE = 0.05  # side of the anchors of the finest level, as a fraction of the image; doubles per level
MARGIN = 0.01  # anchors with a coordinate this close to 0 or 1 are invalid


def anchors(sizes: Sequence[tuple[int, int]]) -> tuple[Float[np.ndarray, "n 4"], Bool[np.ndarray, " n"]]:
    """Anchors cxcywh before the sigmoid, infinite where invalid, and which are valid.

    The side depends on the index of the level, not on its stride, and everything is float32, as in the reference
    (src/zoo/dfine/dfine_decoder.py, ``_generate_anchors``).

    Args:
      sizes: height and width of the levels, finest first.
    """
    levels = []
    for level, (h, w) in enumerate(sizes):
        x = (np.arange(w, dtype=np.float32) + np.float32(0.5)) / np.float32(w)
        y = (np.arange(h, dtype=np.float32) + np.float32(0.5)) / np.float32(h)
        side = np.full((h, w), BASE_SIZE * 2.0**level, np.float32)
        x, y = np.broadcast_to(x, (h, w)), np.broadcast_to(y[:, None], (h, w))
        levels.append(np.stack([x, y, side, side], -1).reshape(-1, 4))
    boxes = np.concatenate(levels)
    valid = np.all((boxes > np.float32(MARGIN)) & (boxes < np.float32(1 - MARGIN)), -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logit = np.log(boxes / (np.float32(1.0) - boxes))
    return np.where(valid[:, None], logit, np.float32(np.inf)), valid
