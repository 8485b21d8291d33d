"""Masks as runs of pixels down the columns of a picture, and COCO's run lengths, plain and compressed.

Formulas of the compressed form: pycocotools, common/maskApi.c (rleToString, rleFrString).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

_BITS = 5  # of a number in one character
_CHARACTERS = 7  # of a number: 35 bits, more than a picture has pixels
_ZERO = 48


class MaskCrop(NamedTuple):
    """What is set of a mask: the smallest rectangle that holds it, and where that lies in the picture."""

    left_px: int
    top_px: int
    mask: Bool[np.ndarray, "h w"]


class ColumnRuns(NamedTuple):
    """Pixels that are set: in each column given, the rows from ``top`` to before ``bottom``; by column, then row."""

    column_px: Int64[np.ndarray, " r"]
    top_px: Int64[np.ndarray, " r"]
    bottom_px: Int64[np.ndarray, " r"]

    @property
    def area_px(self) -> int:
        """Number of pixels."""
        return int((self.bottom_px - self.top_px).sum())

    def shifted(self, left_px: int, top_px: int) -> ColumnRuns:
        """To the right and down."""
        return ColumnRuns(self.column_px + left_px, self.top_px + top_px, self.bottom_px + top_px)

    def enlarged(self, times: int) -> ColumnRuns:
        """With so many pixels across and down for each."""
        column = (self.column_px[:, None] * times + np.arange(times)).ravel()
        order = np.argsort(column, kind="stable")
        top, bottom = (np.repeat(value * times, times)[order] for value in (self.top_px, self.bottom_px))
        return ColumnRuns(column[order], top, bottom)

    def within(self, box_xyxy_px: Float[np.ndarray, " 4"]) -> ColumnRuns:
        """The pixels whose indices lie in x1 <= x < x2 and y1 <= y < y2."""
        x0, y0, x1, y1 = np.ceil(box_xyxy_px).astype(np.int64)
        top, bottom = np.maximum(self.top_px, y0), np.minimum(self.bottom_px, y1)
        kept = (self.column_px >= x0) & (self.column_px < x1) & (top < bottom)
        return ColumnRuns(self.column_px[kept], top[kept], bottom[kept])

    def painted(self) -> MaskCrop:
        """As pixels."""
        if not len(self.column_px):
            return MaskCrop(0, 0, np.zeros((0, 0), bool))
        left, top = int(self.column_px[0]), int(self.top_px.min())
        width, height = int(self.column_px[-1]) - left + 1, int(self.bottom_px.max()) - top
        lengths = run_lengths(self.shifted(-left, -top), (width, height))
        columns = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height)
        return MaskCrop(left, top, np.ascontiguousarray(columns.T))


def column_runs(lengths: Int64[np.ndarray, " m"], height_px: int) -> ColumnRuns:
    """Of plain run lengths (unset and set pixels in turn, down the columns) of a picture of that height."""
    edges = np.cumsum(lengths)
    start, end = edges[: len(lengths) // 2 * 2].reshape(-1, 2).T
    start, end = start[start < end], end[start < end]
    first, last = start // height_px, (end - 1) // height_px
    number = last - first + 1  # of columns that the run reaches
    which = np.repeat(np.arange(len(start)), number)
    column = first[which] + np.arange(len(which)) - (np.cumsum(number) - number)[which]
    top = np.where(column == first[which], start[which] % height_px, 0)
    bottom = np.where(column == last[which], (end[which] - 1) % height_px + 1, height_px)
    return ColumnRuns(column, top, bottom)


def run_lengths(runs: ColumnRuns, size_px: tuple[int, int]) -> Int64[np.ndarray, " m"]:
    """Plain run lengths of a picture of (width, height), as few as there can be: COCO's own order and form."""
    width, height = size_px
    edges = np.stack([runs.top_px, runs.bottom_px], 1) + runs.column_px[:, None] * height
    between = edges.ravel()[1:-1].reshape(-1, 2)
    kept = between[between[:, 0] != between[:, 1]]  # the others touch, from one column to the next
    edges = np.concatenate([[0], edges.ravel()[:1], kept.ravel(), edges.ravel()[-1:], [width * height]])
    lengths = np.diff(edges)
    return lengths if lengths[-1] else lengths[:-1]


def compressed(lengths: Int64[np.ndarray, " m"]) -> bytes:
    """Run lengths in COCO's characters.

    From the fourth on, a number is written as the difference to the one before the last; in groups of five bits, the
    lowest first, with 32 more where another group follows. The fifth bit of the last group is the sign.
    """
    numbers = np.array(lengths, np.int64)
    numbers[3:] -= lengths[1:-2]
    groups = numbers[:, None] >> (_BITS * np.arange(_CHARACTERS + 1))
    digits, rest = groups[:, :-1] & 31, groups[:, 1:]
    more = rest != -(digits >> 4)  # what the sign does not say
    used = np.concatenate([np.ones((len(numbers), 1), bool), more[:, :-1]], 1)
    return (digits + 32 * more + _ZERO)[used].astype(np.uint8).tobytes()


def expanded(counts: bytes) -> Int64[np.ndarray, " m"]:
    """Inverse of ``compressed``.

    Raises:
      ValueError: these are no compressed run lengths.
    """
    codes: Int64[np.ndarray, " n"] = np.frombuffer(counts, np.uint8).astype(np.int64) - _ZERO
    last = (codes & 32) == 0
    if not len(codes) or not last[-1] or codes.min() < 0 or codes.max() > 63:
        raise ValueError("not COCO's compressed run lengths")
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    lengths = np.diff(starts, append=len(codes))
    if lengths.max() > _CHARACTERS:
        raise ValueError("run lengths beyond the size of any picture")
    place = _BITS * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << place, starts)
    runs -= ((codes[last] & 16) > 0) << (_BITS * lengths)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs


def united(parts: Sequence[ColumnRuns]) -> ColumnRuns:
    """Pixels that are set in any of the parts; of one picture, coordinates from 0 on."""
    column, top, bottom = (np.concatenate(values).astype(np.int64) for values in zip(*parts, strict=True))
    if not len(column):
        return ColumnRuns(column, top, bottom)
    beyond = int(bottom.max()) + 1  # columns one after another, with a gap
    order = np.argsort(column * beyond + top, kind="stable")
    start = (column * beyond + top)[order]
    end = np.maximum.accumulate((column * beyond + bottom)[order])
    first = np.concatenate([[True], start[1:] > end[:-1]])
    start, end = start[first], end[np.concatenate([first[1:], [True]])]
    return ColumnRuns(start // beyond, start % beyond, end % beyond)
