"""``dfine benchmark``: latency, throughput, memory and accuracy of several models in one interleaved run."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfine_jax.commands.early import require_data, require_model, require_runtime
from dfine_jax.errors import UserError
from dfine_jax.system.files import require_writable, write_whole
from dfine_jax.system.wording import counted
from dfine_jax.weights.names import EXPORTED

if TYPE_CHECKING:
    from dfine_jax.benchmark.latency import Contender, Measurement, Picture
    from dfine_jax.data.read.dataset import Dataset, Record
    from dfine_jax.evaluation.evaluate import ClassMatch
    from dfine_jax.evaluation.truth import Truth

_GENERATED = 20
_FILES = (
    ("benchmark.json", "everything that was measured, for programs"),
    ("benchmark.txt", "the tables as text"),
    ("benchmark.png", "the bars as a picture"),
)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``benchmark`` to the command line."""
    parser = subparsers.add_parser(
        "benchmark",
        help="latency, throughput, memory and accuracy of models, interleaved",
        description="Every model runs in a process of its own; blocks of runs take turns. End to end is from the image "
        "file to the detections, masks of those that score 0.5 in the size of the picture included; raw is the network "
        "alone. With annotated data, AP is that of the timed detections.",
        epilog="examples:\n"
        "  dfine benchmark cells.onnx cells.onnx@openvino cells.xml --data cells --out bench\n"
        "  dfine benchmark runs/cells/best cells.onnx --images 50 --batches 1,2,8 --throughput-threads 1,2",
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="+",
        help="anything dfine evaluate takes; of exported files FILE@RUNTIME or FILE@RUNTIME:DEVICE, such as "
        "cells.onnx@openvino:GPU, says where it runs",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="DIR", type=Path,
        help="dataset: folder or file (docs/data.md), or tfds:NAME (default: generated pictures)",
    )  # fmt: skip
    parser.add_argument("--split", choices=("train", "val", "test"), default="val", help="default: val")
    parser.add_argument("--images", metavar="N", type=int, default=100, help="images at most (default: 100)")
    parser.add_argument("--rounds", metavar="N", type=int, default=10, help="turns of each model (default: 10)")
    parser.add_argument("--runs", metavar="N", type=int, default=10, help="raw runs in each turn (default: 10)")
    parser.add_argument(
        "--pause-ms", metavar="MS", type=float, default=0.0,
        help="idle time before each run, throughput excepted; some published latencies have 200 "
        "(default: 0)",
    )  # fmt: skip
    parser.add_argument("--batches", metavar="N,N", default="1,8", help="for throughput (default: 1,8)")
    parser.add_argument("--throughput-threads", metavar="N,N", default="", help="default: the runtime's own number")
    parser.add_argument("--threads", metavar="N", type=int, help="threads of a run of an exported file on the CPU")
    parser.add_argument(
        "--device", metavar="NAME", help="of exported files, in the runtime's words: cpu, cuda, CPU, GPU"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="write page, table, JSON and picture here")


def run(options: argparse.Namespace) -> int:
    """Measure, print, write."""
    for name in ("images", "rounds", "runs"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)} must be at least 1")
    if not 0 <= options.pause_ms <= 60_000:
        raise UserError(f"--pause-ms {options.pause_ms:g} must be between 0 and 60000")
    if options.out:
        require_writable(options.out)
    batches = _numbers("--batches", options.batches)
    threads = _numbers("--throughput-threads", options.throughput_threads)
    if options.data:
        require_data(options.data)
    for text in options.model:
        _require(text)
    from dfine_jax.benchmark import latency, latency_report
    from dfine_jax.evaluation.evaluate import match_categories
    from dfine_jax.evaluation.truth import annotated

    contenders = [_contender(text, options) for text in options.model]
    hardware = latency.hardware()
    data = _read(options) if options.data else None
    matches: list[ClassMatch] = []
    with_masks: list[Truth] = []  # drawn once, and before anything is measured: what cannot be drawn is an error

    def match(model: Measurement) -> None:
        if data is not None:
            where = str(data.annotation_file)
            matches.append(match_categories(model.class_names, data.classes, model.contender.name, where))
            if model.segments and not with_masks:
                with_masks.append(annotated(data, masks=True))

    from tqdm import tqdm

    with _pictures(data, options.images) as (pictures, described):
        amounts = latency.Amounts(pictures, options.rounds, options.runs, batches, threads, options.pause_ms)
        total = latency.num_blocks(len(contenders), amounts)
        with tqdm(total=total, unit="block", desc="benchmark", disable=None) as bar:
            measured = latency.measure(contenders, amounts, bar.update, match)
    notes = "" if data is None else _judge(measured, data, [*with_masks, data][0], matches)
    text = latency_report.table(measured, hardware, described, options.pause_ms) + notes
    print(text, end="")
    if options.out:
        values = latency_report.to_dict(measured, hardware, described, options.pause_ms)
        write_whole(options.out / "benchmark.json", json.dumps(values, indent=2) + "\n")
        write_whole(options.out / "benchmark.txt", text)
        from dfine_jax.evaluation.plots import save_png

        title = f"{described}; {hardware.get('gpu', hardware['cpu'])}"
        save_png(latency_report.figure(measured, title), options.out / "benchmark.png")
        command = f"dfine {shlex.join(options.typed)}"
        whole = latency_report.benchmark_page(measured, hardware, described, notes, command, _FILES)
        write_whole(options.out / "report.html", whole)
        print(f"\nwritten to {options.out}; the page is {options.out / 'report.html'}")
    return 0


def _judge(measured: list[Measurement], data: Dataset, truth: Truth, matches: list[ClassMatch]) -> str:
    """Add average precision to what was measured; lines about what did not count."""
    from dfine_jax.benchmark.latency import average_precision

    notes = ""
    for model, classes in zip(measured, matches, strict=True):
        model.ap, model.mask_ap = average_precision(model, truth, classes)
        if note := classes.note():
            notes += f"{model.contender.name}: {note}\n"
        if model.segments and model.mask_ap is None:
            notes += f"{model.contender.name}: masks were not judged: {data.annotation_file} annotates none\n"
    return notes


def _require(text: str) -> None:
    """Model and runtime of FILE@RUNTIME:DEVICE are there."""
    model, at, where = text.rpartition("@")
    exported = Path(model).suffix.lower() in EXPORTED
    named = at and not text.startswith("hf:") and re.fullmatch(r"[a-z_]+(:.*)?", where, re.IGNORECASE)
    if at and (exported or named):
        require_model(model)
        require_runtime(where.partition(":")[0], text)
        if not exported:
            raise UserError(f"{text}: @RUNTIME is for exported files; give {model} alone")
    else:
        require_model(text)


def _contender(text: str, options: argparse.Namespace) -> Contender:
    from dfine_jax.benchmark.latency import Contender
    from dfine_jax.serving.artefact import is_artefact

    model, at, runtime = text.rpartition("@")
    if not at or not is_artefact(model):
        model, runtime = text, None
    runtime, _, device = (runtime or "").partition(":")
    return Contender(model, runtime or None, device or options.device, options.threads)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    parts = [part for part in text.split(",") if part]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"{option} {text}: give positive numbers, for example 1,2,8")
    return tuple(int(part) for part in parts)


def _read(options: argparse.Namespace) -> Dataset:
    from dfine_jax.data.read.sources import read_dataset

    data = read_dataset(options.data, options.split, whole=True)
    if not data.max_objects:
        raise UserError(f"{data.annotation_file} annotates no object, so there is no precision; leave --data out")
    return data


@contextlib.contextmanager
def _pictures(data: Dataset | None, most: int) -> Iterator[tuple[tuple[Picture, ...], str]]:
    """Images to detect in, and what to call them."""
    with tempfile.TemporaryDirectory() as folder:
        if data is not None:
            count = min(most, len(data))
            records = [data.records[i * len(data) // count] for i in range(count)]  # evenly spaced
            pictures = tuple(_picture(record, Path(folder)) for record in records)
            yield pictures, f"{counted(len(pictures), 'image')} of {data.annotation_file.name}"
            return
        yield _generated(Path(folder), min(most, _GENERATED)), "generated pictures of 640x480"


def _picture(record: Record, folder: Path) -> Picture:
    from dfine_jax.benchmark.latency import Picture

    size = None if record.upright else (record.width_px, record.height_px)  # without a size: as orientation tells
    return Picture(str(_file(record, folder)), record.image_id, size)


def _file(record: Record, folder: Path) -> Path:
    """The encoded picture as a file, since reading it is part of what is measured."""
    if record.stored is None:
        return record.path
    file = folder / str(record.image_id)
    file.write_bytes(record.stored.read())
    return file


def _generated(folder: Path, count: int) -> tuple[Any, ...]:
    import numpy as np

    from dfine_jax.benchmark.latency import Picture
    from dfine_jax.data.read.synthetic import draw_scene

    out = []
    for i in range(count):
        file = folder / f"{i}.jpg"
        draw_scene(np.random.default_rng(i), 640)[0].crop((0, 80, 640, 560)).save(file, quality=90)
        out.append(Picture(str(file), i))
    return tuple(out)
