"""Curves of a run for its page: by epoch, and of the loss by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dfine_jax.config import Config
from dfine_jax.pages.charts import Chart, Curve
from dfine_jax.pages.page import Item, Section
from dfine_jax.pages.smooth import Points, smoothed, thinned
from dfine_jax.training.report.run_files import LOSS, VAL

_MOST_POINTS = 300  # of the loss by step
_COUNTED = {"f1": "F1", "precision": "precision", "recall": "recall", "best_threshold": "threshold"}
_NUMBERS = {"ap": "AP", "ap50": "AP, IoU 0.50", "ap75": "AP, IoU 0.75", "mask_ap": "mask AP"}
_NUMBERS |= {"mask_ap50": "mask AP, IoU 0.50", "mask_ap75": "mask AP, IoU 0.75"}


def best_text(rows: Sequence[Mapping[str, float]], config: Config) -> str:
    """Which epoch is the best, as a sentence."""
    found = best_row(rows, config)
    if found is None:
        return "Nothing has been evaluated yet."
    key = _deciding(rows, config)
    return f"The best so far is epoch {found['epoch']:g} with {_NUMBERS[key]} {found[key]:.3f}."


def best_row(rows: Sequence[Mapping[str, float]], config: Config) -> Mapping[str, float] | None:
    """The row of the best epoch; the first of equals."""
    key = _deciding(rows, config)
    known = [row for row in rows if row.get(key, -1) >= 0]
    return max(known, key=lambda row: row[key], default=None)


def _deciding(rows: Sequence[Mapping[str, float]], config: Config) -> str:
    of_masks = config.train.best_by == "masks" and any(row.get("mask_ap", -1) >= 0 for row in rows)
    return "mask_ap" if of_masks else "ap"


def curve_section(rows: Sequence[Mapping[str, float]], steps: Points, config: Config) -> Section:
    """All curves; those by epoch begin with the end of the first.

    Args:
      rows: of ``metrics.csv``.
      steps: of ``steps.csv``.
    """
    by_step = _by_step(steps)
    if not rows:
        nothing = "Those by epoch begin with the end of the first." if by_step else "They begin with the first steps."
        return Section("Curves", nothing, by_step)
    best = best_row(rows, config)
    axis: Any = {"whole": True, "x_range": (min(1.0, rows[0]["epoch"]), max(rows[-1]["epoch"], 2.0))}
    axis |= {"marked": (best["epoch"], "") if best else None}

    def curve(name: str, column: str) -> list[Curve]:
        points = [(row["epoch"], row[column]) for row in rows if column in row]
        return [Curve(name, points)] if points else []

    def both(column: str) -> list[Curve]:
        return curve("training", column) + curve("validation", VAL + column)

    precision = [line for key, name in _NUMBERS.items() for line in curve(name, key)]
    named = axis | {"marked": (best["epoch"], f"best, epoch {best['epoch']:g}") if best else None}
    charts: list[Item] = (
        [Chart("Average precision, averaged weights", "epoch", precision, **named)] if precision else []
    )
    counted = [line for key, name in _COUNTED.items() for line in curve(name, key)]
    charts += [Chart("Counted at the best threshold", "epoch", counted, **axis)] if counted else []
    charts.append(Chart("Loss, all terms", "epoch", both("loss"), from_zero=False, **axis))
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(LOSS))
    charts += [
        Chart(f"Loss, {name.removeprefix(LOSS)}", "epoch", both(name), from_zero=False, **axis) for name in names
    ]
    rates: dict[tuple[float, ...], Curve] = {}
    for name in dict.fromkeys(name for row in rows for name in row if name.endswith("lr")):
        for line in curve("rate" if name == "lr" else name.removesuffix("_lr"), name):
            rates.setdefault(tuple(y for _, y in line.points), line)  # of equal lines the first
    charts.append(Chart("Learning rate", "epoch", list(rates.values()), **axis))
    charts.append(Chart("Gradient norm before clipping", "epoch", curve("mean", "grad_norm"), from_zero=False, **axis))
    text = "Training is the mean of the epoch's steps; validation is of the averaged weights, without augmentation. "
    text += "The dotted line is the best epoch."
    return Section("Curves", text, [*charts, *by_step])


def _by_step(steps: Points) -> list[Item]:
    if len(steps) < 2:
        return []
    points = thinned(steps, _MOST_POINTS)
    lines = [Curve("mean of some steps", points, faint=True), Curve("smoothed", smoothed(points))]
    return [Chart("Loss by step, all terms", "step", lines, from_zero=False, dots=False, whole=True)]
