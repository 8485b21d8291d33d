"""What is wrong with a dataset, and what is in it, before any training time is spent."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

from dfine_jax.data.dataset import Dataset, Record, open_record
from dfine_jax.data.images import orientation_note
from dfine_jax.errors import UserError

Level = Literal["error", "warning", "note"]

_OUTSIDE_PX = 0.5  # rounding of the annotation tool; not worth a report
_SMALL_AREA, _LARGE_AREA = 32**2, 96**2  # pixels, COCO's classes of size
_RARE = 10  # objects
_DECODERS = 4
_NUM_EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Finding:
    """One kind of problem; an error makes training fail or learn wrong things."""

    level: Level
    text: str
    count: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line."""
        shown = f" (for example {'; '.join(self.examples)})" if self.examples else ""
        return f"{self.level}: {self.count or 'no'} {self.text}{shown}"


def inspect_annotations(dataset: Dataset) -> list[Finding]:
    """Problems of the annotations as they stand in the file, dropped ones included."""
    content = json.loads(dataset.annotation_file.read_bytes())
    sizes = {record.image_id: (record.width_px, record.height_px) for record in dataset.records}
    files = {record.image_id: record.path.name for record in dataset.records}
    known = set(dataset.category_ids)
    names = dict(zip(dataset.category_ids, dataset.names, strict=True))
    found: dict[str, list[str]] = defaultdict(list)
    seen: dict[tuple[Any, ...], int] = {}
    for entry in content["annotations"]:
        where = f"{files[entry['image_id']]}, annotation {entry['id']}"
        x, y, width, height = (float(value) for value in entry["bbox"])
        if entry.get("iscrowd"):
            found["crowd"].append(where)
            continue
        if entry["category_id"] not in known:
            found["unknown"].append(f"{where}, category {entry['category_id']}")
            continue
        box = (round(x, 1), round(y, 1), round(width, 1), round(height, 1))
        across, down = sizes[entry["image_id"]]
        if min(x + width, across) <= max(x, 0) or min(y + height, down) <= max(y, 0):
            found["degenerate"].append(f"{where}, {list(box)}")
        elif max(-x, -y, x + width - across, y + height - down) > _OUTSIDE_PX:
            found["outside"].append(f"{where}, {list(box)} in {across}x{down}")
        before = seen.get((entry["image_id"], box))
        if before is None:
            seen[entry["image_id"], box] = entry["category_id"]
        elif before == entry["category_id"]:
            found["duplicate"].append(where)
        else:
            found["ambiguous"].append(f"{where}, {names[before]} and {names[entry['category_id']]}")
    texts: dict[str, tuple[Level, str]] = {
        "unknown": ("error", "annotations of categories that the file does not list; training refuses them"),
        "degenerate": ("warning", "boxes without area inside the image; they are dropped"),
        "outside": ("warning", "boxes reach beyond the image; they are cut"),
        "duplicate": ("warning", "boxes repeat another one of the same class"),
        "ambiguous": ("warning", "boxes repeat another one with a different class"),
        "crowd": ("note", "crowd regions; not trained on, ignored when evaluating"),
    }
    return [
        Finding(level, text, len(found[kind]), tuple(found[kind][:_NUM_EXAMPLES]))
        for kind, (level, text) in texts.items()
        if found[kind]
    ]


def inspect_content(dataset: Dataset, size_px: tuple[int, int]) -> list[Finding]:
    """Problems of what is left to train on: empty and rare classes, objects too small for the (height, width)."""
    counts = class_counts(dataset)
    rows: list[tuple[Level, str, Sequence[str]]] = [
        ("warning", "classes without objects", [n for n, (objects, _) in counts.items() if not objects]),
        ("warning", f"classes with fewer than {_RARE} objects", [n for n, (c, _) in counts.items() if 0 < c < _RARE]),
        ("note", "images without objects", [r.path.name for r in dataset.records if not len(r.labels)]),
    ]
    out = [Finding(level, text, len(n), tuple(n[:_NUM_EXAMPLES])) for level, text, n in rows if n]
    small = [n for n in (_thin_objects(record, size_px) for record in dataset.records) if n]
    if small:
        out.append(Finding("warning", f"objects thinner than a pixel at {size_px[0]}x{size_px[1]}", sum(small)))
    if not any(len(record.labels) for record in dataset.records):
        out.append(Finding("error", "objects to train on", 0))
    return out


def _thin_objects(record: Record, size_px: tuple[int, int]) -> int:
    sides = record.boxes_xyxy_px[:, 2:] - record.boxes_xyxy_px[:, :2]
    return int((sides * [size_px[1] / record.width_px, size_px[0] / record.height_px] < 1).any(1).sum())


@dataclasses.dataclass(frozen=True)
class ImageCheck:
    """Result of decoding one picture."""

    name: str
    problem: str  # empty: none
    digest: str  # of the pixels; empty when unreadable
    doubt: str = ""  # its boxes may be of the turned picture


def inspect_images(records: Sequence[Record]) -> Iterable[ImageCheck]:
    """Decode every picture, in order; those that cannot be used come with their problem."""
    with ThreadPoolExecutor(_DECODERS) as pool:  # decoding leaves the interpreter lock
        yield from pool.map(_check_image, records)


def _check_image(record: Record) -> ImageCheck:
    try:
        image = open_record(record)
    except UserError as error:
        return ImageCheck(record.path.name, str(error), "")
    stored = None if record.stored is None else record.stored.read()
    doubt = "" if record.upright else orientation_note(record.path, record.width_px, record.height_px, stored)
    return ImageCheck(record.path.name, "", hashlib.sha256(image.tobytes()).hexdigest(), doubt)


def image_findings(checks: dict[str, list[ImageCheck]]) -> list[Finding]:
    """Findings from the pictures of all splits: unreadable ones, and the same picture more than once."""
    doubts = [check.doubt for split in checks.values() for check in split if check.doubt]
    broken = [check.problem for split in checks.values() for check in split if check.problem]
    places: dict[str, list[str]] = defaultdict(list)
    for split, results in checks.items():
        for check in results:
            if check.digest:
                places[check.digest].append(f"{split}/{check.name}")
    repeated = [names for names in places.values() if len(names) > 1]
    crossing = [names for names in repeated if len({name.partition("/")[0] for name in names}) > 1]
    within = [names for names in repeated if names not in crossing]
    rows: list[tuple[Level, str, list[str]]] = [
        ("error", "images cannot be used", broken),
        ("warning", "pictures are in several splits: validation looks better than it is", _joined(crossing)),
        ("warning", "pictures occur more than once in a split", _joined(within)),
        ("note", "pictures that viewers turn (EXIF); their boxes are taken as those of the stored pixels", doubts),
    ]
    return [Finding(level, text, len(n), tuple(n[:_NUM_EXAMPLES])) for level, text, n in rows if n]


def _joined(groups: list[list[str]]) -> list[str]:
    return [" = ".join(names) for names in groups]


def class_counts(dataset: Dataset) -> dict[str, tuple[int, int]]:
    """(objects, images with it) by class name."""
    objects, images = Counter[int](), Counter[int]()
    for record in dataset.records:
        objects.update(record.labels.tolist())
        images.update(set(record.labels.tolist()))
    return {name: (objects[label], images[label]) for label, name in enumerate(dataset.names)}


def summary(dataset: Dataset) -> list[str]:
    """Numbers of a split as lines of text: images, objects, sizes, classes."""
    per_image = np.array([len(record.labels) for record in dataset.records])
    areas = np.concatenate([r.areas_px for r in dataset.records]) if len(dataset) else np.zeros(0)
    sizes = Counter((r.width_px, r.height_px) for r in dataset.records).most_common()
    shown = ", ".join(f"{w}x{h} ({n})" for (w, h), n in sizes[:4]) + (f" and {len(sizes) - 4} more" * (len(sizes) > 4))
    small, large = int((areas < _SMALL_AREA).sum()), int((areas >= _LARGE_AREA).sum())
    lines = [
        f"images   {len(dataset)}, {int((per_image == 0).sum())} without objects",
        f"objects  {int(per_image.sum())}; per image {per_image.min()} to {per_image.max()}, "
        f"median {np.median(per_image):g}",
        f"sizes    {small} small (under 32x32 px), {len(areas) - small - large} medium, {large} large (from 96x96)",
        f"pictures {shown}",
        "",
    ]
    counts = class_counts(dataset)
    width = max(len(name) for name in counts)
    most = max(1, *(objects for objects, _ in counts.values()))
    for name, (objects, images) in sorted(counts.items(), key=lambda item: -item[1][0]):
        lines.append(f"{name:<{width}} {objects:>8} in {images:>6} images  {'#' * round(30 * objects / most)}")
    return lines
