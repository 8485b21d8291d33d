"""How many objects cross a line or go into and out of a zone: by supervision, from detections with track numbers.

An object is where the centre of its box is. It has crossed when it has been on the other side for two frames, so that
a box that trembles on the line is not counted again and again. Of an object that is not seen for a while the last place
counts, so that one that is hidden at the line is counted when it comes back.
"""

from __future__ import annotations

import abc
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from dfine_jax.errors import UserError
from dfine_jax.system.installed import require

if TYPE_CHECKING:
    from dfine_jax.prediction.result import DetectionResult

FRAMES_TO_CROSS = 2  # so many frames in a row on the other side
_REMEMBERED = 300  # frames after which an object that is not seen is forgotten; trackers forget sooner

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")


class CountShape(NamedTuple):
    """A line or a zone as it is given."""

    kind: str  # line, zone
    name: str
    points: tuple[tuple[float, float], ...]  # x, y
    in_shares: bool  # of the picture's sides, else pixels

    def in_pixels(self, size_px: tuple[int, int]) -> tuple[tuple[float, float], ...]:
        """The points in a picture of (width, height).

        Raises:
          UserError: all of them lie to one side of the picture.
        """
        width, height = size_px
        if self.in_shares:
            return tuple((x * width, y * height) for x, y in self.points)
        xs, ys = zip(*self.points, strict=True)
        if min(xs) >= width or min(ys) >= height or max(xs) <= 0 or max(ys) <= 0:
            raise UserError(
                f"{self.kind} {self.name} lies outside of the picture, which is {width}x{height} pixels; give points "
                "in it, or shares from 0 to 1"
            )
        return self.points


def line(text: str, number: int = 1) -> CountShape:
    """The line of ``[NAME=]x1,y1,x2,y2``; ``number`` names it where the text does not.

    All values from 0 to 1 are shares of the picture's width and height, others are pixels.

    Raises:
      UserError: it is none; the message shows how one is written.
    """
    name, points, in_shares = _parsed(text, "--count-line", "x1,y1,x2,y2")
    if len(points) != 2:
        raise UserError(f"--count-line {text}: a line has two points, x1,y1,x2,y2")
    if points[0] == points[1]:
        raise UserError(f"--count-line {text}: the two points are the same; give two ends")
    return CountShape("line", name or f"line {number}", points, in_shares)


def zone(text: str, number: int = 1) -> CountShape:
    """The polygon of ``[NAME=]x1,y1,x2,y2,x3,y3,...``; as ``line``."""
    name, points, in_shares = _parsed(text, "--count-zone", "x1,y1,x2,y2,x3,y3,...")
    if len(points) < 3:
        raise UserError(f"--count-zone {text}: a zone has three corners or more, x1,y1,x2,y2,x3,y3,...")
    x, y = np.array(points).T
    if abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) < 1e-9:
        raise UserError(f"--count-zone {text}: the corners lie on one line and hold nothing between them")
    return CountShape("zone", name or f"zone {number}", points, in_shares)


def _parsed(text: str, option: str, form: str) -> tuple[str, tuple[tuple[float, float], ...], bool]:
    name, _, coordinates = text.rpartition("=")
    parts = [part.strip() for part in coordinates.split(",")]
    if len(parts) % 2 or not all(_NUMBER.fullmatch(part) for part in parts):
        raise UserError(f"{option} {text} is none; write {form} or NAME={form}, in pixels or as shares from 0 to 1")
    values = [float(part) for part in parts]
    in_shares = all(0 <= value <= 1 for value in values)
    return name.strip(), tuple(zip(values[::2], values[1::2], strict=True)), in_shares


class Crossing(NamedTuple):
    """An object that has crossed."""

    frame: int
    time_s: float | None
    track_id: int
    name: str  # of its class
    inwards: bool


class Count(abc.ABC):
    """What has crossed a line or the border of a zone; one of ``new_count``, for one video.

    Args:
      size_px: (width, height) of the frames.
    """

    def __init__(self, shape: CountShape, size_px: tuple[int, int]) -> None:
        self.shape = shape
        self.points_px = shape.in_pixels(size_px)
        self.entered: Counter[str] = Counter()  # by class
        self.left: Counter[str] = Counter()
        self.crossings: list[Crossing] = []
        self._supervision = require("supervision", "counting")
        self._seen: dict[int, tuple[np.ndarray, str, int]] = {}  # number -> last box, class, frame
        self._frames = 0

    def update(self, result: DetectionResult, frame: int | None = None, time_s: float | None = None) -> None:
        """Take the next frame's detections, which have ``track_ids``.

        Args:
          frame, time_s: of the frame, for ``crossings``; None: it is counted.
        """
        assert result.track_ids is not None, "detections without numbers; they are of a Tracker"
        for number, box, name in zip(result.track_ids.tolist(), result.boxes_xyxy_px, result.names, strict=True):
            if number >= 0:
                self._seen[number] = box.astype(float), name, self._frames
        for number in [n for n, (_, _, last) in self._seen.items() if self._frames - last > _REMEMBERED]:
            del self._seen[number]
        numbers = np.array(list(self._seen), int)
        boxes = np.array([box for box, _, _ in self._seen.values()]).reshape(-1, 4)
        places = self._supervision.Detections(xyxy=boxes, tracker_id=numbers)
        entered, left = self._moved(places)
        for i in np.flatnonzero(entered | left).tolist():
            name, inwards = self._seen[int(numbers[i])][1], bool(entered[i])
            (self.entered if inwards else self.left)[name] += 1
            at = self._frames if frame is None else frame
            self.crossings.append(Crossing(at, time_s, int(numbers[i]), name, inwards))
        self._frames += 1

    @abc.abstractmethod
    def _moved(self, places: Any) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Which of the objects, all that are remembered, have gone in and out."""

    @abc.abstractmethod
    def label(self) -> str:
        """A few words for the picture."""

    def __str__(self) -> str:
        """One line, by class."""
        return f"{self.shape.kind} {self.shape.name}: in {_by_class(self.entered)}, out {_by_class(self.left)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the shape, totals, totals by class, and every crossing."""
        names = sorted(self.entered | self.left)
        return {
            "name": self.shape.name,
            "kind": self.shape.kind,
            "points_px": [[round(x, 2), round(y, 2)] for x, y in self.points_px],
            "in": self.entered.total(),
            "out": self.left.total(),
            "classes": {name: {"in": self.entered[name], "out": self.left[name]} for name in names},
            "crossings": [
                {
                    "frame": c.frame,
                    **({} if c.time_s is None else {"time_s": round(c.time_s, 4)}),
                    "track_id": c.track_id,
                    "name": c.name,
                    "direction": "in" if c.inwards else "out",
                }
                for c in self.crossings
            ],
        }


class LineCount(Count):
    """Crossings of a line: in is to the left of one who walks from its first point to the second."""

    def __init__(self, shape: CountShape, size_px: tuple[int, int]) -> None:
        super().__init__(shape, size_px)
        start, end = (self._supervision.Point(x, y) for x, y in self.points_px)
        centre = [self._supervision.Position.CENTER]
        self._line = self._supervision.LineZone(start, end, centre, FRAMES_TO_CROSS)

    def _moved(self, places: Any) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        return self._line.trigger(places)

    def label(self) -> str:
        """As ``Count.label``."""
        return f"{self.shape.name}: in {self.entered.total()}, out {self.left.total()}"


class ZoneCount(Count):
    """What goes into a zone and out of it, and what is there now. What appears in the zone has not gone in."""

    def __init__(self, shape: CountShape, size_px: tuple[int, int]) -> None:
        super().__init__(shape, size_px)
        centre = [self._supervision.Position.CENTER]
        self._zone = self._supervision.PolygonZone(np.array(self.points_px).round().astype(int), centre)
        self._is_inside: dict[int, bool] = {}
        self._elsewhere: Counter[int] = Counter()  # frames in a row on the other side
        self.inside: Counter[str] = Counter()  # in the last frame, by class

    def _moved(self, places: Any) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        numbers, inside = places.tracker_id.tolist(), self._zone.trigger(places)
        self._is_inside = {number: self._is_inside[number] for number in numbers if number in self._is_inside}
        self.inside = Counter(
            self._seen[n][1]
            for n, is_in in zip(numbers, inside, strict=True)
            if is_in and self._seen[n][2] == self._frames
        )
        moved = np.zeros(len(numbers), bool)
        for i, (number, is_in) in enumerate(zip(numbers, inside.tolist(), strict=True)):
            if is_in == self._is_inside.setdefault(number, is_in):
                self._elsewhere.pop(number, None)
                continue
            self._elsewhere[number] += 1
            if self._elsewhere[number] >= FRAMES_TO_CROSS:
                moved[i], self._is_inside[number] = True, is_in
                del self._elsewhere[number]
        return moved & inside, moved & ~inside

    def label(self) -> str:
        """As ``Count.label``."""
        return f"{self.shape.name}: {self.inside.total()} inside, in {self.entered.total()}, out {self.left.total()}"

    def __str__(self) -> str:
        """One line, by class."""
        return f"{super().__str__()}, inside at the end {_by_class(self.inside)}"

    def to_dict(self) -> dict[str, Any]:
        """As ``Count.to_dict``, and ``inside``, by class, in the last frame."""
        return {**super().to_dict(), "inside": dict(sorted(self.inside.items()))}


def new_count(shape: CountShape, size_px: tuple[int, int]) -> Count:
    """The count of a line or zone for one video with frames of (width, height).

    Raises:
      UserError: the shape lies outside, or supervision is absent.
    """
    return (LineCount if shape.kind == "line" else ZoneCount)(shape, size_px)


def _by_class(counts: Counter[str]) -> str:
    names = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return f"{counts.total()} ({names})" if names else "0"
