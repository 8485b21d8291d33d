"""Operations that move pixels: mirroring, quarter turns, and one affine map of the whole picture."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from PIL import Image

from dfine_jax.data.augment import masks as object_masks
from dfine_jax.data.augment.sample import Sample, chance, make_sample
from dfine_jax.ops.boxes import mapped_boxes

GREY = (114, 114, 114)  # beside a rotated picture; of YOLO and those after it
_LEFT_RIGHT, _UP_DOWN = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM
_TO_THE_LEFT, _TO_THE_RIGHT = Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270
_LINEAR = {  # of (x, y), y downwards
    _LEFT_RIGHT: ((-1, 0), (0, 1)),
    _UP_DOWN: ((1, 0), (0, -1)),
    _TO_THE_LEFT: ((0, 1), (-1, 0)),
    _TO_THE_RIGHT: ((0, -1), (1, 0)),
}


def flip(rng: np.random.Generator, sample: Sample, prob: float) -> Sample:
    """Mirror left and right."""
    return transposed(sample, _LEFT_RIGHT) if rng.random() < prob else sample


def flip_vertical(rng: np.random.Generator, sample: Sample, prob: float) -> Sample:
    """Mirror up and down."""
    return transposed(sample, _UP_DOWN) if chance(rng, prob) else sample


def turn_90(rng: np.random.Generator, sample: Sample, prob: float) -> Sample:
    """A quarter turn, to either side alike often; the picture becomes as wide as it was high."""
    if not chance(rng, prob):
        return sample
    return transposed(sample, _TO_THE_LEFT if rng.random() < 0.5 else _TO_THE_RIGHT)


def rotate(rng: np.random.Generator, sample: Sample, prob: float, most_deg: float) -> Sample:
    """About the centre by up to so much either way, on a picture of the same size; grey where nothing is left."""
    if not chance(rng, prob):
        return sample
    centre = np.array(sample.size_px) / 2
    linear = rotation(math.radians(rng.uniform(-most_deg, most_deg)))
    matrix = np.column_stack([linear, centre - linear @ centre])
    return warped(sample, matrix, sample.size_px, Image.Resampling.BILINEAR, GREY)


def rotation(angle_rad: float) -> Float[np.ndarray, "2 2"]:
    """Linear map that turns by an angle."""
    cos, sin = math.cos(angle_rad), math.sin(angle_rad)
    return np.array([[cos, -sin], [sin, cos]])


def transposed(sample: Sample, how: Image.Transpose) -> Sample:
    """The sample mirrored or turned by a quarter: pixels change places, nothing is resampled."""
    matrix = _in_place(how, sample.size_px)
    window = mapped_boxes(np.array([sample.window_px], np.float64), _in_place(how, sample.image.size))[0]
    left, top, right, bottom = window.astype(int).tolist()
    return sample._replace(
        image=sample.image.transpose(how),
        window_px=(left, top, right, bottom),
        boxes_xyxy_px=mapped_boxes(sample.boxes_xyxy_px, matrix).astype(np.float32),
        masks=object_masks.mapped(sample.masks, matrix),
    )


def _in_place(how: Image.Transpose, size_px: tuple[int, int]) -> Float[np.ndarray, "2 3"]:
    """The map that brings a picture of (width, height) back to the origin."""
    linear = np.array(_LINEAR[how], np.float64)
    return np.column_stack([linear, -linear.clip(max=0) @ size_px])


def warped(
    sample: Sample,
    matrix: Float[np.ndarray, "2 3"],
    size_px: tuple[int, int],
    resampling: Image.Resampling = Image.Resampling.NEAREST,
    fill: tuple[int, int, int] = (0, 0, 0),
) -> Sample:
    """A sample that shows its whole image, under an affine map, on a canvas of (width, height).

    A box becomes the extent of its mapped corners, cut at the canvas; what is left without area, ``sanitize`` drops.
    """
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    image = sample.image.transform(size_px, Image.Transform.AFFINE, tuple(inverse.ravel()), resampling, fillcolor=fill)
    boxes = mapped_boxes(sample.boxes_xyxy_px, matrix).clip(0, [*size_px, *size_px])
    masks = object_masks.cut(object_masks.mapped(sample.masks, matrix), size_px)
    return make_sample(image, boxes.astype(np.float32), sample.labels, masks)
