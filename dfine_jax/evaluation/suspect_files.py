"""Suspects among annotations as a table and as COCO JSON for annotation tools."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from dfine_jax.data.formats.placing import relative
from dfine_jax.data.formats.turning import backwards, turned, upright_orientation
from dfine_jax.data.picture.images import TRANSPOSED
from dfine_jax.data.picture.object_masks import RunMasks
from dfine_jax.data.read.dataset import Classes, Dataset, Record
from dfine_jax.data.read.records import image_ids
from dfine_jax.evaluation.annotation_errors import FAULTS, Findings, Suspect
from dfine_jax.evaluation.detections import Detections, Kind, Objects
from dfine_jax.system.files import write_whole

LINE_TOLERANCE_PX = 1.0  # by which outlines of masks are made simpler
_COLUMNS = ("fault", "rank", "file", "image_id", "annotation_id", "annotated_class", "detected_class", "score", "iou")
_BOX = ("x_px", "y_px", "width_px", "height_px")


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """What was judged."""

    data: Dataset
    classes: Classes  # that count
    objects: Objects
    detections: Detections
    kind: Kind
    threshold: float  # score from which detections count
    fit_iou: float


class Described(NamedTuple):
    """A suspect and what is known of it; None where there is no object or no detection."""

    suspect: Suspect
    rank: int  # among those of its fault, from 1
    record: Record
    annotation_id: int | None
    annotated_class: str | None
    detected_class: str | None
    annotated_xywh_px: list[float] | None
    detected_xywh_px: list[float] | None


def describe(compared: Compared, findings: Findings) -> Iterator[Described]:
    """All suspects, fault by fault, in their order."""
    position = {number: i for i, number in enumerate(image_ids(compared.data.records).tolist())}
    record = functools.cache(lambda image_id: compared.data.records[position[image_id]])
    name_of = dict(zip(compared.classes.ids, compared.classes.names, strict=True))
    objects, detections = compared.objects, compared.detections
    for fault in FAULTS:
        for rank, suspect in enumerate(findings.suspects[fault], 1):
            row, found = suspect.object_row, suspect.found_row
            numbers = objects.annotation_id
            yield Described(
                suspect,
                rank,
                record(suspect.image_id),
                int(numbers[row]) if row >= 0 and numbers is not None else None,
                name_of[int(objects.category_id[row])] if row >= 0 else None,
                name_of[int(detections.category_id[found])] if found >= 0 else None,
                objects.box_xywh_px[row].tolist() if row >= 0 else None,
                detections.box_xywh_px[found].round(2).tolist() if found >= 0 else None,
            )


def csv_text(described: Iterable[Described], files: Mapping[int, str]) -> str:
    """A line for each suspect; ``files`` are paths by image id."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow([*_COLUMNS, *(f"{of}_{side}" for of in ("annotated", "detected") for side in _BOX)])
    for one in described:
        suspect, nothing = one.suspect, [""] * 4
        known = one.annotation_id, one.annotated_class, one.detected_class
        values = [suspect.fault, one.rank, files[suspect.image_id], suspect.image_id, *known]
        values += [f"{suspect.score:.4f}", f"{suspect.iou:.4f}"]
        table.writerow(values + (one.annotated_xywh_px or nothing) + (one.detected_xywh_px or nothing))
    return stream.getvalue()


def coco_json(compared: Compared, described: Sequence[Described], files: Mapping[int, str], text: str) -> str:
    """COCO's annotation file of the suspects, each as it would be if the detector were right.

    The class is the detected one; box and outline are the detected ones where nothing is annotated or it fits poorly,
    else the annotated ones. ``score`` and ``attributes`` say what the suspect is.
    """
    turns = {one.suspect.image_id: _stored_turn(one.record) for one in described}
    images = {}
    annotations = []
    for number, one in enumerate(described, 1):
        suspect, record = one.suspect, one.record
        turn, size_px = turns[suspect.image_id], (record.width_px, record.height_px)
        width, height = size_px[::-1] if turn in TRANSPOSED else size_px
        name = files[suspect.image_id]
        images[suspect.image_id] = {"id": suspect.image_id, "file_name": name, "width": width, "height": height}
        shape = _shape(compared, suspect, size_px)
        known = one.annotation_id, one.annotated_class, one.detected_class
        about = {"fault": suspect.fault, "rank": one.rank, **dict(zip(_COLUMNS[4:7], known, strict=True))}
        of, row = _speaker(compared, suspect)
        annotation = {
            "id": number,
            "image_id": suspect.image_id,
            "category_id": int(of.category_id[row]),
            **turned(shape, size_px, turn),
            "iscrowd": 0,
            "score": round(suspect.score, 5),
            "attributes": {**about, "iou": round(suspect.iou, 4)},
        }
        annotations.append(annotation)
    named = zip(compared.classes.ids, compared.classes.names, strict=True)
    categories = [{"id": number, "name": name} for number, name in named]
    content = {"info": {"description": text}, "images": list(images.values()), "annotations": annotations}
    return json.dumps({**content, "categories": categories}, ensure_ascii=False)


def _speaker(compared: Compared, suspect: Suspect) -> tuple[Objects | Detections, int]:
    """Where a suspect's class is the detector's: the detection, or the object that it does not find."""
    if suspect.found_row >= 0:
        return compared.detections, suspect.found_row
    return compared.objects, suspect.object_row


def _stored_turn(record: Record) -> int:
    """How the upright picture is turned to the stored one, whose pixels COCO's boxes are of."""
    return backwards(upright_orientation(record.path)) if record.upright else 1


def _shape(compared: Compared, suspect: Suspect, size_px: tuple[int, int]) -> dict[str, Any]:
    """Box, outline and area of a suspect in COCO's words."""
    detected = suspect.fault in ("false_positive", "poor_fit")
    of, row = (compared.detections, suspect.found_row) if detected else (compared.objects, suspect.object_row)
    inside = np.clip(corners(of.box_xywh_px[row]), 0, np.tile(size_px, 2))
    sides = inside[2:] - inside[:2]
    shape: dict[str, Any] = {"bbox": np.concatenate([inside[:2], sides]).round(2).tolist(), "segmentation": []}
    masks = mask_of(compared, of, row, size_px)
    if masks is None:
        return shape | {"area": round(float(sides.prod()), 2)}
    rings = masks.polygons(0, LINE_TOLERANCE_PX)
    return shape | {"segmentation": [ring.ravel().round(2).tolist() for ring in rings], "area": masks.area_px(0)}


def mask_of(compared: Compared, of: Objects | Detections, row: int, size_px: tuple[int, int]) -> RunMasks | None:
    """The mask of a row, where masks are compared and it has one."""
    if compared.kind == "boxes" or of.masks is None or not of.masks.exist[row]:
        return None
    (mask,) = of.masks.coco(np.array([row]))
    return RunMasks((mask["counts"],), size_px)


def picture_files(described: Iterable[Described], folder: Path) -> dict[int, str]:
    """Paths of pictures from the folder, by image id; what is no file becomes one in it."""
    files = {}
    for one in described:
        record = one.record
        if record.image_id in files:
            continue
        if record.stored is None:
            files[record.image_id] = relative(record.path, folder)
        else:
            name = f"images/{record.image_id}_{record.path.name}"
            write_whole(folder / name, record.stored.read(), durable=False)
            files[record.image_id] = name
    return files


def corners(xywh_px: Float64[np.ndarray, " 4"]) -> Float64[np.ndarray, " 4"]:
    """Of a box."""
    return np.concatenate([xywh_px[:2], xywh_px[:2] + xywh_px[2:]])
