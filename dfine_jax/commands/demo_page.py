"""The page that ``dfine demo`` ends with: curves, numbers, the exported file, pictures, what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from dfine_jax.data.picture.draw import draw_boxes
from dfine_jax.data.picture.images import save_picture
from dfine_jax.data.picture.object_masks import RunMasks
from dfine_jax.data.read.coco import with_outlines
from dfine_jax.evaluation.truth import encoded_outline
from dfine_jax.pages.charts import Chart, Curve
from dfine_jax.pages.page import Commands, Files, Pair, Section, Table, page
from dfine_jax.system.files import write_whole
from dfine_jax.training.report.run_files import read_metrics

if TYPE_CHECKING:
    from dfine_jax.config import Config
    from dfine_jax.converters.gate.report import GateReport
    from dfine_jax.data.read.dataset import Dataset, Record
    from dfine_jax.evaluation.score import Metrics

NUM_SHOWN = 4
_NUMBERS = (("AP", "ap"), ("AP at IoU 0.50", "ap50"), ("AP at IoU 0.75", "ap75"), ("AR, 100 detections", "ar_100"))


class Tour(NamedTuple):
    """What was done and what came out."""

    config: Config
    num_train: int
    minutes: float
    before: Metrics
    after: Metrics
    export: GateReport | None  # None: left out
    figures: Sequence[Pair]
    commands: Sequence[tuple[str, str]]  # what to do next


def threshold(metrics: Metrics) -> float:
    """The score with the best F1, of masks where there are any."""
    return (metrics.masks or metrics).report.best_threshold


def draw_pairs(out: Path, val_data: Dataset, after: Metrics) -> list[Pair]:
    """What is annotated and what is detected, of validation images with several objects."""
    from dfine_jax.prediction.detector import Detector

    data = with_outlines(val_data) if after.masks else val_data
    detector = Detector(out / "run" / "best", threshold=threshold(after))
    shown: list[Record] = sorted(data.records, key=lambda r: -len(r.labels))[:NUM_SHOWN]
    figures = []
    for record in shown:
        result = detector(record.path)
        names = [data.names[label] for label in record.labels]
        size_px, masks = (record.width_px, record.height_px), None
        if record.outlines:
            masks = RunMasks(tuple(encoded_outline(outline, size_px) for outline in record.outlines), size_px)
        picture, boxes = Image.open(record.path), record.boxes_xyxy_px
        annotated = draw_boxes(picture, boxes, record.labels, names, masks=masks, enlarge=True)
        drawn = result.draw(record.path, enlarge=True)
        halves = []
        for what, half in (("annotated", annotated), ("detected", drawn)):
            name = f"pictures/{record.path.stem}_{what}.png"
            save_picture(half, out / name)
            halves.append((what, name))
        caption = f"{record.path.name}: {len(record.labels)} annotated, {len(result)} detected"
        figures.append(Pair(halves[0], halves[1], caption))
    return figures


def write_page(out: Path, tour: Tour) -> None:
    """``report.html`` in the folder of the tour."""
    train, masks = tour.config.train, tour.after.masks
    text = "A small detector, trained from random weights on drawn shapes to tell circles, rectangles, triangles and "
    text += "stars apart, find them and say which pixels are theirs." if masks else "stars apart and find them."
    sections = [
        Section(
            "Training",
            f"{train.epochs} passes over {tour.num_train} pictures, seen at {tour.config.data.width_px} pixels, "
            f"{train.batch_size} at a time; {tour.minutes:.1f} minutes for the whole tour.",
            _charts(out / "run", tour.before),
        ),
        Section("Result", f"{tour.after.num_images} validation pictures, never trained on.", _tables(tour)),
        *_export_section(tour.export),
        Section(
            "Pictures",
            "The hardest validation pictures, those with the most objects; detections from the score with the best F1 "
            f"on, {threshold(tour.after):.2f}.",
            tour.figures,
        ),
        Section(
            "More",
            "The run has a page of its own, with every curve, classes and confusions.",
            [Files([("run/report.html", "the run"), ("run/log.txt", "its log")])],
        ),
        Section("Go on", "Commands for the model of this tour, and for your own.", [Commands(tour.commands)]),
    ]
    title = "Instance segmentation in JAX: a tour" if masks else "Object detection in JAX: a tour"
    write_whole(out / "report.html", page(title, text, sections))


def _charts(run: Path, before: Metrics) -> list[Chart]:
    rows = read_metrics(run)
    fresh = before.numbers()

    def curve(name: str, column: str) -> Curve:
        start = [(0.0, fresh[column])] if column in fresh else []
        return Curve(name, start + [(row["epoch"], row[column]) for row in rows if column in row])

    if before.masks:
        shown = (("AP, boxes", "ap"), ("AP, masks", "mask_ap"), ("AP at IoU 0.50, masks", "mask_ap50"))
    else:
        shown = (("AP", "ap"), ("AP at IoU 0.50", "ap50"))
    title = "Precision on the validation pictures, averaged weights"
    last = max((row["epoch"] for row in rows), default=1.0)
    axis: Any = {"x_range": (0.0, last), "whole": True}
    precision = Chart(title, "epoch", [curve(*name_and_column) for name_and_column in shown], **axis)
    return [precision, Chart("Training loss, mean of each epoch", "epoch", [curve("loss", "loss")], **axis)]


def _tables(tour: Tour) -> list[Table]:
    pairs = [(tour.before, tour.after)]
    header = ("before", "after")
    if tour.before.masks and tour.after.masks:
        pairs.append((tour.before.masks, tour.after.masks))
        header = ("boxes before", "after", "masks before", "after")
    moments = [metrics for pair in pairs for metrics in pair]
    numbers = [(name, *(f"{getattr(m, key):.3f}" for m in moments)) for name, key in _NUMBERS]
    classes = [(name, *(f"{m.per_class[name]:.3f}" for m in moments)) for name in tour.after.per_class]
    return [Table(("validation", *header), numbers), Table(("AP by class", *header), classes)]


def _export_section(report: GateReport | None) -> list[Section]:
    if report is None or report.accuracy is None:
        return []
    compared = report.comparisons
    rows = []
    for accuracy, what in ((report.accuracy, "AP"), (report.mask_accuracy, "AP of masks,")):
        if accuracy is not None:
            rows += [
                (f"{what} of the model", f"{accuracy.model:.3f}"),
                (f"{what} of the file", f"{accuracy.artefact:.3f}"),
            ]
    rows += [
        ("largest difference of a box", f"{max(c.box_most_px for c in compared):.2g} pixels"),
        ("largest difference of a score", f"{max(c.score_most for c in compared):.2g}"),
    ]
    worst = [c.mask_p95 for c in compared if c.mask_p95 is not None]
    rows += [("1 - IoU of a mask, 95 % below", f"{max(worst):.2g}")] if worst else []
    ran = ", ".join(f"{name} {value}" for name, value in report.ran_on.items())
    return [Section("Export", f"{report.file}, run on {ran}, beside the model.", [Table(("ONNX", "measured"), rows)])]
