"""From raw model outputs to detections; the one copy that evaluation, prediction and exported graphs share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from jaxtyping import Array

    AnyArray = Array | np.ndarray
else:
    AnyArray = Any  # exported files run without jax


class Answer(NamedTuple):
    """What a network says about a batch; NumPy or JAX arrays."""

    logits: Float[AnyArray, "b q k"]  # of the classes
    boxes_cxcywh: Float[AnyArray, "b q 4"]  # fractions of the image
    masks_logit: Float[AnyArray, "b q h w"] | None = None  # of models that segment


class Selected(NamedTuple):
    """Answers for one class each, best first."""

    scores: Float[AnyArray, "b n"]
    labels: Int[AnyArray, "b n"]
    boxes_cxcywh: Float[AnyArray, "b n 4"]


class Detections(NamedTuple):
    """Detections of one image, best first."""

    scores: np.ndarray  # float32 [n]
    labels: np.ndarray  # int32 [n], 0..k-1
    boxes_xyxy_px: np.ndarray  # float32 [n, 4] in pixels of the original image


def select(answer: Answer, num_top: int = 300) -> Selected:
    """Scores, labels and boxes of the ``num_top`` best (query, class) pairs, best first; no threshold, no suppression.

    A query appears once for every class that is among the best (reference: src/zoo/dfine/postprocessor.py). Equal
    scores keep the order of (query, class). NumPy arrays stay on the host, JAX arrays are traced.
    """
    logits, boxes_cxcywh = answer.logits, answer.boxes_cxcywh
    num_classes = logits.shape[-1]
    num_top = min(num_top, logits.shape[1] * num_classes)
    if isinstance(logits, np.ndarray):
        flat = _expit(logits.reshape(logits.shape[0], -1))
        best = _numpy_top(flat, num_top)
        scores = np.take_along_axis(flat, best, 1)
        boxes = np.take_along_axis(boxes_cxcywh, (best // num_classes)[..., None], 1)
        return Selected(scores, (best % num_classes).astype(np.int32), boxes)
    import jax
    import jax.numpy as jnp

    scores, best = jax.lax.top_k(jax.nn.sigmoid(logits).reshape(logits.shape[0], -1), num_top)
    boxes = jnp.take_along_axis(boxes_cxcywh, (best // num_classes)[..., None], 1, mode="promise_in_bounds")
    return Selected(scores, best % num_classes, boxes)


def to_pixels(boxes_cxcywh: Float[AnyArray, "*b n 4"], size_px: AnyArray) -> Float[AnyArray, "*b n 4"]:
    """Corners (x1, y1, x2, y2) in pixels of an image of ``size_px`` = (width, height), [*b, 2]; not clipped."""
    scale = size_px[..., None, [0, 1, 0, 1]]
    if isinstance(boxes_cxcywh, np.ndarray):
        centre, half = boxes_cxcywh[..., :2], 0.5 * boxes_cxcywh[..., 2:]
        return np.concatenate([centre - half, centre + half], -1) * scale
    from dfine_jax.ops.boxes import cxcywh_to_xyxy

    return cxcywh_to_xyxy(boxes_cxcywh) * scale


def detections(
    logits: Float[AnyArray, "q k"],
    boxes_cxcywh: Float[AnyArray, "q 4"],
    size_px: tuple[float, float],
    threshold: float = 0.0,
    num_top: int = 300,
) -> Detections:
    """Detections of one image on the host: those scoring at least ``threshold``, best first.

    Args:
      size_px: (width, height) of the original image.
    """
    answer = Answer(np.asarray(logits, np.float32)[None], np.asarray(boxes_cxcywh, np.float32)[None])
    scores, labels, boxes = select(answer, num_top)
    boxes_px = to_pixels(boxes[0], np.asarray(size_px, np.float32))
    keep = np.asarray(scores[0] >= threshold)
    return Detections(np.asarray(scores[0])[keep], np.asarray(labels[0])[keep], np.asarray(boxes_px)[keep])


def _expit(x: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
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
