"""What a program hands over to detect in: pictures in every form, and what stands for several of them."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dfine_jax.data.picture.any_image import any_pixels, is_array, is_one_picture, pixels_array, stream_content
from dfine_jax.data.picture.images import read_image
from dfine_jax.errors import UserError
from dfine_jax.prediction import addresses
from dfine_jax.system.search import files_like, natural

logger = logging.getLogger(__name__)

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_EATEN = re.compile(r"https?:/[^/]", re.IGNORECASE)  # what ``Path`` makes of an address


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """A picture as it was given: what it costs is the object of the caller, or the content of its file."""

    value: Any
    name: str = ""  # of the file, where there is one
    bgr: bool = False
    held: bool = True  # results may keep it
    time_s: float | None = None  # of a frame, since the first one
    rate: float | None = None  # frames per second of the video

    def pixels(self) -> UInt8[np.ndarray, "h w 3"]:
        """RGB, upright. Errors as ``any_pixels``."""
        if isinstance(self.value, bytes) and self.name:
            return read_image(self.name, encoded=self.value)
        return any_pixels(self.value, bgr=self.bgr)

    @property
    def stored(self) -> Given | None:
        """What may travel with a result to a file or another process: paths, no pixels."""
        return self if isinstance(self.value, (str, Path)) else None


def given(source: Any, bgr: bool = False, held: bool = True) -> Given:
    """One picture. Addresses and streams are read here, files and pixels when they are needed.

    Raises:
      UserError: an address that cannot be read, or something that is no single picture: a folder, a video, a stream.
    """
    if isinstance(source, (str, os.PathLike)):
        return _named(source)
    if is_array(source):
        return Given(source, bgr=bgr, held=held)
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        return Given(stream_content(source), name if isinstance(name, str) else "", held=held)
    return Given(source, _file_name(source), held=held)


def several(images: Any, bgr: bool = False) -> Iterator[Given] | None:
    """The pictures of a folder, a pattern (``shots/*.jpg``), a batch [n, h, w, 3], a list or a generator, one by one.

    None for a single picture. What a generator makes is not held: only files can be read again.

    Raises:
      UserError: a folder without pictures, or a pattern without files.
    """
    if isinstance(images, (str, os.PathLike)):
        files = _files(addresses.local(os.fspath(images)))
        return None if files is None else (given(file) for file in files)
    if is_array(images):
        array = pixels_array(images)
        if array.ndim == 4 and array.shape[3] in (1, 3, 4):
            return (Given(image, bgr=bgr) for image in array)
        return None
    if is_one_picture(images) or isinstance(images, (dict, set, frozenset)) or not isinstance(images, Iterable):
        return None
    held = isinstance(images, (list, tuple))
    return (given(image, bgr, held) for image in images)


def frames(source: Any) -> Iterator[Given] | None:
    """Frames of a video file, a stream or a camera (``0``); None for anything else. Needs PyAV."""
    if isinstance(source, int) and not isinstance(source, bool):
        return _frames(str(source))
    if not isinstance(source, (str, os.PathLike)):
        return None
    name = addresses.local(os.fspath(source))
    if _ADDRESS.match(name):
        return None if addresses.is_picture(name) else _frames(name)
    is_video = Path(name).suffix.lower() in addresses.VIDEO_EXTENSIONS or addresses.CAMERA.fullmatch(name)
    return _frames(name) if is_video and not os.path.isdir(name) else None


def _frames(source: str) -> Iterator[Given]:
    from dfine_jax.prediction.video import VideoReader

    with VideoReader(source) as reader:
        stem = Path(reader.name).stem
        for frame in reader:
            name = f"{stem}_{frame.index:06d}.jpg"
            yield Given(frame.image, name, time_s=frame.time_s, rate=float(reader.rate))


def _named(source: str | os.PathLike[str]) -> Given:
    name = addresses.local(os.fspath(source))
    if _ADDRESS.match(name):
        if not name.lower().startswith(("http://", "https://")):
            raise UserError(
                f"{addresses.public_name(name)} is no picture but a stream; for result in detector.stream(...) reads it"
            )
        if addresses.is_video(name):
            raise UserError(
                f"{addresses.public_name(name)} is a video; for result in detector.stream(address) reads it, so does "
                "dfine predict"
            )
        return Given(addresses.read_picture(name), addresses.file_name(name))
    if _EATEN.match(name) and not isinstance(source, str):
        raise UserError(f"{name} has lost a slash; give an address as text, not as a Path")
    path = Path(name)
    if path.is_dir():
        raise UserError(f"{path} is a folder among pictures; give it alone, or list its files")
    if path.suffix.lower() in addresses.VIDEO_EXTENSIONS and path.exists():
        raise UserError(f"{path} is a video; for result in detector.stream(path) reads it, so does dfine predict")
    return Given(path if path.is_absolute() else name, path.name)


def _files(name: str) -> list[Path] | None:
    """Those that a folder or a pattern stands for, numbers in names by their value; None where it is but a name."""
    if not name.strip():
        raise UserError("an empty name was given; give a picture, a folder, a pattern or an address")
    path = Path(name)
    if _ADDRESS.match(name) or path.is_file():
        return None
    if path.is_dir():
        from dfine_jax.prediction.inputs import find_inputs

        found = find_inputs([name])
        if not found.pictures:
            raise UserError(f"{name} holds videos and no pictures; detector.stream(path) reads a video")
        for note in found.notes + [f"{len(found.clips)} videos left out"] * bool(found.clips):
            logger.warning("%s", note)
        return sorted((picture.path for picture in found.pictures), key=natural)
    like = files_like(name)
    return like and like[1]


def _file_name(source: Any) -> str:
    """Of a PIL image that was opened from a file."""
    name = getattr(source, "filename", "")
    return Path(name).name if isinstance(name, str) and name else ""
