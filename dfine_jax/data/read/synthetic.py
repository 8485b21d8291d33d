"""A small detection and segmentation dataset that is made, not downloaded: bright shapes on textured ground.

The class is the shape alone; colour, size, rotation, shading and overlap vary. Annotations are COCO JSON with visible
masks (polygons, run lengths where something covers the shape), and category ids with gaps, as real datasets have them.
"""

from __future__ import annotations

import colorsys
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from dfine_jax.data.picture.images import save_picture
from dfine_jax.system.files import write_whole

CATEGORIES = {3: "circle", 7: "rectangle", 8: "triangle", 20: "star"}

_SUPERSAMPLE = 2  # drawn larger and reduced, for smooth edges
_MASK_SAMPLES = 4
_MAX_SHAPES = 7
_EMPTY_SHARE = 0.03  # images without objects
_SIZE_SHARE = (0.11, 0.42)  # diameter of a shape, of the image side
_MIN_VISIBLE = 0.45  # share of a shape that stays uncovered
_MIN_VISIBLE_PX = 24
_PLACEMENT_TRIALS = 20
_JPEG_QUALITY = 92


def make_shapes_dataset(directory: Path | str, num_train: int, num_val: int, size_px: int, seed: int) -> Path:
    """Write ``train/``, ``val/`` and ``annotations/instances_{train,val}.json``; returns the folder.

    The pictures are square with ``size_px`` pixels a side. The same arguments give the same dataset; image i does not
    depend on the number of images.
    """
    root = Path(directory)
    for stream, (split, count) in enumerate((("train", num_train), ("val", num_val))):
        images, annotations = [], []
        for index in range(count):
            picture, objects = draw_scene(np.random.default_rng((seed, stream, index)), size_px)
            name = f"{index + 1:06d}.jpg"
            save_picture(picture, root / split / name, quality=_JPEG_QUALITY)
            images.append({"id": index + 1, "file_name": name, "width": size_px, "height": size_px})
            for entry in objects:
                annotations.append({"id": len(annotations) + 1, "image_id": index + 1, "iscrowd": 0, **entry})
        categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in CATEGORIES.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_whole(root / "annotations" / f"instances_{split}.json", json.dumps(content))
    return root


def draw_scene(rng: np.random.Generator, size_px: int) -> tuple[Image.Image, list[dict[str, Any]]]:
    """One picture and its objects (category_id, bbox, area, segmentation)."""
    canvas_px = size_px * _SUPERSAMPLE
    picture = Image.fromarray(_ground(rng, size_px)).resize((canvas_px, canvas_px), Image.Resampling.BICUBIC)
    count = 0 if rng.random() < _EMPTY_SHARE else int(rng.integers(1, _MAX_SHAPES + 1))
    owner = np.zeros((size_px, size_px), np.uint8)  # which object each pixel shows; 0 = ground
    placed: list[tuple[int, list[tuple[float, float]], int]] = []  # category, outline, area when uncovered
    for _ in range(count):
        category = int(rng.choice(list(CATEGORIES)))
        for _ in range(_PLACEMENT_TRIALS):
            outline = _outline(rng, CATEGORIES[category], size_px)
            mask = _mask(outline, size_px)
            if _leaves_others_visible(owner, mask, [area for *_, area in placed]):
                placed.append((category, outline, int(mask.sum())))
                owner[mask] = len(placed)
                _paint(rng, picture, outline, size_px)
                break
    picture = picture.resize((size_px, size_px), Image.Resampling.BOX)
    return picture, [_annotation(owner == i + 1, *shape) for i, shape in enumerate(placed)]


def _ground(rng: np.random.Generator, size_px: int) -> UInt8[np.ndarray, "h w 3"]:
    """Muted colour gradient, soft blotches, oblique stripes and grain."""
    y, x = np.mgrid[0:size_px, 0:size_px] / size_px
    angle = rng.uniform(0, 2 * math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    first, second = (_colour(rng, saturation=(0.1, 0.4), value=(0.3, 0.75)) for _ in range(2))
    mix = (along - along.min()) / np.ptp(along)
    ground = first + (second - first) * mix[..., None]
    blotches = Image.fromarray(rng.integers(0, 256, (7, 7), np.uint8)).resize(
        (size_px, size_px), Image.Resampling.BICUBIC
    )
    ground += (np.asarray(blotches, np.float64)[..., None] - 128) * rng.uniform(0.1, 0.3)
    ground += (np.sin(along * rng.uniform(20, 90)) * rng.uniform(0, 10))[..., None]
    ground += rng.normal(0, rng.uniform(1, 6), (size_px, size_px, 1))
    return ground.clip(0, 255).astype(np.uint8)


def _colour(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> Float[np.ndarray, "3"]:
    return 255 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value)))


def _outline(rng: np.random.Generator, shape: str, size_px: int) -> list[tuple[float, float]]:
    """Corner points in pixels, wholly inside the picture."""
    low, high = _SIZE_SHARE
    radius = size_px / 2 * low * (high / low) ** rng.random()  # even over scales
    turn = rng.uniform(0, 2 * math.pi)
    if shape == "circle":
        polar = [(2 * math.pi * i / 40, 1.0) for i in range(40)]
    elif shape == "rectangle":
        half = math.atan(rng.uniform(0.75, 1.0))
        polar = [(a, 1.0) for a in (half, math.pi - half, math.pi + half, -half)]
    elif shape == "triangle":
        polar = [(2 * math.pi * i / 3, 1.0) for i in range(3)]
    else:
        polar = [(2 * math.pi * i / 10, 0.45 if i % 2 else 1.0) for i in range(10)]
    x, y = rng.uniform(radius + 1, size_px - radius - 1, 2)
    return [(x + radius * r * math.cos(a + turn), y + radius * r * math.sin(a + turn)) for a, r in polar]


def _mask(outline: list[tuple[float, float]], size_px: int) -> Bool[np.ndarray, "h w"]:
    """Pixels of which the outline covers at least half."""
    (left, top), local, size = _drawn_at(outline, _MASK_SAMPLES)
    drawn = Image.new("L", size)
    ImageDraw.Draw(drawn).polygon(local, fill=255)
    whole = Image.new("L", (size_px, size_px))
    whole.paste(drawn.reduce(_MASK_SAMPLES), (left, top))
    return np.asarray(whole) > 127


def _drawn_at(
    outline: list[tuple[float, float]], samples: int
) -> tuple[tuple[int, int], list[tuple[float, float]], tuple[int, int]]:
    """Corner in whole pixels, points relative to it on a grid ``samples`` times finer, size of that grid.

    Pillow counts from the middle of the first pixel, COCO from its corner; hence the half.
    """
    (left, right), (top, bottom) = (
        (math.floor(min(axis)) - 1, math.ceil(max(axis)) + 1) for axis in zip(*outline, strict=True)
    )
    local = [((x - left) * samples - 0.5, (y - top) * samples - 0.5) for x, y in outline]
    return (left, top), local, ((right - left) * samples, (bottom - top) * samples)


def _leaves_others_visible(owner: UInt8[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], areas: list[int]) -> bool:
    """Whether every shape already there keeps enough of itself under a new one."""
    remaining = np.bincount(owner[~mask], minlength=len(areas) + 1)[1:]
    needed = [max(_MIN_VISIBLE * area, _MIN_VISIBLE_PX) for area in areas]
    return int(mask.sum()) >= _MIN_VISIBLE_PX and all(np.array(remaining) >= needed)


def _paint(rng: np.random.Generator, picture: Image.Image, outline: list[tuple[float, float]], size_px: int) -> None:
    """Fill with a shaded bright colour, a darker rim and, at times, a soft shadow."""
    colour = _colour(rng, saturation=(0.6, 1.0), value=(0.75, 1.0))
    corner, local, (width, height) = _drawn_at(outline, _SUPERSAMPLE)
    left, top = (value * _SUPERSAMPLE for value in corner)
    if rng.random() < 0.5:
        offset = max(2, size_px // 80) * _SUPERSAMPLE // 2
        shadow = Image.new("L", (width, height))
        ImageDraw.Draw(shadow).polygon(local, fill=90)
        picture.paste((10, 10, 20), (left + offset, top + offset), shadow)
    light = rng.uniform(-0.28, 0.28, 2)
    shade = 1 + light[0] * np.linspace(-1, 1, width)[None] + light[1] * np.linspace(-1, 1, height)[:, None]
    body = Image.fromarray((colour * shade[..., None]).clip(0, 255).astype(np.uint8))
    rim = tuple(int(v * 0.45) for v in colour)
    ImageDraw.Draw(body).polygon(local, outline=rim, width=max(1, size_px // 160) * _SUPERSAMPLE)
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).polygon(local, fill=255)
    picture.paste(body, (left, top), mask)


def _annotation(
    visible: Bool[np.ndarray, "h w"], category: int, outline: list[tuple[float, float]], whole_area: int
) -> dict[str, Any]:
    """COCO entry of the visible part: a polygon when nothing covers it, else uncompressed run lengths."""
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    x, y = int(columns[0]), int(rows[0])
    area = int(visible.sum())
    polygon = [[round(value, 1) for point in outline for value in point]]
    return {
        "category_id": category,
        "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
        "area": area,
        "segmentation": polygon if area == whole_area else uncompressed_run_lengths(visible),
    }


def uncompressed_run_lengths(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """COCO's uncompressed run lengths: columns first, starting with the length of a run of zeros."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False)) if len(flat) else np.array([], np.int64)
    edges = np.concatenate([[0], changes, [flat.size]])
    return {"size": list(mask.shape), "counts": np.diff(edges).tolist()}
