"""One video of a run of prediction: its objects followed, counted, and what is said about them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dfine_jax.data.picture.draw_counts import CountMark, draw_counts
from dfine_jax.prediction.counting import Count, CountShape, ZoneCount, new_count
from dfine_jax.prediction.result import DetectionResult
from dfine_jax.prediction.tracking import Tracker
from dfine_jax.system.files import write_whole

_COLUMNS = ("source", "name", "kind", "class", "in", "out", "inside")


class FollowPlan(NamedTuple):
    """How objects are followed, and where they are counted."""

    tracker: str
    shapes: tuple[CountShape, ...] = ()


class Following:
    """Objects of one video.

    Args:
      source: the video, as results call it.
      threshold: smallest score of a detection.
      rate: frames per second; None: not known.
    """

    def __init__(self, plan: FollowPlan, source: str, threshold: float, rate: float | None) -> None:
        self.source = source
        self.counts: list[Count] = []
        self._plan = plan
        self._tracker = Tracker(plan.tracker, threshold, rate)
        self._classes: dict[int, Counter[str]] = {}  # number of an object -> frames by class
        self._frames = 0

    def take(
        self, result: DetectionResult, image: UInt8[np.ndarray, "h w 3"], frame: int, time_s: float | None
    ) -> DetectionResult:
        """The next frame's detections with numbers; they are counted.

        Raises:
          UserError: a line or zone lies outside of the picture.
        """
        if not self._frames:
            self.counts = [new_count(shape, result.size_px) for shape in self._plan.shapes]
        self._frames += 1
        result = self._tracker.update(result, time_s, image)
        assert result.track_ids is not None
        for number, name in zip(result.track_ids.tolist(), result.names, strict=True):
            if number >= 0:
                self._classes.setdefault(number, Counter())[name] += 1
        for count in self.counts:
            count.update(result, frame, time_s)
        return result

    @property
    def objects(self) -> Counter[str]:
        """How many objects there were until now, each of the class that it had most often."""
        return Counter(names.most_common(1)[0][0] for names in self._classes.values())

    def mark(self, picture: Image.Image, size_px: tuple[int, int], font_file: str | None) -> Image.Image:
        """Lines, zones and their numbers drawn in place, on the drawn result of a frame of (width, height)."""
        factor = picture.width / size_px[0]
        marks = [CountMark([(x * factor, y * factor) for x, y in c.points_px], c.label()) for c in self.counts]
        draw_counts(picture, marks, font_file)
        return picture

    def to_dict(self) -> dict[str, Any]:
        """Plain values: source, frames, objects by class, and the counts."""
        return {
            "source": self.source,
            "frames": self._frames,
            "objects": dict(self.objects.most_common()),
            "counts": [count.to_dict() for count in self.counts],
        }


def write_counts(path: Path, followed: Sequence[Following]) -> None:
    """Counts of all videos: as CSV a line for each class at each line and zone, else JSON with every crossing.

    Where nothing has crossed the line of the table has no class; ``inside`` is of zones, in the last frame.

    Raises:
      UserError: the file cannot be written.
    """
    if path.suffix.lower() != ".csv":
        write_whole(path, json.dumps([one.to_dict() for one in followed], indent=1, ensure_ascii=False) + "\n")
        return
    with io.StringIO(newline="") as text:
        table = csv.writer(text, lineterminator="\n")
        table.writerow(_COLUMNS)
        for one in followed:
            for count in one.counts:
                inside = count.inside if isinstance(count, ZoneCount) else None
                for name in sorted(count.entered | count.left | (inside or Counter())) or [""]:
                    here = "" if inside is None else inside[name]
                    row = [one.source, count.shape.name, count.shape.kind, name, count.entered[name], count.left[name]]
                    table.writerow([*row, here])
        write_whole(path, text.getvalue())
