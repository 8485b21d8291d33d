"""``dfine predict``: detect objects in images, folders, videos, streams and cameras."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dfine_jax.commands.early import looks_like_a_file, require_json_name, require_model
from dfine_jax.commands.evaluate import add_runtime_options
from dfine_jax.commands.predict_follow import add_tracking, follow_plan
from dfine_jax.errors import UserError
from dfine_jax.system.wording import counted

if TYPE_CHECKING:
    from dfine_jax.prediction.prediction import Job, Tally
    from dfine_jax.prediction.tiling import Tiling

_LISTED = 20  # runs over at most this many images print a line for each
_INTERRUPTED = 130


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``predict`` to the command line."""
    parser = subparsers.add_parser(
        "predict",
        help="detect objects in images, folders, videos, streams and cameras",
        description="Detect objects; write pictures and videos with boxes and masks, COCO results, YOLO labels, masks, "
        "or cut-out objects. All options work alike for every kind of model.",
        epilog="examples:\n"
        "  dfine predict runs/cells/best photo.jpg\n"
        "  dfine predict runs/cells/best images/ --out drawn --json results.json --threshold 0.3\n"
        "  dfine predict traffic.onnx drive.mp4 --classes car,truck --every 5\n"
        "  dfine predict runs/cells/best images/ --results to_correct --format labelstudio\n"
        "  dfine predict traffic.onnx rtsp://camera/1 --seconds 60 --json results.json\n"
        "  dfine predict runs/ships/best harbour.tif --tile auto --crops ships\n"
        "  dfine predict traffic.onnx drive.mp4 --track --count-line gate=0,0.6,1,0.6 --counts counts.json",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="checkpoint folder, weights file, published name, .onnx, .xml or .engine"
    )
    parser.add_argument(
        "source", metavar="SOURCE", nargs="+",
        help="image, video, folder (searched with its subfolders), pattern, address of a stream, or number of a camera",
    )  # fmt: skip
    _add_outputs(parser)
    detection = parser.add_argument_group("detection")
    detection.add_argument(
        "--threshold", metavar="T", type=float,
        help="smallest score (default: that of the best F1 when the weights were evaluated, if they know it, else 0.5)",
    )  # fmt: skip
    detection.add_argument(
        "--mask-threshold", metavar="P", type=float, default=0.5,
        help="smallest probability of a pixel of an object (default: 0.5)",
    )  # fmt: skip
    detection.add_argument(
        "--classes", metavar="NAMES", action="append", help="only these, by name or category id, separated by commas"
    )
    detection.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        help="images per run of the network (default: 1, or as exported)",
    )
    detection.add_argument(
        "--tile", metavar="SIZE",
        help="detect in overlapping tiles, for small objects in large images: auto (the input size), 800 or 600x800 "
        "(height x width)",
    )  # fmt: skip
    detection.add_argument("--overlap", metavar="SHARE", type=float, default=0.2, help="of tiles (default: 0.2)")
    videos = parser.add_argument_group("videos")
    videos.add_argument("--every", metavar="N", type=int, default=1, help="only every Nth frame (default: 1, all)")
    videos.add_argument("--seconds", metavar="S", type=float, help="end after this time of each video")
    add_tracking(parser)
    add_runtime_options(parser)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", metavar="DIR", type=Path,
        help="pictures and videos (default: predictions, unless another output is chosen)",
    )  # fmt: skip
    output.add_argument(
        "--json", metavar="FILE", type=Path,
        help="COCO results, boxes in pixels of the original image, masks as run lengths",
    )  # fmt: skip
    output.add_argument(
        "--results", metavar="PATH", type=Path,
        help="in another format: a table, or a new folder for an annotation tool, with links to the pictures",
    )  # fmt: skip
    output.add_argument(
        "--format", metavar="NAME",
        help="of --results: csv, jsonl (files), coco, yolo, labelstudio, cvat, voc, labelme, via (folders); default: "
        "by the ending, else coco",
    )  # fmt: skip
    output.add_argument(
        "--crops", metavar="DIR", type=Path,
        help="cut out every object, in a folder for its class; along its mask, if the model makes masks",
    )  # fmt: skip
    output.add_argument("--labels", metavar="DIR", type=Path, help="YOLO label files: boxes, or polygons of masks")
    output.add_argument(
        "--masks", metavar="DIR", type=Path, help="PNG pictures of object numbers, and JSON that tells of the objects"
    )
    output.add_argument(
        "--annotations", metavar="FILE", type=Path,
        help="COCO annotations whose image ids go into --json; without it the id is the file name",
    )  # fmt: skip
    output.add_argument("--font", metavar="FILE", help="TrueType font for class names the installed fonts cannot write")


def run(options: argparse.Namespace) -> int:
    """Detect in everything. The status is 1 when something could not be read, which is named at the end."""
    require_model(options.model)
    require_json_name("--json", options.json, "give --results for a table")
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise UserError(f"--threshold {options.threshold:g} must lie between 0 and 1")
    tiling = _tiling(options)
    job = _job(options)

    from dfine_jax.prediction.class_filter import class_labels
    from dfine_jax.prediction.detector import Detector
    from dfine_jax.prediction.following import write_counts
    from dfine_jax.prediction.outputs import TABLES, ResultsFile, TableFile
    from dfine_jax.prediction.prediction import Prediction

    detector = Detector(
        options.model, options.threshold, batch_size=options.batch_size, mask_threshold=options.mask_threshold,
        runtime=options.runtime, device=options.device, threads=options.threads,
    )  # fmt: skip
    if options.masks and not detector.segments:
        raise UserError(f"--masks: {options.model} makes boxes and no masks; leave it away")
    labels = class_labels(options.classes, detector.classes) if options.classes else None
    if tiling and options.tile == "auto":
        tiling = dataclasses.replace(tiling, height_px=detector.input_size_px[0], width_px=detector.input_size_px[1])
    if options.threshold is None and detector.best_threshold is not None:
        print(
            f"dfine: threshold {detector.threshold:g}, that of the best F1 when the weights were evaluated",
            file=sys.stderr,
        )  # fmt: skip
    detector.prepare()
    interrupted = False
    form, tabular = options.format, options.format in TABLES
    table_file, annotations = TableFile(options.results if tabular else None, form, job.follow is not None), None
    if options.results and not tabular:
        from dfine_jax.prediction.datasets import Annotations

        annotations = Annotations(options.results, form, detector.classes)
    with ResultsFile(options.json) as results, table_file as table:
        done = Prediction(job, detector, results, tiling, labels, table, annotations)
        try:
            done.run()
        except KeyboardInterrupt:  # what was done until now is kept
            interrupted = True
        if len(done.failures) == 1 and not done.tallies and not interrupted:
            raise UserError(done.failures[0])
        if not done.tallies:
            results.discard()
            table.discard()
    if options.counts is not None and done.tallies:
        write_counts(options.counts, [tally.following for tally in done.tallies if tally.following is not None])
    if annotations is not None and done.tallies:
        done.notes += annotations.write()
    _report(done.tallies, job, {"COCO results": options.json, form: options.results, "counts": options.counts})
    for note in job.inputs.notes + done.notes:
        print(f"dfine: {note}", file=sys.stderr)
    for failure in done.failures:
        print(f"dfine: error: {failure}", file=sys.stderr)
    if interrupted:
        print("dfine: interrupted; the files hold what was done until then", file=sys.stderr)
        return _INTERRUPTED
    return 1 if done.failures else 0


def _job(options: argparse.Namespace) -> Job:
    """Everything that can be found wrong before the model is loaded."""
    from dfine_jax.prediction.inputs import (
        clip_ids,
        find_inputs,
        image_ids,
        refuse_overwriting,
        result_files,
        result_stems,
    )
    from dfine_jax.prediction.outputs import TABLES
    from dfine_jax.prediction.prediction import Job
    from dfine_jax.prediction.sequences import in_frame_order
    from dfine_jax.prediction.video import require_av
    from dfine_jax.system.files import is_device, require_writable

    _check_values(options)
    parts = {"--crops": options.crops, "--labels": options.labels, "--masks": options.masks}
    others = [options.json, options.results, options.counts, *parts.values()]
    out = options.out or (None if any(others) else Path("predictions"))
    folders = {"--out": out, **parts}
    for option, folder in folders.items():
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UserError(f"{option} {folder} is a file; give a folder")
    results = options.json.parent if options.json is not None and not is_device(options.json) else None
    for place in (*folders.values(), results):
        if place is not None:
            require_writable(place)
    _check_results(options)
    inputs = find_inputs(options.source, exclude=[folder for folder in (*folders.values(), options.results) if folder])
    if options.results and options.format not in TABLES:
        if inputs.clips:
            raise UserError(f"--format {options.format} is for pictures; take csv, jsonl or --json for videos")
        if any(picture.address for picture in inputs.pictures):
            raise UserError(f"--format {options.format} is for pictures in files; download those from addresses first")
    follow = follow_plan(options)
    if follow is not None:
        inputs = in_frame_order(inputs)
    if inputs.clips:
        require_av()
        if options.annotations:
            raise UserError("--annotations gives ids to images only; leave it away for videos, or the videos away")
    picture_files, clip_files = result_files(inputs)
    targets = [out / file for file in picture_files + clip_files] if out else []
    if options.masks:
        targets += [options.masks / f"{stem}.png" for stem in result_stems(picture_files)]
    refuse_overwriting(inputs, targets)
    ids = image_ids(inputs, options.annotations)
    moved = [
        i for i, picture in zip(ids, inputs.pictures, strict=True) if not options.annotations and i != picture.name
    ]
    if moved:
        inputs.notes.append(
            f"{len(moved)} pictures have the name of another one: ids in results carry their folders (first: "
            f"{moved[0]}), files are numbered"
        )
    return Job(
        inputs, ids, clip_ids(inputs), picture_files, clip_files, out, options.crops, options.labels,
        options.masks, options.font, options.every, options.seconds, any_size=bool(options.tile), follow=follow,
    )  # fmt: skip


def _check_values(options: argparse.Namespace) -> None:
    """UserError for values that cannot be, and files where there are none."""
    from dfine_jax.data.picture.draw import check_font

    if options.font:
        check_font(options.font)
    if options.every < 1:
        raise UserError(f"--every {options.every} must be at least 1, which is each frame")
    if options.seconds is not None and not options.seconds > 0:
        raise UserError(f"--seconds {options.seconds:g} must be positive")
    if options.json is not None and options.json.is_dir():
        raise UserError(f"--json {options.json} is a folder; give a file")
    if options.json is not None and not options.json.parent.is_dir():
        raise UserError(f"--json {options.json}: folder {options.json.parent} does not exist; create it first")


def _check_results(options: argparse.Namespace) -> None:
    """Settle the format of ``--results``.

    Raises:
      UserError: the format or the place cannot be.
    """
    from dfine_jax.prediction.outputs import TABLES
    from dfine_jax.system.files import require_writable

    path: Path | None = options.results
    if path is None:
        if options.format:
            raise UserError(f"--format {options.format} is of --results; give a place with --results PATH")
        return
    ending = path.suffix.lower().removeprefix(".")
    named, options.format = options.format, options.format or (ending if ending in TABLES else "coco")
    require_writable(path.absolute().parent)
    if options.format not in TABLES:
        from dfine_jax.data.formats.placing import check_new
        from dfine_jax.prediction.datasets import check_format

        check_format(options.format)
        if looks_like_a_file(path):
            in_one = f"results in one file are --json {path}" if ending == "json" else "tables end with .csv or .jsonl"
            cure = f"{path.with_suffix('')} is a name for it" + f"; {in_one}" * (named in (None, "coco"))
            raise UserError(f"--results {path}: {options.format} is a folder, {cure}")
        check_new(path)
    elif ending != options.format and ending in (*TABLES, "json", "xlsx"):
        raise UserError(f"--results {path} would hold {options.format}; name it .{options.format}")
    elif path.is_dir():
        raise UserError(f"--results {path} is a folder; {options.format} is a file")


def _tiling(options: argparse.Namespace) -> Tiling | None:
    """The tiling asked for; of ``auto`` the size is filled in when the model is known."""
    if not options.tile:
        return None
    from dfine_jax.prediction.tiling import Tiling

    if options.tile == "auto":
        return Tiling(640, 640, options.overlap)
    parts = options.tile.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"--tile {options.tile} is no size; write auto, 800, or height x width as in 600x800")
    return Tiling(int(parts[0]), int(parts[-1]), options.overlap)


def _report(tallies: list[Tally], job: Job, results: dict[str, Path | None]) -> None:
    pictures = [tally for tally in tallies if not tally.is_clip]
    clips = [tally for tally in tallies if tally.is_clip]
    for tally in (pictures if len(pictures) <= _LISTED else []) + clips:
        print(tally)
    total = sum(tally.objects.total() for tally in tallies)
    places = [counted(len(pictures), "image")] if pictures or not clips else []
    places += [counted(sum(tally.frames for tally in clips), "frame")] if clips else []
    print(f"{counted(total, 'object')} in {' and '.join(places)}")
    files = job.picture_files + job.clip_files
    drawn = job.drawn / files[0] if job.drawn and len(files) == 1 else job.drawn  # of one picture the file
    places_of = {"drawn": drawn, "cut out": job.crops, "labels": job.labels, "masks": job.masks}
    for what, path in {**places_of, **results}.items():
        if path and tallies:
            print(f"{what}: {path}")
