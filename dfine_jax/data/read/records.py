"""The records of a dataset as a sequence over columns: a record is put together when it is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from dfine_jax.data.load.shared import SharedArrays, share
from dfine_jax.data.read.dataset import Record, Stored
from dfine_jax.data.read.names import name_at
from dfine_jax.data.read.pictures import Places

CLAMP_TOLERANCE_PX = 0.5  # rounding of the annotation tool; not worth a report

_FARTHEST_PX = 1e9  # coordinates beyond are cut there, so that sums of them stay finite in float32
_ROWS_AT_ONCE = 1 << 15  # small enough for the processor's cache


class Usable(NamedTuple):
    """Which annotations are objects to train on, and how many are not or were changed, and why."""

    kept: Bool[np.ndarray, " n"]
    crowd: int
    degenerate: int
    clamped: int


class Records(Sequence[Record]):
    """Records by position, over ``annotations.Decoded`` columns that all processes share.

    Slices, repeats and pickled copies (``shared.dumps``) are of the same columns.

    Args:
      columns: as in ``annotations.Decoded``.
      usable: ``kept`` by annotation and ``size_px`` by image; may be the same as ``columns``.
      places: where the pictures are.
      stored: the pictures, when they are not files; ``places`` then only names them.
      order: positions of the images.
    """

    def __init__(
        self,
        columns: SharedArrays,
        usable: SharedArrays,
        places: Places,
        *,
        upright: bool = False,
        stored: Sequence[Stored] | None = None,
        order: range | Int64[np.ndarray, " m"] | None = None,
    ) -> None:
        self._columns, self._usable, self._places = columns, usable, places
        self._upright, self.stored = upright, stored
        self._order = range(len(columns.arrays["image_id"])) if order is None else order

    def __len__(self) -> int:
        """Number of images."""
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Record | Records:
        """A record, or a part of the sequence."""
        if isinstance(index, slice):
            return self._ordered(self._order[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._record(int(self._order[index]))

    def __iter__(self) -> Iterator[Record]:
        """All of them."""
        return (self._record(int(position)) for position in self._order)

    def __mul__(self, times: int) -> Records:
        """The sequence so many times over."""
        return self._ordered(np.tile(np.asarray(self._order, np.int64), times))

    def __eq__(self, other: object) -> bool:
        """Whether the records are those of the same images of the same columns, in the same order."""
        if not isinstance(other, Records):
            return NotImplemented
        return self._usable is other._usable and np.array_equal(self._order, other._order)

    __hash__ = None  # type: ignore[assignment]

    def objects_per_image(self) -> Int64[np.ndarray, " m"]:
        """Number of objects by image."""
        bounds, kept = self._columns.arrays["objects"], self._usable.arrays["kept"]
        before = np.concatenate([[0], np.cumsum(kept)])
        return np.diff(before[bounds])[np.asarray(self._order, np.int64)]

    def image_ids(self) -> Int64[np.ndarray, " m"]:
        """Ids of the images."""
        return self._columns.arrays["image_id"][np.asarray(self._order, np.int64)]

    def sizes_px(self) -> Int64[np.ndarray, "m 2"]:
        """(width, height) by image."""
        return self._usable.arrays["size_px"][np.asarray(self._order, np.int64)]

    def blocks(self) -> Iterator[tuple[Int64[np.ndarray, " o"], Float32[np.ndarray, "o 4"], Int64[np.ndarray, " o"]]]:
        """Objects of some images at a time: position of the image in this sequence, boxes, labels."""
        columns, kept, sizes = self._columns.arrays, self._usable.arrays["kept"], self._usable.arrays["size_px"]
        order = np.asarray(self._order, np.int64)
        lengths = np.diff(columns["objects"])[order]
        for start, end in _spans(lengths):
            rows, image = _rows(columns["objects"][order[start:end]], lengths[start:end])
            use = kept[rows]
            rows, image = rows[use], image[use] + start
            _, boxes = clipped(columns["box_xywh_px"][rows], sizes[order[image]])
            yield image, boxes, columns["label"][rows].astype(np.int64)

    def _ordered(self, order: Any) -> Records:
        return Records(
            self._columns, self._usable, self._places, upright=self._upright, stored=self.stored, order=order
        )

    def _record(self, position: int) -> Record:
        columns, size = self._columns.arrays, self._usable.arrays["size_px"][position]
        rows = slice(*columns["objects"][position : position + 2].tolist())
        kept = self._usable.arrays["kept"][rows]
        width, height = size.tolist()
        return Record(
            image_id=int(columns["image_id"][position]),
            path=self._places.path(name_at(columns, position)),
            width_px=width,
            height_px=height,
            boxes_xyxy_px=clipped(columns["box_xywh_px"][rows][kept], size)[1],
            labels=columns["label"][rows][kept],
            areas_px=columns["area_px"][rows][kept].astype(np.float32),
            annotation_ids=columns["annotation_id"][rows][kept],
            stored=None if self.stored is None else self.stored[position],
            upright=self._upright,
        )


def clipped(
    box_xywh_px: Float64[np.ndarray, "n 4"], size_px: Int64[np.ndarray, "*n 2"]
) -> tuple[Float32[np.ndarray, "n 4"], Float32[np.ndarray, "n 4"]]:
    """Corners as annotated, and cut to the picture of (width, height)."""
    corners = box_xywh_px.clip(-_FARTHEST_PX, _FARTHEST_PX).astype(np.float32)
    corners[:, 2:] += corners[:, :2]
    limit: Float[np.ndarray, "..."] = np.concatenate([size_px, size_px], -1).astype(np.float32)
    return corners, corners.clip(0, limit)


def find_usable(columns: dict[str, np.ndarray], size_px: Int64[np.ndarray, "m 2"]) -> Usable:
    """Rules of the reference: no crowd regions, and boxes that keep width and height inside the picture."""
    bounds, crowd = columns["objects"], columns["crowd"]
    kept = np.zeros(len(crowd), bool)
    degenerate = clamped = 0
    for first, last in _spans(np.diff(bounds)):
        rows = slice(int(bounds[first]), int(bounds[last]))
        sizes = np.repeat(size_px[first:last], np.diff(bounds[first : last + 1]), axis=0)
        corners, boxes = clipped(columns["box_xywh_px"][rows], sizes)
        known = ~crowd[rows] & (columns["label"][rows] >= 0)
        usable = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        kept[rows] = known & usable
        degenerate += int((known & ~usable).sum())
        beyond = np.abs(corners - boxes) > CLAMP_TOLERANCE_PX
        beyond = beyond[:, :2] | beyond[:, 2:]
        clamped += int((kept[rows] & (beyond[:, 0] | beyond[:, 1])).sum())
    return Usable(kept, int(crowd.sum()), degenerate, clamped)


def share_usable(kept: Bool[np.ndarray, " n"], size_px: Int64[np.ndarray, "m 2"]) -> SharedArrays:
    """What ``Records`` needs beside the columns."""
    return share({"kept": kept, "size_px": size_px})


def _spans(lengths: Int64[np.ndarray, " m"]) -> Iterator[tuple[int, int]]:
    """Ranges of images with some thousands of annotations each."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        before = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + _ROWS_AT_ONCE, side="right")))
        yield start, end
        start = end


def _rows(
    starts: Int64[np.ndarray, " k"], lengths: Int64[np.ndarray, " k"]
) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " r"]]:
    """Rows of ranges one after another, and the range that each belongs to."""
    of = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(of)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return starts[of] + within, of


def objects_per_image(records: Sequence[Record]) -> Int64[np.ndarray, " m"]:
    """Number of objects by image."""
    if isinstance(records, Records):
        return records.objects_per_image()
    return np.array([len(record.labels) for record in records], np.int64)


def thin_objects(records: Sequence[Record], scale_xy: Float64[np.ndarray, "m 2"]) -> int:
    """Objects with a side below one pixel after the pictures were scaled by so much across and down."""
    return sum(
        int(((boxes[:, 2:] - boxes[:, :2]) * scale_xy[image] < 1).any(1).sum())
        for image, boxes, _ in object_blocks(records)
    )


def image_ids(records: Sequence[Record]) -> Int64[np.ndarray, " m"]:
    """Ids of the images."""
    if isinstance(records, Records):
        return records.image_ids()
    return np.array([record.image_id for record in records], np.int64)


def sizes_px(records: Sequence[Record]) -> Int64[np.ndarray, "m 2"]:
    """(width, height) by image."""
    if isinstance(records, Records):
        return records.sizes_px()
    return np.array([(record.width_px, record.height_px) for record in records], np.int64).reshape(-1, 2)


def objects_and_images(records: Sequence[Record]) -> tuple[Counter[int], Counter[int]]:
    """How many objects each label has, and how many images have it."""
    objects, images = Counter[int](), Counter[int]()
    for image, _, labels in object_blocks(records):
        objects.update(dict(zip(*(v.tolist() for v in np.unique(labels, return_counts=True)), strict=True)))
        pairs = np.unique(np.stack([image, labels], 1), axis=0)
        images.update(dict(zip(*(v.tolist() for v in np.unique(pairs[:, 1], return_counts=True)), strict=True)))
    return objects, images


def object_blocks(
    records: Sequence[Record],
) -> Iterator[tuple[Int64[np.ndarray, " o"], Float32[np.ndarray, "o 4"], Int64[np.ndarray, " o"]]]:
    """As ``Records.blocks``, of any records."""
    if isinstance(records, Records):
        yield from records.blocks()
        return
    for position, record in enumerate(records):
        labels = record.labels.astype(np.int64)
        yield np.full(len(labels), position), record.boxes_xyxy_px, labels


def named_path(image_dir: Path, heads: Sequence[str]) -> Places:
    """Paths that only name pictures which are no files; ``heads`` as ``names.heads_of``."""
    return Places({head: str(image_dir / head) for head in heads}, {})
