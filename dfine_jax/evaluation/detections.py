"""Objects and detections of many images as arrays: a dictionary for each would take ten times the memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
    """What is annotated, crowd regions included; boxes [x, y, width, height] in pixels."""

    image_id: Int64[np.ndarray, " n"]
    category_id: Int64[np.ndarray, " n"]
    box_xywh_px: Float64[np.ndarray, "n 4"]
    area_px: Float64[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]

    @classmethod
    def of_coco(cls, annotations: Sequence[Mapping[str, Any]]) -> Objects:
        """From COCO annotations in memory; areas are those of the boxes where none are given."""
        boxes = _boxes(annotations)
        areas = [a.get("area", a["bbox"][2] * a["bbox"][3]) for a in annotations]
        return cls(
            _ids(annotations, "image_id"),
            _ids(annotations, "category_id"),
            boxes,
            np.array(areas, np.float64),
            np.array([bool(a.get("iscrowd")) for a in annotations], bool),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """What was detected; boxes [x, y, width, height] in pixels. Iterates over COCO results made one at a time."""

    image_id: Int64[np.ndarray, " n"]
    category_id: Int64[np.ndarray, " n"]
    box_xywh_px: Float64[np.ndarray, "n 4"]
    score: Float64[np.ndarray, " n"]

    @classmethod
    def of_coco(cls, results: Iterable[Mapping[str, Any]]) -> Detections:
        """From COCO results in memory."""
        results = list(results)
        scores = np.array([result["score"] for result in results], np.float64)
        return cls(_ids(results, "image_id"), _ids(results, "category_id"), _boxes(results), scores)

    @classmethod
    def joined(cls, parts: Sequence[Detections]) -> Detections:
        """One after another."""
        parts = [cls.of_coco([]), *parts]
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(cls)))

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.score)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """COCO result entries."""
        for start in range(0, len(self), 4096):
            part = slice(start, start + 4096)
            columns = (self.image_id, self.category_id, self.box_xywh_px, self.score)
            for image, category, box, score in zip(*(column[part].tolist() for column in columns), strict=True):
                yield {"image_id": image, "category_id": category, "bbox": box, "score": score}


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
