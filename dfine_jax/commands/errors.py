"""``dfine errors``: annotations that a model finds missing, wrong or out of place."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfine_jax.commands.early import check_size, require_data, require_model
from dfine_jax.commands.evaluate import add_data_options, add_runtime_options, input_size
from dfine_jax.errors import UserError
from dfine_jax.system.files import require_writable
from dfine_jax.system.wording import counted

if TYPE_CHECKING:
    from dfine_jax.evaluation.detections import Detections, Kind, Objects
    from dfine_jax.evaluation.metrics import Overlaps

_FIT_IOU = 0.75
_LIMIT = 100


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``errors`` to the command line."""
    parser = subparsers.add_parser(
        "errors",
        help="annotations that a model finds missing or wrong",
        description="Detect in every image of a split and write what speaks against its annotations, most suspicious "
        "first: detected but not annotated, another class, boxes or masks that fit poorly, annotated but not detected. "
        "DIR gets index.html with pictures, suspects.csv, and suspects.json, a COCO file for annotation tools. Nothing "
        "in the dataset is changed.",
        epilog="examples:\n"
        "  dfine errors runs/cells/best --data cells --out suspects      then open suspects/index.html\n"
        "  dfine errors cells.onnx --data cells --split train --out suspects --threshold 0.6",
    )
    add_data_options(parser)
    parser.add_argument(
        "--out", metavar="DIR", required=True, type=Path, help="new folder for page, table and COCO file"
    )
    parser.add_argument(
        "--threshold", metavar="T", type=float, help="score from which detections count (default: that of the best F1)"
    )
    parser.add_argument(
        "--by", choices=("boxes", "masks"), help="what is compared (default: masks where model and data have any)"
    )
    parser.add_argument(
        "--fit-iou", metavar="IOU", type=float, default=_FIT_IOU,
        help=f"box or mask of an object fits poorly below this overlap (default: {_FIT_IOU})",
    )  # fmt: skip
    parser.add_argument(
        "--limit", metavar="N", type=int, default=_LIMIT,
        help=f"pictures of each fault on the page; table and COCO file hold all (default: {_LIMIT})",
    )  # fmt: skip
    add_runtime_options(parser)


def run(options: argparse.Namespace) -> int:
    """Detect, judge, write."""
    require_model(options.model)
    check_size(options.model, options.size)
    require_data(options.data)
    _check(options)
    from tqdm import tqdm

    from dfine_jax.data.formats.placing import check_new, new_folder
    from dfine_jax.data.read.sources import read_dataset
    from dfine_jax.evaluation.annotation_errors import FAULTS, find_suspects
    from dfine_jax.evaluation.evaluate import check_objects, detect_opened
    from dfine_jax.evaluation.metrics import THRESHOLDS, Overlaps
    from dfine_jax.evaluation.suspect_files import Compared
    from dfine_jax.evaluation.suspect_page import HEADINGS, write_suspects
    from dfine_jax.evaluation.truth import annotated
    from dfine_jax.prediction.detector import open_model
    from dfine_jax.serving.artefact import is_artefact
    from dfine_jax.system.host_memory import keep_freed_memory

    check_new(options.out)
    require_writable(options.out)
    if not is_artefact(options.model):
        keep_freed_memory()
    data = read_dataset(options.data, options.split, whole=True)
    check_objects(data)
    opened = open_model(options.model, runtime=options.runtime, device=options.device, threads=options.threads)
    height, width = input_size(options, opened.preprocess)
    named = str(options.model), str(options.data)
    least = min(float(THRESHOLDS[0]), options.threshold or 1.0)
    amounts: Any = {"batch_size": options.batch_size, "workers": options.workers, "least_score": least}
    amounts["masks"] = options.by != "boxes"
    found = detect_opened(opened, data, named=named, size_px=(height, width), **amounts)
    detections, seen, classes = found[:3]
    objects = annotated(found.truth)
    kind = _kind(options, detections, objects)
    judged = objects.judged_by_mask() if kind == "masks" else objects
    overlaps = Overlaps(judged, detections, seen, classes.scored.ids, least, kind)
    threshold, why = _threshold(options, overlaps, len(classes.scored))
    findings = find_suspects(overlaps, judged, threshold, options.fit_iou)
    text = (
        f"{options.model} on {counted(len(seen), 'image')} of {data.annotation_file}, {height}x{width}. "
        f"{kind.capitalize()} are compared; detections count from score {threshold:g} on{why}."
    )
    compared = Compared(data, classes.scored, objects, detections, kind, threshold, options.fit_iou)
    print(text)
    if note := classes.note():
        print(note)
    with new_folder(options.out) as folder:
        write_suspects(
            compared, findings, folder, text, options.limit,
            lambda images: tqdm(images, unit="image", desc="draw", disable=None),
        )  # fmt: skip
    print()
    for fault in FAULTS:
        print(f"{len(findings.suspects[fault]):>8}  {HEADINGS[fault].lower()}")
    print(f"{findings.agreed:>8}  found as they are annotated")
    print(f"\nopen {options.out / 'index.html'}; all suspects: suspects.csv, suspects.json (COCO) beside it")
    return 0


def _check(options: argparse.Namespace) -> None:
    """UserError for options out of their range."""
    for name in ("batch_size", "limit"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    if options.threshold is not None and not 0 < options.threshold <= 1:
        raise UserError(f"--threshold {options.threshold:g} must lie above 0 and not above 1")
    if not 0.5 <= options.fit_iou <= 1:
        raise UserError(f"--fit-iou {options.fit_iou:g} must lie between 0.5 and 1")


def _threshold(options: argparse.Namespace, overlaps: Overlaps, num_classes: int) -> tuple[float, str]:
    """Score from which detections count, and what to say of it."""
    if options.threshold is not None:
        return options.threshold, ""
    from dfine_jax.evaluation.metrics import THRESHOLDS, count

    counts = count(overlaps, num_classes)
    best = counts.best_index()
    scores = counts.overall(best)
    told = f"where F1 is best ({scores.f1:.3f})" if scores.true_positives else "as no object is found at any"
    return float(THRESHOLDS[best]), f", {told}"


def _kind(options: argparse.Namespace, detections: Detections, objects: Objects) -> Kind:
    """What is compared.

    Raises:
      UserError: masks are asked for where there are none.
    """
    if options.by == "boxes":
        return "boxes"
    drawn = objects.masks is not None and bool((objects.masks.exist & ~objects.crowd).any())
    if detections.masks is not None and drawn:
        return "masks"
    if options.by == "masks":
        lacking = f"{options.data} annotates no mask" if detections.masks is not None else f"{options.model} makes none"
        raise UserError(f"--by masks: {lacking}; leave it out to compare boxes")
    return "boxes"
