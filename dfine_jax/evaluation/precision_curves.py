"""Precision by recall of every class, as COCO's average precision is made of it, as values and as parts of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from dfine_jax.pages.charts import Chart, Curve
from dfine_jax.pages.page import Item, Section, Table

IOU_THRESHOLDS = (0.5, 0.75)
MOST_CHARTS = 12  # classes up to which each has a chart; of more, half of it with the lowest and half with the best AP
_DIGITS = 4
_IOU_NAMES = tuple(f"{iou:.2f}" for iou in IOU_THRESHOLDS)


class PrecisionCurves(NamedTuple):
    """Largest precision that is reached at a recall or above it, at 101 recalls from 0 to 1; objects of all sizes."""

    names: tuple[str, ...]  # of the classes
    precision: Float64[np.ndarray, "2 101 k"]  # by ``IOU_THRESHOLDS``; 0 beyond the largest recall, -1: no object

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: recall, and by IoU the mean over classes and each class; None where nothing is."""
        present = np.flatnonzero(np.all(self.precision >= 0, axis=(0, 1)))
        classes = [(k, self.names[k]) for k in present.tolist()]
        by_iou = {}
        for at, name in enumerate(_IOU_NAMES):
            by_iou[name] = {
                "all": self.precision[at][:, present].mean(1).round(_DIGITS).tolist() if classes else None,
                "per_class": {of: self.precision[at, :, k].round(_DIGITS).tolist() for k, of in classes},
            }
        return {"recall": np.linspace(0, 1, self.precision.shape[1]).round(2).tolist(), "iou": by_iou}


def curve_section(values: Mapping[str, Any] | None, of: str) -> list[Section]:
    """Precision by recall as a section of a page, of ``PrecisionCurves.to_dict``; none where there are no curves.

    Args:
      of: the end of the heading: boxes or masks, where there are both.
    """
    if not values or not any(map(any, values["iou"][_IOU_NAMES[0]]["per_class"].values())):
        return []
    recall, by_iou = values["recall"], values["iou"]

    def chart(title: str, of_iou: Sequence[Sequence[float]]) -> Chart:
        curves = [Curve(f"IoU {name}", _reached(recall, curve)) for name, curve in zip(_IOU_NAMES, of_iou, strict=True)]
        return Chart(title, "recall", curves, x_range=(0, 1), y_range=(0, 1), dots=False)

    def of_class(name: str) -> list[list[float]]:
        return [by_iou[iou]["per_class"][name] for iou in _IOU_NAMES]

    area = {name: np.array(of_class(name)).mean(1) for name in by_iou[_IOU_NAMES[0]]["per_class"]}
    order = sorted(area, key=lambda name: area[name].sum())
    shown, half = order, MOST_CHARTS // 2
    if len(order) > MOST_CHARTS:
        shown = order[:half] + order[-half:]
    items: list[Item] = [chart("all classes, their mean", [by_iou[iou]["all"] for iou in _IOU_NAMES])]
    if len(order) > 1:
        items += [chart(name, of_class(name)) for name in shown]
    text = "What share of the detections is right when so many objects are found; average precision is the area below, "
    text += (
        "and a line ends at the largest share of objects that is found at all. Classes with the lowest precision first"
    )
    if len(order) > MOST_CHARTS:
        text += f": of {len(order)} the {half} lowest and the {half} best have a chart, the table has all"
        rows = [
            (
                name,
                *(f"{value:.3f}" for value in area[name]),
                *(f"{_largest(recall, curve):.2f}" for curve in of_class(name)),
            )
            for name in order
        ]
        header = ("class", *(f"AP, IoU {iou}" for iou in _IOU_NAMES), *(f"recall, IoU {iou}" for iou in _IOU_NAMES))
        items.append(Table(header, rows, broad=True))
    return [Section(f"Precision by recall{of}", f"{text}.", items)]


def _reached(recall: Sequence[float], precision: Sequence[float]) -> list[tuple[float, float]]:
    """Points of a curve up to the largest recall that is reached; of a class that is never found the origin."""
    end = max((i for i, value in enumerate(precision) if value > 0), default=0)
    return list(zip(recall[: end + 1], precision[: end + 1], strict=True))


def _largest(recall: Sequence[float], precision: Sequence[float]) -> float:
    return max((at for at, value in zip(recall, precision, strict=True) if value > 0), default=0.0)
