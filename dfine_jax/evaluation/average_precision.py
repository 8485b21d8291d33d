"""COCO's average precision by pycocotools, one class at a time.

pycocotools keeps dictionaries and small arrays of every image, class and range of areas until the end: gigabytes for a
few thousand images. No class looks at another one, and pictures with neither objects nor detections of a class say
nothing about it, so the classes are judged one after another, each on its pictures alone, and their tables are put
together. The numbers are the same to the last bit.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from dfine_jax.evaluation.detections import Detections, Groups, Kind, Objects
from dfine_jax.evaluation.encoded_masks import areas_px
from dfine_jax.evaluation.precision_curves import IOU_THRESHOLDS

_IOU_TYPES: dict[Kind, Any] = {"boxes": "bbox", "masks": "segm"}  # in pycocotools' words
MOST_OF_CLASS = 100  # detections of a class in an image; pycocotools looks at no more


class CocoNumbers(NamedTuple):
    """Result of ``coco_precision``."""

    stats: Float64[np.ndarray, "12"]  # in pycocotools' order; -1: no such object
    by_class: Float64[np.ndarray, " k"]  # AP of all areas with 100 detections, in the order of the categories
    curves: Float64[np.ndarray, "2 101 k"]  # precision by recall at IoU 0.5 and 0.75, the same; -1: no such object


def coco_precision(
    truth: Objects,
    found: Detections,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    kind: Kind = "boxes",
) -> CocoNumbers:
    """COCO's twelve numbers on the images and categories named, of boxes or of masks (which all must have).

    Objects are numbered from 1 (pycocotools takes number 0 for "unmatched", which loses a true positive).
    """
    from pycocotools.cocoeval import COCOeval

    images = np.unique(np.asarray(image_ids, np.int64))
    ascending = sorted(category_ids)
    by_category = Groups(truth.category_id), Groups(found.category_id)
    evaluated = []
    with contextlib.redirect_stdout(io.StringIO()):
        for category in ascending:
            rows, detected = (groups.rows(category) for groups in by_category)
            rows = rows[np.isin(truth.image_id[rows], images)]
            detected = detected[np.isin(found.image_id[detected], images)]
            evaluated.append(_of_class(truth, rows, found, detected, category, kind))
        whole: Any = COCOeval(iouType=_IOU_TYPES[kind])
        whole.params.imgIds, whole.params.catIds = images.tolist(), ascending
        whole.eval = {
            "params": whole.params,
            "precision": np.concatenate([e["precision"] for e in evaluated], 2),
            "recall": np.concatenate([e["recall"] for e in evaluated], 1),
        }
        whole.summarize()
    precision = whole.eval["precision"][:, :, :, 0, 2]  # [thresholds, recalls, k], all areas, 100 detections
    of = {category: _mean_of_present(precision[:, :, k]) for k, category in enumerate(ascending)}
    column = {category: k for k, category in enumerate(ascending)}
    at = [int(np.argmin(np.abs(whole.params.iouThrs - iou))) for iou in IOU_THRESHOLDS]
    return CocoNumbers(
        np.asarray(whole.stats[:12], np.float64),
        np.array([of[i] for i in category_ids], np.float64),
        precision[at][:, :, [column[i] for i in category_ids]],
    )


def _of_class(
    truth: Objects,
    rows: Int64[np.ndarray, " g"],
    found: Detections,
    detected: Int64[np.ndarray, " n"],
    category: int,
    kind: Kind,
) -> dict[str, Any]:
    """pycocotools' tables of one class."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = np.unique(np.concatenate([truth.image_id[rows], found.image_id[detected]])).tolist()
    one: Any = COCO()
    other: Any = COCO()
    # Sizes are only asked for, not used: run lengths have their own.
    entries = [{"id": i, "height": 0, "width": 0} for i in images]
    one.dataset = {"images": entries, "categories": [{"id": category}]}
    other.dataset = dict(one.dataset)
    shape, objects, detections, areas = _shapes(truth, rows, found, detected, kind)
    common = ("image_id", shape, "area", "iscrowd")
    columns = [column[rows].tolist() for column in (truth.image_id, truth.area_px, truth.crowd.astype(np.int64))]
    one.dataset["annotations"] = [
        {"id": number, "category_id": category, **dict(zip(common, values, strict=True))}
        for number, values in enumerate(zip(columns[0], objects, *columns[1:], strict=True), 1)
    ]
    columns = found.image_id[detected].tolist(), detections, areas.tolist(), found.score[detected].tolist()
    common = ("image_id", shape, "area", "score")
    other.dataset["annotations"] = [
        {"id": number, "category_id": category, "iscrowd": 0, **dict(zip(common, values, strict=True))}
        for number, values in enumerate(zip(*columns, strict=True), 1)
    ]
    one.createIndex()
    other.createIndex()
    run: Any = COCOeval(one, other, _IOU_TYPES[kind])
    run.params.imgIds, run.params.catIds = images, [category]
    if images:
        run.evaluate()
        run.accumulate()
        return run.eval
    p = run.params
    shape = len(p.iouThrs), len(p.recThrs), 1, len(p.areaRng), len(p.maxDets)
    return {"precision": -np.ones(shape), "recall": -np.ones((shape[0], *shape[2:]))}


def _shapes(
    truth: Objects,
    rows: Int64[np.ndarray, " g"],
    found: Detections,
    detected: Int64[np.ndarray, " n"],
    kind: Kind,
) -> tuple[str, list[Any], list[Any], Float64[np.ndarray, " n"]]:
    """What COCO calls it, the shapes of objects and of detections, and the areas of the latter."""
    if kind == "boxes":
        boxes = found.box_xywh_px[detected]
        return "bbox", truth.box_xywh_px[rows].tolist(), boxes.tolist(), boxes[:, 2:].prod(1)
    assert truth.masks is not None and found.masks is not None
    detections = found.masks.coco(detected)
    return "segmentation", truth.masks.coco(rows), detections, areas_px(detections)


def _mean_of_present(precision: Float64[np.ndarray, "t r"]) -> float:
    present = precision[precision > -1]
    return float(present.mean()) if present.size else -1.0
