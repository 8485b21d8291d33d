"""Pictures in every form in which a program holds them: paths, files, bytes, PIL images, arrays.

All of them become the same upright RGB bytes, or one error that says what is taken.
"""

from __future__ import annotations

import os
import threading
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile

from dfine_jax.data.picture.images import BROKEN_FILE, TRANSPOSED, TURNS, load, open_rgb, orientation_of, read_image
from dfine_jax.data.picture.pixels import array_to_rgb, to_rgb
from dfine_jax.errors import UserError

_EXIF_IFD, _EXIF_WIDTH, _EXIF_HEIGHT = 0x8769, 0xA002, 0xA003
# A picture or stream that several threads hand over is read by one of them at a time; most others do not wait for it.
_LOADING = tuple(threading.Lock() for _ in range(61))
_KINDS = (
    "a path, the bytes of a picture file, an open binary file, a PIL image, or an array of uint8 [height, width, 3] "
    "in RGB order; or a list of these"
)


def upright(image: Image.Image) -> Image.Image:
    """A PIL image of a person as 8-bit RGB, turned as its EXIF orientation says.

    What ``ImageOps.exif_transpose`` has turned carries no orientation any more. Of a copy that was turned by hand
    (``rotate``) the orientation stays; it is left alone where the size in its EXIF block shows that.

    Raises:
      UserError: it is empty, damaged, or its pixels have an unknown range.
    """
    name = f"PIL image {getattr(image, 'filename', '') or ''}".strip()
    if 0 in image.size:
        raise UserError(f"{name} of {image.width}x{image.height} has no pixel; give a picture")
    try:
        with _LOADING[id(image) % len(_LOADING)]:
            load(image)
            found = orientation_of(image)
            rgb = to_rgb(image, name)
    except BROKEN_FILE as error:
        raise UserError(f"{name} of mode {image.mode} cannot be used ({error})") from error
    if found not in TURNS or (not isinstance(image, ImageFile.ImageFile) and _turned_by_hand(image, found)):
        return rgb
    return rgb.transpose(TURNS[found])


def _turned_by_hand(image: Image.Image, found: int) -> bool:
    stored = image.getexif().get_ifd(_EXIF_IFD)
    width, height = (stored.get(tag) for tag in (_EXIF_WIDTH, _EXIF_HEIGHT))
    if found not in TRANSPOSED or not isinstance(width, int) or not isinstance(height, int):
        return False
    return (width > height and image.width < image.height) or (width < height and image.width > image.height)


def any_pixels(source: Any, *, bgr: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels, upright, of a picture in any form whose meaning is certain.

    Args:
      source: path, content of a file (bytes), open binary file, PIL image, array or tensor on the host as
        ``pixels.array_to_rgb`` takes it.
      bgr: channels of arrays and tensors are in the order of OpenCV; files and PIL images know their own.

    Raises:
      UserError: something else, or unreadable; the message says what is taken.
    """
    if isinstance(source, Image.Image):
        return np.asarray(upright(source))
    if is_array(source):
        rgb = array_to_rgb(pixels_array(source), "array" if isinstance(source, np.ndarray) else _kind(source))
        return rgb[..., ::-1] if bgr else rgb
    if isinstance(source, (str, os.PathLike)):
        return read_image(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return np.array(open_rgb(f"in {len(source)} bytes", encoded=bytes(source)))
    if hasattr(source, "read"):
        return np.array(open_rgb(_name_of(source), encoded=stream_content(source)))
    raise UserError(f"{_kind(source)} is not an image; give {_KINDS}")


def is_array(source: Any) -> bool:
    """Whether it is an array, or a tensor of any library: what has the array protocol and is nothing else."""
    others = (str, os.PathLike, Image.Image, bytes, bytearray, memoryview)
    if isinstance(source, np.ndarray):
        return True
    return not isinstance(source, others) and not hasattr(source, "read") and hasattr(source, "__array__")


def pixels_array(source: Any) -> np.ndarray:
    """The array of what ``is_array``.

    Raises:
      UserError: a tensor that is not on the host, or that needs a gradient.
    """
    if isinstance(source, np.ndarray):
        return source
    try:
        return np.asarray(source)
    except (TypeError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{_kind(source)} cannot become an array ({str(error).splitlines()[0]}); move it to the host first"
        ) from error


def is_one_picture(source: Any) -> bool:
    """Whether ``any_pixels`` is for it, rather than for each of its elements."""
    whole = (str, os.PathLike, Image.Image, np.ndarray, bytes, bytearray, memoryview)
    return isinstance(source, whole) or hasattr(source, "read") or hasattr(source, "__array__")


def _kind(source: Any) -> str:
    return "None" if source is None else f"{type(source).__module__}.{type(source).__name__}".removeprefix("builtins.")


def _name_of(stream: Any) -> str:
    name = getattr(stream, "name", None)
    return name if isinstance(name, str) else "in a stream"


def stream_content(stream: IO[bytes]) -> bytes:
    """All of the stream from its start, where it can go there; left where it begins, so that it can be read again."""
    again = hasattr(stream, "seekable") and stream.seekable()
    try:
        with _LOADING[id(stream) % len(_LOADING)]:
            if again:
                stream.seek(0)
            content = stream.read()
            if again:
                stream.seek(0)
    except (OSError, ValueError) as error:
        raise UserError(f"{_name_of(stream)} cannot be read ({error}); open it again") from error
    if not isinstance(content, bytes):
        raise UserError(f"{_name_of(stream)} is open as text; open it as binary: open(path, 'rb')")
    return content
