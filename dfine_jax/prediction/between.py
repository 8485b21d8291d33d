"""What passes between the parts of a detection: preprocessing, the network, the choice of its answers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from dfine_jax.data.picture.object_masks import MapMasks
from dfine_jax.data.read.dataset import Classes
from dfine_jax.ops.postprocess import clipped
from dfine_jax.prediction.result import DetectionResult
from dfine_jax.prediction.sources import Given
from dfine_jax.serving.backends.base import PixelPredictions


class Chosen(NamedTuple):
    """Which detections of an image become its result."""

    threshold: float
    labels: frozenset[int] | None = None  # class indices; None: all


class Preprocessed(NamedTuple):
    """A picture as the network takes it, and what leads from there back to the picture."""

    image: UInt8[np.ndarray, "h w 3"]  # of the model's input size
    view_px: tuple[float, float, float, float]  # what it shows of the picture, see ``Preprocess.view_px``
    size_px: tuple[int, int]  # (width, height) of the picture
    source: Given  # results draw in it


def result_of(
    found: PixelPredictions, row: int, picture: Preprocessed, chosen: Chosen, classes: Classes, mask_threshold: float
) -> DetectionResult:
    """What is chosen of the network's detections of a picture, which is this row of its batch."""
    size_px, source = picture.size_px, picture.source
    keep = found.scores[row] >= chosen.threshold
    if chosen.labels is not None:
        keep &= np.isin(found.labels[row], list(chosen.labels))
    labels, boxes_px, masks = found.labels[row][keep], found.boxes_xyxy_px[row][keep], None
    boxes_px = clipped(boxes_px, np.asarray(size_px)) if found.rules.clip_boxes else boxes_px
    if found.masks_logit is not None:
        masks = MapMasks(
            found.masks_logit[row][np.flatnonzero(keep)],
            boxes_px,
            picture.view_px,
            size_px,
            mask_threshold,
            found.rules.cut_to_boxes,
            found.rules.interpolated,
        )
    return DetectionResult(
        boxes_xyxy_px=boxes_px,
        scores=found.scores[row][keep],
        labels=labels,
        names=tuple(classes.names[i] for i in labels),
        category_ids=tuple(classes.ids[i] for i in labels),
        size_px=size_px,
        object_masks=masks,
        source=source if source.held else source.stored,
    )
