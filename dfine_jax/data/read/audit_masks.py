"""What is wrong with the masks of a dataset, beside their boxes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from dfine_jax.data.read.audit import NUM_EXAMPLES, Finding
from dfine_jax.data.read.coco import segmentations
from dfine_jax.data.read.dataset import Dataset
from dfine_jax.data.read.outlines import Polygons, RunLengths, area_px, crosses_itself, drawable, in_run_lengths
from dfine_jax.data.read.values import REPAIR
from dfine_jax.ops.boxes import iou

_CELL_PX = 4  # of the input: what models decide about, a pixel of their masks
_BESIDE_PX = 2.0  # between sides of box and mask; less is rounding of the annotation tool
_LEAST_IOU = 0.7  # of a box and the extent of its mask
_LEAST_INSIDE = 0.5  # of the mask's pixels

_UNUSABLE, _PARTLESS, _EMPTY, _OUTSIDE, _DISAGREE, _TINY, _CROSSING = range(7)


class MaskAudit(NamedTuple):
    """Result of looking at the masks of a split."""

    objects: int  # with a mask that can be drawn
    findings: list[Finding]
    can_be_trained_on: bool  # there are masks, and none that training refuses


def inspect_masks(dataset: Dataset, size_px: tuple[int, int]) -> MaskAudit:
    """Masks that cannot be drawn, are empty, contradict their box, are too small for (height, width), or cross.

    Masks are drawn at the size of their picture. A dataset without any has no findings.

    Raises:
      UserError: as ``coco.segmentations``.
    """
    places: dict[int, list[tuple[float, str]]] = defaultdict(list)
    objects = 0
    records = tuple(dataset.records)
    for number, position, segmentation in segmentations(dataset):
        record = records[position]
        where = f"{record.path.name}, annotation {number}"
        try:
            outline = drawable(segmentation, record.width_px, record.height_px)
        except ValueError as error:
            places[_UNUSABLE].append((0, f"{where}: {error}"))
            continue
        if outline is None:
            places[_PARTLESS].append((0, where))
            continue
        objects += 1
        size = record.width_px, record.height_px
        box = record.boxes_xyxy_px[int(np.flatnonzero(record.annotation_ids == number)[0])]
        cell_px = _CELL_PX**2 * size[0] * size[1] / (size_px[0] * size_px[1])  # of the picture
        found = _problem(outline, size, box.astype(np.float64), cell_px)
        if found is not None:
            places[found[0]].append((found[1], f"{where}{found[2]}"))
        if isinstance(outline, Polygons) and any(map(crosses_itself, outline.parts)):
            places[_CROSSING].append((0, where))
    findings = [
        Finding("warning", text, len(places[kind]), tuple(where for _, where in sorted(places[kind])[:NUM_EXAMPLES]))
        for kind, text in _texts(size_px).items()
        if places[kind]
    ]
    without = sum(len(record.labels) for record in records) - objects
    if objects and without:
        findings.append(
            Finding("note", f"objects have no mask, beside {objects} with one; they train boxes alone", without)
        )
    return MaskAudit(objects, findings, objects > 0 and not places[_UNUSABLE])


def _texts(size_px: tuple[int, int]) -> dict[int, str]:
    """What to say by kind, with the cure."""
    height, width = size_px
    return {
        _UNUSABLE: f"masks cannot be drawn, and training on masks refuses them ({REPAIR} removes them, boxes stay)",
        _PARTLESS: f"outlines are of fewer than three points; their objects train boxes alone ({REPAIR} removes them)",
        _EMPTY: f"masks have no pixel ({REPAIR} removes them, boxes stay)",
        _OUTSIDE: "masks lie mostly outside their box; correct the box or the mask, or remove the mask",
        _DISAGREE: f"boxes fit their mask badly (IoU with its extent under {_LEAST_IOU}); correct the box or the mask",
        _TINY: f"masks are smaller than {_CELL_PX}x{_CELL_PX} pixels at {height}x{width}; a larger --size shows them",
        _CROSSING: "outlines cross themselves; what they go around twice is a hole: draw them anew, or in parts",
    }


def _problem(
    outline: Polygons | RunLengths, size_px: tuple[int, int], box_xyxy_px: np.ndarray, cell_px: float
) -> tuple[int, float, str] | None:
    """Kind of the worst there is about one mask, how bad it is (the lower, the worse), and its numbers."""
    runs = in_run_lengths(outline, *size_px)
    drawn: Any = {"size": [runs.height_px, runs.width_px], "counts": runs.counts}
    area = area_px(runs)
    if not area:
        return _EMPTY, 0, ""
    left, top, width, height = coco_mask.toBbox(drawn).tolist()
    extent = np.array([left, top, left + width, top + height])
    if np.abs(extent - box_xyxy_px).max() > _BESIDE_PX:
        inside = _area_inside(drawn, box_xyxy_px) / area
        if inside < _LEAST_INSIDE:
            return _OUTSIDE, inside, f", {inside:.0%} of it inside"
        overlap = float(iou(extent, box_xyxy_px))
        if overlap < _LEAST_IOU:
            return _DISAGREE, overlap, f", IoU {overlap:.2f}"
    if area < cell_px:
        return _TINY, area, f", {area:.0f} px"
    return None


def _area_inside(drawn: Any, box_xyxy_px: np.ndarray) -> float:
    """Pixels of a mask within a box."""
    low, high = box_xyxy_px[:2], box_xyxy_px[2:]
    frame: Any = coco_mask.frPyObjects(np.concatenate([low, high - low])[None], *drawn["size"])
    return float(coco_mask.area(coco_mask.merge([drawn, *frame], intersect=True)))
