"""``dfine predict``: detect objects in images and folders."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dfine_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from dfine_jax.detector import DetectionResult, Detector

_LISTED = 20  # runs over at most this many images print a line for each


class Picture(NamedTuple):
    """An image to detect in."""

    path: Path
    name: str  # path below the given folder, or the file name


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``predict`` to the command line."""
    parser = subparsers.add_parser(
        "predict",
        help="detect objects in images and folders",
        description="Detect objects in images and folders; write pictures with boxes, and COCO results.",
        epilog="examples:\n"
        "  dfine predict runs/cells/best photo.jpg\n"
        "  dfine predict runs/cells/best images/ --out drawn --json results.json --threshold 0.3",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, weights file or published name")
    parser.add_argument("source", metavar="SOURCE", nargs="+", help="image, or folder (searched with its subfolders)")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", metavar="DIR", type=Path, help="pictures (default: predictions, unless --json is given)"
    )
    output.add_argument("--json", metavar="FILE", type=Path, help="COCO results, boxes in pixels of the original image")
    output.add_argument(
        "--annotations", metavar="FILE", type=Path,
        help="COCO annotations whose image ids go into --json; without it the id is the file name",
    )  # fmt: skip
    output.add_argument("--font", metavar="FILE", help="TrueType font for class names the installed fonts cannot write")
    detection = parser.add_argument_group("detection")
    detection.add_argument("--threshold", metavar="T", type=float, default=0.5, help="smallest score (default: 0.5)")
    detection.add_argument(
        "--batch-size", metavar="N", type=int, default=1, help="images per run of the network (default: 1)"
    )


def run(options: argparse.Namespace) -> int:
    """Detect in every image. The status is 1 when some could not be read; those are named at the end."""
    out = options.out or (None if options.json else Path("predictions"))
    pictures = find_pictures(options.source, exclude=out)
    ids = image_ids(pictures, options.annotations)
    targets = target_files(pictures, out) if out else [None] * len(pictures)
    if options.json:
        _check_parent(options.json)

    from tqdm import tqdm

    from dfine_jax.detector import Detector

    detector = Detector(options.model, options.threshold, batch_size=options.batch_size)
    entries: list[dict[str, Any]] = []
    failures: list[str] = []
    summaries: list[str] = []
    total = 0
    with tqdm(total=len(pictures), unit="image", desc="predict", disable=None) as bar:
        for i, image, result in _results(detector, pictures, failures, bar):
            total += len(result)
            entries += result.to_coco(ids[i])
            summaries.append(f"{pictures[i].path}: {_summary(result)}")
            target = targets[i]
            if target is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                result.draw(image, options.font).save(target, quality=92)
    if len(failures) == len(pictures) == 1:
        raise UserError(failures[0])
    if options.json:
        options.json.write_text(json.dumps(entries))
    _report(summaries, total, out, options.json)
    for failure in failures:
        print(f"dfine: error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def find_pictures(sources: Sequence[str], exclude: Path | None = None) -> list[Picture]:
    """Images of the sources: files as given, folders searched recursively in order of their paths.

    Args:
      exclude: folder left out of the search, so that drawn pictures are not taken for input.

    Raises:
      UserError: a source is missing, or a folder holds no image.
    """
    from dfine_jax.data.images import EXTENSIONS

    pictures: list[Picture] = []
    for source in map(Path, sources):
        if not source.exists():
            raise UserError(f"{source} does not exist; give images or folders")
        if source.is_file():
            pictures.append(Picture(source, source.name))
            continue
        files = sorted(p for p in source.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        if exclude is not None and exclude.resolve() != source.resolve():
            files = [p for p in files if not p.resolve().is_relative_to(exclude.resolve())]
        if not files:
            raise UserError(f"folder {source} holds no images ({', '.join(EXTENSIONS)})")
        pictures += [Picture(p, p.relative_to(source).as_posix()) for p in files]
    return pictures


def image_ids(pictures: Sequence[Picture], annotations: Path | None) -> list[int | str]:
    """Image id of each picture: its name, or what the annotation file says.

    Raises:
      UserError: the file is no COCO annotation, or lacks a picture.
    """
    if annotations is None:
        return [picture.name for picture in pictures]
    try:
        known = {image["file_name"]: image["id"] for image in json.loads(annotations.read_text())["images"]}
    except OSError as error:
        raise UserError(f"{annotations} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{annotations} is not a COCO annotation file (images with file_name and id)") from error
    absent = [p.name for p in pictures if p.name not in known and p.path.name not in known]
    if absent:
        raise UserError(f"{annotations} has no image {absent[0]!r} ({len(absent)} of {len(pictures)} are absent)")
    return [known[p.name] if p.name in known else known[p.path.name] for p in pictures]


def target_files(pictures: Sequence[Picture], out: Path) -> list[Path]:
    """Where each drawn picture goes: its name below ``out``, numbered where names repeat.

    Raises:
      UserError: a drawn picture would replace an original.
    """
    originals = {picture.path.resolve() for picture in pictures}
    taken: set[Path] = set()
    targets = []
    for picture in pictures:
        name = Path(picture.name)
        suffix = ".jpg" if name.suffix.lower() in (".jpg", ".jpeg") else ".png"
        target = out / name.with_suffix(suffix)
        number = 2
        while target in taken:
            target = out / name.with_name(f"{name.stem}_{number}{suffix}")
            number += 1
        if target.resolve() in originals:
            raise UserError(f"the drawn picture would replace {target}; choose another --out")
        taken.add(target)
        targets.append(target)
    return targets


def _results(
    detector: Detector, pictures: Sequence[Picture], failures: list[str], bar: Any
) -> Iterator[tuple[int, np.ndarray, DetectionResult]]:
    """Index, pixels and detections of each readable image; the others are added to ``failures``."""
    from dfine_jax.data.images import read_image

    readable: list[tuple[int, np.ndarray]] = []
    for i, picture in enumerate(pictures):
        try:
            readable.append((i, read_image(picture.path)))
        except UserError as error:
            failures.append(str(error))
            bar.update()
        if len(readable) == detector.batch_size or i + 1 == len(pictures):
            for (index, image), result in zip(readable, detector([image for _, image in readable]), strict=True):
                yield index, image, result
                bar.update()
            readable = []


def _summary(result: DetectionResult) -> str:
    counts = Counter(result.names)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing found"


def _report(summaries: Sequence[str], total: int, out: Path | None, results: Path | None) -> None:
    if len(summaries) <= _LISTED:
        for line in summaries:
            print(line)
    print(f"{total} objects in {len(summaries)} images")
    if out and summaries:
        print(f"pictures: {out}")
    if results:
        print(f"COCO results: {results}")


def _check_parent(file: Path) -> None:
    if not file.parent.is_dir():
        raise UserError(f"folder {file.parent} of {file} does not exist; create it first")
