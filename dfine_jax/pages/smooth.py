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
    """The mean of each point and its neighbours on either side, which does not lag behind."""
    half = max(_LEAST, len(points) // _SHARE) // 2
    out = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)  # as far to one side as to the other, so that ends are in place
        out.append((x, _mean(points[i - reach : i + reach + 1])[1]))
    return out


def _mean(points: Points) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
