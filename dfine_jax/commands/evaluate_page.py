"""The page of ``dfine evaluate --out``: all numbers, curves, confusions and the worst errors."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfine_jax.pages.page import Commands, Facts, Files, Section, page
from dfine_jax.system.files import write_whole

if TYPE_CHECKING:
    from dfine_jax.data.read.dataset import Dataset
    from dfine_jax.evaluation.evaluate import Found
    from dfine_jax.evaluation.score import Metrics

_FILES = {
    "metrics.json": "all numbers, for programs",
    "confusion.png": "confusions as a picture",
    "thresholds.png": "curves by threshold as a picture",
    "mask_confusion.png": "confusions of masks",
    "mask_thresholds.png": "curves of masks by threshold",
}


def write_evaluation(
    options: argparse.Namespace, data: Dataset, found: Found, metrics: Metrics, origin: dict[str, Any]
) -> str:
    """Everything that ``--out`` gets; a line that says so.

    Args:
      origin: where the numbers come from, for ``metrics.json`` and the page.
    """
    from tqdm import tqdm

    from dfine_jax.evaluation.error_gallery import error_sections
    from dfine_jax.evaluation.evaluation_page import evaluation_sections
    from dfine_jax.evaluation.plots import save_evaluation

    out: Path = options.out
    save_evaluation(metrics, out, origin)
    report = (metrics.masks or metrics).report
    errors = error_sections(
        data, found.classes.scored, found.detections, found.image_ids, out, threshold=report.best_threshold,
        kind=report.kind, truth=found.truth,
        progress=lambda images: tqdm(images, unit="image", desc="draw", disable=None),
    )  # fmt: skip
    height, width = origin["input_size_px"]
    facts = [("model", str(options.model)), ("annotations", origin["annotations"]), ("input", f"{height}x{width}")]
    facts += [(name, str(value)) for name, value in origin["ran_on"].items()]
    speed = f"{origin['evaluation_images_per_s']:.1f} images per second, from files to detections"
    facts.append(("speed", f"{speed}: {metrics.num_images} in {origin['evaluation_s']:.1f} s, without compiling"))
    if origin["classes_not_in_the_data"]:
        facts.append(("classes that are not in the data", ", ".join(origin["classes_not_in_the_data"])))
    if origin["masks_not_judged"]:
        facts.append(("masks", "not judged: the data annotates none"))
    files = [(name, about) for name, about in _FILES.items() if (out / name).is_file()]
    sections = [
        *evaluation_sections(metrics.to_dict(), ""),
        *errors,
        Section("Go on", "", [Commands(going_on(options, report.best_threshold)), Facts(facts), Files(files)]),
    ]
    title = f"Evaluation of {options.model}"
    text = f"{metrics.num_images} images of {origin['annotations']}. A picture opens at its full size."
    write_whole(out / "report.html", page(title, text, sections, long=True))
    return f"\nwritten: {out / 'report.html'} and, beside it, {', '.join(name for name, _ in files)}, pictures"


def going_on(options: argparse.Namespace, threshold: float) -> list[tuple[str, str]]:
    """The command of this evaluation, and what can be done next."""
    from dfine_jax.serving.artefact import is_artefact

    model, data, split = str(options.model), str(options.data), ["--split", options.split]
    again = ["evaluate", model, "--data", data, *split, "--out", str(options.out)]
    for name in ("size", "runtime", "device", "threads"):
        if getattr(options, name) is not None:
            again += [f"--{name}", str(getattr(options, name))]
    lines = {
        "this evaluation": again,
        "mistakes in the annotations": ["errors", model, "--data", data, *split, "--out", "suspects"],
        "detect in a picture": ["predict", model, "PICTURE", "--threshold", f"{threshold:.2f}"],
    }
    if not is_artefact(options.model):
        lines["a file for other programs"] = ["export", model, "--data", data, "--out", "model.onnx"]
    return [(what, f"dfine {shlex.join(words)}") for what, words in lines.items()]
