"""``dfine evaluate``: COCO average precision of a model on a dataset."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfine_jax.commands.early import check_size, require_data, require_json_name, require_model
from dfine_jax.errors import UserError
from dfine_jax.system.files import require_writable, write_whole
from dfine_jax.system.wording import counted

if TYPE_CHECKING:
    from dfine_jax.data.picture.images import Preprocess


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``evaluate`` to the command line."""
    parser = subparsers.add_parser(
        "evaluate",
        help="COCO average precision of a model on a dataset",
        description="COCO's twelve numbers, AP by class, the best score threshold with precision, recall and F1, and "
        "confusions, of boxes and, where model and data have any, of masks. Classes are matched by name; everything is "
        "compared in pixels of the original images.",
        epilog="examples:\n"
        "  dfine evaluate runs/cells/best --data cells --out evaluation      then open evaluation/report.html\n"
        "  dfine evaluate cells.onnx --data cells --runtime openvino",
    )
    add_data_options(parser)
    add_runtime_options(parser)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers here too")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="write a page here, report.html, with all numbers, curves, confusions and the worst errors",
    )


def run(options: argparse.Namespace) -> int:
    """Evaluate and print."""
    require_model(options.model)
    check_size(options.model, options.size)
    require_data(options.data)
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size} must be at least 1")
    require_json_name("--json", options.json)
    if options.json and not options.json.absolute().parent.is_dir():
        raise UserError(f"--json {options.json}: folder {options.json.parent} does not exist")
    if options.out and options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is a file; give a folder")
    for place in (options.out, options.json and options.json.absolute().parent):
        if place:
            require_writable(place)
    from dfine_jax.data.read.sources import read_dataset
    from dfine_jax.evaluation.evaluate import check_objects, detect_opened
    from dfine_jax.evaluation.score import score
    from dfine_jax.prediction.detector import open_model
    from dfine_jax.serving.artefact import is_artefact
    from dfine_jax.system.host_memory import keep_freed_memory

    if not is_artefact(options.model):
        keep_freed_memory()
    data = read_dataset(options.data, options.split, whole=True)
    check_objects(data)
    opened = open_model(options.model, runtime=options.runtime, device=options.device, threads=options.threads)
    height, width = input_size(options, opened.preprocess)
    found = detect_opened(
        opened,
        data,
        named=(options.model, str(options.data)),
        size_px=(height, width),
        batch_size=options.batch_size,
        workers=options.workers,
    )
    detections, seen, classes = found[:3]
    metrics = score(found.truth, detections, seen, classes.scored)
    print(f"{options.model} on {counted(metrics.num_images, 'image')} of {data.annotation_file}, {height}x{width}")
    ran = opened.backend.describe()
    print(f"{', '.join(f'{name} {value}' for name, value in ran.items())}")
    if note := classes.note():
        print(note)
    unjudged = opened.segments and metrics.masks is None
    if unjudged:
        print(f"masks were not judged: {data.annotation_file} annotates none; the numbers are those of boxes")
    print(f"\n{metrics.table()}")
    origin: dict[str, Any] = {"model": str(options.model), "annotations": str(data.annotation_file)}
    origin |= {"input_size_px": [height, width], "ran_on": ran, "classes_not_in_the_data": list(classes.unscored)}
    origin |= {"masks_not_judged": unjudged} | found.speed()
    if options.json:
        write_whole(options.json, json.dumps(metrics.to_dict() | origin, indent=2) + "\n")
    if options.out:
        from dfine_jax.commands.evaluate_page import write_evaluation

        print(write_evaluation(options, data, found, metrics, origin))
    return 0


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Model and dataset of commands that detect in a whole split."""
    parser.add_argument(
        "model", metavar="MODEL", help="checkpoint folder, weights file, published name, .onnx, .xml or .engine"
    )
    parser.add_argument(
        "--data", metavar="DIR", required=True, type=Path, help="dataset: folder or file (docs/data.md), or tfds:NAME"
    )
    parser.add_argument("--split", choices=("train", "val", "test"), default="val", help="default: val")
    parser.add_argument("--size", metavar="HxW", help="input size (default: the one the model was trained at)")
    parser.add_argument("--batch-size", metavar="N", type=int, default=8, help="images per run of the network")
    parser.add_argument("--workers", metavar="N", type=int, default=0, help="processes that load images (default: 0)")


def add_runtime_options(parser: argparse.ArgumentParser) -> None:
    """Options of commands that run exported files."""
    group = parser.add_argument_group("exported files")
    group.add_argument(
        "--runtime", choices=("onnxruntime", "openvino", "tensorrt"), help="default: by the ending of the file"
    )
    group.add_argument("--device", metavar="NAME", help="in the runtime's words: cpu, cuda, tensorrt; CPU, GPU, NPU")
    group.add_argument("--threads", metavar="N", type=int, help="threads of one run on the CPU")


def input_size(options: argparse.Namespace, preprocess: Preprocess) -> tuple[int, int]:
    """(height, width) that ``--size`` asks for, which ``early.check_size`` has seen, or that of the model."""
    from dfine_jax.commands.train_plan import parse_size

    return parse_size(options.size) if options.size else (preprocess.height_px, preprocess.width_px)
