"""An image with its objects on the way to the model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32
from PIL import Image

from dfine_jax.data.augment import masks as object_masks
from dfine_jax.data.augment.masks import Masks
from dfine_jax.ops.boxes import xyxy_to_cxcywh

_MIN_SIZE_PX = 1.0


class Distortion(NamedTuple):
    """Photometric distortion to be applied; None leaves a step out."""

    brightness: float | None
    contrast: float | None
    contrast_first: bool  # before saturation and hue, or after them
    saturation: float | None
    hue: float | None  # turn of the colour circle, as a fraction
    channels: tuple[int, ...] | None


class Sample(NamedTuple):
    """An image with its objects on the way to the model.

    ``window_px`` = (left, top, right, bottom) is what is visible, in pixels of ``image``; it may reach beyond it.
    Boxes are pixels relative to the window's corner.
    """

    image: Image.Image  # RGB
    window_px: tuple[int, int, int, int]
    boxes_xyxy_px: Float32[np.ndarray, "g 4"]
    labels: Int32[np.ndarray, " g"]
    distortion: Distortion | None = None
    masks: Masks | None = None  # relative to the window's corner, as the boxes; None: not asked for

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) of the window."""
        left, top, right, bottom = self.window_px
        return right - left, bottom - top


def make_sample(
    image: Image.Image,
    boxes_xyxy_px: Float32[np.ndarray, "g 4"],
    labels: Int32[np.ndarray, " g"],
    masks: Masks | None = None,
) -> Sample:
    """A sample that shows the whole image."""
    return Sample(image, (0, 0, *image.size), boxes_xyxy_px, labels, masks=masks)


def sanitize(sample: Sample) -> Sample:
    """Drop objects narrower or lower than one pixel, or reaching beyond the window."""
    boxes = sample.boxes_xyxy_px
    size = boxes[:, 2:] - boxes[:, :2]
    inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] <= sample.size_px).all(1)
    return selected(sample, np.asarray((size >= _MIN_SIZE_PX).all(1) & inside))


def selected(sample: Sample, keep: Bool[np.ndarray, " g"]) -> Sample:
    """The sample with those of its objects that are kept."""
    if keep.all():
        return sample
    masks = object_masks.select(sample.masks, keep)
    return sample._replace(boxes_xyxy_px=sample.boxes_xyxy_px[keep], labels=sample.labels[keep], masks=masks)


def chance(rng: np.random.Generator, prob: float) -> bool:
    """Whether something of a probability happens; nothing is drawn for what never does."""
    return prob > 0 and bool(rng.random() < prob)


def normalised_cxcywh(sample: Sample) -> Float32[np.ndarray, "g 4"]:
    """Centres and sizes as fractions of the window."""
    return xyxy_to_cxcywh(sample.boxes_xyxy_px) / np.array(sample.size_px * 2, np.float32)
