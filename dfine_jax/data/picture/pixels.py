"""Pixels of any kind as 8-bit RGB.

Brightness follows from what the file or array declares, never from the brightest pixel of that picture: two pictures of
one camera stay comparable. What declares nothing certain is refused.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms

from dfine_jax.errors import UserError

logger = logging.getLogger(__name__)

BITS_SETTING = "DFINE_BITS"  # environment: bits in use of pictures in 16-bit containers that declare no fewer
_CONTAINER_BITS = 16
_DARK_BITS = 12  # a 16-bit picture that uses no more than these shows at most a sixteenth of the brightness
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE_VALUE, _SAMPLE_FORMAT = 258, 262, 281, 339  # tags of TIFF
_WHITE_IS_ZERO = 0
_SIGNED = 2
ARRAY_KINDS = (
    "uint8 [height, width, 3] in RGB order; grey [height, width], RGBA, uint16, and floating point from 0 to 1 are "
    "taken too"
)

_dark_told = threading.Event()


def to_rgb(image: Image.Image, name: str = "the picture") -> Image.Image:
    """Any Pillow image as 8-bit RGB, alpha dropped; not turned (``any_image.upright`` does that).

    Integers of more than 8 bits keep their high bits: of 16, or of as many as a TIFF file declares (BitsPerSample, or a
    MaxSampleValue of 1023, 4095 and so on), or as ``DFINE_BITS`` says.

    Args:
      name: of the picture, for warnings.

    Raises:
      ValueError: floating point or 32-bit pixels, whose range is unknown.
      UserError: ``DFINE_BITS`` is no number of bits, or the picture has more.
    """
    mode = image.mode
    if mode == "RGB":
        return image
    if mode == "F":
        raise ValueError("floating point pixels, whose range is unknown; save it with 8 bits per channel")
    if mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        kept = _high_bits(grey, _declared_bits(image), name)
        # Zero is white in some TIFF files, X-rays for example; Pillow minds that up to 8 bits only.
        inverted = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        return Image.fromarray(255 - kept if inverted else kept).convert("RGB")
    if mode == "LAB":
        return ImageCms.applyTransform(image, _lab_to_rgb()) or image
    if mode in ("La", "RGBa"):  # colours multiplied by alpha
        image = image.convert("LA" if mode == "La" else "RGBA")
    elif mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # same colours, without Pillow's warning about the transparency it drops
    return image.convert("RGB")


def array_to_rgb(array: np.ndarray, name: str = "array") -> UInt8[np.ndarray, "h w 3"]:
    """An array whose meaning is certain as RGB bytes.

    Args:
      array: uint8, uint16, or floating point from 0 to 1; [h, w, 3] in RGB order, [h, w, 4] with alpha last (dropped),
        grey [h, w] or [h, w, 1].

    Raises:
      UserError: another type or shape, no pixel, or floating point of another or an uncertain range.
    """
    shape = array.shape
    fits = array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))
    known = (array.dtype.kind == "u" and array.dtype.itemsize <= 2) or array.dtype.kind == "f"
    if not known or not fits or 0 in shape:
        cure = f"give {ARRAY_KINDS}"
        value = "array" if name == "array" else "numpy.asarray(it)"  # tensors have other methods
        if 0 in shape:
            cure += "; this one has no pixel"
        elif array.ndim == 3 and not fits and shape[0] in (1, 3, 4):
            cure += f"; this one seems to have its channels first: {value}.transpose(1, 2, 0)"
        elif array.ndim == 4 and shape[3] not in (1, 3, 4) and shape[1] in (1, 3, 4):
            cure += f"; this batch seems to have its channels first: {value}.transpose(0, 2, 3, 1)"
        elif array.ndim == 4:
            cure += f"; of a batch give a list of its images: list({value})"
        elif not known:
            cure += "; of other types the range is unknown"
        raise UserError(f"{name} of type {array.dtype} and shape {list(shape)} is not an image; {cure}")
    colours = array[..., :3] if array.ndim == 3 else array
    if array.dtype.kind == "f":
        array = _unit_bytes(colours, name)
    elif array.dtype.itemsize == 2:
        array = _high_bits(colours.astype(np.int64), _CONTAINER_BITS, name)
    if array.ndim == 2 or shape[2] == 1:
        return np.repeat(array.reshape(*shape[:2], 1), 3, axis=2)
    return array[..., :3]


def _unit_bytes(values: np.ndarray, name: str) -> np.ndarray:
    """Floating point from 0 to 1 as bytes. A range is recognised only where no other would do."""
    low, high = float(values.min()), float(values.max())
    cure = "give floating point from 0 to 1, or uint8 from 0 to 255"
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"{name} of type {values.dtype} holds numbers that are not finite; {cure}")
    if low < 0:
        raise UserError(
            f"{name} of type {values.dtype} has values from {low:.3g} to {high:.3g}: it seems to be normalised, which "
            f"the model does by itself; {cure}"
        )
    if high > 1:
        raise UserError(
            f"{name} of type {values.dtype} has values up to {high:.5g}; {cure} (of 0 to 255: "
            "array.round().astype(numpy.uint8))"
        )
    if high == 1 and bool(((values == 0) | (values == 1)).all()):
        raise UserError(
            f"{name} of type {values.dtype} has no values but 0 and 1, which may be black and white or two kinds of "
            "black; give uint8 from 0 to 255"
        )
    return (values.astype(np.float32) * 255).round().astype(np.uint8)


def warn_of_nothing() -> None:
    """In all loader processes but one, so that what is said once is not said by each of them."""
    _dark_told.set()


def warn_if_dark(rgb: Image.Image, name: str) -> None:
    """For pictures of 16 bits per colour, of which Pillow has kept the high byte."""
    peak = max(high for _, high in rgb.getextrema())  # pyright: ignore[reportGeneralTypeIssues]
    if 0 < peak < 1 << (_DARK_BITS - 8):
        _tell_dark(name, "the numbers of this kind of file are fixed; scale them to 16 bits when saving")


def _declared_bits(image: Image.Image) -> int:
    tags: Any = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    if tags is not None:
        bits = int(tags.get(_BITS_PER_SAMPLE, (_CONTAINER_BITS,))[0])
        largest = tags.get(_MAX_SAMPLE_VALUE, 0)
        largest = int(largest[0] if isinstance(largest, tuple) else largest)
        # TIFF lets this tag be the brightest value of the picture; only a full number of bits declares a depth.
        if 8 <= largest.bit_length() <= bits and largest + 1 == 1 << largest.bit_length():
            return largest.bit_length()
        if bits <= _CONTAINER_BITS:
            return bits - (tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED)
    elif image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):  # of these, older Pillow gives 32-bit pixels
        return _CONTAINER_BITS
    raise ValueError("32-bit integers, whose range is unknown; save it with 8 or 16 bits per channel")


def _high_bits(values: np.ndarray, bits: int, name: str) -> np.ndarray:
    """The high byte of integers of so many bits, as uint8."""
    setting = os.environ.get(BITS_SETTING)
    lowest, peak = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if lowest < 0:
        raise ValueError(f"negative pixels ({lowest}); save it with 8 bits per channel")
    if bits == _CONTAINER_BITS:
        if setting:
            if not setting.isdecimal() or not 8 <= int(setting) <= _CONTAINER_BITS:
                raise UserError(f"{BITS_SETTING}={setting} must be a number of bits from 8 to {_CONTAINER_BITS}")
            bits = int(setting)
        elif 0 < peak < 1 << _DARK_BITS:
            _tell_dark(name, f"if they hold fewer, say so by {BITS_SETTING}={max(peak.bit_length(), 8)} or 12")
    if peak >= 1 << bits:
        raise UserError(
            f"{name} has a pixel of {peak}, more than {bits} bits can hold"
            + (f"; correct or remove {BITS_SETTING}={setting}" if setting else "; it is damaged")
        )
    return (values >> (bits - 8) if bits >= 8 else values * 255 // ((1 << bits) - 1)).astype(np.uint8)


def _tell_dark(name: str, cure: str) -> None:
    """Once in a process: a whole set of such pictures has one cause."""
    if not _dark_told.is_set():
        _dark_told.set()
        logger.warning(
            "%s is nearly black: its pixels have 16 bits, but no more than the lower 12 are used; %s (said once)",
            name,
            cure,
        )


@functools.cache
def _lab_to_rgb() -> ImageCms.ImageCmsTransform:
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(*profiles, "LAB", "RGB")
