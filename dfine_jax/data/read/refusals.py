"""What is wrong with an annotation, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from dfine_jax.data.read.values import OTHER_FLAGS, box_column, first_repeated, flag, is_id, shown
from dfine_jax.errors import RepairableError, UserError


def check_repeated(ids: Int64[np.ndarray, " n"], source: Path) -> None:
    """UserError if an annotation's id occurred before."""
    repeated = first_repeated(ids)
    if repeated is not None:
        raise RepairableError(
            f"{source}: annotation {ids[repeated]} occurs twice; number the annotations through all images"
        )


def refuse(entry: Any, position: int, source: Path, is_listed: bool) -> None:
    """Say what is wrong with an annotation, ``is_listed`` being whether its image is."""
    if not isinstance(entry, dict) or not is_id(entry.get("id")):
        raise RepairableError(
            f"{source}: annotation number {position} has no integer 'id' of at most 64 bits; number the annotations"
        )
    name = f"{source}: annotation {entry['id']}"
    for key in ("image_id", "category_id", "bbox"):
        if key not in entry:
            refusal = UserError if key == "category_id" else RepairableError
            raise refusal(f"{name} has no {key!r}; export the file as COCO detection")
    for key in ("image_id", "category_id"):
        if isinstance(entry[key], (list, dict)):
            refusal = UserError if key == "category_id" else RepairableError
            raise refusal(f"{name} has {key} {shown(entry[key])}; it must be the number of one entry")
    if not is_listed:
        raise RepairableError(
            f"{name} refers to image {shown(entry['image_id'])}, which is not listed; remove it or list it"
        )
    if box_column([entry["bbox"]])[2].any():
        raise RepairableError(f"{name} has bbox {shown(entry['bbox'])}; it must be [x, y, width, height] in pixels")
    wrong = next(key for key in ("iscrowd", *OTHER_FLAGS) if flag(entry.get(key)) is None)
    raise UserError(
        f"{name} has {wrong} {shown(entry[wrong])}; it must be 0 for an object or 1 for a region to be ignored"
    )
