"""COCO annotation files as typed records, by the reference's rules (src/data/dataset/coco_dataset.py, convert_coco).

Original category ids, whatever they are, are mapped once to 0..n-1 in ascending order; every annotation that is dropped
or changed is counted, and the counts are logged once.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64

from dfine_jax.data.images import image_size
from dfine_jax.data.layout import find_split as find_split  # part of this module's surface
from dfine_jax.errors import UserError

logger = logging.getLogger(__name__)

_CLAMP_TOLERANCE_PX = 0.5  # rounding of the annotation tool; not worth a report


@dataclasses.dataclass(frozen=True)
class Category:
    """One class; its position in ``Dataset.categories`` is the label."""

    id: int  # as in the annotation file
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One image and its usable objects; boxes are pixels of the image as annotated."""

    image_id: int
    path: Path
    width_px: int
    height_px: int
    boxes_xyxy_px: Float32[np.ndarray, "g 4"]
    labels: Int32[np.ndarray, "g"]
    areas_px: Float32[np.ndarray, "g"]  # as annotated: of the mask where there is one
    annotation_ids: Int64[np.ndarray, "g"]  # keys of ``read_segmentations``


@dataclasses.dataclass(frozen=True)
class Report:
    """What reading an annotation file changed, in annotations."""

    crowd: int = 0  # dropped
    degenerate: int = 0  # dropped: no area left inside the image
    unknown_category: int = 0  # dropped: category that the file does not list
    clamped: int = 0  # kept, cut at the border of the image

    def __str__(self) -> str:
        """One line, empty when nothing happened."""
        parts = [
            f"{self.crowd} crowd regions dropped" * bool(self.crowd),
            f"{self.degenerate} boxes without area dropped" * bool(self.degenerate),
            f"{self.unknown_category} annotations of unlisted categories dropped" * bool(self.unknown_category),
            f"{self.clamped} boxes cut at the image border" * bool(self.clamped),
        ]
        return ", ".join(part for part in parts if part)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A split: images (with or without objects) in the order of the file."""

    records: tuple[Record, ...]
    categories: tuple[Category, ...]
    annotation_file: Path
    report: Report

    def __len__(self) -> int:
        """Number of images."""
        return len(self.records)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by label."""
        return tuple(category.name for category in self.categories)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Original category ids by label."""
        return tuple(category.id for category in self.categories)

    @property
    def max_objects(self) -> int:
        """Largest number of objects in one image."""
        return max((len(record.labels) for record in self.records), default=0)


def read_coco(annotation_file: Path | str, image_dir: Path | str) -> Dataset:
    """Read an annotation file and check it against the images.

    Rules of the reference: crowd regions are dropped; boxes become corners, are clamped to the image and kept when
    they still have width and height; images without boxes are kept.

    Raises:
      UserError: the file or folder is missing, is not JSON or not COCO, repeats ids, refers to unknown images, or
        lists image files that do not exist.
    """
    annotation_file, image_dir = Path(annotation_file), Path(image_dir)
    content = _read_json(annotation_file)
    categories = _categories(content, annotation_file)
    images = _images(content, annotation_file, image_dir)
    by_image: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in images}
    seen: set[int] = set()
    for position, annotation in enumerate(content["annotations"]):
        _check_annotation(annotation, position, annotation_file, images, seen)
        by_image[annotation["image_id"]].append(annotation)

    label_of = {category.id: label for label, category in enumerate(categories)}
    counts = dict.fromkeys((field.name for field in dataclasses.fields(Report)), 0)
    records = tuple(
        _record(image_id, path, size, by_image[image_id], label_of, counts) for image_id, (path, size) in images.items()
    )
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


def check_same_categories(train: Dataset, val: Dataset) -> None:
    """UserError unless both splits list the same category ids with the same names."""
    if train.categories == val.categories:
        return
    ours, theirs = ({c.id: c.name for c in d.categories} for d in (train, val))
    wrong = next(i for i in sorted(ours.keys() | theirs.keys()) if ours.get(i) != theirs.get(i))
    raise UserError(
        f"categories differ: id {wrong} is {ours.get(wrong, 'absent')!r} in {train.annotation_file} and "
        f"{theirs.get(wrong, 'absent')!r} in {val.annotation_file}; give both files the same categories"
    )


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
            raise UserError(f"{source}: category {entry!r} needs an integer 'id' and a 'name'")
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


def _images(content: dict[str, Any], source: Path, image_dir: Path) -> dict[int, tuple[Path, tuple[int, int]]]:
    if not image_dir.is_dir():
        raise UserError(f"image folder {image_dir} does not exist")
    present = {entry.name for entry in image_dir.iterdir()}
    out: dict[int, tuple[Path, tuple[int, int]]] = {}
    absent = []
    for entry in content["images"]:
        if not isinstance(entry, dict) or not _is_int(entry.get("id")) or not isinstance(entry.get("file_name"), str):
            raise UserError(f"{source}: image {entry!r} needs an integer 'id' and a 'file_name'")
        if entry["id"] in out:
            raise UserError(f"{source}: image id {entry['id']} is listed twice; give each image its own id")
        name = entry["file_name"]
        path = image_dir / name
        if name not in present and not path.is_file():
            path = image_dir / Path(name).name  # some exports repeat the folder in the name
            if path.name not in present:
                absent.append(name)
                continue
        out[entry["id"]] = path, _size(entry, path)
    if absent:
        raise UserError(
            f"{len(absent)} of {len(content['images'])} images of {source} are not in {image_dir} "
            f"(first: {absent[0]}); copy them there or remove them from the file"
        )
    return out


def _size(entry: dict[str, Any], path: Path) -> tuple[int, int]:
    width, height = entry.get("width"), entry.get("height")
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    return image_size(path)


def _check_annotation(
    annotation: Any, position: int, source: Path, images: dict[int, tuple[Path, tuple[int, int]]], seen: set[int]
) -> None:
    if not isinstance(annotation, dict) or not _is_int(annotation.get("id")):
        raise UserError(f"{source}: annotation number {position} has no integer 'id'; number the annotations")
    name = f"{source}: annotation {annotation['id']}"
    if annotation["id"] in seen:
        raise UserError(f"{name} occurs twice; number the annotations through all images")
    seen.add(annotation["id"])
    for key in ("image_id", "category_id", "bbox"):
        if key not in annotation:
            raise UserError(f"{name} has no {key!r}; export the file as COCO detection")
    if annotation["image_id"] not in images:
        raise UserError(f"{name} refers to image {annotation['image_id']!r}, which is not listed; remove it or list it")
    bbox = annotation["bbox"]
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(_is_finite(value) for value in bbox)):
        raise UserError(f"{name} has bbox {bbox!r}; it must be [x, y, width, height] in pixels")


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
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _first_repeated(values: list[int]) -> int | None:
    seen: set[int] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
