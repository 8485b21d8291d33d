"""Four images in one (mosaic) and two batches rows in one (MixUp).

Distributions of the grid and of MixUp as in DEIM (engine/data/transforms/mosaic.py, engine/data/dataloader.py), of the
mosaic with a random centre as in YOLO and D-FINE-seg.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from dfine_jax.config import DataConfig
from dfine_jax.data.augment import masks as object_masks
from dfine_jax.data.augment.geometry import GREY, rotation, warped
from dfine_jax.data.augment.sample import Sample, make_sample, selected
from dfine_jax.data.picture.resampling import inner_px, resized

_CENTRE = (0.6, 1.4)  # of the input's sides
_MIN_SIDE_PX, _MIN_SHARE, _MAX_ASPECT = 2.0, 0.1, 20.0  # of a box that a mosaic with a random centre keeps
_BLOCK_ROWS = 64  # temporaries of MixUp stay in the cache


def tile(sample: Sample, config: DataConfig) -> Sample:
    """A whole image as one quarter of a mosaic.

    Of a grid it has its aspect, and half the input's short side as its own; else it is resized as the input is.
    """
    width, height = sample.size_px
    if config.mosaic_layout == "random_centre":
        *_, wide, high = inner_px((width, height), config.height_px, config.width_px, config.resize == "letterbox")
    else:
        short, short_side_px = min(width, height), min(config.height_px, config.width_px) // 2
        wide, high = int(short_side_px * width / short), int(short_side_px * height / short)
    scale = wide / width, high / height
    return make_sample(
        resized(sample.image, high, wide, config.interpolation or "bilinear_antialias"),
        sample.boxes_xyxy_px * np.array(scale * 2, np.float32),
        sample.labels,
        object_masks.moved(sample.masks, scale, (0, 0)),
    )


def mosaic(rng: np.random.Generator, tiles: Sequence[Sample], config: DataConfig) -> Sample:
    """Four tiles, top left to bottom right, under one random affine map."""
    make = _around_a_point if config.mosaic_layout == "random_centre" else _in_a_grid
    return make(rng, tiles, config)


def _in_a_grid(rng: np.random.Generator, tiles: Sequence[Sample], config: DataConfig) -> Sample:
    """On black, each at the top left of its cell; the affine map leaves the size of the whole."""
    cell_width, cell_height = (max(t.size_px[axis] for t in tiles) for axis in (0, 1))
    corners = [(0, 0), (cell_width, 0), (0, cell_height), (cell_width, cell_height)]
    sample = _joined(tiles, corners, (2 * cell_width, 2 * cell_height), (0, 0, 0))
    return warped(sample, random_affine(rng, sample.size_px, sample.size_px, config), sample.size_px)


def _around_a_point(rng: np.random.Generator, tiles: Sequence[Sample], config: DataConfig) -> Sample:
    """On grey of twice the input's sides, all touching one point; the affine map shows a part as large as the input.

    What the map leaves less than two pixels wide or high, less than a tenth of what its scale makes of it, or twenty
    times longer than wide is dropped.
    """
    size = np.array([config.width_px, config.height_px])
    x, y = (size * rng.uniform(*_CENTRE, 2)).astype(int).tolist()
    sides = [t.size_px for t in tiles]
    corners = [(x - sides[0][0], y - sides[0][1]), (x, y - sides[1][1]), (x - sides[2][0], y), (x, y)]
    width, height = (2 * size).tolist()
    sample = _joined(tiles, corners, (width, height), GREY)
    sample = sample._replace(
        boxes_xyxy_px=sample.boxes_xyxy_px.clip(0, np.array([width, height] * 2, np.float32)),
        masks=object_masks.cut(sample.masks, (width, height)),
    )
    matrix = random_affine(rng, sample.size_px, (config.width_px, config.height_px), config)
    out = warped(sample, matrix, (config.width_px, config.height_px), Image.Resampling.BILINEAR, GREY)
    before, after = (np.diff(v.boxes_xyxy_px.reshape(-1, 2, 2), axis=1)[:, 0] for v in (sample, out))
    scaled = before.prod(1) * abs(np.linalg.det(matrix[:, :2]))
    low, high = after.min(1), after.max(1)
    return selected(out, (low > _MIN_SIDE_PX) & (after.prod(1) > _MIN_SHARE * scaled) & (high < _MAX_ASPECT * low))


def _joined(
    tiles: Sequence[Sample], corners: Sequence[tuple[int, int]], size_px: tuple[int, int], fill: tuple[int, int, int]
) -> Sample:
    """Tiles at their corners on a canvas of (width, height)."""
    canvas = Image.new("RGB", size_px, fill)
    placed, boxes = [], []
    for part, corner in zip(tiles, corners, strict=True):
        canvas.paste(part.image, corner)
        boxes.append(part.boxes_xyxy_px + np.array(corner * 2, np.float32))
        placed.append(object_masks.moved(part.masks, (1, 1), corner))
    labels = np.concatenate([part.labels for part in tiles])
    return make_sample(canvas, np.concatenate(boxes), labels, object_masks.concatenated(placed))


def random_affine(
    rng: np.random.Generator, size_px: tuple[int, int], target_px: tuple[int, int], config: DataConfig
) -> Float[np.ndarray, "2 3"]:
    """Rotation, scaling and shear about the centre of a canvas of (width, height), which comes to that of another.

    A shift of whole pixels follows, of up to a share of the other. The limits are ``mosaic_*`` of the configuration.
    """
    most_deg = config.mosaic_rotation_deg
    angle = math.radians(rng.uniform(-most_deg, most_deg))
    room = [config.mosaic_translation * side for side in target_px]
    shift = np.array([round(rng.uniform(-side, side)) for side in room], np.float64)
    smallest, largest = config.mosaic_scale
    linear = rng.uniform(smallest, largest) * rotation(angle)
    if config.mosaic_shear_deg:
        across, down = np.tan(np.radians(rng.uniform(-config.mosaic_shear_deg, config.mosaic_shear_deg, 2)))
        linear = np.array([[1, across], [down, 1]]) @ linear
    offset = np.array(target_px) / 2 + shift - linear @ (np.array(size_px) / 2)
    return np.column_stack([linear, offset])


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
