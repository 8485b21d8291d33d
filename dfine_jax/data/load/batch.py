"""What the loaders hand over. NumPy only: loader processes must not import jax, so these live apart from typing.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dfine_jax.data.load.workers import Layout


class Batch(NamedTuple):
    """What a step trains on: one host batch (NumPy), whose fields but ``images`` become ``typing.Targets``.

    Training adds a leading device axis before it is sent to the step. Masks are there for families that train on them.
    """

    images: np.ndarray  # uint8 [b, h, w, 3] RGB
    labels: np.ndarray  # int32 [b, g]
    boxes_cxcywh: np.ndarray  # float32 [b, g, 4]
    valid: np.ndarray  # bool [b, g]
    masks: np.ndarray | None = None  # uint8 [b, g, h / stride, w / stride] quarters of coverage, 0 to 4
    has_mask: np.ndarray | None = None  # bool [b, g]; False: not annotated, which is not an empty mask

    def each(self, change: Callable[[np.ndarray], Any]) -> Batch:
        """The batch with every array that it has changed."""
        return self._replace(**{n: change(array) for n, array in self._asdict().items() if array is not None})


def batch_layout(rows: int, height_px: int, width_px: int, slots: int, mask_stride: int | None) -> Layout:
    """(shape, dtype) of the arrays of a ``Batch``, in order; with masks where there is a stride."""
    shapes = [((height_px, width_px, 3), "uint8"), ((slots,), "int32"), ((slots, 4), "float32"), ((slots,), "bool")]
    if mask_stride is not None:
        if height_px % mask_stride or width_px % mask_stride:
            raise ValueError(f"masks at 1/{mask_stride} do not fit an input of {height_px}x{width_px}")
        shapes += [((slots, height_px // mask_stride, width_px // mask_stride), "uint8"), ((slots,), "bool")]
    return tuple(((rows, *shape), dtype) for shape, dtype in shapes)


class EvalBatch(NamedTuple):
    """One host batch for evaluation. Rows that only fill the batch have ``image_id`` -1."""

    images: np.ndarray  # uint8 [b, h, w, 3] RGB
    image_id: np.ndarray  # int64 [b]
    size_px: np.ndarray  # float32 [b, 2] original (width, height)
    view_px: np.ndarray | None = None  # float32 [b, 4] what the input shows (Preprocess.view_px); None: the picture
    annotated: Batch | None = None  # the images with their objects, where a loss is asked for
