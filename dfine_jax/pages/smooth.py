"""Curves of very many points: fewer of them, and what they show without their noise."""

from __future__ import annotations

from collections.abc import Sequence

Points = Sequence[tuple[float, float]]

_SHARE = 20  # of a curve, over one part of which it is smoothed
_LEAST = 5  # points of a mean


def thinned(points: Points, most: int) -> Points:
    """At most so many points, each the mean of its neighbours; all, where there are not more."""
    if len(points) <= most:
        return points
    edges = [len(points) * i // most for i in range(most + 1)]
    return [_mean(points[start:end]) for start, end in zip(edges, edges[1:], strict=False)]


def smoothed(points: Points) -> Points:
    """Each point on the straight line that fits it and its neighbours best: neither late nor, at the ends, noisy."""
    half = max(_LEAST, len(points) // _SHARE) // 2
    return [(x, _fit(points[max(0, i - half) : i + half + 1], x)) for i, (x, _) in enumerate(points)]


def _fit(points: Points, at: float) -> float:
    """Where the line through points (least squares) is at a place."""
    middle, height = _mean(points)
    spread = sum((x - middle) ** 2 for x, _ in points)
    slope = sum((x - middle) * (y - height) for x, y in points) / spread if spread else 0.0
    return height + slope * (at - middle)


def _mean(points: Points) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
