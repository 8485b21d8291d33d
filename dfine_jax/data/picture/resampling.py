"""Pictures of another size, bytes in and bytes out, by the interpolation that a model was trained with."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

# bilinear_antialias: Pillow's BILINEAR, whose filter is as wide as the reduction. bilinear: four pixels make one,
# centres at halves, whatever the reduction; torch.nn.functional.interpolate(mode="bilinear", align_corners=False).
Interpolation = Literal["bilinear_antialias", "bilinear"]
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
Window = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def inner_px(
    size_px: tuple[int, int], height_px: int, width_px: int, letterbox: bool, enlarge: bool = True
) -> tuple[int, int, int, int]:
    """(left, top, width, height) that a picture of (width, height) takes up in an input of the given size.

    Args:
      letterbox: it keeps its aspect and lies in the middle; else it fills the input.
      enlarge: False: one that is smaller than a letterbox keeps its size.
    """
    if not letterbox:
        return 0, 0, width_px, height_px
    scale = min(width_px / size_px[0], height_px / size_px[1], *(() if enlarge else (1.0,)))
    width, height = (max(1, round(side * scale)) for side in size_px)
    return (width_px - width) // 2, (height_px - height) // 2, width, height


def resized(image: Image.Image, height_px: int, width_px: int, interpolation: Interpolation) -> Image.Image:
    """An RGB picture stretched to a size."""
    if interpolation == "bilinear_antialias":
        return image.resize((width_px, height_px), Image.Resampling.BILINEAR)
    return Image.fromarray(resize_bilinear(np.asarray(image), height_px, width_px))


def resize_bilinear(
    pixels: UInt8[np.ndarray, "h w 3"], height_px: int, width_px: int, window: Window | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Bilinear without antialiasing: rounded once, by at most half a level.

    Args:
      window: the part that is stretched to the size, black where it reaches beyond the picture; None: all of it.
    """
    height, width, channels = pixels.shape
    left, top, right, bottom = window or (0, 0, width, height)
    down, across = _taps(top, bottom, height, height_px), _taps(left, right, width, width_px)
    begin, end = across.first.min(), across.second.max() + 1
    across = across._replace(first=across.first - begin, second=across.second - begin)
    flat = pixels.reshape(height, width * channels)[:, begin * channels : end * channels]
    rows = flat[down.first] * down.first_weight[:, None]
    rows += flat[down.second] * down.second_weight[:, None]
    columns = np.arange(channels)
    out = rows.take((across.first[:, None] * channels + columns).ravel(), axis=1)
    out *= across.first_weight.repeat(channels)
    second = rows.take((across.second[:, None] * channels + columns).ravel(), axis=1)
    second *= across.second_weight.repeat(channels)
    out += second
    out += np.float32(0.5)
    return out.astype(np.uint8).reshape(height_px, width_px, channels)


class _Taps(NamedTuple):
    """Of each output pixel along an axis, two source pixels and their weights."""

    first: Int64[np.ndarray, " n"]
    second: Int64[np.ndarray, " n"]
    first_weight: Float32[np.ndarray, " n"]
    second_weight: Float32[np.ndarray, " n"]


def _taps(low: int, high: int, side: int, out_side: int) -> _Taps:
    """For the window from ``low`` to ``high``, whose edge pixels repeat; those outside the picture weigh nothing."""
    at = np.maximum((np.arange(out_side) + 0.5) * ((high - low) / out_side) - 0.5, 0)
    begin = np.minimum(at.astype(np.int64), high - low - 1)
    share = np.float32(at - begin)
    first, second = begin + low, np.minimum(begin + 1, high - low - 1) + low
    weights = [
        np.where((tap >= 0) & (tap < side), w, np.float32(0)) for tap, w in ((first, 1 - share), (second, share))
    ]
    return _Taps(first.clip(0, side - 1), second.clip(0, side - 1), *weights)
