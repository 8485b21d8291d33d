"""Masks of the objects of one picture, small until their pixels are asked for.

A network answers with a coarse map of each object. Between the cells of the map what is interpolated is linear down
each column of the picture, so where it crosses the threshold is computed, not looked for: a mask becomes runs of pixels
with as much work as its columns have cells, and the pixels themselves are never needed for run lengths, areas or the
union of tiles.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from dfine_jax.data.picture.contours import Contour, Ring, outlines
from dfine_jax.data.picture.run_lengths import (
    ColumnRuns,
    MaskCrop,
    column_runs,
    compressed,
    expanded,
    run_lengths,
)
from dfine_jax.ops.postprocess import sigmoid

_TIE_PX = 1e-6  # a crossing this close to the centre of a pixel is at it; there the threshold is reached
_MOST_LOGIT = np.float32(1e5)  # more than float16 holds; further ones count as this, so that all are finite


class ObjectMasks(abc.ABC):
    """Masks of the objects of a picture of ``size_px`` = (width, height)."""

    size_px: tuple[int, int]

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of objects."""

    @abc.abstractmethod
    def runs(self, i: int) -> ColumnRuns:
        """Pixels of an object as runs down the columns."""

    @abc.abstractmethod
    def select(self, rows: Sequence[int] | Int[np.ndarray, " k"]) -> Self:
        """Those of some objects, in the order given."""

    def crop(self, i: int) -> MaskCrop:
        """The pixels of an object and where they lie; [0, 0] where nothing is set."""
        return self.runs(i).painted()

    def full(self, i: int) -> Bool[np.ndarray, "h w"]:
        """Mask of an object in the size of the picture."""
        out = np.zeros(self.size_px[::-1], bool)
        self._paint(i, out)
        return out

    def all(self) -> Bool[np.ndarray, "n h w"]:
        """Masks of all objects in the size of the picture: of 300 objects of 12 megapixels that is 3.6 GB."""
        out = np.zeros((len(self), *self.size_px[::-1]), bool)
        for i in range(len(self)):
            self._paint(i, out[i])
        return out

    def rle(self, i: int) -> dict[str, Any]:
        """COCO's compressed run lengths, {"size": [height, width], "counts": bytes}, as pycocotools encodes them."""
        return {"size": list(self.size_px[::-1]), "counts": compressed(run_lengths(self.runs(i), self.size_px))}

    def area_px(self, i: int) -> int:
        """Number of pixels of an object."""
        return self.runs(i).area_px

    def outlines(self, i: int, tolerance_px: float = 0.0) -> list[Contour]:
        """Parts of an object with their holes, the largest first, in pixels of the picture.

        Args:
          tolerance_px: how far a simpler outline may lie from the edges of the pixels; 0: exact.
        """
        left, top, mask = self.crop(i)
        return [outline.shifted(left, top) for outline in outlines(mask, tolerance_px)]

    def polygons(self, i: int, tolerance_px: float = 0.0) -> tuple[Ring, ...]:
        """As COCO writes an object: a polygon for each of its ``outlines``, holes joined to it by cuts."""
        return tuple(outline.joined() for outline in self.outlines(i, tolerance_px))

    def _paint(self, i: int, out: Bool[np.ndarray, "h w"]) -> None:
        left, top, mask = self.crop(i)
        out[top : top + mask.shape[0], left : left + mask.shape[1]] = mask


@dataclasses.dataclass(frozen=True, eq=False)
class MapMasks(ObjectMasks):
    """Masks as a network answers: a coarse map of each object.

    A pixel belongs to an object where the map's probability, or its logit, interpolated bilinearly at the centre of the
    pixel (half-pixel centres, edges repeated, no antialiasing), reaches the threshold, and, if ``cut_to_boxes``, its
    indices lie in x1 <= x < x2 and y1 <= y < y2. A map that shows more than the picture (letterbox) is not cut first.
    """

    maps_logit: Float[np.ndarray, "n hm wm"]
    boxes_xyxy_px: Float[np.ndarray, "n 4"]
    view_px: tuple[float, float, float, float]  # (left, top, width, height) of what the maps show, in picture pixels
    size_px: tuple[int, int]
    threshold: float = 0.5  # of the probability
    cut_to_boxes: bool = True
    interpolated: Literal["probability", "logit"] = "probability"

    def __post_init__(self) -> None:
        """ValueError unless maps and boxes are of the same objects."""
        if self.maps_logit.ndim != 3 or self.boxes_xyxy_px.shape != (len(self.maps_logit), 4):
            raise ValueError(
                f"maps {self.maps_logit.shape} and boxes {self.boxes_xyxy_px.shape} do not belong together"
            )

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.maps_logit)

    def select(self, rows: Sequence[int] | Int[np.ndarray, " k"]) -> Self:
        """As ``ObjectMasks.select``."""
        rows = np.asarray(rows, np.int64)
        return dataclasses.replace(self, maps_logit=self.maps_logit[rows], boxes_xyxy_px=self.boxes_xyxy_px[rows])

    def runs(self, i: int) -> ColumnRuns:
        """As ``ObjectMasks.runs``."""
        box = self.boxes_xyxy_px[i] if self.cut_to_boxes else np.array([0, 0, *self.size_px])
        x0, y0, x1, y1 = np.ceil(np.nan_to_num(box).clip(0, [*self.size_px] * 2)).astype(int).tolist()
        if x0 >= x1 or y0 >= y1:
            return column_runs(np.zeros(0, np.int64), 1)
        logits = self.maps_logit[i]
        (left, top, width, height), (rows, columns) = self.view_px, logits.shape
        across = _Axis(width / columns, left, columns)
        down = _Axis(height / rows, top, rows)
        first_x, end_x = across.cells(x0, x1)
        first_y, end_y = down.cells(y0, y1)
        above = self._above(logits[first_y:end_y, first_x:end_x].T.astype(np.float32))
        cell = across.place(np.arange(x0, x1)) - first_x
        before = np.minimum(cell.astype(np.int64), end_x - first_x - 1)
        after = np.minimum(before + 1, end_x - first_x - 1)
        share = (cell - before)[:, None].astype(np.float32)
        profile = above[before] * (1 - share) + above[after] * share  # [columns of the picture, rows of the map]
        found = _crossings(profile, down, first_y, (y0, y1))
        return ColumnRuns(found.column_px + x0, found.top_px, found.bottom_px)

    def _above(self, logits: Float[np.ndarray, "c k"]) -> Float[np.ndarray, "c k"]:
        """What is interpolated, less what it has at the threshold; numbers that are none are below all others."""
        if self.interpolated == "probability":
            return np.nan_to_num(sigmoid(logits), copy=False) - np.float32(self.threshold)
        with np.errstate(divide="ignore"):  # of thresholds 0 and 1
            limit = np.log(self.threshold) - np.log1p(-self.threshold)
        finite = np.nan_to_num(logits, copy=False, nan=-np.inf).clip(-_MOST_LOGIT, _MOST_LOGIT)
        return finite - np.float32(limit).clip(-_MOST_LOGIT, _MOST_LOGIT)


@dataclasses.dataclass(frozen=True, eq=False)
class RunMasks(ObjectMasks):
    """Masks as COCO's compressed run lengths: of annotations, and of objects put together from tiles."""

    counts: tuple[bytes, ...]
    size_px: tuple[int, int]

    @classmethod
    def of_runs(cls, objects: Iterable[ColumnRuns], size_px: tuple[int, int]) -> RunMasks:
        """From the runs of each object."""
        return cls(tuple(compressed(run_lengths(runs, size_px)) for runs in objects), size_px)

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.counts)

    def select(self, rows: Sequence[int] | Int[np.ndarray, " k"]) -> Self:
        """As ``ObjectMasks.select``."""
        return dataclasses.replace(self, counts=tuple(self.counts[int(i)] for i in rows))

    def rle(self, i: int) -> dict[str, Any]:
        """As ``ObjectMasks.rle``."""
        return {"size": list(self.size_px[::-1]), "counts": self.counts[i]}

    def runs(self, i: int) -> ColumnRuns:
        """As ``ObjectMasks.runs``."""
        return column_runs(expanded(self.counts[i]), self.size_px[1])


class _Axis(NamedTuple):
    """Where the cells of a map lie along a side of the picture."""

    cell_px: float
    start_px: float
    number: int

    def place(self, pixel: Any) -> Any:
        """Of the centres of pixels, in cells from the centre of the first; edges repeat."""
        return np.clip((pixel + 0.5 - self.start_px) / self.cell_px - 0.5, 0, self.number - 1)

    def pixel(self, place: Any) -> Any:
        """Inverse of ``place``, a fraction."""
        return (place + 0.5) * self.cell_px + self.start_px - 0.5

    def cells(self, first_px: int, end_px: int) -> tuple[int, int]:
        """Cells that the pixels from ``first_px`` to before ``end_px`` lie between."""
        return int(self.place(first_px)), min(int(self.place(end_px - 1)) + 2, self.number)


def _crossings(profile: Float[np.ndarray, "c k"], down: _Axis, first: int, rows_px: tuple[int, int]) -> ColumnRuns:
    """Runs of pixels, within the rows given, where a function that is linear between the cells is not negative.

    Args:
      profile: its values at cells ``first`` and following, down each column.
    """
    count, cells = profile.shape
    inside = np.zeros((count, cells + 2), bool)
    inside[:, 1:-1] = profile >= 0
    column, step = np.nonzero(inside[:, 1:] != inside[:, :-1])  # step j leads from cell j - 1 to cell j
    before, after = profile[column, np.maximum(step - 1, 0)], profile[column, np.minimum(step, cells - 1)]
    with np.errstate(divide="ignore", invalid="ignore"):  # of steps at the ends, which are replaced
        crossing = down.pixel(first + step - 1 + before.astype(np.float64) / (before.astype(np.float64) - after))
    rising = np.ceil(crossing - _TIE_PX)
    row = np.where(before < 0, rising, np.floor(crossing + _TIE_PX) + 1)
    row = np.where(step == 0, rows_px[0], np.where(step == cells, rows_px[1], row)).clip(*rows_px)
    beyond = rows_px[1] + 1  # columns one after another, with a gap
    edges = np.sort(column * beyond + row.astype(np.int64), kind="stable")
    new = np.flatnonzero(np.concatenate([[True], edges[1:] != edges[:-1]]))
    odd = np.diff(new, append=len(edges)) % 2 == 1  # what begins and ends between two pixels is nowhere
    start, end = edges[new[odd]].reshape(-1, 2).T
    return ColumnRuns(start // beyond, start % beyond, end % beyond)
