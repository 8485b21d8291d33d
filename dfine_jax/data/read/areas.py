"""Areas of annotations: as given where they can be, else computed, because COCO's AP is by area.

An area that is negative, zero, no number or larger than the box puts an object into no class of size, or into the
wrong one: AP becomes -1, as if nothing were annotated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from dfine_jax.data.read.outlines import Polygons, RunLengths, area_px, parse_segmentation

_MOST = 1.5  # times the area of the box


def cured_areas(
    columns: Mapping[str, np.ndarray],
    plain: Callable[[], list[Any]],
    text: bytes | None,
) -> tuple[Float64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Areas that can be, and where one that was given had to be replaced.

    Args:
      columns: ``area_px`` (not a number where none was given, -1 where it was no number) and ``box_xywh_px``.
      plain: gives the entries as JSON has them; called only when masks are needed.
      text: the JSON of the entries, if there is any.
    """
    given, boxes = columns["area_px"], columns["box_xywh_px"]
    with np.errstate(over="ignore", invalid="ignore"):
        of_box = boxes[:, 2].clip(0) * boxes[:, 3].clip(0)
        missing = np.isnan(given)
        wrong = ~missing & ~can_be(given, of_box)
    out = given.copy()
    replaced = np.flatnonzero(missing | wrong)
    out[replaced] = of_box[replaced]
    if len(replaced) and (text is None or b'"segmentation"' in text):
        entries = plain()
        for row in replaced.tolist():
            area = mask_area(entries[row].get("segmentation"))
            if area:
                out[row] = area
    out[~np.isfinite(out)] = 0.0
    return out, wrong & (out != given)


def can_be(area: Any, of_box: Any) -> Any:
    """Whether areas can be those of objects whose boxes have the other area; numbers or arrays.

    A mask has at most the area of its box; tools that round boxes give a little more.
    """
    return (area > 0) & (area <= _MOST * of_box + 1)


def mask_area(segmentation: Any) -> float | None:
    """Area of COCO's ``segmentation`` in pixels; None where it is no mask."""
    try:
        shape = parse_segmentation(segmentation)
        if isinstance(shape, Polygons):
            area = sum(_polygon_area(part) for part in shape.parts)
        elif isinstance(shape, RunLengths):
            area = area_px(shape)
        else:
            return None
    except (TypeError, ValueError, OverflowError):  # not of numbers, or not of two sides
        return None
    return area if np.isfinite(area) and area > 0 else None


def _polygon_area(points: Float64[np.ndarray, "n 2"]) -> float:
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
