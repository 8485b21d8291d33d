"""Pictures of numbers: confusion matrix, threshold curves, training curves. Matplotlib is imported where it draws.

Figures are built without pyplot: nothing global changes, and no display is needed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from dfine_jax.evaluation.metrics import DetectionReport
from dfine_jax.pages.smooth import Points, smoothed, thinned
from dfine_jax.system.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dfine_jax.evaluation.score import Metrics

COLOURS = ("#2f6fde", "#d9822b", "#2e9e6b", "#b0417f", "#7a6a55", "#6f5bd0")
_LINE_COLOURS = (*COLOURS, "#222222", "#9aa3ad")
MAX_CLASSES = 80  # shown in a confusion matrix
_MAX_NUMBERED = 25  # classes up to which the cells hold their counts
_LONGEST_NAME = 24  # letters
_CALLED = {"boxes": "Detections", "masks": "Masks"}
_FONTS = ("DejaVu Sans", "Noto Sans", "Noto Sans CJK JP", "Arial Unicode MS", "PingFang SC", "Microsoft YaHei")
_PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "Average precision, averaged weights",
        "linear",
        {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
        | {"mask_ap": "mask AP", "mask_ap50": "mask AP50", "mask_ap75": "mask AP75"},
    ),
    (
        "Counting at the best threshold",
        "linear",
        {"f1": "F1", "precision": "precision", "recall": "recall", "best_threshold": "threshold"}
        | {"mask_f1": "mask F1", "mask_best_threshold": "mask threshold"},
    ),
    ("Learning rate", "linear", {"lr": "base", "backbone_lr": "backbone"}),
    ("Gradient norm before clipping", "log", {"grad_norm": "mean of the epoch"}),
    ("Images per second", "linear", {"images_per_s": "images/s"}),
)
_MOST_STEPS = 600  # points of the loss by step
_DECADE, _FEW_DECADES = 10.0, 1e3  # ratios of the largest value to the smallest
_LEAST_WAIT = 0.02  # share of the time, from which waiting for data is drawn


@contextlib.contextmanager
def _fonts() -> Iterator[None]:
    """Texts made inside take each letter from the first installed font that has it."""
    from matplotlib import font_manager, rc_context

    installed = {font.name for font in font_manager.fontManager.ttflist}
    with rc_context({"font.family": [name for name in _FONTS if name in installed]}):
        yield


@_fonts()
def confusion_figure(report: DetectionReport) -> Figure:
    """Objects (rows) by prediction (columns); shade: share of the row, number: count.

    Beyond ``MAX_CLASSES`` classes those with the most errors are shown, which the title says.
    """
    shown = most_confused(report.confusion, MAX_CLASSES)
    title = f"{_CALLED[report.kind]} at threshold {report.best_threshold:.2f}"
    if len(shown) < len(report.names):
        title += f" ({len(shown)} classes with the most errors, of {len(report.names)})"
    index = np.append(shown, len(report.names))
    share = _row_shares(report.confusion)[np.ix_(index, index)]
    names = [_shorten(report.names[i]) for i in shown]
    side = min(max(4.5, 0.42 * len(index) + 2.5), 18.0)
    figure = _figure(side + 1.0, side)
    axes = figure.subplots()
    hits = np.eye(len(index), dtype=bool)  # errors have a hue of their own
    for cmap, label, hidden in (("Oranges", "share of the row, wrong", hits), ("Blues", "right", ~hits)):
        shade = axes.imshow(np.ma.masked_array(share, hidden), cmap=cmap, vmin=0.0, vmax=1.0)
        figure.colorbar(shade, ax=axes, fraction=0.03, pad=0.02, label=label)
    size = min(10.0, 640 / len(index))
    style = {"fontsize": size, "parse_math": False}  # a dollar sign in a name is a dollar sign
    turned = len(index) > 6 or max(map(len, names)) > 9
    axes.set_xticks(range(len(index)), [*names, "missed"], rotation=90 if turned else 0, **style)
    axes.set_yticks(range(len(index)), [*names, "no object"], **style)
    axes.set(xlabel="detected as", ylabel="object", title=title)
    if len(index) <= _MAX_NUMBERED + 1:
        _write_counts(axes, report.confusion[np.ix_(index, index)], share, size)
    return figure


def most_confused(confusion: Int[np.ndarray, "k1 k1"], limit: int) -> Int[np.ndarray, " n"]:
    """Labels of the ``limit`` classes with the most errors, ascending."""
    right = np.diag(confusion)[:-1]
    errors = confusion[:-1].sum(1) + confusion[:, :-1].sum(0) - 2 * right
    return np.sort(np.argsort(-errors, kind="stable")[:limit])


@_fonts()
def threshold_figure(report: DetectionReport) -> Figure:
    """Precision, recall, F1 and overlap by threshold, and precision by recall; words where nothing is found."""
    if not report.best.true_positives:
        return _words("Nothing is found: no detection is right at any threshold.")
    thresholds = report.counts.thresholds
    points = [report.counts.overall(i) for i in range(len(thresholds))]
    figure = _figure(11.0, 4.2)
    left, right = figure.subplots(1, 2)
    labels = {"precision": "precision", "recall": "recall", "f1": "F1", "iou": "overlap, errors as 0"}
    found = [p.true_positives + p.false_positives > 0 for p in points]  # without predictions there is no precision
    for colour, (name, label) in zip(COLOURS, labels.items(), strict=False):
        values = [
            p.numbers()[name] if some or name != "precision" else np.nan for p, some in zip(points, found, strict=True)
        ]
        left.plot(thresholds, values, color=colour, label=label)
    if report.found_any:
        left.axvline(report.best_threshold, color="#555555", linestyle=":")
    best = f"Best F1 {report.best.f1:.3f} at threshold {report.best_threshold:.2f}"
    best = best if report.found_any else "No object is found at any threshold"
    _finish(left, best if report.kind == "boxes" else f"{best}, masks", "score threshold")
    left.set(xlim=(0, 1), ylim=(0, 1.02))
    found = [p for p in points if p.true_positives + p.false_positives]  # without predictions there is no precision
    right.plot(
        [p.recall for p in found], [p.precision for p in found], color=COLOURS[0], label="thresholds, high to low"
    )
    right.plot(report.best.recall, report.best.precision, "o", color=COLOURS[1], label="best F1")
    _finish(right, "Precision by recall, all classes, IoU 0.50", "recall")
    right.set(xlim=(0, 1.02), ylim=(0, 1.02), ylabel="precision")
    return figure


def evaluation_figures(metrics: Metrics) -> dict[str, Callable[[], Figure]]:
    """What draws the figures of an evaluation, by file name; of masks, where there are any, under ``mask_``."""
    drawn = {"confusion": confusion_figure, "thresholds": threshold_figure}
    reports = {"": metrics.report} | ({"mask_": metrics.masks.report} if metrics.masks else {})
    return {
        prefix + name: functools.partial(draw, report)
        for prefix, report in reports.items()
        for name, draw in drawn.items()
    }


@_fonts()
def training_figure(rows: Sequence[Mapping[str, float]], steps: Points = ()) -> Figure:
    """Curves of a run by epoch, from the rows of its ``metrics.csv``; panels without numbers are left out.

    Every kind of loss has a panel, with its validation above it where there is one; a line marks the epoch of the best
    average precision.

    Args:
      steps: of its ``steps.csv``: the loss by step has a panel, too, as it is and smoothed.
    """
    losses = [name for name in dict.fromkeys(name for row in rows for name in row) if name.startswith("loss_")]
    titles = {"loss": "Loss, all terms"} | {name: f"Loss, {name.removeprefix('loss_')}" for name in losses}
    every = (*((title, "linear", _of_loss(name)) for name, title in titles.items()), *_PANELS)
    panels = [panel for panel in every if any(name in row for row in rows for name in panel[2])]
    drawn = len(panels) + (len(steps) > 1)
    columns = min(4 if drawn > 6 else 3, max(1, drawn))
    lines = max(1, -(-drawn // columns))
    figure = _figure(4.6 * columns, 3.3 * lines)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    best = max((row for row in rows if row.get("ap", -1) >= 0), key=lambda row: row["ap"], default=None)
    for axes, (title, scale, curves) in zip(grid, panels, strict=False):
        shown = _unlike(rows, {name: label for name, label in curves.items() if any(name in row for row in rows)})
        for colour, (name, label) in zip(itertools.cycle(_LINE_COLOURS), shown.items(), strict=False):
            _curve(axes, rows, name, label, colour)
        if scale == "log":
            _scale_by_decades(axes, [row[name] for row in rows for name in shown if row.get(name, 0.0) > 0])
        if "lr" in shown or "images_per_s" in shown:
            axes.set_ylim(bottom=0)
        if "images_per_s" in shown and max(row.get("data_wait", 0.0) for row in rows) >= _LEAST_WAIT:
            axes.plot([], [], color=COLOURS[1], label="share of time waiting (right axis)")
            share = axes.twinx()
            _curve(share, rows, "data_wait", "", COLOURS[1])
            share.set_ylim(0, 1)
        if best:
            axes.axvline(best["epoch"], color="#888888", linestyle=":", linewidth=1)
        _finish(axes, title, "epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    if len(steps) > 1:
        _draw_steps(grid[len(panels)], steps)
    for axes in grid[drawn:]:
        axes.set_axis_off()
    return figure


def _scale_by_decades(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where the values have more than a decade, else it stays linear; plain numbers at the ticks."""
    if not values or max(values) <= _DECADE * min(values):
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    few = max(values) <= _FEW_DECADES * min(values)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_steps(axes: Axes, steps: Points) -> None:
    points = thinned(steps, _MOST_STEPS)
    axes.plot(*zip(*points, strict=True), color=COLOURS[0], alpha=0.35, linewidth=0.8, label="mean of some steps")
    axes.plot(*zip(*smoothed(points), strict=True), color=COLOURS[0], label="smoothed")
    _finish(axes, "Loss by step, all terms", "step")


def _of_loss(name: str) -> dict[str, str]:
    return {name: "training", f"val_{name}": "validation"}


def _unlike(rows: Sequence[Mapping[str, float]], curves: Mapping[str, str]) -> dict[str, str]:
    """The curves without those that are the same as one before."""
    kept: dict[tuple[tuple[float, float], ...], str] = {}
    for name in curves:
        kept.setdefault(tuple((row["epoch"], row[name]) for row in rows if name in row), name)
    return {name: curves[name] for name in kept.values()}


def save_evaluation(
    metrics: Metrics, folder: Path | str, extra: Mapping[str, Any] | None = None, pictures: bool = True
) -> None:
    """All that is known of an evaluation: ``metrics.json``, and as pictures ``confusion.png`` and ``thresholds.png``.

    Masks have pictures of their own, ``mask_confusion.png`` and ``mask_thresholds.png``.

    Args:
      extra: more entries for the JSON.
    """
    folder = Path(folder)
    write_whole(folder / "metrics.json", json.dumps(metrics.to_dict() | dict(extra or {}), indent=2) + "\n")
    if pictures:
        for name, draw in evaluation_figures(metrics).items():
            save_png(draw(), folder / f"{name}.png")


def save_png(figure: Figure, path: Path | str) -> None:
    """Write the figure; a file of that name is replaced at once, so that a reader never sees half of one."""
    with io.BytesIO() as stream:
        _write_png(figure, stream)
        write_whole(path, stream.getvalue())


def rendered(figure: Figure) -> Image.Image:
    """The figure as a picture."""
    with io.BytesIO() as stream:
        _write_png(figure, stream)
        return Image.open(stream).convert("RGB")


def _write_png(figure: Figure, target: io.BytesIO) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # shown as a box; no reason to talk
        figure.savefig(target, format="png", dpi=110)


def _figure(width_in: float, height_in: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def _words(text: str) -> Figure:
    """In place of a figure that would be empty."""
    figure = _figure(7.0, 2.0)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=12, color="#445566")
    return figure


def _finish(axes: Axes, title: str, x_label: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x_label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=True, framealpha=0.75, edgecolor="none")


def _curve(axes: Axes, rows: Sequence[Mapping[str, float]], name: str, label: str, colour: str) -> None:
    points = [(row["epoch"], row[name]) for row in rows if name in row]
    marker = "o" if len(points) < 30 else ""
    axes.plot(*zip(*points, strict=True), color=colour, label=label, marker=marker, markersize=3)


def _write_counts(axes: Axes, counts: Int[np.ndarray, "n n"], share: Float[np.ndarray, "n n"], size: float) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size}
        style["color"] = "white" if share[row, column] > 0.55 else "#223344"
        axes.text(column, row, str(counts[row, column]), **style)


def _row_shares(confusion: Int[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    return confusion / np.maximum(confusion.sum(1, keepdims=True), 1)


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
