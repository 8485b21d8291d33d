"""Lines and zones that objects are counted at, on a picture, each with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from dfine_jax.data.picture.draw import label_font, style_for, writable

_LIGHT, _DARK = (255, 255, 255), (20, 20, 20)
_ARROW = 2.5  # length of the arrow that shows where in is, in heights of letters


class CountMark(NamedTuple):
    """What is drawn of a count."""

    points_px: Sequence[tuple[float, float]]  # two ends of a line, or the corners of a zone, in pixels of the picture
    text: str


def draw_counts(picture: Image.Image, marks: Sequence[CountMark], font_file: str | None = None) -> None:
    """Draw lines and zones in place, white with a dark rim; of a line an arrow shows which way is in, to its left.

    What is written stands at the beginning of a line and at the upper border of a zone, out of the way of most objects.

    Args:
      picture: RGB.
      font_file: TrueType font for names that the installed fonts cannot write.
    """
    style = style_for(*picture.size)
    canvas = ImageDraw.Draw(picture)
    width, rim = max(2, style.line), 2 * max(1, style.line // 3)
    plates = []
    for mark in marks:
        font = label_font(style.font, mark.text, font_file)
        text, points = writable(font, mark.text), np.array(mark.points_px, float)
        ascent, descent = font.getmetrics()
        size = np.array([font.getlength(text), ascent + descent]) + 2 * style.pad
        strokes = [list(map(tuple, points.tolist()))]
        if len(points) == 2:
            along, left = _directions(points)
            length = float(np.linalg.norm(points[1] - points[0]))
            foot = points[0] + along * min(np.abs(along) @ size / 2 + style.pad, length / 2)
            strokes += _arrow(foot, along, left, _ARROW * style.font)
            centre = foot - left * (np.abs(left) @ size / 2 + width + style.pad)
        else:
            strokes[0].append(strokes[0][0])
            centre = np.array([points[:, 0].mean(), points[:, 1].min() + size[1] / 2])
        for colour, extra in ((_DARK, rim), (_LIGHT, 0)):
            for stroke in strokes:
                canvas.line(stroke, fill=colour, width=width + extra, joint="curve")
        corner = np.clip(centre - size / 2, 0, np.maximum(np.array(picture.size) - size - 1, 0)).round()
        plates.append((corner, size, text, font))
    for corner, size, text, font in plates:
        canvas.rectangle([*corner.tolist(), *(corner + size).tolist()], fill=_LIGHT, outline=_DARK)
        canvas.text(tuple((corner + style.pad).tolist()), text, fill=_DARK, font=font, anchor="la")


def _directions(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors along a line and to the left of one who walks along it, y downwards."""
    x, y = (ends[1] - ends[0]) / max(float(np.linalg.norm(ends[1] - ends[0])), 1e-9)
    return np.array([x, y]), np.array([y, -x])


def _arrow(foot: np.ndarray, along: np.ndarray, left: np.ndarray, length_px: float) -> list[list[tuple[float, ...]]]:
    """Shaft and head of an arrow from a place on a line to the left."""
    tip = foot + length_px * left
    head = [tip - 0.35 * length_px * (left + 0.7 * side * along) for side in (-1, 1)]
    return [[tuple(p.tolist()) for p in stroke] for stroke in ((foot, tip), (head[0], tip, head[1]))]
