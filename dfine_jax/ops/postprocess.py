"""From raw model outputs to detections, for evaluation and prediction.

In exported graphs the same is written in the operations of the format (``dfine_jax.converters.onnx.export.complete``).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dfine_jax.ops.boxes import AnyArray, cxcywh_to_xyxy


class Answer(NamedTuple):
    """What a network says about a batch; NumPy or JAX arrays."""

    logits: Float[AnyArray, "b q k"]  # of the classes
    boxes_cxcywh: Float[AnyArray, "b q 4"]  # fractions of the image
    masks_logit: Float[AnyArray, "b q h w"] | None = None  # of models that segment


class AnswerRules(NamedTuple):
    """How a family's answers become detections."""

    num_top: int = 300  # most detections of a picture
    cut_to_boxes: bool = True  # masks count within their boxes alone
    clip_boxes: bool = False  # boxes end at the edges of the picture
    interpolated: Literal["probability", "logit"] = "probability"  # of masks, between the cells of their maps


class Selected(NamedTuple):
    """Answers for one class each, best first."""

    scores: Float[AnyArray, "b n"]
    labels: Int[AnyArray, "b n"]
    boxes_cxcywh: Float[AnyArray, "b n 4"]
    masks_logit: Float[AnyArray, "b n h w"] | None = None  # of models that segment


def select(answer: Answer, num_top: int) -> Selected:
    """The ``num_top`` best (query, class) pairs of each image, best first; no threshold, no suppression.

    A query appears once for every class that is among the best (reference: src/zoo/dfine/postprocessor.py). Equal
    scores keep the order of (query, class). NumPy arrays stay on the host, JAX arrays are traced.
    """
    logits, boxes_cxcywh, masks = answer
    scores, labels, query = ranked(logits, num_top)
    if isinstance(logits, np.ndarray):
        image = np.arange(len(query))[:, None]
        return Selected(scores, labels, boxes_cxcywh[image, query], None if masks is None else masks[image, query])
    import jax.numpy as jnp

    boxes = jnp.take_along_axis(boxes_cxcywh, query[..., None], 1, mode="promise_in_bounds")
    return Selected(scores, labels, boxes, None if masks is None else rows_of(masks, query))


class Ranked(NamedTuple):
    """The best pairs of query and class of each image, best first."""

    scores: Float[AnyArray, "b n"]
    labels: Int[AnyArray, "b n"]
    query: Int[AnyArray, "b n"]


def ranked(logits: Float[AnyArray, "b q k"], num_top: int) -> Ranked:
    """As ``select``, before anything is taken of the queries."""
    num_classes = logits.shape[-1]
    num_top = min(num_top, logits.shape[1] * num_classes)
    if isinstance(logits, np.ndarray):
        flat = sigmoid(logits.reshape(logits.shape[0], -1))
        best = _numpy_top(flat, num_top)
        return Ranked(np.take_along_axis(flat, best, 1), (best % num_classes).astype(np.int32), best // num_classes)
    import jax

    scores, best = jax.lax.top_k(jax.nn.sigmoid(logits).reshape(logits.shape[0], -1), num_top)
    return Ranked(scores, best % num_classes, best // num_classes)


def rows_of(maps: Float[AnyArray, "b q h w"], query: Int[AnyArray, "b n"]) -> Float[AnyArray, "b n h w"]:
    """Maps of some queries of each image, traced by JAX."""
    import jax.numpy as jnp

    return jnp.take_along_axis(maps, query[..., None, None], 1, mode="promise_in_bounds")


def to_pixels(boxes_cxcywh: Float[AnyArray, "*b n 4"], size_px: AnyArray) -> Float[AnyArray, "*b n 4"]:
    """Corners (x1, y1, x2, y2) in pixels of an image of ``size_px`` = (width, height), [*b, 2]; not clipped."""
    return cxcywh_to_xyxy(boxes_cxcywh) * size_px[..., None, [0, 1, 0, 1]]


def clipped(corners_px: Float[np.ndarray, "*b n 4"], size_px: AnyArray) -> Float[np.ndarray, "*b n 4"]:
    """Corners in pixels that end at the edges of images of ``size_px`` = (width, height), [*b, 2]."""
    return np.clip(corners_px, 0, np.asarray(size_px, corners_px.dtype)[..., None, [0, 1, 0, 1]])


def sigmoid(x: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Of an array on the host."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def _numpy_top(scores: Float[np.ndarray, "b n"], num_top: int) -> Int[np.ndarray, "b k"]:
    """Indices of the largest values of each row, descending, ties by index; NaN counts as the smallest."""
    descending = -np.nan_to_num(scores, nan=-1.0)
    limit = np.partition(descending, num_top - 1, axis=1)[:, num_top - 1]
    rows = []
    for row, bound in zip(descending, limit, strict=True):
        candidates = np.flatnonzero(row <= bound)
        rows.append(candidates[np.argsort(row[candidates], kind="stable")[:num_top]])
    return np.stack(rows)
