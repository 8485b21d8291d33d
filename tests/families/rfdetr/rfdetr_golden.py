"""Weights and pictures of RF-DETR's reference numbers, rebuilt from their names; nothing here is the library's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden_fill
import numpy as np

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
# COCO's category ids, which are the rows of its heads.
USED = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 27, 28, 31, 32, 33, 34, 35,
    36, 37, 38, 39, 40, 41, 42, 43, 44, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65,
    67, 70, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 84, 85, 86, 87, 88, 89, 90,
]  # fmt: skip
UNUSED = [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]


def state_dict(manifest: Path) -> dict[str, np.ndarray]:
    """The official state dict of a manifest, in its order, with the empty buffer in front."""
    listed = json.loads(manifest.read_text())
    out: dict[str, np.ndarray] = {"_kp_active_mask": np.zeros((0, 0), np.bool_)}
    for key, shape in listed["random"].items():
        scale, shift = (np.float32(x) for x in listed["affine"].get(key, (1.0, 0.0)))
        values = golden_fill.fill(key, tuple(shape), listed["seed"])
        out[key] = (shift + scale * values).astype(np.float32) if key in listed["affine"] else values
    return out


def images(height: int, width: int, batch: int, dtype: Any = np.float32) -> np.ndarray:
    """Pictures that, normalised by ImageNet's numbers in ``dtype``, are what the reference was given."""
    found = golden_fill.image(height, width, batch)
    if dtype == np.float32:
        return found
    given = (found - MEAN) / DEVIATION  # in float32, as there
    return given.astype(dtype) * DEVIATION.astype(dtype) + MEAN.astype(dtype)
