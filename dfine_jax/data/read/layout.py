"""Where a dataset in COCO JSON keeps its annotation files and images, found by looking."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from dfine_jax.errors import UserError

logger = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]


class MissingSplitError(UserError):
    """The data has no such split, as far as can be seen; what it has may be fine."""


FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_ROBOFLOW = "_annotations.coco.json"
# File names in a folder of annotations; {} is the split as the folder calls it. Objects365 has its own.
_FILES = ("instances_{}2017.json", "instances_{}.json", "instances_{}2014.json", "{}.json", "annotation_{}.json")
_OBJECTS365 = tuple(f"{new}zhiyuan_objv2_{{}}{size}.json" for new in ("new_", "") for size in ("_resized", ""))


def find_split(data_dir: Path | str, split: Split) -> tuple[Path, Path]:
    """(annotation file, image folder) of a split in COCO JSON.

    Recognised: a raw COCO tree (``annotations/instances_train2017.json``, ``train2017/`` or ``images/train2017/``), the
    same without the year or the word (``annotations/train.json``, ``train/``), a Roboflow export
    (``train/_annotations.coco.json`` beside the images), and Objects365 (``zhiyuan_objv2_train.json``, also renamed by
    D-FINE's scripts, in the folder, in ``annotations/`` or in ``train/``). Validation may be called val, valid or
    validation; where there is none, ``test`` takes its place, with a warning.

    Raises:
      UserError: no such folder, or nothing recognised in it; the message says what was looked for.
    """
    found = locate(data_dir, split)
    if found is None:
        raise MissingSplitError(f"no {split} annotations in {data_dir}: expected {expected(split)}")
    return found


def expected(split: str) -> str:
    """What ``locate`` looks for, in a few words."""
    return (
        f"annotations/instances_{split}.json with a folder {split}/, annotations/instances_{split}2017.json with "
        f"{split}2017/, or {FOLDERS[split][-1]}/{_ROBOFLOW}"
    )


def locate(data_dir: Path | str, split: str) -> tuple[Path, Path] | None:
    """As ``find_split``; None when no annotation file is recognised."""
    root = Path(data_dir)
    if not root.is_dir():
        raise UserError(f"data folder {root} does not exist" if not root.exists() else f"{root} is not a folder")
    if split not in FOLDERS:
        raise UserError(f"unknown split {split!r}; use train, val or test")
    found = _find(root, split)
    if found is None and split == "val":
        found = _find(root, "test")
        if found:
            logger.warning("%s has no validation split; evaluating on its test split", root)
    return found


def _find(root: Path, split: str) -> tuple[Path, Path] | None:
    for name in FOLDERS[split]:
        exported = root / name / _ROBOFLOW
        if exported.is_file():
            return exported, exported.parent
        for folder in (root / "annotations", root, root / name):
            files = _FILES if folder != root / name else ()
            for pattern in (*files, *_OBJECTS365):
                annotations = folder / pattern.format(name)
                if annotations.is_file():
                    year = pattern.partition("{}")[2].partition(".")[0]
                    return annotations, _image_folder(root, annotations, f"{name}{year}", name)
    return None


def _image_folder(root: Path, annotations: Path, *names: str) -> Path:
    for name in dict.fromkeys(names):
        for candidate in (root / name, root / "images" / name):
            if candidate.is_dir():
                return candidate
    if (root / "images").is_dir():
        return root / "images"
    raise UserError(f"{annotations} has no image folder: expected {root / names[-1]} or {root / 'images' / names[-1]}")
