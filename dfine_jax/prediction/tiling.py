"""Detection in images much larger than the network's input: tiles that overlap, and one box for each object.

Each tile is a view of the image; the whole image, shrunk, is one more, for objects larger than a tile. Two detections
of one class from different views are the same object when the views agree about the part that both can see. A box
that ends at a border inside the image is a piece of an object, so it is compared with as much of the other box as lies
on its side of that border; a complete box is compared as it is. Detections of one view are never joined: the network
has told them apart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from dfine_jax.data.picture.object_masks import RunMasks
from dfine_jax.data.picture.run_lengths import ColumnRuns, united
from dfine_jax.errors import UserError
from dfine_jax.ops.boxes import iou
from dfine_jax.prediction.sources import Given

if TYPE_CHECKING:
    from dfine_jax.prediction.detector import Detector
    from dfine_jax.prediction.result import DetectionResult

_BORDER = 0.02  # of a tile's side: a box edge this close to an inner border counts as cut off by it
_SAME = 0.5  # intersection over union from which two views agree
_PIECE = 0.6  # share of a cut-off box inside another object's box from which it is a piece of that object
_ASTRAY = 0.15, 0.01  # of the object's and of the image's side: how far tiles may differ from the whole view
_SMALLEST_TILE_PX = 32
_SMALL = 0.5  # of a tile's side: up to this size an object that is complete in a tile is left to the tile
_UNLIMITED = np.array([-np.inf, -np.inf, np.inf, np.inf])  # a view that clips nothing


class View(NamedTuple):
    """Part of an image, in pixels."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How an image is cut. Neighbouring tiles share at least ``overlap`` of their side.

    Objects up to the size of the overlap are complete in at least one tile; larger ones are put together.
    """

    height_px: int
    width_px: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        """UserError for tiles too small to hold anything and for an overlap that does not advance."""
        if min(self.height_px, self.width_px) < _SMALLEST_TILE_PX:
            raise UserError(
                f"a tile of {self.height_px}x{self.width_px} pixels is too small; "
                f"give at least {_SMALLEST_TILE_PX}x{_SMALLEST_TILE_PX}"
            )
        if not 0 <= self.overlap <= 0.8:
            raise UserError(f"overlap={self.overlap} of tiles must lie between 0 and 0.8; 0.2 is usual")

    def tiles(self, width_px: int, height_px: int) -> list[View]:
        """Tiles of one size that cover an image, row by row; smaller only where the image itself is."""
        columns = _starts(width_px, self.width_px, self.overlap)
        rows = _starts(height_px, self.height_px, self.overlap)
        width, height = min(self.width_px, width_px), min(self.height_px, height_px)
        return [View(x, y, x + width, y + height) for y in rows for x in columns]


def detect_tiled(
    detector: Detector,
    image: UInt8[np.ndarray, "h w 3"],
    tiling: Tiling,
    progress: Callable[[int, int], None] | None = None,
) -> DetectionResult:
    """Detections of an image through its tiles, best first; an image of one tile goes to the detector as it is.

    Args:
      detector: runs on ``batch_size`` tiles at a time; its ``num_top`` counts for each tile.
      image: uint8 [h, w, 3] in RGB order, as from ``dfine_jax.data.picture.images.read_image``.
      progress: called with (tiles done, tiles in all) after each batch.
    """
    height, width = image.shape[:2]
    views = tiling.tiles(width, height)
    if len(views) == 1:
        return detector(image)
    views.append(View(0, 0, width, height))
    results: list[DetectionResult] = []
    for start in range(0, len(views), detector.batch_size):
        results += detector([image[v.y0 : v.y1, v.x0 : v.x1] for v in views[start : start + detector.batch_size]])
        if progress is not None:
            progress(len(results), len(views))
    merged = merge(results, views, (width, height), cut_masks=detector.cuts_masks)
    return dataclasses.replace(merged, source=Given(image))


def merge(
    results: Sequence[DetectionResult],
    views: Sequence[View],
    size_px: tuple[int, int],
    *,
    cut_masks: bool = True,
) -> DetectionResult:
    """One result for the image from those of its views, boxes in pixels of the image, best first.

    Args:
      results: of each view, in pixels of the view.
      views: their places in the image; a view of the whole image may be among them.
      size_px: (width, height) of the image.
      cut_masks: masks count within the boxes of their objects alone, as ``ops.postprocess.AnswerRules`` says it.
    """
    seen = _Seen.of(results, views, size_px)
    groups = _groups(seen, _asked(seen))
    boxes = np.array([_box(seen, members) for members in groups], np.float32).reshape(-1, 4)
    kept = [i for i in range(len(groups)) if not _is_piece(i, groups, boxes, seen)]
    best = [max(groups[i], key=lambda m: seen.scores[m]) for i in kept]
    order = np.argsort([-seen.scores[m] for m in best], kind="stable")
    chosen, shown = [best[i] for i in order], [kept[i] for i in order]
    names = [name for result in results for name in result.names]
    ids = [category for result in results for category in result.category_ids]
    masks = _masks(
        results, views, size_px, [_shown(seen, groups[i]) for i in shown], boxes[shown] if cut_masks else None
    )
    return dataclasses.replace(
        results[0],
        boxes_xyxy_px=boxes[shown],
        scores=seen.scores[chosen].astype(np.float32),
        labels=seen.labels[chosen].astype(np.int32),
        names=tuple(names[m] for m in chosen),
        category_ids=tuple(ids[m] for m in chosen),
        size_px=size_px,
        object_masks=masks,
        source=None,
    )


class _Seen(NamedTuple):
    """Detections of all views, one after the other."""

    boxes: Float[np.ndarray, "n 4"]  # pixels of the image, within the view
    scores: Float[np.ndarray, " n"]
    labels: np.ndarray  # [n]
    view: np.ndarray  # [n], index into limits
    cut: Bool[np.ndarray, "n 4"]  # the edge lies at a border of the view that is none of the image
    limits: Float[np.ndarray, "v 4"]  # the views
    whole: int  # index of the view that is the whole image, or -1

    @classmethod
    def of(cls, results: Sequence[DetectionResult], views: Sequence[View], size_px: tuple[int, int]) -> _Seen:
        limits = np.array(views, float)
        view = np.repeat(np.arange(len(views)), [len(result) for result in results])
        boxes = np.concatenate([r.boxes_xyxy_px.reshape(-1, 4) for r in results]) + limits[view][:, [0, 1, 0, 1]]
        boxes = np.clip(boxes, limits[view][:, [0, 1, 0, 1]], limits[view][:, [2, 3, 2, 3]])
        inner = limits != np.array([0, 0, *size_px])
        near = _BORDER * (limits[:, [2, 3, 2, 3]] - limits[:, [0, 1, 0, 1]])
        cut = inner[view] & (np.abs(boxes - limits[view]) <= near[view])
        whole = next((i for i, v in enumerate(views) if tuple(v) == (0, 0, *size_px)), -1)
        scores = np.concatenate([result.scores for result in results])
        return cls(boxes, scores, np.concatenate([r.labels for r in results]), view, cut, limits, whole)


def _asked(seen: _Seen) -> Bool[np.ndarray, " n"]:
    """False for what the whole view says about small objects that a tile shows completely, and more sharply."""
    asked = np.ones(len(seen.boxes), bool)
    tiles = np.delete(seen.limits, seen.whole, 0) if seen.whole >= 0 else seen.limits[:0]
    size = tiles[:, 2:] - tiles[:, :2]
    outer = (tiles == seen.limits[seen.whole]) if len(tiles) else np.zeros((0, 4), bool)
    margin = np.where(outer, 0, _BORDER * np.tile(size, 2)) * [1, 1, -1, -1]
    for i in np.flatnonzero(seen.view == seen.whole):
        box = seen.boxes[i]
        clear = (box[:2] >= (tiles + margin)[:, :2]) & (box[2:] <= (tiles + margin)[:, 2:])
        asked[i] = not (clear & (box[2:] - box[:2] <= _SMALL * size)).all(1).any()
    return asked


def _groups(seen: _Seen, asked: Bool[np.ndarray, " n"]) -> list[list[int]]:
    """Detections of each object, of those asked for: best agreement first, at most one detection of a view."""
    pairs: list[tuple[float, int, int]] = []
    by_view = [np.flatnonzero((seen.view == v) & asked) for v in range(len(seen.limits))]
    low, high = seen.limits[:, :2], seen.limits[:, 2:]
    overlapping = (np.maximum(low[:, None], low) < np.minimum(high[:, None], high)).all(-1)
    for a, b in np.argwhere(np.triu(overlapping, 1)):
        if len(by_view[a]) and len(by_view[b]):
            pairs += _agreeing(seen, by_view[a], by_view[b])
    group = {i: [i] for i in np.flatnonzero(asked).tolist()}  # of every detection; members share one list
    for _, i, j in sorted(pairs, reverse=True):
        if _views(seen, group[i]).isdisjoint(_views(seen, group[j])):
            joined = group[i] + group[j]
            group.update(dict.fromkeys(joined, joined))
    return list({id(members): members for members in group.values()}.values())


def _views(seen: _Seen, members: Sequence[int]) -> set[int]:
    return set(seen.view[list(members)].tolist())


def _agreeing(seen: _Seen, a: np.ndarray, b: np.ndarray) -> list[tuple[float, int, int]]:
    """(agreement, i, j) of the detections of two views that show the same object."""
    in_a = _clip(seen.boxes[a][:, None], seen.cut[b][None], seen.limits[seen.view[b[0]]])
    in_b = _clip(seen.boxes[b][None], seen.cut[a][:, None], seen.limits[seen.view[a[0]]])
    agreement = iou(in_a, in_b) * (seen.labels[a][:, None] == seen.labels[b][None])
    return [(float(agreement[i, j]), int(a[i]), int(b[j])) for i, j in np.argwhere(agreement >= _SAME)]


def _clip(boxes: np.ndarray, cut: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Boxes without what lies beyond the edges of ``limit`` at which the other box is cut off."""
    bound = np.where(cut, limit, _UNLIMITED)
    low = np.maximum(boxes[..., :2], bound[..., :2])
    return np.concatenate([low, np.maximum(low, np.minimum(boxes[..., 2:], bound[..., 2:]))], axis=-1)


def _shown(seen: _Seen, members: Sequence[int]) -> list[int]:
    """What shows an object: its best complete tile, else its pieces, and the whole view for what no tile shows."""
    tiles = [m for m in members if seen.view[m] != seen.whole]
    complete = [m for m in tiles if not seen.cut[m].any()]
    if complete:
        return [max(complete, key=lambda m: seen.scores[m])]
    return list(members) if not tiles or seen.cut[tiles].all(0).any() else tiles


def _box(seen: _Seen, members: Sequence[int]) -> np.ndarray:
    """Box of an object: that of its best complete tile, else the hull of its pieces, else what the whole view says."""
    shown = _shown(seen, members)
    whole = [m for m in shown if seen.view[m] == seen.whole]
    tiles = [m for m in shown if seen.view[m] != seen.whole]
    if not tiles:
        return seen.boxes[whole[0]]
    box = np.concatenate([seen.boxes[tiles, :2].min(0), seen.boxes[tiles, 2:].max(0)])
    if not whole:
        return box
    full = seen.boxes[whole[0]]  # coarse, but right where tiles show misleading parts
    unseen = seen.cut[tiles].all(0)  # edges beyond all tiles that show the object
    allowed = _ASTRAY[0] * (full[2:] - full[:2]) + _ASTRAY[1] * seen.limits[seen.whole][2:]
    return np.where(unseen | (np.abs(box - full) > np.tile(allowed, 2)), full, box)


def _is_piece(i: int, groups: Sequence[list[int]], boxes: np.ndarray, seen: _Seen) -> bool:
    """Whether a box with an edge that no view shows lies inside a larger one of its class that other views show."""
    members = groups[i]
    if not seen.cut[members].all(0).any():
        return False
    area = max(_area(boxes[i]), 1e-9)
    inside = _area(np.concatenate([np.maximum(boxes[:, :2], boxes[i, :2]), np.minimum(boxes[:, 2:], boxes[i, 2:])], 1))
    for other in np.flatnonzero((inside >= _PIECE * area) & (_area(boxes) > area)).tolist():
        same_class = seen.labels[groups[other][0]] == seen.labels[members[0]]
        if same_class and _views(seen, members).isdisjoint(_views(seen, groups[other])):
            return True
    return False


def _masks(
    results: Sequence[DetectionResult],
    views: Sequence[View],
    size_px: tuple[int, int],
    shown: Sequence[list[int]],
    boxes: Float[np.ndarray, "n 4"] | None,
) -> RunMasks | None:
    """Mask of each object, the union of what ``shown`` it, within its box if boxes are given.

    None when the network makes no masks.
    """
    of_views = [result.object_masks for result in results if result.object_masks is not None]
    if len(of_views) < len(views):
        return None
    places = [(masks, row, view) for masks, view in zip(of_views, views, strict=True) for row in range(len(masks))]

    def part(member: int) -> ColumnRuns:
        masks, row, view = places[member]
        return masks.runs(row).shifted(view.x0, view.y0)

    whole = [united([part(m) for m in members]) for members in shown]
    if boxes is not None:
        whole = [runs.within(box) for runs, box in zip(whole, boxes, strict=True)]
    return RunMasks.of_runs(whole, size_px)


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles of one length begin so that they cover ``length`` evenly."""
    if length <= tile:
        return [0]
    shared = math.floor(tile * overlap)
    count = math.ceil((length - shared) / (tile - shared))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)
