"""Outlines of masks along the edges of their pixels.

Pixels that touch at a corner belong to one part, those of a hole do not. Coordinates are those of COCO's polygons: a
pixel covers [i, i + 1]. Drawn by pycocotools, an exact outline gives its mask back.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

Ring = Float64[np.ndarray, "p 2"]  # closed: the last point leads to the first


class Contour(NamedTuple):
    """A part of a mask."""

    outer: Ring
    holes: tuple[Ring, ...]

    def shifted(self, left_px: int, top_px: int) -> Contour:
        """To the right and down."""
        by = np.array([left_px, top_px], np.float64)
        return Contour(self.outer + by, tuple(hole + by for hole in self.holes))

    def joined(self) -> Ring:
        """One polygon of the part with its holes: each is reached by a cut and left by the same.

        Filled by the even-odd rule, the cuts have no width.
        """
        ring = self.outer
        for hole in self.holes:
            start = int(np.argmin(hole[:, 0]))
            near = int(np.argmin(((ring - hole[start]) ** 2).sum(1)))
            around = np.concatenate([hole[start:], hole[: start + 1]])
            ring = np.concatenate([ring[: near + 1], around, ring[near:]])
        return ring


def outlines(mask: Bool[np.ndarray, "h w"], tolerance_px: float = 0.0) -> list[Contour]:
    """Outlines of the parts of a mask, the largest first.

    Args:
      tolerance_px: points are left out as long as the outline moves by no more (Douglas and Peucker, 1973).
    """
    rings = _rings(mask)
    areas = np.array([signed_area(ring) for ring in rings])
    outer, holes = np.flatnonzero(areas > 0), np.flatnonzero(areas < 0)
    owner = dict(zip(holes.tolist(), _owners(rings, areas, outer, holes), strict=True))
    if tolerance_px > 0:
        rings = [simplified(ring, tolerance_px) for ring in rings]
    found = []
    for i in outer[np.argsort(-areas[outer], kind="stable")].tolist():
        inner = tuple(rings[hole] for hole in holes.tolist() if owner[hole] == i)
        found.append(Contour(rings[i], inner))
    return found


def signed_area(ring: Ring) -> float:
    """Of a closed polygon, positive where it runs clockwise on the screen (y down)."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def simplified(ring: Ring, tolerance_px: float) -> Float64[np.ndarray, "q 2"]:
    """A closed polygon without the points that lie at most so far from the line between those that are kept.

    At least three points are kept of those there are.
    """
    start = int(np.argmin(ring.sum(1)))  # an extreme point, which stays
    points = np.roll(ring, -start, axis=0)
    far = int(np.argmax(((points - points[0]) ** 2).sum(1)))
    points = np.concatenate([points, points[:1]])
    kept = np.zeros(len(points), bool)
    kept[[0, far, -1]] = True
    spans = [(0, far), (far, len(points) - 1)]
    fallback = (-1.0, far)
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        distance = _distances(points[first + 1 : last], points[first], points[last])
        worst = int(np.argmax(distance))
        split = first + 1 + worst
        if distance[worst] > tolerance_px:
            kept[split] = True
            spans += [(first, split), (split, last)]
        else:
            fallback = max(fallback, (float(distance[worst]), split))
    if kept[:-1].sum() < 3:
        kept[fallback[1]] = True
    return points[:-1][kept[:-1]]


def _distances(points: Ring, start: Float64[np.ndarray, " 2"], end: Float64[np.ndarray, " 2"]) -> np.ndarray:
    """Of points from the segment between two points."""
    along, offset = end - start, points - start
    length = float(along @ along)
    share = np.clip(offset @ along / length, 0, 1) if length else np.zeros(len(points))
    return np.sqrt(((offset - share[:, None] * along) ** 2).sum(1))


class _Edges(NamedTuple):
    """Straight pieces between corners, in the direction that has the mask on its right."""

    start: Int64[np.ndarray, " e"]  # numbers of corners
    end: Int64[np.ndarray, " e"]
    forward: Int64[np.ndarray, " e"]  # 1: to the right or down


def _rings(mask: Bool[np.ndarray, "h w"]) -> list[Ring]:
    """Closed outlines by their corners: clockwise around parts, counterclockwise around holes."""
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), np.int8)
    padded[1:-1, 1:-1] = mask
    rows, columns = padded[1:] - padded[:-1], (padded[:, :-1] - padded[:, 1:]).T
    across = _edges(rows[:, 1:-1], np.arange(height + 1) * (width + 1), 1)
    down = _edges(columns[:, 1:-1], np.arange(width + 1), width + 1)
    # Where two pieces leave a corner, pixels touch there: the outline turns left, on to the other pixel.
    after_across = _next(across.end, across.forward, down.start, 1 - down.forward)
    after_down = _next(down.end, down.forward, across.start, across.forward)
    follow, corners = after_across.tolist(), across.start
    back = after_down.tolist()
    other = down.start
    unused, rings = np.ones(len(follow), bool), []
    for first in range(len(follow)):
        if not unused[first]:
            continue
        at, path, turns = first, [], []
        while not path or at != first:
            path.append(at)
            turn = follow[at]
            turns.append(turn)
            at = back[turn]
        unused[path] = False
        numbers = np.stack([corners[path], other[turns]], 1).ravel()
        rings.append(np.stack([numbers % (width + 1), numbers // (width + 1)], 1).astype(np.float64))
    return rings


def _edges(steps: np.ndarray, base: Int64[np.ndarray, " l"], stride: int) -> _Edges:
    """Runs of equal steps along each line of pixel edges; a step of 1 runs forward, -1 backward."""
    lines, count = steps.shape
    padded = np.zeros((lines, count + 2), np.int8)
    padded[:, 1:-1] = steps
    line, place = np.nonzero(padded[:, 1:] != padded[:, :-1])  # a change of value at corner ``place``
    value = padded[line, place + 1]  # of the piece that begins there
    begins = np.flatnonzero(value)
    corner = base[line] + place * stride
    low, high, forward = corner[begins], corner[begins + 1], value[begins] > 0
    return _Edges(np.where(forward, low, high), np.where(forward, high, low), forward.astype(np.int64))


def _next(end: np.ndarray, bit: np.ndarray, start: np.ndarray, departing: np.ndarray) -> Int64[np.ndarray, " e"]:
    """The piece that begins where each one ends; of two, the one whose bit is the same."""
    order = np.lexsort((departing, start))
    first = np.searchsorted(start[order], end, side="left")
    both = np.searchsorted(start[order], end, side="right") - first == 2
    return order[first + bit * both]


def _owners(rings: list[Ring], areas: np.ndarray, outer: np.ndarray, holes: np.ndarray) -> list[int]:
    """The smallest part around each hole."""
    if len(outer) < 2 or not len(holes):
        return [int(outer[0])] * len(holes) if len(outer) else []
    ends = [np.roll(rings[i], -1, axis=0) for i in outer]
    ring = np.repeat(np.arange(len(outer)), [len(end) for end in ends])
    start, end = np.concatenate([rings[i] for i in outer]), np.concatenate(ends)
    upright = start[:, 0] == end[:, 0]
    ring, x = ring[upright], start[upright, 0]
    low, high = np.sort(np.stack([start[upright, 1], end[upright, 1]], 1), axis=1).T
    owners = []
    for hole in holes:
        corner = rings[hole][np.argmin(rings[hole][:, 0])]
        y = rings[hole][:, 1][rings[hole][:, 0] == corner[0]].min() + 0.5  # within the leftmost edge of the hole
        crossed = (x < corner[0]) & (low < y) & (y < high)
        around = np.flatnonzero(np.bincount(ring[crossed], minlength=len(outer)) % 2)
        owners.append(int(outer[around[np.argmin(areas[outer[around]])]]))
    return owners
