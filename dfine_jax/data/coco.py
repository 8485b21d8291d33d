"""COCO annotation files as typed records, by the reference's rules (src/data/dataset/coco_dataset.py, convert_coco).

Original category ids, whatever they are, are mapped once to 0..n-1 in ascending order; every annotation that is dropped
or changed is counted, and the counts are logged once.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfine_jax.data.dataset import Category as Category
from dfine_jax.data.dataset import Dataset, Record, Report, Stored, listed
from dfine_jax.data.dataset import check_same_categories as check_same_categories  # part of this module's surface
from dfine_jax.data.images import image_size
from dfine_jax.data.layout import find_split as find_split
from dfine_jax.data.masks import parse_segmentation
from dfine_jax.errors import UserError

logger = logging.getLogger(__name__)

_CLAMP_TOLERANCE_PX = 0.5  # rounding of the annotation tool; not worth a report


def read_coco(
    annotation_file: Path | str,
    image_dir: Path | str,
    stored: Sequence[Stored] | None = None,
    *,
    upright: bool = False,
    drop_unlisted: bool = False,
) -> Dataset:
    """Read an annotation file and check it against the images.

    Rules of the reference: crowd regions are dropped; boxes become corners, are clamped to the image and kept when
    they still have width and height; images without boxes are kept.

    Args:
      annotation_file: COCO JSON.
      image_dir: where its ``file_name`` are looked for, with and without their leading folders.
      stored: the pictures in the order of the file, when they are not files in ``image_dir``.
      upright: sizes and boxes are those of the pictures turned by their EXIF orientation (``Record.upright``).
      drop_unlisted: annotations of categories that the file does not list are dropped and counted, not an error.

    Raises:
      UserError: the file or folder is missing, is not JSON or not COCO, repeats ids, refers to unknown images or
        categories, or lists image files that do not exist.
    """
    annotation_file, image_dir = Path(annotation_file), Path(image_dir)
    content = _read_json(annotation_file)
    categories = _categories(content, annotation_file)
    images = _images(content, annotation_file, image_dir, stored is not None)
    by_image: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in images}
    seen: set[int] = set()
    for position, annotation in enumerate(content["annotations"]):
        _check_annotation(annotation, position, annotation_file, images, seen)
        by_image[annotation["image_id"]].append(annotation)
    if not drop_unlisted:
        _check_classes(content["annotations"], categories, annotation_file, images)

    label_of = {category.id: label for label, category in enumerate(categories)}
    counts = dict.fromkeys((field.name for field in dataclasses.fields(Report)), 0)
    records = tuple(
        _record(image_id, path, size, by_image[image_id], label_of, counts) for image_id, (path, size) in images.items()
    )
    if upright:
        records = tuple(dataclasses.replace(record, upright=True) for record in records)
    if stored is not None:
        records = tuple(dataclasses.replace(r, stored=s) for r, s in zip(records, stored, strict=True))
    dataset = Dataset(records, categories, annotation_file, Report(**counts))
    logger.info(
        "%s: %d images, %d objects, %d classes",
        annotation_file,
        len(records),
        sum(len(r.labels) for r in records),
        len(categories),
    )
    if str(dataset.report):
        logger.warning("%s: %s", annotation_file, dataset.report)
    return dataset


def read_segmentations(dataset: Dataset) -> dict[int, Any]:
    """Polygons or run lengths by annotation id, read from the file again: boxes alone need none of this memory."""
    wanted = {int(i) for record in dataset.records for i in record.annotation_ids}
    annotations = _read_json(dataset.annotation_file)["annotations"]
    return {a["id"]: a["segmentation"] for a in annotations if a["id"] in wanted and a.get("segmentation")}


def with_shapes(dataset: Dataset) -> Dataset:
    """The dataset with the masks of its objects."""
    found = {number: parse_segmentation(value) for number, value in read_segmentations(dataset).items()}
    records = [
        dataclasses.replace(record, shapes=tuple(found.get(int(i)) for i in record.annotation_ids))
        for record in dataset.records
    ]
    return dataclasses.replace(dataset, records=tuple(records))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"annotation file {path} does not exist")
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"annotation file {path} is not JSON ({error}); export it again as COCO JSON") from None
    missing = [
        key
        for key in ("images", "annotations", "categories")
        if not (isinstance(content, dict) and isinstance(content.get(key), list))
    ]
    if missing:
        raise UserError(f"annotation file {path} is not COCO JSON: no list {missing[0]!r}; export it as COCO detection")
    return content


def _categories(content: dict[str, Any], source: Path) -> tuple[Category, ...]:
    listed = content["categories"]
    for entry in listed:
        if not isinstance(entry, dict) or not _is_int(entry.get("id")) or not isinstance(entry.get("name"), str):
            raise UserError(f"{source}: category {entry!r} needs an integer 'id' of at most 64 bits and a 'name'")
    listed = _without_group_entry(listed, content["annotations"])
    if not listed:
        raise UserError(f"{source}: no categories; the file must list the classes")
    repeated = _first_repeated([entry["id"] for entry in listed])
    if repeated is not None:
        raise UserError(f"{source}: category id {repeated} is listed twice; give each class its own id")
    repeated = _first_repeated([entry["name"] for entry in listed])
    if repeated is not None:
        raise UserError(f"{source}: two categories are called {repeated!r}; classes are told apart by name, rename one")
    return tuple(Category(entry["id"], entry["name"]) for entry in sorted(listed, key=lambda entry: entry["id"]))


def _without_group_entry(listed: list[dict[str, Any]], annotations: list[Any]) -> list[dict[str, Any]]:
    """Roboflow exports start with an entry that only names the group of all the others; it is no class."""
    groups = [e for e in listed if e.get("supercategory") == "none"]
    others = [e for e in listed if e.get("supercategory") != "none"]
    if len(groups) != 1 or not others or any(e.get("supercategory") != groups[0]["name"] for e in others):
        return listed
    used = any(isinstance(a, dict) and a.get("category_id") == groups[0]["id"] for a in annotations)
    return listed if used else others


def _images(
    content: dict[str, Any], source: Path, image_dir: Path, is_stored: bool
) -> dict[int, tuple[Path, tuple[int, int]]]:
    if not is_stored and not image_dir.is_dir():
        raise UserError(f"image folder {image_dir} does not exist")
    listings: dict[Path, frozenset[str]] = {}
    out: dict[int, tuple[Path, tuple[int, int]]] = {}
    absent = []
    for entry in content["images"]:
        if not isinstance(entry, dict) or not _is_int(entry.get("id")) or not isinstance(entry.get("file_name"), str):
            raise UserError(f"{source}: image {entry!r} needs an integer 'id' of at most 64 bits and a 'file_name'")
        if entry["id"] in out:
            raise UserError(f"{source}: image id {entry['id']} is listed twice; give each image its own id")
        name = entry["file_name"]
        path = image_dir / name if is_stored else _find_image(image_dir, name, listings)
        if path is None:
            absent.append(name)
            continue
        out[entry["id"]] = path, _size(entry, path)
    if absent:
        raise UserError(
            f"{len(absent)} of {len(content['images'])} images of {source} are not in {image_dir} "
            f"(first: {absent[0]}); copy them there or remove them from the file"
        )
    return out


def _find_image(image_dir: Path, name: str, listings: dict[Path, frozenset[str]]) -> Path | None:
    """The file, where some exports repeat folders in the name; folders are listed once, not each file asked for."""
    parts = Path(name.replace("\\", "/")).parts
    for start in range(len(parts)):
        path = image_dir.joinpath(*parts[start:])
        folder = path.parent
        if folder not in listings:
            listings[folder] = frozenset(entry.name for entry in os.scandir(folder)) if folder.is_dir() else frozenset()
        if path.name in listings[folder]:
            return path
    return None


def _size(entry: dict[str, Any], path: Path) -> tuple[int, int]:
    width, height = entry.get("width"), entry.get("height")
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    return image_size(path)


def _check_annotation(
    annotation: Any, position: int, source: Path, images: dict[int, tuple[Path, tuple[int, int]]], seen: set[int]
) -> None:
    if not isinstance(annotation, dict) or not _is_int(annotation.get("id")):
        raise UserError(
            f"{source}: annotation number {position} has no integer 'id' of at most 64 bits; number the annotations"
        )
    name = f"{source}: annotation {annotation['id']}"
    if annotation["id"] in seen:
        raise UserError(f"{name} occurs twice; number the annotations through all images")
    seen.add(annotation["id"])
    for key in ("image_id", "category_id", "bbox"):
        if key not in annotation:
            raise UserError(f"{name} has no {key!r}; export the file as COCO detection")
    for key in ("image_id", "category_id"):
        if isinstance(annotation[key], (list, dict)):
            raise UserError(f"{name} has {key} {annotation[key]!r}; it must be the number of one entry")
    if annotation["image_id"] not in images:
        raise UserError(f"{name} refers to image {annotation['image_id']!r}, which is not listed; remove it or list it")
    bbox = annotation["bbox"]
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(_is_finite(value) for value in bbox)):
        raise UserError(f"{name} has bbox {bbox!r}; it must be [x, y, width, height] in pixels")


def _check_classes(
    annotations: list[dict[str, Any]],
    categories: tuple[Category, ...],
    source: Path,
    images: dict[int, tuple[Path, tuple[int, int]]],
) -> None:
    """All annotations are of listed categories; crowd regions are dropped anyhow."""
    ids = {category.id for category in categories}
    unlisted = [a for a in annotations if not a.get("iscrowd") and a["category_id"] not in ids]
    if not unlisted:
        return
    first = unlisted[0]
    raise UserError(
        f"{source}: {len(unlisted)} of {len(annotations)} annotations have a category_id that 'categories' does not "
        f"list, such as {first['category_id']!r} of annotation {first['id']} in {images[first['image_id']][0].name}; "
        f"listed are {listed([f'{category.id} {category.name}' for category in categories])}; add the class to "
        "'categories', or remove the annotations (dfine check --data DIR reports all problems)"
    )


def _record(
    image_id: int,
    path: Path,
    size: tuple[int, int],
    annotations: list[dict[str, Any]],
    label_of: dict[int, int],
    counts: dict[str, int],
) -> Record:
    known = []
    for annotation in annotations:
        if annotation.get("iscrowd"):
            counts["crowd"] += 1
        elif annotation["category_id"] not in label_of:
            counts["unknown_category"] += 1
        else:
            known.append(annotation)
    xywh = np.array([a["bbox"] for a in known], np.float32).reshape(-1, 4)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    boxes = corners.clip(0, np.array(size * 2, np.float32))
    keep = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    counts["degenerate"] += int((~keep).sum())
    counts["clamped"] += int((np.abs(corners - boxes).max(1, initial=0)[keep] > _CLAMP_TOLERANCE_PX).sum())
    kept = [known[i] for i in np.flatnonzero(keep)]
    areas = [a["area"] if _is_finite(a.get("area")) else a["bbox"][2] * a["bbox"][3] for a in kept]
    return Record(
        image_id=image_id,
        path=path,
        width_px=size[0],
        height_px=size[1],
        boxes_xyxy_px=boxes[keep],
        labels=np.array([label_of[a["category_id"]] for a in kept], np.int32),
        areas_px=np.array(areas, np.float32),
        annotation_ids=np.array([a["id"] for a in kept], np.int64),
    )


def _is_int(value: Any) -> bool:
    """Whether it can be an id: batches carry them as 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _first_repeated(values: list[int]) -> int | None:
    seen: set[int] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
