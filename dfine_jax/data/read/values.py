"""What the values of an annotation file mean, whatever JSON type a tool wrote them in; single ones and columns."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from msgspec import UNSET

REPAIR = "dfine check --data DIR --repair OUT"  # what findings name where it cures the matter

OTHER_FLAGS = ("ignore", "difficult")  # of objects that count like crowd regions: not trained on, no error to find

_MOST_SHOWN = 80
_MOST_SIDE_PX = 2**31
_MANY = 0.2  # of the boxes reach beyond their pictures: no rounding, but another meaning
_FLAGS = {
    **dict.fromkeys(("0", "0.0", "false", "no", "none", "null", ""), False),
    **dict.fromkeys(("1", "1.0", "true", "yes"), True),
}


def is_id(value: Any) -> bool:
    """Whether it can be an id: an integer of 64 bits, as batches carry them."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def whole(value: Any) -> int | None:
    """The id that a number stands for (1.0 is 1); None for anything else."""
    if is_id(value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() and is_id(int(value)) else None


def size_of(width: Any, height: Any) -> tuple[int, int] | None:
    """(width, height) in pixels, whole numbers of any type (640.0, "640"); None where a file does not say them."""
    if type(width) is int and type(height) is int and 0 < width < _MOST_SIDE_PX and 0 < height < _MOST_SIDE_PX:
        return width, height
    sides = []
    for value in (width, height):
        try:
            side = float(value)
        except (TypeError, ValueError, OverflowError):
            return None
        if isinstance(value, bool) or not 1 <= side < _MOST_SIDE_PX or side != int(side):
            return None
        sides.append(int(side))
    return sides[0], sides[1]


def finite(value: Any) -> bool:
    """Whether it is a number that arithmetic can take."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def flag(value: Any) -> bool | None:
    """Whether a flag is set: 0 and 1, false and true, no and yes, as any type, and nothing; None for the rest."""
    if value is None:
        return False
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def is_ignored(entry: dict[str, Any]) -> bool:
    """Whether an annotation is a crowd region, or an object that counts like one."""
    return any(flag(entry.get(name)) for name in ("iscrowd", *OTHER_FLAGS))


def shown(value: Any, most: int = _MOST_SHOWN) -> str:
    """A value for a message, shortened."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def first_repeated(ids: Int64[np.ndarray, " n"]) -> int | None:
    """Position of the first value that occurred before."""
    if (ids[1:] > ids[:-1]).all():
        return None
    order = np.argsort(ids, kind="stable")
    again = order[1:][ids[order[1:]] == ids[order[:-1]]]
    return int(again.min()) if len(again) else None


def id_column(values: list[Any], typed: bool = False) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Values, and which are no integers of 64 bits; ``typed``: they are integers of any size, or missing."""
    if typed or set(map(type, values)) <= {int}:
        try:
            return np.array(values, np.int64), np.zeros(len(values), bool)
        except (OverflowError, TypeError):
            pass
    good = [is_id(value) for value in values]
    return np.array([v if ok else 0 for v, ok in zip(values, good, strict=True)], np.int64), ~np.array(good, bool)


def whole_column(
    values: list[Any], typed: bool = False
) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"], dict[int, Any]]:
    """As ``id_column``, but 1.0 is 1; and the values that are not whole numbers, by row."""
    column, wrong = id_column(values, typed)
    unusual = {}
    for row in np.flatnonzero(wrong).tolist():
        number = whole(values[row])
        if number is None:
            unusual[row] = values[row]
        else:
            column[row], wrong[row] = number, False
    return column, wrong, unusual


def box_column(
    values: list[Any], typed: bool = False
) -> tuple[Float64[np.ndarray, "n 4"], Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Boxes; which entries mark the background (an empty list or null), and which are no boxes.

    Args:
      typed: they are tuples of four finite numbers, or missing.
    """
    with contextlib.suppress(TypeError):  # where one is missing
        if typed:
            flat = np.fromiter(itertools.chain.from_iterable(values), np.float64, 4 * len(values))
            return flat.reshape(-1, 4), np.zeros(len(values), bool), np.zeros(len(values), bool)
    empty = np.array([value is None or value == [] for value in values])
    good = [isinstance(v, (list, tuple)) and len(v) == 4 and all(finite(number) for number in v) for v in values]
    boxes = np.array([v if ok else (0, 0, 0, 0) for v, ok in zip(values, good, strict=True)], np.float64)
    return boxes.reshape(-1, 4), empty, ~(np.array(good) | empty)


def are_corners(
    boxes: Float64[np.ndarray, "n 4"],
    size: Float64[np.ndarray, "#n 2"],
    tolerance: float = 1.0,
    *,
    centred: bool = False,
) -> bool:
    """Whether boxes must be ``x1 y1 x2 y2``: as such all fit their pictures, as ``x y width height`` many do not.

    Args:
      boxes: as the file has them, in pixels or in fractions of the picture.
      size: width and height of the picture of each, in the same unit.
      tolerance: how far a box may reach beyond its picture, likewise.
      centred: x and y are of the centre of a box, not of its corner.
    """
    if not len(boxes):
        return False
    fits = (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= -tolerance).all()
    fits = fits and (boxes[:, 2:] <= size + tolerance).all()
    start = boxes[:, :2] - boxes[:, 2:] / 2 if centred else boxes[:, :2]
    beyond = ((start < -tolerance) | (start + boxes[:, 2:] > size + tolerance)).any(1)
    return bool(fits and beyond.mean() >= _MANY)


def flag_column(values: list[Any]) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Flags, and which are neither yes nor no."""
    if values.count(0) == len(values):  # of any type; by far the most frequent
        return np.zeros(len(values), bool), np.zeros(len(values), bool)
    if set(map(type, values)) <= {int, bool}:
        try:
            column = np.array(values, np.int64)
            return column == 1, (column != 0) & (column != 1)
        except OverflowError:
            pass
    found = [flag(None if value is UNSET else value) for value in values]
    return np.array([value is True for value in found]), np.array([value is None for value in found])


def area_column(values: list[Any]) -> Float64[np.ndarray, " n"]:
    """Areas as given; not a number where none is, and -1 where it is no number."""
    if set(map(type, values)) <= {int, float}:
        try:
            column = np.array(values, np.float64)
            return np.where(np.isfinite(column), column, -1.0)
        except OverflowError:
            pass
    return np.array([area_of(value) for value in values], np.float64)


def area_of(value: Any) -> float:
    """An area as given, as ``area_column``."""
    if value is None or value is UNSET:
        return float("nan")
    if isinstance(value, str):  # some tools write numbers as text
        try:
            value = float(value)
        except ValueError:
            return -1.0
    return float(value) if finite(value) else -1.0
