"""Objects and detections of many images as arrays: a dictionary for each would take ten times the memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from dfine_jax.evaluation.encoded_masks import EncodedMasks

Kind = Literal["boxes", "masks"]  # what is compared


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
    """What is annotated, crowd regions included; boxes [x, y, width, height] in pixels."""

    image_id: Int64[np.ndarray, " n"]
    category_id: Int64[np.ndarray, " n"]
    box_xywh_px: Float64[np.ndarray, "n 4"]
    area_px: Float64[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]
    masks: EncodedMasks | None = None  # None: not asked for
    annotation_id: Int64[np.ndarray, " n"] | None = None  # None: not from a file

    @classmethod
    def of_coco(cls, annotations: Sequence[Mapping[str, Any]]) -> Objects:
        """From COCO annotations in memory; areas are those of the boxes where none are given.

        Masks are there if every ``segmentation`` is one in compressed run lengths.
        """
        boxes = _boxes(annotations)
        areas = [a.get("area", a["bbox"][2] * a["bbox"][3]) for a in annotations]
        return cls(
            _ids(annotations, "image_id"),
            _ids(annotations, "category_id"),
            boxes,
            np.array(areas, np.float64),
            np.array([bool(a.get("iscrowd")) for a in annotations], bool),
            _masks(annotations),
        )

    def judged_by_mask(self) -> Objects:
        """The objects where masks are compared: those without one become regions to ignore, of the size of their box.

        What is detected there counts for nothing, as in a crowd region: nobody knows whether it is right.
        """
        from pycocotools.mask import frPyObjects

        assert self.masks is not None
        absent = np.flatnonzero(~self.masks.exist)
        if not len(absent):
            return self
        boxes = []
        for row, (height, width) in zip(absent.tolist(), self.masks.size_px[absent].tolist(), strict=True):
            box: Any = self.box_xywh_px[row : row + 1]
            boxes += frPyObjects(box, height, width)
        both = EncodedMasks.joined([self.masks, EncodedMasks.of_coco(boxes)])
        which = np.arange(len(self.masks))
        which[absent] = len(self.masks) + np.arange(len(absent))
        crowd = self.crowd.copy()
        crowd[absent] = True
        return dataclasses.replace(self, crowd=crowd, masks=both.select(which))


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """What was detected; boxes [x, y, width, height] in pixels. Iterates over COCO results made one at a time."""

    image_id: Int64[np.ndarray, " n"]
    category_id: Int64[np.ndarray, " n"]
    box_xywh_px: Float64[np.ndarray, "n 4"]
    score: Float64[np.ndarray, " n"]
    masks: EncodedMasks | None = None  # None: of a model that only detects

    @classmethod
    def of_coco(cls, results: Iterable[Mapping[str, Any]]) -> Detections:
        """From COCO results in memory."""
        results = list(results)
        scores = np.array([result["score"] for result in results], np.float64)
        image_id, category_id = _ids(results, "image_id"), _ids(results, "category_id")
        return cls(image_id, category_id, _boxes(results), scores, _masks(results))

    @classmethod
    def joined(cls, parts: Sequence[Detections]) -> Detections:
        """One after another; with masks if all of them have masks."""
        masks = [part.masks for part in parts if part.masks is not None]
        every = [cls.of_coco([]), *parts]
        joined: Any = {name: np.concatenate([getattr(part, name) for part in every]) for name in _COLUMNS}
        return cls(**joined, masks=EncodedMasks.joined(masks) if masks and len(masks) == len(parts) else None)

    @classmethod
    def of_columns(cls, columns: Mapping[str, np.ndarray]) -> Detections:
        """Inverse of ``columns``."""
        masks = None
        if "counts" in columns:
            masks = EncodedMasks(columns["counts"].tobytes(), columns["bounds"], columns["size_px"])
        named: Any = {name: columns[name] for name in _COLUMNS}
        return cls(**named, masks=masks)

    def columns(self) -> dict[str, np.ndarray]:
        """All of it as arrays by name."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        if self.masks is None:
            return columns
        counts = np.frombuffer(self.masks.counts, np.uint8)
        return columns | {"counts": counts, "bounds": self.masks.bounds, "size_px": self.masks.size_px}

    def at_least(self, score: float) -> Detections:
        """Those from a score on, in memory of their own, so that of the others none is held."""
        rows = self.score >= score
        masks = None
        if self.masks is not None:
            masks = EncodedMasks.of([mask["counts"] for mask in self.masks.coco(rows)], self.masks.size_px[rows])
        columns: Any = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return Detections(**columns, masks=masks)

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.score)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """COCO result entries."""
        for start in range(0, len(self), 4096):
            part = slice(start, start + 4096)
            columns = [getattr(self, name) for name in _COLUMNS]
            entries = [
                {"image_id": image, "category_id": category, "bbox": box, "score": score}
                for image, category, box, score in zip(*(column[part].tolist() for column in columns), strict=True)
            ]
            masks = self.masks.coco(np.arange(start, start + len(entries))) if self.masks else []
            for entry, mask in zip(entries, masks, strict=False):
                entry["segmentation"] = mask | {"counts": mask["counts"].decode()}
            yield from entries


_COLUMNS = ("image_id", "category_id", "box_xywh_px", "score")


class Groups:
    """Rows by the value of a column, in their order."""

    def __init__(self, column: Int64[np.ndarray, " n"]) -> None:
        self._order = np.argsort(column, kind="stable")
        self._sorted = column[self._order]

    def rows(self, value: int) -> Int64[np.ndarray, " r"]:
        """Rows that have the value, ascending."""
        start, end = np.searchsorted(self._sorted, value), np.searchsorted(self._sorted, value, side="right")
        return self._order[start:end]


def _ids(entries: Sequence[Mapping[str, Any]], key: str) -> Int64[np.ndarray, " n"]:
    return np.array([entry[key] for entry in entries], np.int64)


def _boxes(entries: Sequence[Mapping[str, Any]]) -> Float64[np.ndarray, "n 4"]:
    return np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)


def _masks(entries: Sequence[Mapping[str, Any]]) -> EncodedMasks | None:
    """None where there is an entry without run lengths, or no entry."""
    masks = [entry.get("segmentation") for entry in entries]
    compressed = [m for m in masks if isinstance(m, Mapping) and isinstance(m.get("counts"), str | bytes)]
    return EncodedMasks.of_coco(compressed) if masks and len(compressed) == len(masks) else None
