"""COCO's compressed run lengths of many masks in one buffer: as dictionaries they take several times as much."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

_MOST_AREAS = 255  # at once; pycocotools writes their number into one byte


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedMasks:
    """Masks over whole pictures. One without a single byte is none at all; an empty mask has its one run."""

    counts: bytes  # of all masks
    bounds: Int64[np.ndarray, "n 2"]  # start and end of each of them in ``counts``, in any order
    size_px: Int64[np.ndarray, "n 2"]  # (height, width) of its picture, in COCO's order

    @classmethod
    def of(cls, counts: Sequence[bytes], size_px: Any) -> EncodedMasks:
        """From the run lengths of each mask; ``size_px`` (height, width) of each, or of all of them."""
        ends = np.cumsum([0, *map(len, counts)], dtype=np.int64)
        sizes = np.broadcast_to(np.asarray(size_px, np.int64), (len(counts), 2))
        return cls(b"".join(counts), np.stack([ends[:-1], ends[1:]], 1), np.ascontiguousarray(sizes))

    @classmethod
    def of_coco(cls, masks: Sequence[Mapping[str, Any]]) -> EncodedMasks:
        """From COCO's dictionaries, ``{"size": [height, width], "counts": text}``."""
        texts = [mask["counts"] for mask in masks]
        sizes = np.array([mask["size"] for mask in masks], np.int64).reshape(-1, 2)
        return cls.of([text.encode() if isinstance(text, str) else text for text in texts], sizes)

    @classmethod
    def joined(cls, parts: Sequence[EncodedMasks]) -> EncodedMasks:
        """One after another."""
        shifts = np.cumsum([0, *(len(part.counts) for part in parts)], dtype=np.int64)
        nothing = np.empty((0, 2), np.int64)
        bounds = [part.bounds + shift for part, shift in zip(parts, shifts.tolist(), strict=False)]
        sizes = [part.size_px for part in parts]
        counts = b"".join(part.counts for part in parts)
        return cls(counts, np.concatenate([nothing, *bounds]), np.concatenate([nothing, *sizes]))

    def __len__(self) -> int:
        """Number of masks, those that are none included."""
        return len(self.size_px)

    @property
    def exist(self) -> Bool[np.ndarray, " n"]:
        """Which ones are masks."""
        return self.bounds[:, 1] > self.bounds[:, 0]

    def select(self, rows: Int64[np.ndarray, " r"] | Bool[np.ndarray, " n"]) -> EncodedMasks:
        """Those of some rows, in the same buffer."""
        return EncodedMasks(self.counts, self.bounds[rows], self.size_px[rows])

    def coco(self, rows: Int64[np.ndarray, " r"] | Bool[np.ndarray, " n"]) -> list[Any]:
        """Masks of some rows as pycocotools takes them."""
        bounds, sizes = self.bounds[rows].tolist(), self.size_px[rows].tolist()
        return [
            {"size": size, "counts": self.counts[start:end]} for size, (start, end) in zip(sizes, bounds, strict=True)
        ]


def areas_px(masks: list[Any]) -> Float64[np.ndarray, " n"]:
    """Pixels that are set in masks as pycocotools takes them."""
    from pycocotools.mask import area

    every: Any = masks
    parts = [area(every[start : start + _MOST_AREAS]) for start in range(0, len(masks), _MOST_AREAS)]
    return np.concatenate([np.empty(0), *parts])
