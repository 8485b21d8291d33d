"""Datasets of any format as pictures with their annotations, for tools that write datasets.

Training and evaluation read through ``sources.read_dataset``; here nothing that a file says is lost on the way: crowds,
masks, fields that only some tool knows.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from dfine_jax.data.formats import recognise
from dfine_jax.data.formats.placing import without_dots
from dfine_jax.data.formats.turning import turned, upright_orientation
from dfine_jax.data.picture.images import image_size, upright_size
from dfine_jax.data.read import layout, tfds, yolo
from dfine_jax.data.read.categories import trimmed
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.mask_boxes import mask_box
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.values import is_ignored, size_of
from dfine_jax.errors import RepairableError, UserError
from dfine_jax.system.files import read_json

WHOLE = recognise.WHOLE


@dataclasses.dataclass
class Split:
    """One split as its files say it."""

    source: Path  # annotation file, description or folder, for messages
    content: Any  # COCO's, unchecked where it is from COCO JSON
    folder: Path  # where its file names start
    upright: bool  # sizes and boxes are of the pictures as a viewer shows them; else COCO's rule
    notes: Notes  # what reading left out


@dataclasses.dataclass
class Item:
    """One picture and its annotations, in pixels of the upright picture."""

    path: Path
    size_px: tuple[int, int]  # (width, height), upright
    annotations: list[dict[str, Any]]  # as COCO's
    entry: dict[str, Any]  # of COCO's list of images


@dataclasses.dataclass
class Items:
    """A checked dataset."""

    title: str  # of the format
    splits: dict[str, list[Item]]  # the only one of a dataset without splits is WHOLE
    categories: list[dict[str, Any]]
    notes: Notes
    detected: bool = False  # what a detector says, to be confirmed


def read_splits(data: Path | str, *, lenient: bool) -> tuple[str, dict[str, Split]]:
    """(name of the format, splits) of any dataset whose pictures are files.

    Args:
      data: as for ``sources.read_dataset``.
      lenient: entries that cannot be used are left out and noted, not an error; COCO JSON is not checked anyhow.

    Raises:
      UserError: nothing recognised, or (unless lenient) the data is wrong.
    """
    if str(data).startswith(tfds.PREFIX):
        raise UserError(f"{data}: the pictures of TensorFlow Datasets are not files; export them first")
    root = Path(data)
    if not root.exists():
        raise UserError(f"{root} does not exist; give a folder, a data.yaml or an annotation file")
    description = root if root.is_file() and root.suffix in (".yaml", ".yml") else None
    if root.is_dir():
        found = _coco_layout(root)
        if found:
            return recognise.COCO, found
        description = yolo.find_description(root)
    if description is not None:
        return "YOLO", _yolo_splits(description, lenient)
    located = recognise.locate(root)
    if located is None:
        known = f"COCO JSON, YOLO (data.yaml), {', '.join(recognise.TITLES)}"
        raise UserError(f"no annotations recognised in {root}; known are {known}")
    if located.title == recognise.COCO:
        return located.title, {name: _coco(file, located) for name, file in recognise.by_split(located).items()}
    notes = Notes(lenient=lenient)
    contents = recognise.read(located, notes)
    splits = {name: Split(root, content, located.root, True, notes) for name, content in contents.items()}
    return located.title, splits


def _coco_layout(root: Path) -> dict[str, Split]:
    out: dict[str, Split] = {}
    for split in layout.FOLDERS:
        found = layout._find(root, split)  # not ``locate``, which takes the test split for a missing validation split
        if found is not None:
            out[split] = Split(found[0], read_json(found[0]), found[1], False, Notes(lenient=True))
    return out


def _coco(file: Path, located: recognise.Located) -> Split:
    parsed = read_json(file)
    entries = parsed["images"]
    names = [e["file_name"] for e in entries if isinstance(e, dict) and isinstance(e.get("file_name"), str)]
    folder = recognise.image_folder(file, names, located.root)
    return Split(file, parsed, folder, False, Notes(lenient=True))


def _yolo_splits(description: Path, lenient: bool) -> dict[str, Split]:
    out = {}
    for split in layout.FOLDERS:
        notes = Notes(lenient=lenient)
        content = yolo.read_yolo(description, split, drop_unlisted=lenient, notes=notes)
        if content is not None:
            out[split] = Split(description, content, description.absolute().parent, True, notes)
    if not out:
        raise UserError(f"{description} names no pictures; add 'train: FOLDER' and 'val: FOLDER' to it")
    return out


def read_items(data: Path | str) -> Items:
    """A dataset, read as strictly as for training.

    Raises:
      UserError: as ``sources.read_dataset``, and where the splits list different classes.
    """
    try:
        return _read_items(data)
    except RepairableError as error:
        raise error.of(data) from None


def _read_items(data: Path | str) -> Items:
    title, splits = read_splits(data, lenient=False)
    notes = Notes()
    out: dict[str, list[Item]] = {}
    categories: list[dict[str, Any]] | None = None
    first = Path()
    for name, split in splits.items():
        for kind, places in split.notes.places.items():
            notes.places.setdefault(kind, [])
            notes.places[kind] += [place for place in places if place not in notes.places[kind]]
        paths = _paths(split)
        own = [{**category, "name": trimmed(category["name"])} for category in split.content["categories"]]
        if categories is None:
            categories, first = own, split.source
        elif [(c["id"], c["name"]) for c in categories] != [(c["id"], c["name"]) for c in own]:
            raise UserError(f"{first} and {split.source} list different categories; give both files the same")
        by_image: dict[Any, list[dict[str, Any]]] = {}
        for annotation in split.content["annotations"]:
            if not annotation.get("bbox"):
                box = mask_box(annotation.get("segmentation"))
                if box is None:
                    continue  # marks the background
                annotation = {**annotation, "bbox": box}
            crowd = int(is_ignored(annotation))  # by ``ignore`` and the like, too, in any type
            same = type(annotation.get("iscrowd", 0)) is int and annotation.get("iscrowd", 0) == crowd
            kept = annotation if same else {**annotation, "iscrowd": crowd}
            by_image.setdefault(annotation["image_id"], []).append(kept)
        _check_once(paths, split)
        out[name] = [
            _item(paths[entry["id"]], entry, by_image.get(entry["id"], []), split.upright)
            for entry in split.content["images"]
        ]
    return Items(title, out, categories or [], notes)


def _check_once(paths: dict[Any, Path], split: Split) -> None:
    seen: dict[Path, Any] = {}
    for number, path in paths.items():
        if path in seen:
            raise RepairableError(f"{split.source}: images {seen[path]} and {number} are the same picture {path}")
        seen[path] = number


def _paths(split: Split) -> dict[Any, Path]:
    """Picture by image id; COCO JSON is checked on the way."""
    if split.upright:
        return {entry["id"]: without_dots(Path(entry["file_name"])) for entry in split.content["images"]}
    return {record.image_id: without_dots(record.path) for record in read_coco(split.source, split.folder).records}


def _item(path: Path, entry: dict[str, Any], annotations: list[dict[str, Any]], upright: bool) -> Item:
    size, orientation = upright_size(path), 1
    written = size_of(entry.get("width"), entry.get("height"))
    if not upright:
        stored = image_size(path)
        if written is None or written == stored:
            orientation = upright_orientation(path)
            annotations = [turned(annotation, stored, orientation) for annotation in annotations]
        elif written != size:
            raise UserError(
                f"image {path} has {stored[0]}x{stored[1]} pixels, its annotations say {written[0]}x{written[1]}; "
                "annotate the file that is there, or restore the annotated one"
            )
    return Item(path, size, annotations, entry)
