"""Where a dataset keeps its annotation files and images, found by looking."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from dfine_jax.errors import UserError

logger = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]

_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_ROBOFLOW = "_annotations.coco.json"


def find_split(data_dir: Path | str, split: Split) -> tuple[Path, Path]:
    """(annotation file, image folder) of a split.

    Recognised: a raw COCO tree (``annotations/instances_train2017.json``, ``train2017/`` or ``images/train2017/``), the
    same without the year (``annotations/instances_train.json``, ``train/``), and a Roboflow export
    (``train/_annotations.coco.json`` beside the images). Validation may be called val, valid or validation; where there
    is none, ``test`` takes its place, with a warning.

    Raises:
      UserError: no such folder, or nothing recognised in it; the message says what was looked for.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise UserError(f"data folder {root} does not exist" if not root.exists() else f"{root} is not a folder")
    if split not in _FOLDERS:
        raise UserError(f"unknown split {split!r}; use train, val or test")
    found = _find(root, split)
    if found is None and split == "val":
        found = _find(root, "test")
        if found:
            logger.warning("%s has no validation split; evaluating on its test split", root)
    if found is None:
        raise UserError(
            f"no {split} annotations in {root}: expected annotations/instances_{split}.json with a folder {split}/, "
            f"annotations/instances_{split}2017.json with {split}2017/, or {_FOLDERS[split][-1]}/{_ROBOFLOW}"
        )
    return found


def _find(root: Path, split: str) -> tuple[Path, Path] | None:
    for name in _FOLDERS[split]:
        exported = root / name / _ROBOFLOW
        if exported.is_file():
            return exported, exported.parent
        for year in ("2017", "", "2014"):
            annotations = root / "annotations" / f"instances_{name}{year}.json"
            if annotations.is_file():
                return annotations, _image_folder(root, annotations, f"{name}{year}", name)
    return None


def _image_folder(root: Path, annotations: Path, *names: str) -> Path:
    for name in dict.fromkeys(names):
        for candidate in (root / name, root / "images" / name):
            if candidate.is_dir():
                return candidate
    if (root / "images").is_dir():
        return root / "images"
    raise UserError(f"{annotations} has no image folder: expected {root / names[0]} or {root / 'images' / names[0]}")
