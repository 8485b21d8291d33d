"""Reading pictures, and the one description of how a picture becomes model input.

Two ways to treat the EXIF orientation, on purpose. COCO's boxes refer to the stored pixels, which are read like that,
as in the reference. YOLO's labels refer to the upright picture, and so do the boxes drawn for a person who hands over
pictures for prediction: those are turned upright, in whatever form they come.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageFile

from dfine_jax.config import DataConfig
from dfine_jax.data.picture.pixels import to_rgb, warn_if_dark
from dfine_jax.data.picture.resampling import INTERPOLATIONS, Interpolation, inner_px, resized
from dfine_jax.errors import UserError
from dfine_jax.ops.boxes import A
from dfine_jax.system.files import told, write_whole

# Searched for in folders: what Pillow decodes to photographs or drawings. Not among them although Pillow knows them:
# video, documents, icons and vector graphics. A file named one by one may have any ending.
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".avif", ".tif", ".tiff",
    ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".qoi",
)  # fmt: skip
# Pictures too, but not for Pillow as it is installed with this package; searches count them and say so.
UNREADABLE_EXTENSIONS = (
    ".heic", ".heif", ".jxl", ".jxr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw", ".psd",
    ".exr", ".hdr", ".svg", ".dcm",
)  # fmt: skip
SIZE_SETTING = "DFINE_MAX_MEGAPIXELS"  # environment: the largest picture that is decoded as a whole
_MAX_PIXELS = 178_956_970  # Pillow's own: larger ones may be made to fill the memory
BROKEN_FILE = (OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError, Image.DecompressionBombError)
_ORIENTATION = 0x0112
TRANSPOSED = (5, 6, 7, 8)  # orientations that swap width and height
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {6: TURNS[8], 8: TURNS[6]}  # every other orientation undoes itself
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257  # tags


def open_rgb(
    path: str | os.PathLike[str], *, apply_exif: bool = True, encoded: bytes | None = None, any_size: bool = False
) -> Image.Image:
    """Decode a picture completely, as an RGB Pillow image; ``encoded`` is the content when ``path`` is but a name.

    Grey, palette, CMYK, LAB and alpha pictures and those of more than 8 bits are converted as ``pixels.to_rgb`` says.

    Args:
      any_size: decode pictures beyond the limit (179 megapixels, or ``DFINE_MAX_MEGAPIXELS``) too.

    Raises:
      UserError: the file is missing, is no picture, is damaged, too large or holds pixels of unknown range; the message
        names it.
    """
    if encoded is None and not Path(path).is_file():
        absent = not Path(path).exists()
        raise UserError(f"image {path} does not exist" if absent else f"image {path} is not a file")
    try:
        with _opened(path, encoded) as image:
            if not any_size:
                _check_size(image.size, path)
            high_byte_kept = image.mode not in ("L", "1") and any(";16" in str(tile[3]) for tile in image.tile)
            turned = load(image)
            found = turned if turned != 1 else orientation_of(image)
            rgb = to_rgb(image, f"image {path}")
            if high_byte_kept and not image.mode.startswith("I"):
                warn_if_dark(rgb, f"image {path}")
            if apply_exif == (turned != 1) or found not in TURNS:
                return rgb.copy() if rgb is image else rgb
            return rgb.transpose(TURNS[found] if apply_exif else _BACK.get(found, TURNS[found]))
    except Image.UnidentifiedImageError:
        raise UserError(f"image {path} is not a picture that Pillow can read; convert it to JPEG or PNG") from None
    except BROKEN_FILE as error:
        if isinstance(error, OSError) and error.errno:  # the system's word, not the decoder's
            raise told(error, f"image {path}") from error
        raise UserError(f"image {path} cannot be decoded ({error}); replace or remove the file") from error


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str], encoded: bytes | None = None) -> Iterator[ImageFile.ImageFile]:
    """``Image.open`` without its limit of size, which holds for the whole process; pixels are not decoded yet."""
    with open(path, "rb") if encoded is None else io.BytesIO(encoded) as stream:
        prefix = stream.read(16)
        for prepare in (Image.preinit, Image.init):  # the usual formats first
            prepare()
            for factory, accept in [Image.OPEN[name] for name in Image.ID]:
                answer = accept is None or accept(prefix)
                if not answer or isinstance(answer, str):
                    continue
                stream.seek(0)
                try:
                    image = factory(stream, str(path))
                except (SyntaxError, IndexError, TypeError, struct.error):  # not of this format after all
                    continue
                with image:
                    yield image
                return
        raise Image.UnidentifiedImageError("it is no picture that Pillow can read")


def load(image: Image.Image) -> int:
    """Decode a picture; the EXIF orientation by which Pillow has turned it while doing so, 1 for none.

    It turns TIFF files, and no others. Their pixels must not be mapped from the file: then newer versions take them for
    rows of the turned width.
    """
    before = 1
    if isinstance(image, ImageFile.ImageFile) and image.format == "TIFF" and image.tile:
        before, image.filename = orientation_of(image), ""
    image.load()
    return before if before != 1 and orientation_of(image) == 1 else 1


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the pixels as stored; newer Pillow gives that of the turned picture for TIFF files."""
    tags: Any = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    return image.size if tags is None else (int(tags[_TIFF_WIDTH]), int(tags[_TIFF_HEIGHT]))


def _check_size(size_px: tuple[int, int], path: str | os.PathLike[str]) -> None:
    setting, pixels = os.environ.get(SIZE_SETTING), size_px[0] * size_px[1]
    limit = _MAX_PIXELS
    if setting:
        if not setting.isdecimal() or not int(setting):
            raise UserError(f"{SIZE_SETTING}={setting} must be a positive number of megapixels")
        limit = int(setting) * 1_000_000
    if pixels > limit:
        raise UserError(
            f"image {path} has {size_px[0]}x{size_px[1]} pixels, {limit / 1e6:.0f} megapixels are the limit: dfine "
            f"predict takes it with --tile; everywhere else set {SIZE_SETTING}={-(-pixels // 1_000_000)} in the "
            f"environment ({3 * pixels / 1e9:.1f} GB of memory for each such picture), or make it smaller"
        )


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation of an open or loaded picture, 1 (upright) when absent or unreadable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged EXIF blocks, which then count as absent
        try:
            found = image.getexif().get(_ORIENTATION, 1)
        except BROKEN_FILE:  # a PNG is decoded for it; what is wrong is said where the pixels are needed
            return 1
    return found if isinstance(found, int) else 1


def read_image(
    path: str | os.PathLike[str], *, apply_exif: bool = True, encoded: bytes | None = None, any_size: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture as RGB bytes, upright unless ``apply_exif`` is False. Arguments and errors as ``open_rgb``."""
    return np.array(open_rgb(path, apply_exif=apply_exif, encoded=encoded, any_size=any_size))


def save_picture(image: Image.Image, path: Path | str, **options: Any) -> None:
    """Write a picture whole or not at all, in the format of its ending; ``options`` are Pillow's.

    Raises:
      UserError: the system refuses.
    """
    with io.BytesIO() as stream:
        image.save(stream, Image.registered_extensions()[Path(path).suffix.lower()], **options)
        write_whole(path, stream.getvalue(), durable=False)


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
    if not upright and image.size == (height_px, width_px) and orientation(path, encoded) in TRANSPOSED:
        return open_rgb(path, apply_exif=True, encoded=encoded)
    raise UserError(
        f"image {path} has {image.width}x{image.height} pixels, its annotations say {width_px}x{height_px}; "
        "annotate the file that is there, or restore the annotated one"
    )


def orientation_note(path: Path, width_px: int, height_px: int, encoded: bytes | None = None) -> str:
    """That boxes (in COCO JSON) are taken as those of the stored pixels, though viewers show the picture turned.

    Empty without an EXIF orientation, and where the annotated size is that of the turned picture: then it is read
    turned. Nothing else tells which of the two was annotated.
    """
    found = orientation(path, encoded)
    try:
        with _opened(path, encoded) as image:
            stored = _stored_size(image)
    except BROKEN_FILE:
        return ""
    if found not in TURNS or stored != (width_px, height_px):
        return ""
    return f"{path.name}, EXIF orientation {found}"


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the stored pixels, from the file's header.

    Raises:
      UserError: it is no picture, or larger than ``open_rgb`` decodes.
    """
    try:
        with _opened(path) as image:
            _check_size(image.size, path)
            return _stored_size(image)
    except BROKEN_FILE as error:
        if isinstance(error, OSError) and error.errno:
            raise told(error, f"image {path}") from error
        raise UserError(f"image {path} cannot be opened ({error}); replace or remove the file") from error


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of the picture as a viewer shows it, from the file's header. Errors as ``image_size``."""
    width, height = image_size(path)
    return (height, width) if orientation(path) in TRANSPOSED else (width, height)


def orientation(path: Path, encoded: bytes | None = None) -> int:
    """EXIF orientation, 1 (upright) when absent or unreadable."""
    try:
        with _opened(path, encoded) as image:
            return orientation_of(image)
    except BROKEN_FILE:
        return 1


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From a decoded RGB picture to model input; stored in checkpoints and exported files.

    The host brings it to (height, width), the device multiplies by ``scale``. No mean or deviation is subtracted.
    """

    height_px: int
    width_px: int
    resize: Literal["stretch", "letterbox"] = "stretch"  # letterbox: aspect kept, centred on ``border``
    interpolation: Interpolation = "bilinear_antialias"
    channels: Literal["RGB"] = "RGB"
    scale: float = 1 / 255
    border: int = 0  # level of all channels beside a letterboxed picture
    enlarge: bool = True  # False: in a letterbox, a picture smaller than the input keeps its size

    def __post_init__(self) -> None:
        """UserError unless border and enlarging are what they may be."""
        if not isinstance(self.border, int) or not 0 <= self.border <= 255:
            raise UserError(f"border={self.border!r} must be a level of grey from 0 to 255")
        if not isinstance(self.enlarge, bool):
            raise UserError(f"enlarge={self.enlarge!r} must be true or false")

    def __call__(self, image: Image.Image | UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """Stretch or letterbox one picture; bytes in, bytes out."""
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise UserError(f"expected a uint8 array [height, width, 3], got {image.dtype} {list(image.shape)}")
            image = Image.fromarray(image)
        image = to_rgb(image)
        left, top, width, height = self.inner_px(image.size)
        image = resized(image, height, width, self.interpolation)
        if self.resize == "stretch":
            return np.asarray(image)
        out = np.full((self.height_px, self.width_px, 3), self.border, np.uint8)
        out[top : top + height, left : left + width] = np.asarray(image)
        return out

    def inner_px(self, size_px: tuple[int, int]) -> tuple[int, int, int, int]:
        """(left, top, width, height) that a picture of (width, height) takes up in the input."""
        return inner_px(size_px, self.height_px, self.width_px, self.resize == "letterbox", self.enlarge)

    def view_px(self, size_px: tuple[int, int]) -> tuple[float, float, float, float]:
        """What the input shows of a picture of (width, height), in its pixels: (left, top, width, height).

        A point at fractions (x, y) of the input lies at (left + x * width, top + y * height) of the picture. For
        "stretch" that is (0, 0, width, height); a letterbox shows more than the picture.
        """
        left, top, width, height = self.inner_px(size_px)
        across, down = size_px[0] / width, size_px[1] / height  # picture pixels per input pixel
        return -left * across, -top * down, self.width_px * across, self.height_px * down

    def to_float(self, images: UInt8[np.ndarray, "*b H W 3"]) -> Float32[np.ndarray, "*b H W 3"]:
        """Bytes as the network takes them."""
        return unit_range(images, np.float32, self.scale)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. Of ``_ADDED`` only what is not the default, so that earlier versions read the rest."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if _ADDED.get(name, ...) != value}

    @classmethod
    def of(cls, data: DataConfig) -> Preprocess:
        """Of evaluation, as far as ``data`` decides it. A UserError where the border is no level of grey."""
        beside: dict[str, Any] = {"interpolation": data.interpolation} if data.interpolation else {}
        if data.resize == "letterbox":
            beside |= {"border": data.border, "enlarge": data.enlarge}
        return cls(data.height_px, data.width_px, data.resize, **beside)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Inverse of ``to_dict``; anything this version does not execute exactly is a UserError."""
        names, values = {field.name for field in dataclasses.fields(cls)}, {**_ADDED, **values}
        if set(values) != names:
            raise UserError(f"preprocessing must have the keys {sorted(names)}, got {sorted(values)}")
        known = {"resize": ("stretch", "letterbox"), "interpolation": INTERPOLATIONS, "channels": ("RGB",)}
        for name, choices in known.items():
            if values[name] not in choices:
                raise UserError(f"preprocessing {name}={values[name]!r} is not supported, only {' or '.join(choices)}")
        return cls(**values)


# Fields that came after the first stored descriptions, with what those had.
_ADDED: dict[str, Any] = {"border": 0, "enlarge": True}


def unit_range(images: A, dtype: Any, scale: float = 1 / 255) -> A:
    """Bytes, of NumPy or JAX, as the network takes them; images that are floating point already pass unchanged.

    A division, because multiplying by 1/255 rounds differently.
    """
    if images.dtype != np.uint8:
        return images
    scaled: Any = images.astype(dtype) / float(np.float32(1 / scale))
    return scaled
