"""A dataset from wherever it is: the format is recognised by looking."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from dfine_jax.data import annotation_cache, layout, tfds, yolo
from dfine_jax.data.coco import read_coco
from dfine_jax.data.dataset import Dataset
from dfine_jax.data.notes import Notes
from dfine_jax.errors import UserError

logger = logging.getLogger(__name__)


def read_dataset(data: Path | str, split: layout.Split, *, drop_unlisted: bool = False) -> Dataset:
    """A split of a dataset.

    Recognised, in this order: ``tfds:NAME`` (TensorFlow Datasets, prepared as array_record), a YOLO description
    (``data.yaml``, or the folder it is in), and folders with COCO JSON as in ``layout.find_split``; a folder that has
    both COCO JSON and YOLO labels is read as COCO JSON. Where there is no validation split, the test split is used.

    Args:
      data: where it is.
      split: train, val or test.
      drop_unlisted: objects of classes that the data does not list are dropped and counted, to report them with all
        else that is wrong. Only for that: training on the others would lose a class, or give them wrong names.

    Raises:
      UserError: nothing recognised (the message says what was looked for), or the data is wrong.
    """
    text = str(data)
    if text.startswith(tfds.PREFIX):
        return _read_tfds(text.removeprefix(tfds.PREFIX), split, drop_unlisted)
    if split not in layout.FOLDERS:
        raise UserError(f"unknown split {split!r}; use train, val or test")
    root = Path(data)
    if root.is_file() and root.suffix in (".yaml", ".yml"):
        return _read_yolo(root, split, drop_unlisted)
    found = layout.locate(root, split)
    if found:
        return read_coco(*found, drop_unlisted=drop_unlisted)
    description = yolo.find_description(root)
    if description:
        return _read_yolo(description, split, drop_unlisted)
    raise layout.MissingSplitError(
        f"no {split} annotations recognised in {root}: looked for COCO JSON ({layout.expected(split)}), for Objects365 "
        f"(zhiyuan_objv2_{split}.json) and for YOLO (data.yaml); TensorFlow Datasets are named like tfds:coco/2017"
    )


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
