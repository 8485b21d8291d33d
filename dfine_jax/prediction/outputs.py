"""Detections into files, as they come: a run that is interrupted leaves complete files of what it did."""

from __future__ import annotations

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
from dfine_jax.system.files import replacing, told

if TYPE_CHECKING:
    from dfine_jax.prediction.detector import DetectionResult


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

    def __enter__(self) -> Self:
        """Itself."""
        if self.path is not None:
            self._stream = self._stack.enter_context(replacing(self.path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the list."""
        empty = self._separator == b"[\n"
        if self._failed or (empty and error is not None):
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._write(b"[\n]\n" if empty else b"\n]\n")

    def add(self, entries: Sequence[dict[str, Any]]) -> None:
        """Append entries, as from ``DetectionResult.to_coco``."""
        for entry in entries:
            self._write(self._separator + json.dumps(entry).encode())
            self._separator = b",\n"

    def _write(self, content: bytes) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(content)
        except OSError as error:
            self._failed = True
            raise told(error, self.path) from error


def frame_entries(result: DetectionResult, clip: str, index: int, time_s: float) -> list[dict[str, Any]]:
    """COCO entries of a video frame: as of an image, and the frame's number and time in seconds."""
    place = {"frame": index, "time_s": round(time_s, 4)}
    return [{**entry, **place} for entry in result.to_coco(f"{clip}#{index}")]


def save_crops(image: UInt8[np.ndarray, "h w 3"], result: DetectionResult, folder: Path, name: Path) -> None:
    """The part of the image in each box, in a folder for its class.

    Args:
      name: relative path of the picture; ``sub/a.jpg`` gives ``FOLDER/CLASS/sub/a_0.jpg`` for the best detection.
    """
    height, width = image.shape[:2]
    for number, (class_name, box) in enumerate(zip(result.names, result.boxes_xyxy_px, strict=True)):
        x0, y0 = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
        x1, y1 = min(math.ceil(box[2]), width), min(math.ceil(box[3]), height)
        if x0 < x1 and y0 < y1:
            path = folder / _folder_name(class_name) / name.with_name(f"{name.stem}_{number}{name.suffix}")
            save_picture(Image.fromarray(image[y0:y1, x0:x1]), path, quality=95)


def _folder_name(class_name: str) -> str:
    """A class name that is one folder on every system."""
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]+', "_", class_name).strip(" .") or "_"
