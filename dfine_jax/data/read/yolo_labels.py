"""Lines of YOLO label files: boxes, polygons, keypoints beside a box, and what is none of these.

The number of columns alone does not say what a line is: five are a box, but seven, nine and more may be a polygon, a
box with keypoints, or a box with a confidence and a track number. ``kpt_shape`` of data.yaml decides about keypoints;
without it, lines that make a better box with keypoints than a polygon are an error, because a guess would train on
wrong boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.outlines import crosses_itself
from dfine_jax.data.read.values import are_corners
from dfine_jax.errors import UserError
from dfine_jax.system.files import read_text

_BOX = 5  # columns: class x y width height
_LEAST_POLYGON = 7
ORIENTED = 9  # class and four corners
_MOST_OUTSIDE_BOX, _MOST_OUTSIDE_POLYGON = 0.5, 0.01  # in widths of the picture; further out, it is something else
_MOST_CLASSES = 1 << 31
_ROUNDING = 0.005  # of the picture


class Line(NamedTuple):
    """One object of a label file; coordinates are fractions of the picture."""

    file: Path
    number: int  # of the line, from 1
    category: int
    values: tuple[float, ...]  # x y width height of a box, else x1 y1 x2 y2 ... of a polygon
    is_box: bool

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.file}, line {self.number}"


def read_labels(file: Path, keypoints: tuple[int, int] | None, notes: Notes) -> list[Line]:
    """Objects of a label file, which may be empty.

    Args:
      file: its path.
      keypoints: ``kpt_shape`` of the dataset, (how many, numbers of each), or None.
      notes: takes what is left out; where it is not lenient, that is an error.

    Raises:
      UserError: a line that is no box and no polygon (the message names file and line).
    """
    try:
        text = read_text(file)
    except UserError as error:
        notes.refuse(str(error))
        return []
    out = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            out.append(_parse(file, number, words, keypoints, notes))
        except UserError as error:
            notes.refuse(str(error))
    return out


def _parse(file: Path, number: int, words: list[str], keypoints: tuple[int, int] | None, notes: Notes) -> Line:
    where = f"{file}, line {number}"
    values = [_number(word, words, where) for word in words]
    category = _category(values[0], words[0], where)
    if keypoints is not None:
        expected = _BOX + keypoints[0] * keypoints[1]
        if len(words) != expected:
            raise UserError(
                f"{where} has {len(words)} columns; kpt_shape {list(keypoints)} in data.yaml asks for {expected} "
                "(class, box and keypoints): correct the line, or kpt_shape"
            )
        notes.add("objects have keypoints beside their box; the keypoints are not used", where)
    elif len(words) != _BOX and (len(words) < _LEAST_POLYGON or len(words) % 2 == 0):
        raise UserError(f"{where} has {len(words)} columns; {_meaning(len(words))}")
    is_box = keypoints is not None or len(words) == _BOX
    coordinates = values[1:_BOX] if is_box else values[1:]
    _check_range(coordinates, is_box, where)
    if not is_box and len(words) == ORIENTED:
        notes.add("objects with four corners, which are outlines for masks; boxes are the upright ones around", where)
    return Line(file, number, category, tuple(coordinates), is_box)


def _number(word: str, words: list[str], where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = None
    if value is None or "_" in word or not word.isascii():
        hint = "separate the columns by blanks" if any("," in w or ";" in w for w in words) else "write numbers only"
        shown = " ".join(words)
        shown = shown if len(shown) <= 60 else shown[:60] + "..."
        raise UserError(f"{where}: {shown!r} is not all numbers ({word[:20]!r}); {hint}")
    if not math.isfinite(value):
        raise UserError(f"{where}: {word} is not a number that can be used; correct or remove the line")
    return value


def _category(value: float, word: str, where: str) -> int:
    if value != int(value) or not 0 <= value < _MOST_CLASSES:
        hint = ": is the class missing?" if 0 < value < 1 else ""
        raise UserError(f"{where}: class {word} is not a class number (0, 1, 2, ...){hint}; correct the line")
    return int(value)


def _meaning(columns: int) -> str:
    """What a line of so many columns may be, for an error."""
    usual = "write 'class x y width height' or 'class' and at least three points"
    if columns < _BOX:
        return usual
    if columns == _BOX + 1:
        return f"one more than a box: a confidence or a track number? Remove it from the labels ({usual})"
    if (columns - _BOX) % 3 == 0:
        count = (columns - _BOX) // 3
        return f"a box and {count} keypoints? Then data.yaml needs 'kpt_shape: [{count}, 3]' (else {usual})"
    return usual


def _check_range(values: Sequence[float], is_box: bool, where: str) -> None:
    most = _MOST_OUTSIDE_BOX if is_box else _MOST_OUTSIDE_POLYGON
    worst = max(values, key=lambda value: abs(value - 0.5))
    if -most <= worst <= 1 + most:
        return
    if worst > 2:
        keypoints = "keypoints with visibility (then data.yaml needs 'kpt_shape: [n, 3]')"
        looks = "pixels" if is_box else f"pixels, a track number, or {keypoints}"
    else:
        looks = "a point outside the picture" if not is_box else "no part of a picture"
        if not is_box and worst == 2:
            looks = "a visibility of keypoints (then data.yaml needs 'kpt_shape: [n, 3]')"
    raise UserError(
        f"{where}: {worst:g} is no fraction of the picture; it looks like {looks}. YOLO's coordinates are 0 to 1: "
        "divide x and width by the width of the picture, y and height by its height, or correct the line"
    )


def check_boxes(lines: Sequence[Line], notes: Notes) -> None:
    """Refuses the boxes of a split that must be corners x1 y1 x2 y2 (``values.are_corners``)."""
    boxes = [line for line in lines if line.is_box]
    values = np.array([line.values for line in boxes], float).reshape(-1, 4)
    if are_corners(values, np.ones((1, 2)), _ROUNDING, centred=True):
        notes.refuse(
            f"{boxes[0].where} and the other {len(boxes) - 1} boxes of this split look like corners x1 y1 x2 y2; "
            "YOLO's are the centre, width and height: write (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1"
        )


def check_polygons(lines: Sequence[Line], notes: Notes) -> list[Line]:
    """The objects of a split, unless its polygons are boxes with keypoints, as far as can be seen.

    They are where all have the same number of columns, each makes a box that holds its other points (or has flags 0, 1,
    2 in every third column), and most have their first point amid the others or an outline that crosses itself: the
    first point of a polygon lies on its edge.

    Raises:
      UserError: such lines, unless the notes are lenient; then they are left out.
    """
    polygons = [line for line in lines if not line.is_box]
    if not polygons or len({len(line.values) for line in polygons}) != 1:
        return list(lines)
    extra = len(polygons[0].values) - 4
    first = f"{polygons[0].where} has {extra + 5} columns, which make"
    many = f"as in {len(polygons)} lines of this split"
    if extra == 2:
        if not all(_is_inside(line.values) and line.values[-1] in (0, 1) for line in polygons):
            return list(lines)
        message = f"{first} a box with a confidence and a track number rather than a polygon, {many}; remove the two"
    else:
        flagged = extra % 3 == 0 and all(_has_flags(line.values[4:]) for line in polygons)
        if not flagged and not _are_keypoints(polygons):
            return list(lines)
        shape = [extra // 3, 3] if flagged else [extra // 2, 2]
        message = (
            f"{first} a box with {shape[0]} keypoints rather than a polygon, {many}: if they are keypoints, data.yaml "
            f"needs 'kpt_shape: {shape}'; if not, correct the order of the points"
        )
    if not notes.lenient:
        raise UserError(message)
    for line in polygons:
        notes.refuse(f"{line.where}: a polygon, or something behind a box?")
    return [line for line in lines if line.is_box]


def _are_keypoints(polygons: Sequence[Line]) -> bool:
    if not all(_holds_its_points(line.values) for line in polygons):
        return False
    odd = sum(_starts_amid(line.values) or crosses_itself(np.reshape(line.values, (-1, 2))) for line in polygons)
    return 2 * odd >= len(polygons)


def _is_inside(values: Sequence[float]) -> bool:
    """Whether the first four numbers are a box in the picture."""
    x, y, width, height = values[:4]
    most = 1 + _MOST_OUTSIDE_POLYGON
    return x - width / 2 > 1 - most and y - height / 2 > 1 - most and x + width / 2 < most and y + height / 2 < most


def _has_flags(rest: Sequence[float]) -> bool:
    return all(flag in (0, 1, 2) for flag in rest[2::3]) and any(0 < value < 1 for value in rest)


def _seen_points(values: Sequence[float]) -> list[tuple[float, float]]:
    """What would be keypoints; one at (0, 0) is not annotated."""
    return [point for point in zip(values[4::2], values[5::2], strict=True) if point != (0, 0)]


def _holds_its_points(values: Sequence[float]) -> bool:
    x, y, width, height = values[:4]
    near = 0.51  # of a side, for rounding
    return all(abs(px - x) <= near * width and abs(py - y) <= near * height for px, py in _seen_points(values))


def _starts_amid(values: Sequence[float]) -> bool:
    """Whether the first point lies in the middle half of the extent of those from the third on, on both axes."""
    points = _seen_points(values)
    if not points:
        return True
    for axis in (0, 1):
        low, high = min(p[axis] for p in points), max(p[axis] for p in points)
        if not low + (high - low) / 4 <= values[axis] <= high - (high - low) / 4:
            return False
    return True
