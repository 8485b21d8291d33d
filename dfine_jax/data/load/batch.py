"""What the loaders hand over. NumPy only: loader processes must not import jax, so these live apart from typing.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """One host batch (NumPy). Training adds a leading device axis before it is sent to the step."""

    images: np.ndarray  # uint8 [b, h, w, 3] RGB
    labels: np.ndarray  # int32 [b, g]
    boxes_cxcywh: np.ndarray  # float32 [b, g, 4]
    valid: np.ndarray  # bool [b, g]


class EvalBatch(NamedTuple):
    """One host batch for evaluation. Rows that only fill the batch have ``image_id`` -1."""

    images: np.ndarray  # uint8 [b, h, w, 3] RGB
    image_id: np.ndarray  # int64 [b]
    size_px: np.ndarray  # float32 [b, 2] original (width, height)
    view_px: np.ndarray | None = None  # float32 [b, 4] what the input shows (Preprocess.view_px); None: the picture
