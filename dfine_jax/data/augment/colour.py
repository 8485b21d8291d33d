"""Colour operations on Pillow images: the bytes of ``ImageEnhance`` and of a detour over HSV, in less time."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float32
from PIL import Image

_BLOCK_PX = 16384  # temporaries of this size stay in the cache


def adjust_brightness(image: Image.Image, factor: float) -> Image.Image:
    """``ImageEnhance.Brightness`` through a table: blend with black."""
    return image.point(_blend_table(0, factor) * 3)


def adjust_contrast(image: Image.Image, factor: float, grey: int) -> Image.Image:
    """``ImageEnhance.Contrast`` through a table: blend with ``grey``, the mean luma."""
    return image.point(_blend_table(grey, factor) * 3)


def mean_luma(image: Image.Image) -> int:
    """Grey level that contrast turns about: int(mean of the L channel + 0.5)."""
    counts = np.array(image.convert("L").histogram())
    return int(counts @ np.arange(256) / counts.sum() + 0.5)


def _blend_table(grey: int, factor: float) -> list[int]:
    """Pillow's ``Image.blend(grey, value, factor)`` for all bytes: float32 arithmetic, clipped, then truncated."""
    start = np.float32(grey)
    values = start + np.float32(factor) * (np.arange(256, dtype=np.float32) - start)
    return values.clip(0, 255).astype(np.uint8).tolist()


def shift_hue(image: Image.Image, fraction: float) -> Image.Image:
    """Add int(255 * fraction) to the hue byte, modulo 256.

    The way back to RGB gives Pillow's bytes (the test compares all 2^24 colours) at a third of its time.
    """
    hue, saturation, value = (np.asarray(band).ravel() for band in image.convert("HSV").split())
    turned = (np.arange(256) + int(255 * fraction)) % 256 * 256  # row of the table, by hue
    index = turned[hue]
    index += saturation
    scale = value.astype(np.float32)
    channels = np.empty((len(index), 3), np.uint8)
    buffer = np.empty(_BLOCK_PX, np.float32)
    for start in range(0, len(index), _BLOCK_PX):
        block = slice(start, start + _BLOCK_PX)
        part = buffer[: len(index[block])]
        for channel, table in enumerate(_hsv_tables()):
            np.take(table, index[block], out=part, mode="clip")
            part *= scale[block]
            part += np.float32(0.5)
            channels[block, channel] = part
    return Image.fromarray(channels.reshape(image.height, image.width, 3))


@functools.cache
def _hsv_tables() -> tuple[Float32[np.ndarray, "65536"], ...]:
    """Red, green and blue at full value by 256 * hue + saturation (six sectors of the colour circle)."""
    hue, saturation = np.meshgrid(*[np.arange(256, dtype=np.float32)] * 2, indexing="ij")
    position, one = hue * np.float32(6) / np.float32(255), np.float32(1)
    sector = np.floor(position)
    inside, strength = position - sector, saturation / np.float32(255)
    full = np.ones_like(strength)
    low, falling, rising = one - strength, one - strength * inside, one - strength * (one - inside)
    sector = sector.astype(np.int64) % 6
    red = np.choose(sector, [full, falling, low, low, rising, full])
    green = np.choose(sector, [rising, full, full, falling, low, low])
    blue = np.choose(sector, [low, low, rising, full, full, falling])
    return tuple(np.where(saturation == 0, full, channel).ravel() for channel in (red, green, blue))
