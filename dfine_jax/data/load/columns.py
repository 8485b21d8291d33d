"""The records of a dataset as a few arrays that all loader processes share.

A record is many small Python objects, about 3 kB, which every process would have to unpickle and hold for itself:
gigabytes each with a million images. As arrays they are a fifth of that, in memory that exists once, and a record is
put together when it is needed.
"""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from dfine_jax.data.load.shared import share
from dfine_jax.data.read.dataset import Record
from dfine_jax.data.read.outlines import Outline, Polygons, RunLengths
from dfine_jax.data.read.records import Records

_NO_OUTLINE, _POLYGONS, _RUN_LENGTHS = range(3)


class RecordColumns:
    """Records by position; equal to those it was made from, in every process."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._shared = share(_record_columns(records) | _outline_columns(records))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._shared.arrays["image_id"])

    def __getitem__(self, index: int) -> Record:
        """The record of an image."""
        columns = self._shared.arrays
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        objects = _range(columns["objects"], index)
        width, height = columns["size_px"][index].tolist()
        stored = columns["stored"][_range(columns["stored_bytes"], index)].tobytes()
        return Record(
            image_id=int(columns["image_id"][index]),
            path=Path(os.fsdecode(columns["path"][_range(columns["path_bytes"], index)].tobytes())),
            width_px=width,
            height_px=height,
            boxes_xyxy_px=columns["boxes_xyxy_px"][objects],
            labels=columns["labels"][objects],
            areas_px=columns["areas_px"][objects],
            annotation_ids=columns["annotation_ids"][objects],
            outlines=self._outlines(index),
            stored=pickle.loads(stored) if stored else None,
            upright=bool(columns["upright"][index]),
        )

    def _outlines(self, index: int) -> tuple[Outline, ...]:
        columns = self._shared.arrays
        if "outlines" not in columns:
            return ()
        numbers = _range(columns["outlines"], index)
        return tuple(self._outline(number) for number in range(numbers.start, numbers.stop))

    def _outline(self, number: int) -> Outline:
        columns = self._shared.arrays
        kind = columns["outline_kind"][number]
        if kind == _RUN_LENGTHS:
            height, width = columns["outline_size_px"][number].tolist()
            return RunLengths(height, width, columns["runs"][_range(columns["run_bytes"], number)].tobytes())
        if kind == _POLYGONS:
            parts = _range(columns["parts"], number)
            points, bounds = columns["points"], columns["part_points"][parts.start : parts.stop + 1].tolist()
            return Polygons(tuple(points[start:stop] for start, stop in itertools.pairwise(bounds)))
        return None


def for_loading(records: Sequence[Record], workers: int) -> Sequence[Record] | RecordColumns:
    """What loads the images gets: columns for worker processes, the records as they are for this one."""
    if not workers or (isinstance(records, Records) and records.stored is None):
        return records  # these are columns already, shared with whom they are sent to
    return RecordColumns(records)


def _record_columns(records: Sequence[Record]) -> dict[str, np.ndarray]:
    paths, path_bytes = _text([os.fsencode(record.path) for record in records])
    stored, stored_bytes = _text([b"" if r.stored is None else pickle.dumps(r.stored) for r in records])
    return {
        "image_id": np.array([record.image_id for record in records], np.int64),
        "size_px": np.array([(record.width_px, record.height_px) for record in records], np.int64).reshape(-1, 2),
        "upright": np.array([record.upright for record in records], bool),
        "path": paths,
        "path_bytes": path_bytes,
        "stored": stored,
        "stored_bytes": stored_bytes,
        "objects": _bounds(len(record.labels) for record in records),
        "boxes_xyxy_px": _joined([record.boxes_xyxy_px for record in records], np.empty((0, 4), np.float32)),
        "labels": _joined([record.labels for record in records], np.empty(0, np.int32)),
        "areas_px": _joined([record.areas_px for record in records], np.empty(0, np.float32)),
        "annotation_ids": _joined([record.annotation_ids for record in records], np.empty(0, np.int64)),
    }


def _outline_columns(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Nothing where no record has outlines."""
    outlines = [outline for record in records for outline in record.outlines]
    if not outlines:
        return {}
    polygons = [outline.parts if isinstance(outline, Polygons) else () for outline in outlines]
    parts = [part for several in polygons for part in several]
    kinds = [
        _POLYGONS if isinstance(o, Polygons) else _RUN_LENGTHS if isinstance(o, RunLengths) else _NO_OUTLINE
        for o in outlines
    ]
    runs, run_bytes = _text([o.counts if isinstance(o, RunLengths) else b"" for o in outlines])
    sizes = [(o.height_px, o.width_px) if isinstance(o, RunLengths) else (0, 0) for o in outlines]
    return {
        "outlines": _bounds(len(record.outlines) for record in records),
        "outline_kind": np.array(kinds, np.uint8),
        "outline_size_px": np.array(sizes, np.int64).reshape(-1, 2),
        "runs": runs,
        "run_bytes": run_bytes,
        "parts": _bounds(len(several) for several in polygons),
        "part_points": _bounds(len(part) for part in parts),
        "points": _joined(parts, np.empty((0, 2), np.float64)),
    }


def _joined(parts: list[np.ndarray], empty: np.ndarray) -> np.ndarray:
    """One array of all; of the shape and type of ``empty`` also when there is nothing."""
    return np.concatenate([empty, *parts], dtype=empty.dtype)


def _text(parts: list[bytes]) -> tuple[UInt8[np.ndarray, " bytes"], Int64[np.ndarray, " bounds"]]:
    """All bytes in a row, and the bounds of the parts in it."""
    return np.frombuffer(b"".join(parts), np.uint8), _bounds(len(part) for part in parts)


def _bounds(lengths: Iterable[int]) -> Int64[np.ndarray, " bounds"]:
    """Where each part starts and the last one ends."""
    return np.array([0, *itertools.accumulate(lengths)], np.int64)


def _range(bounds: Int64[np.ndarray, " bounds"], index: int) -> slice:
    return slice(*bounds[index : index + 2].tolist())
