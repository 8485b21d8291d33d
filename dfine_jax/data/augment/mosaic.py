"""DEIM's dense supervision: four images in one (mosaic) and two batches rows in one (MixUp).

Distributions as in DEIM (engine/data/transforms/mosaic.py, engine/data/dataloader.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from dfine_jax.data.augment import masks as object_masks
from dfine_jax.data.augment.transforms import Sample, make_sample
from dfine_jax.ops.boxes import mapped_boxes

_ROTATION_DEG = 10.0
_TRANSLATION = 0.1  # of the canvas
_SCALE = (0.5, 1.5)
_BLOCK_ROWS = 64  # temporaries of MixUp stay in the cache


def tile(sample: Sample, short_side_px: int) -> Sample:
    """A whole image, aspect kept, its short side resized: one quarter of a mosaic."""
    width, height = sample.size_px
    short = min(width, height)
    size = int(short_side_px * width / short), int(short_side_px * height / short)
    scale = size[0] / width, size[1] / height
    return make_sample(
        sample.image.resize(size, Image.Resampling.BILINEAR),
        sample.boxes_xyxy_px * np.array(scale * 2, np.float32),
        sample.labels,
        object_masks.moved(sample.masks, scale, (0, 0)),
    )


def mosaic(rng: np.random.Generator, tiles: Sequence[Sample]) -> Sample:
    """Four tiles on black, top left to bottom right, then one random affine map of the whole."""
    cell_width, cell_height = (max(t.size_px[axis] for t in tiles) for axis in (0, 1))
    canvas = Image.new("RGB", (2 * cell_width, 2 * cell_height))
    corners = [(0, 0), (cell_width, 0), (0, cell_height), (cell_width, cell_height)]
    placed, boxes = [], []
    for part, corner in zip(tiles, corners, strict=True):
        canvas.paste(part.image, corner)
        boxes.append(part.boxes_xyxy_px + np.array(corner * 2, np.float32))
        placed.append(object_masks.moved(part.masks, (1, 1), corner))
    sample = make_sample(
        canvas,
        np.concatenate(boxes),
        np.concatenate([part.labels for part in tiles]),
        object_masks.concatenated(placed),
    )
    return warped(sample, random_affine(rng, canvas.width, canvas.height))


def random_affine(rng: np.random.Generator, width_px: int, height_px: int) -> Float[np.ndarray, "2 3"]:
    """Rotation by up to 10 degrees and scaling by 0.5 to 1.5 about the centre, then a shift of up to 10 %."""
    angle = math.radians(rng.uniform(-_ROTATION_DEG, _ROTATION_DEG))
    room = _TRANSLATION * width_px, _TRANSLATION * height_px
    shift = np.array([round(rng.uniform(-side, side)) for side in room], np.float64)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = rng.uniform(*_SCALE) * np.array([[cos, -sin], [sin, cos]])
    centre = np.array([width_px, height_px]) / 2
    return np.concatenate([turn, (centre + shift - turn @ centre)[:, None]], axis=1)


def warped(sample: Sample, matrix: Float[np.ndarray, "2 3"]) -> Sample:
    """The sample under an affine map on a canvas of the same size: pixels by nearest neighbour, black outside.

    A box becomes the extent of its mapped corners, cut at the canvas; what is left without area, ``sanitize`` drops.
    """
    width, height = sample.size_px
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    image = sample.image.transform(
        sample.image.size, Image.Transform.AFFINE, tuple(inverse.ravel()), Image.Resampling.NEAREST
    )
    boxes = mapped_boxes(sample.boxes_xyxy_px, matrix).clip(0, [width, height] * 2)
    masks = object_masks.cut(object_masks.mapped(sample.masks, matrix), (width, height))
    return make_sample(image, boxes.astype(np.float32), sample.labels, masks)


def mix_pixels(
    first: UInt8[np.ndarray, "h w 3"], second: UInt8[np.ndarray, "h w 3"], share: float, out: UInt8[np.ndarray, "h w 3"]
) -> None:
    """``out`` = share * first + (1 - share) * second, rounded to bytes; ``out`` may be ``first``."""
    for start in range(0, len(first), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        mixed: Float32[np.ndarray, "r w 3"] = first[block] * np.float32(share)
        mixed += second[block] * np.float32(1 - share)
        mixed += np.float32(0.5)
        out[block] = mixed
