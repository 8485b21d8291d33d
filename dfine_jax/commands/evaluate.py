"""``dfine evaluate``: COCO average precision of a model on a dataset."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from dfine_jax.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``evaluate`` to the command line."""
    parser = subparsers.add_parser(
        "evaluate",
        help="COCO average precision of a model on a dataset",
        description="COCO's twelve numbers and AP by class. Classes are matched by name; boxes are compared in pixels "
        "of the original images.",
        epilog="example:\n  dfine evaluate runs/cells/best --data cells --json metrics.json",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, weights file or published name")
    parser.add_argument("--data", metavar="DIR", required=True, type=Path, help="folder with images and annotations")
    parser.add_argument("--split", choices=("train", "val", "test"), default="val", help="default: val")
    parser.add_argument("--size", metavar="HxW", help="input size (default: the one the model was trained at)")
    parser.add_argument("--batch-size", metavar="N", type=int, default=8, help="images per run of the network")
    parser.add_argument("--workers", metavar="N", type=int, default=0, help="processes that load images (default: 0)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers here too")


def run(options: argparse.Namespace) -> int:
    """Evaluate and print."""
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size} must be at least 1")
    if options.json and not options.json.absolute().parent.is_dir():
        raise UserError(f"--json {options.json}: folder {options.json.parent} does not exist")
    from tqdm import tqdm

    from dfine_jax.commands.train import parse_size
    from dfine_jax.data.coco import find_split, read_coco
    from dfine_jax.data.pipeline import EvalLoader
    from dfine_jax.detector import JaxBackend
    from dfine_jax.evaluate import evaluate, match_categories, table
    from dfine_jax.host_memory import keep_freed_memory
    from dfine_jax.postprocess import select
    from dfine_jax.weights import load_checkpoint

    keep_freed_memory()
    data = read_coco(*find_split(options.data, options.split))
    loaded = load_checkpoint(options.model)
    categories = match_categories(loaded.metadata.class_names, data, options.model, str(options.data))
    height, width = parse_size(options.size) if options.size else loaded.metadata.input_size_px
    if height % 32 or width % 32 or not height or not width:
        raise UserError(f"--size {options.size}: sides must be multiples of 32, for example 640x640")
    loader = EvalLoader(data, height_px=height, width_px=width, batch_size=options.batch_size, workers=options.workers)
    backend = JaxBackend(loaded.model, loaded.variables)
    bar = tqdm(loader, total=len(loader), unit="batch", desc="evaluate", disable=None)
    metrics = evaluate(lambda images: select(*backend.predict(images)), bar, data.annotation_file, categories)
    print(f"{options.model} on {metrics.num_images} images of {data.annotation_file}, {height}x{width}\n")
    print(table(metrics))
    if options.json:
        values = {**dataclasses.asdict(metrics), "model": str(options.model), "annotations": str(data.annotation_file)}
        options.json.write_text(json.dumps({**values, "input_size_px": [height, width]}, indent=2) + "\n")
    return 0
