"""Detections as a dataset in the format of an annotation tool, to be corrected there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from dfine_jax.data.edit.items import WHOLE, Item, Items
from dfine_jax.data.formats.picture import polygon_area
from dfine_jax.data.formats.write import FORMATS, write
from dfine_jax.data.formats.write_labelstudio import CONFIG
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.outlines import RunLengths, area_px
from dfine_jax.errors import UserError
from dfine_jax.ops.postprocess import clipped
from dfine_jax.prediction.outputs import TABLES

if TYPE_CHECKING:
    from dfine_jax.data.read.dataset import Classes
    from dfine_jax.prediction.result import DetectionResult

_RUN_LENGTHS = ("coco", "cvat")  # formats that hold masks as they are; others get the outline of the largest part
_TOLERANCE_PX = 0.75  # by which outlines are made simpler


class Annotations:
    """Collects what is found in pictures, and writes it.

    Args:
      folder: to write, new or empty.
      form: one of ``FORMATS``.
      classes: of the detector.
    """

    def __init__(self, folder: Path, form: str, classes: Classes) -> None:
        self._folder, self._form = folder, form
        self._categories = [
            {"id": number, "name": name} for number, name in zip(classes.ids, classes.names, strict=True)
        ]
        self._items: list[Item] = []
        self._names: dict[Path, str] = {}

    def add(self, picture: Path, name: str, result: DetectionResult) -> None:
        """Keep the detections of a picture, which is a file; boxes are cut at its edges, as annotations are.

        Args:
          name: below the folder that was given, by which an annotation tool knows the picture, too.
        """
        annotations = []
        low, high = np.split(clipped(result.boxes_xyxy_px, np.asarray(result.size_px)), 2, axis=1)
        visible = (high > low).all(1)
        result = dataclasses.replace(result, boxes_xyxy_px=np.concatenate([low, high], 1))[np.flatnonzero(visible)]
        for entry, outline in zip(result.to_coco(picture.name), self._outlines(result), strict=True):
            annotation: dict[str, Any] = {"id": len(annotations) + 1, "iscrowd": 0, **entry, **outline}
            annotation["area"] = _area(annotation)
            del annotation["image_id"]
            annotations.append(annotation)
        self._items.append(Item(picture, result.size_px, annotations, {}))
        self._names[picture] = "/".join(part for part in PurePosixPath(name).parts if part != "/")

    def write(self) -> list[str]:
        """Write the folder, with links to the pictures; lines about what the format cannot hold.

        Raises:
          UserError: nothing was found, for formats that know classes by their objects, or the system refuses.
        """
        items = Items("detections", {WHOLE: self._items}, self._categories, Notes(), detected=True)
        lines = write(items, self._form, self._folder, "link", self._names).lines()
        if self._form == "labelstudio":
            root = self._folder.absolute()
            lines.append(
                "Label Studio: start it with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
                f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, paste {CONFIG} as the labelling interface, add the "
                f"local storage {root / 'images'}, then import labelstudio.json"
            )
        return lines

    def _outlines(self, result: DetectionResult) -> Sequence[dict[str, Any]]:
        """Of each object what is not as in COCO's results: the outline of its largest part, with the box around it."""
        masks = result.object_masks
        if masks is None or self._form in _RUN_LENGTHS:
            return [{}] * len(result)
        out = []
        for i in range(len(result)):
            parts = masks.outlines(i, _TOLERANCE_PX)
            if not parts:
                out.append({"segmentation": []})
                continue
            ring = parts[0].outer
            low, high = ring.min(0), ring.max(0)
            box = [*low.tolist(), *(high - low).tolist()]
            out.append({"segmentation": [ring.ravel().round(2).tolist()], "bbox": box})
        return out


def _area(annotation: dict[str, Any]) -> float:
    """Of the mask in square pixels, where there is one, as COCO has it; else of the box."""
    shape = annotation.get("segmentation")
    if isinstance(shape, dict):
        height_px, width_px = shape["size"]
        return area_px(RunLengths(height_px, width_px, shape["counts"].encode()))
    if shape:
        return sum(map(polygon_area, shape))
    return annotation["bbox"][2] * annotation["bbox"][3]


def check_format(form: str) -> None:
    """UserError for a format that there is not."""
    if form not in (*TABLES, *FORMATS):
        raise UserError(f"--format {form}: one of {', '.join((*TABLES, *FORMATS))}")
