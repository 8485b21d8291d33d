"""Reading pictures, and the one description of how a picture becomes model input.

Two ways to treat the EXIF orientation, on purpose. COCO's boxes refer to the stored pixels, which are read like that,
as in the reference. YOLO's labels refer to the upright picture, and so do the boxes drawn for a person who hands over
pictures for prediction: those are turned upright.
"""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from dfine_jax.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_BROKEN_FILE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)  # orientations that swap width and height


def open_rgb(path: str | os.PathLike[str], *, apply_exif: bool = True, encoded: bytes | None = None) -> Image.Image:
    """Decode a picture completely, as an RGB Pillow image; ``encoded`` is the content when ``path`` is but a name.

    Grey, palette, CMYK and alpha pictures are converted (alpha is dropped, as in the reference); 16-bit grey keeps its
    high byte instead of being clipped.

    Raises:
      UserError: the file is missing, is no picture, is damaged or holds floating point pixels; the message names it.
    """
    path = Path(path)
    if encoded is None and not path.is_file():
        raise UserError(f"image {path} does not exist" if not path.exists() else f"image {path} is not a file")
    try:
        with Image.open(path if encoded is None else io.BytesIO(encoded)) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image) if apply_exif else image)
    except Image.UnidentifiedImageError:
        raise UserError(f"image {path} is not a picture that Pillow can read; convert it to JPEG or PNG") from None
    except _BROKEN_FILE as error:
        raise UserError(f"image {path} cannot be decoded ({error}); replace or remove the file") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB; ValueError for floating point pixels, whose range is unknown."""
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ValueError("floating point pixels; save it with 8 bits per channel")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip everything above 255 to white
        grey = np.asarray(image).astype(np.int64)
        if grey.max(initial=0) > 255:
            grey >>= 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # same colours, without Pillow's warning about the transparency it drops
    return image.convert("RGB")


def read_image(path: str | os.PathLike[str], *, apply_exif: bool = True) -> UInt8[np.ndarray, "h w 3"]:
    """A picture as RGB bytes, upright unless ``apply_exif`` is False. Errors as ``open_rgb``."""
    return np.array(open_rgb(path, apply_exif=apply_exif))


def open_annotated(
    path: Path, width_px: int, height_px: int, encoded: bytes | None = None, *, upright: bool = False
) -> Image.Image:
    """A picture of a dataset whose annotations say how large it is. ``encoded`` as in ``open_rgb``.

    Args:
      upright: the annotations are those of the picture as a viewer shows it (YOLO). Else they are of the pixels as
        stored (COCO); some tools write upright boxes there too, which shows where the annotated size is the swapped
        one, and only then the orientation is applied.

    Raises:
      UserError: unreadable, or of another size than annotated (the boxes would not fit).
    """
    image = open_rgb(path, apply_exif=upright, encoded=encoded)
    if image.size == (width_px, height_px):
        return image
    if not upright and image.size == (height_px, width_px) and orientation(path, encoded) in _TRANSPOSED:
        return open_rgb(path, apply_exif=True, encoded=encoded)
    raise UserError(
        f"image {path} has {image.width}x{image.height} pixels, its annotations say {width_px}x{height_px}; "
        "annotate the file that is there, or restore the annotated one"
    )


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the stored pixels, from the file's header."""
    try:
        with Image.open(path) as image:
            return image.size
    except _BROKEN_FILE as error:
        raise UserError(f"image {path} cannot be opened ({error}); replace or remove the file") from error


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of the picture as a viewer shows it, from the file's header. Errors as ``image_size``."""
    width, height = image_size(path)
    if orientation(path) not in _TRANSPOSED:
        return width, height
    with Image.open(path) as image:
        if image.format == "TIFF":  # Pillow turns these itself; some of its versions already in the size of the header
            return open_rgb(path).size
    return height, width


def orientation(path: Path, encoded: bytes | None = None) -> int:
    """EXIF orientation, 1 (upright) when absent or unreadable."""
    try:
        with Image.open(path if encoded is None else io.BytesIO(encoded)) as image, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about damaged EXIF blocks, which then count as absent
            return image.getexif().get(_ORIENTATION, 1)
    except _BROKEN_FILE:  # a PNG is decoded for it; what is wrong is said where the pixels are needed
        return 1


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From a decoded RGB picture to model input; stored in checkpoints and exported files.

    The host brings it to (height, width), the device multiplies by ``scale``. No mean or deviation is subtracted.
    """

    height_px: int
    width_px: int
    resize: Literal["stretch", "letterbox"] = "stretch"  # letterbox: aspect kept, centred on black
    interpolation: Literal["bilinear_antialias"] = "bilinear_antialias"  # Pillow's BILINEAR
    channels: Literal["RGB"] = "RGB"
    scale: float = 1 / 255

    def __call__(self, image: Image.Image | UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """Stretch or letterbox one picture; bytes in, bytes out."""
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise UserError(f"expected a uint8 array [height, width, 3], got {image.dtype} {list(image.shape)}")
            image = Image.fromarray(image)
        image = to_rgb(image)
        left, top, width, height = inner_px(image.size, self.height_px, self.width_px, self.resize == "letterbox")
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        if self.resize == "stretch":
            return np.asarray(image)
        out = np.zeros((self.height_px, self.width_px, 3), np.uint8)
        out[top : top + height, left : left + width] = np.asarray(image)
        return out

    def view_px(self, size_px: tuple[int, int]) -> tuple[float, float, float, float]:
        """What the input shows of a picture of (width, height), in its pixels: (left, top, width, height).

        A point at fractions (x, y) of the input lies at (left + x * width, top + y * height) of the picture. For
        "stretch" that is (0, 0, width, height); a letterbox shows more than the picture.
        """
        left, top, width, height = inner_px(size_px, self.height_px, self.width_px, self.resize == "letterbox")
        across, down = size_px[0] / width, size_px[1] / height  # picture pixels per input pixel
        return -left * across, -top * down, self.width_px * across, self.height_px * down

    def to_float(self, images: UInt8[np.ndarray, "*b H W 3"]) -> Float32[np.ndarray, "*b H W 3"]:
        """Bytes as the network takes them; a division, because multiplying by 1/255 rounds differently."""
        return np.divide(images, np.float32(1 / self.scale), dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Inverse of ``to_dict``; anything this version does not execute exactly is a UserError."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise UserError(f"preprocessing must have the keys {sorted(names)}, got {sorted(values)}")
        known = {"resize": ("stretch", "letterbox"), "interpolation": ("bilinear_antialias",), "channels": ("RGB",)}
        for name, choices in known.items():
            if values[name] not in choices:
                raise UserError(f"preprocessing {name}={values[name]!r} is not supported, only {' or '.join(choices)}")
        return cls(**values)


def inner_px(size_px: tuple[int, int], height_px: int, width_px: int, letterbox: bool) -> tuple[int, int, int, int]:
    """(left, top, width, height) that a picture of (width, height) takes up in an input of the given size."""
    if not letterbox:
        return 0, 0, width_px, height_px
    scale = min(width_px / size_px[0], height_px / size_px[1])
    width, height = (max(1, round(side * scale)) for side in size_px)
    return (width_px - width) // 2, (height_px - height) // 2, width, height
