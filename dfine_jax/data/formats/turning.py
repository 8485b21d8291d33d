"""Annotations of the stored pixels as those of the upright picture, and back, where EXIF says that they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfine_jax.data.picture.images import orientation

_BACK = {6: 8, 8: 6}  # every other orientation undoes itself


def upright_orientation(path: Path) -> int:
    """EXIF orientation of a picture: how its stored pixels are to be turned; 1 is as stored."""
    found = orientation(path)
    return found if 2 <= found <= 8 else 1


def backwards(number: int) -> int:
    """The orientation that turns the upright picture into the stored one."""
    return _BACK.get(number, number)


def turned(annotation: dict[str, Any], size_px: tuple[int, int], number: int) -> dict[str, Any]:
    """The annotation of a picture of (width, height) after the picture was turned by an EXIF orientation."""
    if number == 1:
        return annotation
    x, y, w, h = annotation["bbox"]
    corners = _turned_points([x, y, x + w, y + h], size_px, number)
    xs, ys = sorted(corners[::2]), sorted(corners[1::2])
    out = {**annotation, "bbox": [xs[0], ys[0], xs[1] - xs[0], ys[1] - ys[0]]}
    shape = annotation.get("segmentation")
    if isinstance(shape, list):
        out["segmentation"] = [_turned_points(part, size_px, number) for part in shape]
    elif isinstance(shape, dict):
        out["segmentation"] = _turned_mask(shape, number)
    return out


def _turned_points(points: Sequence[float], size_px: tuple[int, int], number: int) -> list[float]:
    across, down = size_px
    out: list[float] = []
    for x, y in zip(points[::2], points[1::2], strict=True):
        out += {
            2: (across - x, y),
            3: (across - x, down - y),
            4: (x, down - y),
            5: (y, x),
            6: (down - y, x),
            7: (down - y, across - x),
            8: (y, across - x),
        }[number]
    return out


def _turned_mask(shape: dict[str, Any], number: int) -> dict[str, Any]:
    bitmap = decode_mask(shape)
    turns = {
        2: bitmap[:, ::-1],
        3: bitmap[::-1, ::-1],
        4: bitmap[::-1],
        5: bitmap.T,
        6: np.rot90(bitmap, -1),
        7: bitmap[::-1, ::-1].T,
        8: np.rot90(bitmap),
    }
    return encode_mask(turns[number])


def encode_mask(bitmap: np.ndarray) -> dict[str, Any]:
    """COCO's run lengths of a picture of zeros and ones, ready for JSON."""
    from pycocotools import mask as coco_mask

    encoded: Any = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}


def decode_mask(shape: dict[str, Any]) -> np.ndarray:
    """The picture of zeros and ones in COCO's run lengths, compressed or plain."""
    from pycocotools import mask as coco_mask

    encoded: Any = shape
    if isinstance(shape["counts"], list):
        encoded = coco_mask.frPyObjects(encoded, *shape["size"])
    elif isinstance(shape["counts"], str):
        encoded = {**shape, "counts": shape["counts"].encode()}
    return coco_mask.decode(encoded)
