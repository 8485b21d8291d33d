"""Detections into files, as they come: a run that is interrupted leaves complete files of what it did."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dfine_jax.data.picture.images import save_picture
from dfine_jax.errors import UserError
from dfine_jax.system.files import replacing, told, write_whole

if TYPE_CHECKING:
    from dfine_jax.prediction.result import DetectionResult


TABLES = ("csv", "jsonl")  # formats of ``TableFile``
_TOLD = ("category_id", "bbox", "score", "track_id")  # of COCO entries, beside pictures of object numbers
_COLUMNS = ("image", "frame", "time_s", "name", "category_id", "score", "x0", "y0", "x1", "y1")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, so that the files of one picture or frame are all written or none."""
    if threading.current_thread() is not threading.main_thread():  # signals go to the main thread only
        yield
        return
    pressed: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous or signal.default_int_handler)
    if pressed:
        signal.raise_signal(signal.SIGINT)


class ResultsFile:
    """COCO results, a line for each detection; a context manager. Without a path it takes entries and keeps none.

    The file appears at the end, complete: after an error or an interruption with what was found until then, if that is
    anything; not at all when it cannot be written.

    Raises:
      UserError: it cannot be written (full disk, read-only folder).
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._stack = ExitStack()
        self._stream: IO[bytes] | None = None
        self._separator, self._failed = b"[\n", False
        self._empty = True

    def __enter__(self) -> Self:
        """Itself."""
        if self.path is not None:
            self._stream = self._stack.enter_context(replacing(self.path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the file; an error keeps what was there before, unless something was found until then."""
        if self._failed or (self._empty and error is not None):
            told_to_stop = error or InterruptedError()  # inside, where nothing went wrong but nothing is to be kept
            self._stack.__exit__(type(told_to_stop), told_to_stop, trace)
            return
        with self._stack:
            self._end()

    def discard(self) -> None:
        """Nothing could be looked at: what was there before stays."""
        self._failed = True

    def _end(self) -> None:
        self._write(b"[\n]\n" if self._separator == b"[\n" else b"\n]\n")

    def take(self, result: DetectionResult, image_id: int | str) -> None:
        """Append the detections of a picture."""
        if self.path is not None:  # run lengths take their time
            self.add(result.to_coco(image_id))

    def take_frame(self, result: DetectionResult, clip: str, index: int, time_s: float) -> None:
        """Append the detections of a frame."""
        if self.path is not None:
            self.add(frame_entries(result, clip, index, time_s))

    def add(self, entries: Sequence[dict[str, Any]]) -> None:
        """Append entries, as from ``DetectionResult.to_coco``."""
        for entry in entries:
            self._write(self._separator + json.dumps(entry).encode())
            self._separator, self._empty = b",\n", False

    def _write(self, content: bytes) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(content)
        except OSError as error:
            self._failed = True
            raise told(error, self.path) from error


class TableFile(ResultsFile):
    """A line for each detection, as CSV, or of each picture, as JSON lines; boxes are corners in pixels.

    Without masks: CSV and JSON lines are for tables; ``--json`` has masks.

    Args:
      form: ``csv`` or ``jsonl``.
      tracks: with the numbers of objects, ``track_id``.
    """

    def __init__(self, path: Path | None, form: str, tracks: bool = False) -> None:
        super().__init__(path)
        self._form = form
        self._columns = (*_COLUMNS, "track_id") if tracks else _COLUMNS

    def __enter__(self) -> Self:
        """Itself."""
        super().__enter__()
        if self._form == "csv":
            self._write(_csv_line(self._columns))
        return self

    def _end(self) -> None:
        """Nothing is to be closed."""

    def take(self, result: DetectionResult, image_id: int | str) -> None:
        self._rows(result, {"image": image_id})

    def take_frame(self, result: DetectionResult, clip: str, index: int, time_s: float) -> None:
        self._rows(result, {"image": clip, "frame": index, "time_s": round(time_s, 4)})

    def _rows(self, result: DetectionResult, place: dict[str, Any]) -> None:
        objects: list[dict[str, Any]] = []
        self._empty = False  # a picture without objects is a result, too
        for found in result:
            corners = dict(zip(("x0", "y0", "x1", "y1"), (round(value, 2) for value in found.box), strict=True))
            entry = {"name": found.name, "category_id": found.category_id, "score": round(found.score, 5), **corners}
            objects.append(entry if found.track_id is None else {**entry, "track_id": found.track_id})
        if self._form == "jsonl":
            width, height = result.size_px
            line = {**place, "width": width, "height": height, "objects": objects}
            self._write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            return
        for entry in objects:
            row = {**place, **entry}
            self._write(_csv_line([row.get(column, "") for column in self._columns]))


def _csv_line(values: Sequence[Any]) -> bytes:
    with io.StringIO(newline="") as text:
        csv.writer(text, lineterminator="\n").writerow(values)
        return text.getvalue().encode()


def frame_entries(result: DetectionResult, clip: str, index: int, time_s: float) -> list[dict[str, Any]]:
    """COCO entries of a video frame: as of an image, and the frame's number and time in seconds."""
    place = {"frame": index, "time_s": round(time_s, 4)}
    return [{**entry, **place} for entry in result.to_coco(f"{clip}#{index}")]


def save_crops(image: UInt8[np.ndarray, "h w 3"], result: DetectionResult, folder: Path, name: Path) -> None:
    """The part of the image in each box, in a folder for its class; of a model that segments with all else transparent.

    Args:
      name: relative path of the picture; ``sub/a.jpg`` gives ``FOLDER/CLASS/sub/a_0.jpg`` for the best detection. With
        transparency it must be that of a PNG file.
    """
    height, width = image.shape[:2]
    for number, (class_name, box) in enumerate(zip(result.names, result.boxes_xyxy_px, strict=True)):
        x0, y0 = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
        x1, y1 = min(math.ceil(box[2]), width), min(math.ceil(box[3]), height)
        if x0 < x1 and y0 < y1:
            path = folder / _folder_name(class_name) / name.with_name(f"{name.stem}_{number}{name.suffix}")
            picture = Image.fromarray(image[y0:y1, x0:x1])
            if result.object_masks is not None:
                inside = result.object_masks.runs(number).within(np.array([x0, y0, x1, y1])).painted()
                alpha = Image.new("L", picture.size)
                alpha.paste(255, (inside.left_px - x0, inside.top_px - y0), Image.fromarray(inside.mask))
                picture.putalpha(alpha)
            save_picture(picture, path, quality=95)


def save_labels(result: DetectionResult, path: Path) -> None:
    """A YOLO label file, see ``DetectionResult.to_yolo``."""
    write_whole(path, result.to_yolo(), durable=False)


def save_masks(result: DetectionResult, path: Path) -> None:
    """A PNG picture of numbers, 0 where no object is and i where object i is seen, and JSON that tells of the objects.

    The objects are numbered from 1, best first; where several are, the best is seen. Up to 255 objects are 8 bits for
    a pixel, more are 16. The JSON file is beside the picture and has its name.

    Raises:
      UserError: the model makes no masks.
    """
    masks = result.object_masks
    if masks is None:
        raise UserError("the model makes boxes and no masks; leave --masks away")
    numbers = np.zeros(result.size_px[::-1], np.uint8 if len(result) < 256 else np.uint16)
    for i in reversed(range(len(result))):
        left, top, mask = masks.crop(i)
        np.copyto(numbers[top : top + mask.shape[0], left : left + mask.shape[1]], i + 1, where=mask)
    areas = np.bincount(numbers.ravel(), minlength=len(result) + 1)[1:].tolist()
    entries = dataclasses.replace(result, object_masks=None).to_coco(path.name)
    objects = [
        {"id": number, "name": name, **{key: entry[key] for key in _TOLD if key in entry}, "area": area}
        for number, (name, entry, area) in enumerate(zip(result.names, entries, areas, strict=True), start=1)
    ]
    save_picture(Image.fromarray(numbers), path)
    write_whole(path.with_suffix(".json"), json.dumps({"objects": objects}, indent=1) + "\n", durable=False)


def _folder_name(class_name: str) -> str:
    """A class name that is one folder on every system."""
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]+', "_", class_name).strip(" .") or "_"
