"""A dataset from wherever it is: the format is recognised by looking."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path

from dfine_jax.data.formats import recognise
from dfine_jax.data.read import annotation_cache, layout, tfds, yolo
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.dataset import Dataset
from dfine_jax.data.read.notes import Notes
from dfine_jax.errors import RepairableError, UserError
from dfine_jax.system.files import read_json

logger = logging.getLogger(__name__)


def read_dataset(data: Path | str, split: layout.Split, *, drop_unlisted: bool = False, whole: bool = False) -> Dataset:
    """A split of a dataset.

    Recognised, in this order: ``tfds:NAME`` (TensorFlow Datasets, prepared as array_record), a YOLO description
    (``data.yaml``, or the folder it is in), folders with COCO JSON as in ``layout.find_split``, and whatever
    ``formats.recognise`` knows: Pascal VOC, LabelMe, VIA, CVAT, Label Studio, and COCO JSON under any name, as folders
    or files. A folder that has both COCO JSON and YOLO labels is read as COCO JSON. Where there is no validation split,
    the test split is used. Pictures that are not divided into splits are all for training.

    Args:
      data: where it is.
      split: train, val or test.
      drop_unlisted: objects of classes that the data does not list are dropped and counted, to report them with all
        else that is wrong. Only for that: training on the others would lose a class, or give them wrong names.
      whole: pictures that are not divided into splits are those of the split that is asked for.

    Raises:
      UserError: nothing recognised (the message says what was looked for), or the data is wrong; RepairableError where
        ``dfine check --repair`` cures it.
    """
    text = str(data)
    try:
        if text.startswith(tfds.PREFIX):
            return _read_tfds(text.removeprefix(tfds.PREFIX), split, drop_unlisted)
        return _read_files(Path(data), split, drop_unlisted, whole)
    except RepairableError as error:
        if text.startswith(tfds.PREFIX):  # whose annotations are no files to repair
            raise UserError(error.cause) from None
        raise error.of(data) from None


def _read_files(root: Path, split: layout.Split, drop_unlisted: bool, whole: bool) -> Dataset:
    if split not in layout.FOLDERS:
        raise UserError(f"unknown split {split!r}; use train, val or test")
    if root.is_file() and root.suffix in (".yaml", ".yml"):
        return _read_yolo(root, split, drop_unlisted)
    if root.name in ("annotations", "labels"):
        _refuse_part(root)
    if not root.is_file():
        found = layout.locate(root, split)
        if found:
            if (root / "data.yaml").is_file():
                logger.warning(
                    "%s has COCO JSON, which is read, and data.yaml; --data %s reads YOLO", root, root / "data.yaml"
                )
            return read_coco(*found, drop_unlisted=drop_unlisted)
        description = yolo.find_description(root)
        if description:
            return _read_yolo(description, split, drop_unlisted)
    located = recognise.locate(root) if root.is_file() or not _has_coco_layout(root) else None
    if located is not None:
        return _read_located(located, split, drop_unlisted, whole)
    _refuse_part(root)
    _refuse_without_names(root)
    raise layout.MissingSplitError(
        f"no {split} annotations recognised in {root}: looked for COCO JSON ({layout.expected(split)}), for Objects365 "
        f"(zhiyuan_objv2_{split}.json), for YOLO (data.yaml) and for {', '.join(recognise.TITLES)}; TensorFlow "
        "Datasets are named like tfds:coco/2017"
    )


def _refuse_part(root: Path) -> None:
    """UserError where the folder above is the dataset."""
    above = root.absolute().parent
    if root.is_dir() and (_has_coco_layout(above) or yolo.find_description(above)):
        raise UserError(f"{root} is a part of a dataset; give the folder above it, {root.parent}")


def _refuse_without_names(root: Path) -> None:
    """UserError for dfine-seg's layout: YOLO labels and a CSV file for each split, classes in its configuration."""
    splits = [name for name in layout.FOLDERS if (root / f"{name}.csv").is_file()]
    if not splits or not (root / "images").is_dir() or not (root / "labels").is_dir():
        return
    lines = "".join(f"'{name}: {name}.csv', " for name in splits)
    raise UserError(
        f"{root} has labels and lists of pictures ({splits[0]}.csv), but nothing names its classes: write "
        f"{root / 'data.yaml'} with the lines {lines}and 'names: [...]' in the order of the class numbers "
        "(label_to_name of a config.yaml)"
    )


def _has_coco_layout(root: Path) -> bool:
    """Whether the folder is COCO JSON that lacks the split asked for, rather than another format."""
    try:
        return any(layout.locate(root, split) is not None for split in ("train", "test", "val"))
    except UserError:  # annotations of another split without their pictures
        return True


def _read_located(located: recognise.Located, split: str, drop_unlisted: bool, whole: bool) -> Dataset:
    if located.title == recognise.COCO:
        files = recognise.by_split(located)
        chosen = _choose(located, files, split, whole)
        file = files[chosen]
        names = [e["file_name"] for e in read_json(file)["images"] if isinstance(e, dict) and "file_name" in e]
        folder = recognise.image_folder(file, [name for name in names if isinstance(name, str)], located.root)
        return read_coco(file, folder, drop_unlisted=drop_unlisted)
    notes = Notes()
    contents = recognise.read(located, notes)
    chosen = _choose(located, contents, split, whole)
    for line in notes.lines():
        logger.warning("%s (%s): %s", located.root, located.title, line)
    text = json.dumps(contents[chosen])
    folder = located.root.absolute()
    file = annotation_cache.keep(folder.name, chosen, text, lambda: text)
    return read_coco(file, folder, upright=True, drop_unlisted=drop_unlisted)


def _choose(located: recognise.Located, splits: Collection[str], split: str, whole: bool) -> str:
    """The split to read for the one that is asked for."""
    if split in splits:
        return split
    shown = located.data
    if recognise.WHOLE not in splits:
        if split == "val" and "test" in splits:
            logger.warning("%s has no validation split; evaluating on its test split", shown)
            return "test"
        raise layout.MissingSplitError(f"{shown} ({located.title}) has no {split} split; it has {', '.join(splits)}")
    if whole:
        return recognise.WHOLE
    cure = f"dfine data split --data {shown} --out DIR --val 0.2 makes a validation split"
    if split == "train":
        logger.warning("%s (%s) is not divided into splits; all of it is for training (%s)", shown, located.title, cure)
        return recognise.WHOLE
    raise layout.MissingSplitError(f"{shown} ({located.title}) is not divided into splits; {cure}")


def _read_yolo(description: Path, split: str, drop_unlisted: bool) -> Dataset:
    notes = Notes()
    content = yolo.read_yolo(description, split, drop_unlisted=drop_unlisted, notes=notes)
    if content is None and split == "val":
        content = yolo.read_yolo(description, "test", drop_unlisted=drop_unlisted, notes=notes)
        if content:
            logger.warning("%s has no validation split; evaluating on its test split", description)
    if content is None:
        raise layout.MissingSplitError(f"{description} names no {split} images; add '{split}: FOLDER' to it")
    for line in notes.lines():
        logger.warning("%s: %s", description, line)
    text = json.dumps(content)
    folder = description.absolute().parent
    file = annotation_cache.keep(folder.name, split, text, lambda: text)
    return read_coco(file, folder, upright=True, drop_unlisted=drop_unlisted)


def _read_tfds(name: str, split: str, drop_unlisted: bool) -> Dataset:
    stored_split = tfds.find_split(name, split)
    identity = tfds.identity(name, stored_split)
    file = annotation_cache.keep(name, stored_split, identity, lambda: json.dumps(tfds.read_tfds(name, stored_split)))
    pictures = tfds.pictures(name, stored_split)
    return read_coco(file, Path(tfds.PREFIX + name) / stored_split, pictures, drop_unlisted=drop_unlisted)
