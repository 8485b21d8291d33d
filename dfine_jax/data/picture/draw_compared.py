"""What is annotated and what is detected in one close-up of a picture: dashes of one colour, full lines of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from dfine_jax.data.picture.contours import Ring

ANNOTATED, DETECTED = (255, 176, 0), (100, 143, 255)  # told apart with any colour vision (IBM's palette)
_RIM = (16, 16, 20)  # beside the lines, which so are seen on any ground
_WIDTH_PX, _HEIGHT_PX = 640, 480  # of a close-up, at most
_THICK_PX, _THIN_PX, _DASH_PX = 7, 3, 18
_CONTEXT = 2.2  # sides of a close-up, in those of what it shows
_LEAST_SHARE = 0.2  # of the picture that is shown of each side

Box = Float[np.ndarray, " 4"]  # corners in pixels


class Traced(NamedTuple):
    """An object or a detection as lines."""

    rings: Sequence[Ring]  # in pixels of the picture
    chosen: bool = False  # drawn thick


def box_ring(box_xyxy_px: Box, size_px: tuple[int, int]) -> Ring:
    """A box as lines that lie in a picture of (width, height)."""
    x0, y0, x1, y1 = np.clip(box_xyxy_px, 0, np.tile(np.subtract(size_px, 1), 2)).tolist()
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def close_up(
    image: Image.Image, box_xyxy_px: Box, annotated: Sequence[Traced], detected: Sequence[Traced]
) -> Image.Image:
    """The box with what is around it, in a picture of one size for the eye, whatever the size of the box.

    Annotations lie on top: between their dashes a detection in the same place is seen.
    """
    left, top, right, bottom = view(box_xyxy_px, image.size)
    scale = min(_WIDTH_PX / (right - left), _HEIGHT_PX / (bottom - top))
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    shown = image.convert("RGB").resize(size, Image.Resampling.BICUBIC, (left, top, right, bottom))
    canvas = ImageDraw.Draw(shown)
    for chosen in (False, True):
        width = _THICK_PX if chosen else _THIN_PX
        for traced, colour in ((detected, DETECTED), (annotated, ANNOTATED)):
            for ring in (ring for one in traced if one.chosen == chosen for ring in one.rings):
                placed = (ring - (left, top)) * scale
                lines = _dashes(placed, _DASH_PX) if colour is ANNOTATED else [np.concatenate([placed, placed[:2]])]
                _draw(canvas, list(lines), colour, width)
    return shown


def view(box_xyxy_px: Box, size_px: tuple[int, int]) -> tuple[int, int, int, int]:
    """Corners of the part of a picture of (width, height) that shows a box and what is around it."""
    corners = np.clip(box_xyxy_px, 0, np.tile(size_px, 2)).reshape(2, 2)
    middle = corners.mean(0)
    across, down = np.maximum((corners[1] - corners[0]) * _CONTEXT, np.multiply(size_px, _LEAST_SHARE)).tolist()
    across = max(across, down * _WIDTH_PX / _HEIGHT_PX)
    sides = np.ceil(np.minimum((across, across * _HEIGHT_PX / _WIDTH_PX), size_px)).clip(1)
    start = np.floor(np.clip(middle - sides / 2, 0, size_px - sides))
    left, top, right, bottom = np.concatenate([start, start + sides]).astype(int).tolist()
    return left, top, right, bottom


def _draw(canvas: ImageDraw.ImageDraw, lines: list[np.ndarray], colour: tuple[int, int, int], width_px: int) -> None:
    for paint, width in ((_RIM, width_px + 2), (colour, width_px)):
        for line in lines:
            canvas.line([(float(x), float(y)) for x, y in line], fill=paint, width=width, joint="curve")


def _dashes(ring: Ring, dash_px: float) -> Iterator[Float[np.ndarray, "p 2"]]:
    """Every other piece of a closed line, cut at equal lengths."""
    closed = np.concatenate([ring, ring[:1]])
    at = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    for start in np.arange(0, at[-1], 2 * dash_px).tolist():
        end = min(start + dash_px, float(at[-1]))
        places = np.concatenate([[start], at[(at > start) & (at < end)], [end]])
        yield np.stack([np.interp(places, at, closed[:, axis]) for axis in (0, 1)], 1)
