"""Pictures of strangers: what is decoded at all."""

from __future__ import annotations

import io
import warnings

from PIL import Image

from dfine_jax.data.picture.images import BROKEN_FILE
from dfine_jax.errors import UserError

# Of photographs and drawings. Pillow knows more, some of which start other programs (EPS) or are seldom looked after.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class UnknownFormatError(UserError):
    """It is no picture, or of a kind that is not decoded."""


class TooManyPixelsError(UserError):
    """Decoding it would take too much memory."""


def check(content: bytes, megapixels: float) -> None:
    """Look at the header of a picture file; nothing is decoded.

    Raises:
      UnknownFormatError, TooManyPixelsError: see there.
      UserError: the header is damaged.
    """
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
        raise UnknownFormatError("HEIC pictures are not read; send JPEG, PNG or WebP")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is lower
            Image.init()
            known = [name for name in FORMATS if name in Image.OPEN]  # as Pillow was built
            with Image.open(io.BytesIO(content), formats=known) as image:
                width, height = image.size
    except Image.UnidentifiedImageError:
        raise UnknownFormatError("no picture that can be read; send JPEG, PNG or WebP") from None
    except Image.DecompressionBombError:
        raise TooManyPixelsError(f"more than {megapixels:g} megapixels, which is the limit; make it smaller") from None
    except BROKEN_FILE as error:
        raise UserError(f"damaged ({error}); send it again") from error
    if width * height > megapixels * 1e6:
        raise TooManyPixelsError(f"{width}x{height} pixels, {megapixels:g} megapixels are the limit; make it smaller")
