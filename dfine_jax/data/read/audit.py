"""What is wrong with a dataset, and what is in it, before any training time is spent."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from jaxtyping import Int64

from dfine_jax.data.picture.images import orientation_note
from dfine_jax.data.read.dataset import Dataset, Record, open_record
from dfine_jax.data.read.index import read_columns
from dfine_jax.data.read.names import name_at
from dfine_jax.data.read.records import (
    CLAMP_TOLERANCE_PX,
    image_ids,
    objects_and_images,
    objects_per_image,
    sizes_px,
    thin_objects,
)
from dfine_jax.data.read.values import REPAIR, are_corners
from dfine_jax.errors import UserError

Level = Literal["error", "warning", "note"]

_FARTHEST_PX = 1e9  # for comparisons of boxes
_UNIT_PX = 8  # boxes within 0 to 1 are objects in no picture larger than this
_SMALL_AREA, _LARGE_AREA = 32**2, 96**2  # pixels, COCO's classes of size
_RARE = 10  # objects
_DECODERS = 4
NUM_EXAMPLES = 3


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
    annotated = _Annotated(dataset)
    notes = annotated.notes
    texts: list[tuple[Level, str, Sequence[str], int]] = [
        (
            "error",
            "annotations of categories that the file does not list; training refuses them",
            annotated.unlisted(),
            notes["unlisted"],
        ),
        (
            "warning",
            f"impossible areas; replaced by that of mask or box ({REPAIR} corrects them)",
            (),
            notes["areas"],
        ),
        ("note", f"objects without a box; that of their mask is used ({REPAIR} writes it)", (), notes["drawn"]),
        ("note", "annotations without a box; they are taken as no object", (), notes["empty"]),
        ("note", "objects marked ignore or difficult; they count like crowd regions", (), notes["ignored"]),
    ]
    out = [Finding(level, text, number, tuple(shown)) for level, text, shown, number in texts if number]
    return out + annotated.findings()


class _Annotated:
    """The annotations of the images of a dataset, as columns."""

    def __init__(self, dataset: Dataset) -> None:
        columns = dataset.columns or read_columns(dataset.annotation_file)
        self.columns, self.notes, self.names = columns.shared.arrays, columns.notes, dataset.names
        sizes = dict(zip(image_ids(dataset.records).tolist(), sizes_px(dataset.records).tolist(), strict=True))
        listed = self.columns["image_id"].tolist()
        by_image = np.array([sizes.get(i, (0, 0)) for i in listed], np.float64).reshape(-1, 2)
        self.image = np.repeat(np.arange(len(listed)), np.diff(self.columns["objects"]))
        self.size_px = by_image[self.image]
        self.here = np.array([i in sizes for i in listed], bool)[self.image]

    def unlisted(self) -> list[str]:
        """Examples."""
        return [
            f"{self._file(image)}, annotation {number}, category {category}"
            for number, image, category in self.notes["unlisted_examples"]
        ]

    def findings(self) -> list[Finding]:
        """Wrong and repeated boxes, and crowd regions."""
        boxes, crowd, label = (self.columns[name] for name in ("box_xywh_px", "crowd", "label"))
        start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        known = self.here & ~crowd & (label >= 0)
        degenerate = known & (np.minimum(end, self.size_px) <= np.maximum(start, 0)).any(1)
        beyond = np.maximum(-start, end - self.size_px).max(1, initial=-np.inf)
        outside = known & ~degenerate & (beyond > CLAMP_TOLERANCE_PX)
        same, other, before = self._repeated(np.flatnonzero(known))
        corners = are_corners(boxes[known], self.size_px[known], CLAMP_TOLERANCE_PX)
        rows: list[tuple[Level, str, Sequence[int], Callable[[int], str]]] = [
            (
                "error",
                "boxes look like corners x1 y1 x2 y2; COCO's are x y width height: subtract x1 and y1 from the others",
                np.flatnonzero(known).tolist() if corners else (),
                lambda row: f", {self._box(row)} in {'x'.join(f'{v:.0f}' for v in self.size_px[row])}",
            ),
            (
                "warning",
                f"boxes without area inside the image; they are dropped ({REPAIR} leaves them out)",
                np.flatnonzero(degenerate).tolist(),
                lambda row: f", {self._box(row)}",
            ),
            (
                "warning",
                f"boxes reach beyond the image; they are cut ({REPAIR} cuts them)",
                np.flatnonzero(outside).tolist(),
                lambda row: f", {self._box(row)} in {'x'.join(f'{v:.0f}' for v in self.size_px[row])}",
            ),
            ("warning", f"boxes repeat another one of the same class; {REPAIR} drops them", same, lambda _: ""),
            (
                "warning",
                "boxes repeat another one with a different class",
                other,
                lambda row: f", {self.names[label[before[row]]]} and {self.names[label[row]]}",
            ),
            (
                "note",
                "crowd regions; not trained on, ignored when evaluating",
                np.flatnonzero(self.here & crowd).tolist(),
                lambda _: "",
            ),
        ]
        return [
            Finding(level, text, len(which), tuple(self._where(row) + more(row) for row in which[:NUM_EXAMPLES]))
            for level, text, which, more in rows
            if len(which)
        ]

    def _repeated(self, rows: Int64[np.ndarray, " k"]) -> tuple[list[int], list[int], dict[int, int]]:
        """Rows whose box (to a tenth of a pixel) the image has before, of the same and of another class; and which."""
        boxes = self.columns["box_xywh_px"][rows].clip(-_FARTHEST_PX, _FARTHEST_PX).round(1)
        keys = np.concatenate([self.image[rows, None], boxes], 1)
        _, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        before = rows[first[which.reshape(-1)]]
        label = self.columns["label"]
        again = before != rows
        same = again & (label[before] == label[rows])
        return rows[same].tolist(), rows[again & ~same].tolist(), dict(zip(rows.tolist(), before.tolist(), strict=True))

    def _where(self, row: int) -> str:
        return f"{self._file(int(self.image[row]))}, annotation {self.columns['annotation_id'][row]}"

    def _file(self, image: int) -> str:
        return name_at(self.columns, image).replace("\\", "/").rpartition("/")[2]

    def _box(self, row: int) -> list[float]:
        return self.columns["box_xywh_px"][row].round(1).tolist()


def why_nothing_to_learn(dataset: Dataset) -> str | None:
    """What keeps a training split from teaching anything; None when it has objects to learn."""
    columns = dataset.columns or read_columns(dataset.annotation_file)
    arrays, total = columns.shared.arrays, columns.notes["annotations"]
    if not len(dataset):
        return "lists no images"
    if dataset.max_objects:
        boxes = arrays["box_xywh_px"][~arrays["crowd"]]
        if (np.abs(boxes) <= 1).all() and sizes_px(dataset.records).min() > _UNIT_PX:
            return (
                f"has {len(boxes)} boxes within 0 to 1: they are fractions of the image; COCO's are pixels, multiply x "
                "and width by the image's width, y and height by its height"
            )
        return None
    if not total:
        return "annotates no object: its list 'annotations' is empty"
    changes = dataset.changes
    if changes.crowd + changes.ignored == total:
        marks = "iscrowd, ignore or difficult" if changes.ignored else "iscrowd"
        return f"annotates crowd regions only ({marks} 1 in all {total} annotations), which are not trained on"
    return f"has {total} annotations, but none leaves an object to train on ({changes or 'of other images'})"


def inspect_content(dataset: Dataset, size_px: tuple[int, int], *, for_training: bool = True) -> list[Finding]:
    """Problems of what is left to train or evaluate on: none, rare classes, objects too small for (height, width)."""
    counts, per_image = class_counts(dataset), objects_per_image(dataset.records)
    empty = [dataset.records[i].path.name for i in np.flatnonzero(per_image == 0)[:NUM_EXAMPLES].tolist()]
    rare = [n for n, (c, _) in counts.items() if 0 < c < _RARE]
    absent = [n for n, (objects, _) in counts.items() if not objects]
    rows: list[tuple[Level, str, Sequence[str], int]] = [
        ("warning", "classes without objects", absent, len(absent)),
        ("warning", f"classes with fewer than {_RARE} objects", rare, len(rare)),
        ("note", "images without objects", empty, int((per_image == 0).sum())),
    ]
    out = [Finding(level, text, number, tuple(n[:NUM_EXAMPLES])) for level, text, n, number in rows if number]
    small = thin_objects(dataset.records, np.array(size_px[::-1]) / np.maximum(sizes_px(dataset.records), 1))
    if small:
        out.append(Finding("warning", f"objects thinner than a pixel at {size_px[0]}x{size_px[1]}", small))
    if why := why_nothing_to_learn(dataset):
        if for_training:
            out.append(Finding("error", f"objects to train on: the file {why}", 0))
        else:
            out.append(Finding("warning", f"objects to evaluate on, so there is no AP and no best: the file {why}", 0))
    return out


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
    return [Finding(level, text, len(n), tuple(n[:NUM_EXAMPLES])) for level, text, n in rows if n]


def _joined(groups: list[list[str]]) -> list[str]:
    return [" = ".join(names) for names in groups]


def class_counts(dataset: Dataset) -> dict[str, tuple[int, int]]:
    """(objects, images with it) by class name."""
    objects, images = objects_and_images(dataset.records)
    return {name: (objects[label], images[label]) for label, name in enumerate(dataset.names)}


def summary(dataset: Dataset) -> list[str]:
    """Numbers of a split as lines of text: images, objects, sizes, classes."""
    if not len(dataset):
        return ["images   0"]
    per_image = objects_per_image(dataset.records)
    areas = np.concatenate([r.areas_px for r in dataset.records])
    sizes = Counter(map(tuple, sizes_px(dataset.records).tolist())).most_common()
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
