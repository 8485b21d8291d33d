"""The worst errors of a detector as close-ups, for the page of its evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfine_jax.data.read.dataset import Classes, Dataset
from dfine_jax.evaluation.annotation_errors import FAULTS, Fault, find_suspects
from dfine_jax.evaluation.detections import Detections, Kind
from dfine_jax.evaluation.metrics import THRESHOLDS, Overlaps
from dfine_jax.evaluation.suspect_files import Compared, describe
from dfine_jax.evaluation.suspect_page import class_filter, close_up_figure, close_up_path, draw_close_ups
from dfine_jax.evaluation.truth import Truth, annotated
from dfine_jax.pages.page import FigureBeside, Filter, Marked, Section
from dfine_jax.system.files import telling

SHOWN = 24  # of each kind
_FIT_IOU = 0.75
_OF_FAULT: dict[Fault, tuple[str, str]] = {
    "missed": ("Missed objects", "Annotated, and not detected; the largest first."),
    "false_positive": ("False detections", "Detected where nothing is annotated; the highest score first."),
    "wrong_class": ("Confused classes", "Annotated as one class, detected as another; the highest score first."),
    "poor_fit": ("Poor fits", "Of the right class, but the {kind} share little (IoU below {fit:g}); the worst first."),
}


def error_sections(
    data: Dataset,
    classes: Classes,
    detections: Detections,
    image_ids: list[int],
    folder: Path,
    *,
    threshold: float,
    kind: Kind,
    progress: Callable[[Any], Any],
    truth: Truth | None = None,
) -> list[Section]:
    """Sections with the worst errors of each kind; their pictures are written into ``FOLDER/pictures``.

    Args:
      classes: that count.
      folder: of the page.
      threshold: score from which detections count.
      kind: what is compared.
      progress: wraps the iterable of images that are drawn.
      truth: what the data annotates, if it has been read already.

    Raises:
      UserError: a picture cannot be read, or the system refuses.
    """
    objects = annotated(truth or data, masks=kind == "masks")
    judged = objects.judged_by_mask() if kind == "masks" else objects
    overlaps = Overlaps(judged, detections, image_ids, classes.ids, min(float(THRESHOLDS[0]), threshold), kind)
    findings = find_suspects(overlaps, judged, threshold, _FIT_IOU)
    compared = Compared(data, classes, objects, detections, kind, threshold, _FIT_IOU)
    described = [one for one in describe(compared, findings) if one.rank <= SHOWN]
    kept = {Path(close_up_path(one)).name for one in described}
    for fault in FAULTS:  # of an earlier evaluation
        for file in (folder / "pictures").glob(f"{fault}_????.jpg"):
            if file.name not in kept:
                with telling(file):
                    file.unlink()
    draw_close_ups(compared, described, folder, progress)
    about = "By kind, in close-ups, which open at their full size: full blue lines are detected, dashed yellow lines "
    sections = [Section("Worst errors", f"{about}annotated, thick lines the error.", class_filter(described))]
    for fault, (heading, about) in _OF_FAULT.items():
        of_fault = [one for one in described if one.suspect.fault == fault]
        figures = [close_up_figure(one, close_up_path(one), one.record.path.name) for one in of_fault]
        total = len(findings.suspects[fault])
        text = about.format(kind=kind, fit=_FIT_IOU)
        shown = f"{len(figures)} of {total} are shown." if total > len(figures) else f"{total} in all."
        sections.append(Section(heading, f"{text} {shown}" if figures else "None.", figures))
    return sections


def sections_text(sections: list[Section]) -> str:
    """Sections of errors as JSON, for ``read_sections``."""
    return json.dumps(sections)


def read_sections(text: str) -> list[Section]:
    """Sections as ``sections_text`` wrote them.

    Raises:
      ValueError, TypeError: it is something else.
    """
    sections = []
    for heading, about, items in json.loads(text):
        sections.append(Section(heading, about, [_read_item(*values) for values in items]))
    return sections


def _read_item(*values: Any) -> FigureBeside | Filter:
    if len(values) == len(Filter._fields):
        return Filter(*values)
    picture, leads_to, marks, *rest = values
    return FigureBeside(picture, leads_to, [Marked(line, tuple(colour), of) for line, colour, of in marks], *rest)
