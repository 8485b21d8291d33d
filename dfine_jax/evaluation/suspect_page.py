"""Suspects among annotations as a page with close-ups, beside their table and COCO file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from dfine_jax.data.picture.draw_compared import ANNOTATED, DETECTED, Traced, box_ring, close_up, view
from dfine_jax.data.picture.images import save_picture
from dfine_jax.data.read.dataset import open_record
from dfine_jax.evaluation.annotation_errors import FAULTS, Fault, Findings, Suspect
from dfine_jax.evaluation.detections import Detections, Groups, Objects
from dfine_jax.evaluation.suspect_files import (
    LINE_TOLERANCE_PX,
    Compared,
    Described,
    coco_json,
    corners,
    csv_text,
    describe,
    mask_of,
    picture_files,
)
from dfine_jax.pages.page import FigureBeside, Filter, Marked, Section, Table, page
from dfine_jax.system.files import write_whole

HEADINGS: dict[Fault, str] = {
    "false_positive": "Detected, not annotated",
    "wrong_class": "Another class",
    "poor_fit": "Poor fit",
    "missed": "Annotated, not detected",
}
_COLUMNS = ("class", "not annotated", "another class", "poor fit", "not detected")
_TEXTS: dict[Fault, str] = {
    "false_positive": "Nothing is annotated there: an annotation may be missing. The highest score first.",
    "wrong_class": "Annotated as one class, detected as another one. The highest score first.",
    "poor_fit": "One class, but the {kind} share little (IoU below {fit_iou:g}): one of them is out of place. First "
    "what is detected with a high score and shares the least.",
    "missed": "A wrong annotation, or a hard object; with a high best score perhaps one that is annotated twice. The "
    "largest first.",
}


def write_suspects(
    compared: Compared, findings: Findings, folder: Path, text: str, limit: int, progress: Callable[[Any], Any]
) -> None:
    """Write ``index.html`` with ``pictures/``, ``suspects.csv`` and ``suspects.json``.

    Args:
      folder: paths of the pictures of the dataset are written as from here; those that are no files are copied into it.
      text: what was compared, for the head of the page.
      limit: suspects of each fault that the page shows; table and COCO file hold all.
      progress: wraps the iterable of images that are drawn.

    Raises:
      UserError: a picture cannot be read, or the system refuses.
    """
    described = list(describe(compared, findings))
    files = picture_files(described, folder)
    write_whole(folder / "suspects.csv", csv_text(described, files))
    write_whole(folder / "suspects.json", coco_json(compared, described, files, text))
    shown = [one for one in described if one.rank <= limit]
    draw_close_ups(compared, shown, folder, progress)
    overview = _overview(compared, findings, described, limit)
    sections = [overview._replace(items=[*overview.items, *class_filter(shown)])]
    for fault in FAULTS:
        figures = [close_up_figure(one, files[one.suspect.image_id]) for one in shown if one.suspect.fault == fault]
        about = _TEXTS[fault].format(kind=compared.kind, fit_iou=compared.fit_iou) if figures else "None."
        sections.append(Section(HEADINGS[fault], about, figures))
    write_whole(folder / "index.html", page("Annotations to look at", text, sections, long=True))


def draw_close_ups(
    compared: Compared, shown: Sequence[Described], folder: Path, progress: Callable[[Any], Any]
) -> None:
    """A close-up of each suspect, at its ``close_up_path`` in the folder; each picture is read once."""
    of_image: dict[int, list[Described]] = {}
    for one in shown:
        of_image.setdefault(one.suspect.image_id, []).append(one)
    groups = Groups(compared.objects.image_id), Groups(compared.detections.image_id)
    for image_id in progress(sorted(of_image)):
        image = open_record(of_image[image_id][0].record)
        rows, found = (group.rows(image_id) for group in groups)
        found = found[compared.detections.score[found] >= compared.threshold]
        for one in of_image[image_id]:
            drawn = _close_up(compared, one.suspect, rows, found, image)
            save_picture(drawn, folder / close_up_path(one), quality=85)


def close_up_path(one: Described) -> str:
    """Of the picture of a suspect, from the page."""
    return f"pictures/{one.suspect.fault}_{one.rank:04d}.jpg"


def _close_up(
    compared: Compared,
    suspect: Suspect,
    rows: Int64[np.ndarray, " g"],
    found: Int64[np.ndarray, " n"],
    image: Image.Image,
) -> Image.Image:
    """A suspect among the objects and the detections of its picture."""
    pair = [(compared.objects, suspect.object_row), (compared.detections, suspect.found_row)]
    around = np.array([corners(of.box_xywh_px[row]) for of, row in pair if row >= 0])
    box = np.concatenate([around[:, :2].min(0), around[:, 2:].max(0)])
    seen = view(box, image.size)
    traced = [
        [_traced(compared, of, row, row == chosen, image.size) for row in _seen(of, group, seen)]
        for (of, chosen), group in zip(pair, (rows, found), strict=True)
    ]
    return close_up(image, box, *traced)


def _seen(of: Objects | Detections, rows: Int64[np.ndarray, " r"], seen: tuple[int, int, int, int]) -> list[int]:
    """Rows whose boxes reach into a part of the picture."""
    boxes = of.box_xywh_px[rows]
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    return rows[np.all((start <= seen[2:]) & (end >= seen[:2]), 1)].tolist()


def _traced(compared: Compared, of: Objects | Detections, row: int, chosen: bool, size_px: tuple[int, int]) -> Traced:
    masks = mask_of(compared, of, row, size_px)
    if masks is None:
        return Traced([box_ring(corners(of.box_xywh_px[row]), size_px)], chosen)
    parts = masks.outlines(0, LINE_TOLERANCE_PX)
    return Traced([ring for part in parts for ring in (part.outer, *part.holes)], chosen)


def close_up_figure(one: Described, leads_to: str, name: str | None = None) -> FigureBeside:
    """A suspect's close-up and what is known of it."""
    suspect = one.suspect
    marks = []
    if one.detected_class is not None:
        marks.append(Marked("full", DETECTED, f"{one.detected_class}, detected with score {suspect.score:.2f}"))
    if one.annotated_class is not None:
        number = "" if one.annotation_id is None else f" as number {one.annotation_id}"
        marks.append(Marked("dashed", ANNOTATED, f"{one.annotated_class}, annotated{number}"))
    notes = [f"#{one.rank}"]
    if one.detected_class is not None and one.annotated_class is not None:
        notes.append(f"IoU {suspect.iou:.2f}")
    if suspect.fault == "missed":
        notes += [f"{suspect.area_px:,.0f} px²", f"best score {suspect.score:.2f}"]
    tags = _classes(one)
    return FigureBeside(close_up_path(one), leads_to, marks, ", ".join(notes) + ", ", name, tags)


def class_filter(shown: Sequence[Described]) -> list[Filter]:
    """Boxes by which the page shows close-ups of some classes alone; none where there is one class."""
    counts = Counter(name for one in shown for name in _classes(one))
    return [Filter("Only these classes", sorted(counts.items()))] if len(counts) > 1 else []


def _classes(one: Described) -> list[str]:
    """The annotated and the detected one, each once."""
    return list(dict.fromkeys(name for name in (one.annotated_class, one.detected_class) if name is not None))


def _overview(compared: Compared, findings: Findings, described: Sequence[Described], limit: int) -> Section:
    """Counts by fault and by class: of the annotated class where there is one."""
    totals = [len(findings.suspects[fault]) for fault in FAULTS]
    rows = [(HEADINGS[fault], str(n), str(min(n, limit))) for fault, n in zip(FAULTS, totals, strict=True)]
    counts = Counter((one.annotated_class or one.detected_class, one.suspect.fault) for one in described)
    suspected = [name for name in compared.classes.names if any(counts[name, fault] for fault in FAULTS)]
    classes = [(name, *(str(counts[name, fault]) for fault in FAULTS)) for name in suspected]
    about = (
        f"{findings.agreed} objects are found as they are annotated; {findings.repeated} more detections of what is "
        "found already are left out. Full blue lines are detected, dashed yellow lines annotated, thick lines the "
        "suspect; a picture leads to its file. suspects.csv and suspects.json (COCO) hold all."
    )
    tables = [Table(("suspects", "found", "shown"), rows)]
    tables += [Table(_COLUMNS, classes)] if classes else []
    return Section("Overview", about, tables)
