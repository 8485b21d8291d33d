"""Outlines of masks: parts, holes, and simpler ones."""

from __future__ import annotations

import time

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from scipy import ndimage

from dfine_jax.data.picture.contours import outlines, signed_area, simplified

EIGHT = np.ones((3, 3))


def filled(polygons, shape):
    parts = [polygon.ravel().tolist() for polygon in polygons]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, *map(int, shape)))).astype(bool)


def test_every_part_and_hole_has_its_outline():
    rng = np.random.default_rng(0)
    for _ in range(1500):
        mask = rng.random(rng.integers(1, 12, 2)) < rng.random()
        found = outlines(mask)
        parts, number = ndimage.label(mask, EIGHT)
        assert len(found) == number
        assert sum(len(part.holes) for part in found) == ndimage.label(np.pad(~mask, 1, constant_values=True))[1] - 1
        sizes = [abs(signed_area(part.outer)) for part in found]
        assert sizes == sorted(sizes, reverse=True)
        for part in found:
            own = filled([part.joined()], mask.shape)
            label = parts[own].max()
            np.testing.assert_array_equal(own, parts == label)  # its own holes, of all there are
            assert signed_area(part.outer) + sum(signed_area(hole) for hole in part.holes) == own.sum()


def test_only_corners_are_points():
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    (part,) = outlines(mask)
    assert sorted(map(tuple, part.outer.tolist())) == [(2, 1), (2, 4), (7, 1), (7, 4)]
    assert signed_area(part.outer) == 15
    assert part.holes == ()


def test_a_part_in_a_hole_is_a_part():
    mask = np.ones((9, 9), bool)
    mask[1:8, 1:8] = False
    mask[3:6, 3:6] = True
    mask[4, 4] = False
    large, small = outlines(mask)
    assert [len(part.holes) for part in (large, small)] == [1, 1]
    assert abs(signed_area(large.holes[0])) == 49
    assert abs(signed_area(small.holes[0])) == 1


def test_nothing_has_no_outline():
    assert outlines(np.zeros((4, 4), bool)) == []
    assert outlines(np.zeros((0, 0), bool)) == []


def ellipse(height, width, hole=False):
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    mask = x**2 + y**2 <= 0.99
    return mask & ~((x - 0.2) ** 2 + y**2 < 0.1) if hole else mask


@pytest.mark.parametrize("tolerance", [1.0, 2.0])
def test_simpler_outlines_stay_near(tolerance):
    mask = ellipse(200, 300, hole=True)
    (exact,), (simple,) = outlines(mask), outlines(mask, tolerance)
    assert len(simple.outer) < len(exact.outer) / 4
    back = filled([simple.joined()], mask.shape)
    assert (back & mask).sum() / (back | mask).sum() > 1 - 0.01 * tolerance
    for ring, few in ((exact.outer, simple.outer), (exact.holes[0], simple.holes[0])):
        assert {tuple(point) for point in few} <= {tuple(point) for point in ring}
        start, along = few, np.roll(few, -1, axis=0) - few
        offset = ring[:, None] - start
        share = ((offset * along).sum(-1) / (along**2).sum(-1)).clip(0, 1)
        assert np.hypot(*(offset - share[..., None] * along).transpose(2, 0, 1)).min(1).max() <= tolerance + 1e-9


def test_three_points_remain():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    few = simplified(square, 10)
    assert len(few) == 3
    assert abs(signed_area(few)) == 0.5
    (part,) = outlines(np.ones((1, 1), bool), 5)
    assert len(part.outer) == 3


def test_small_holes_stay():
    mask = np.ones((30, 30), bool)
    mask[10, 10] = mask[15, 15:25] = False
    (part,) = outlines(mask, 1.5)
    assert [signed_area(hole) < 0 for hole in part.holes] == [True, True]


def test_large_masks_take_little_time():
    started = time.perf_counter()
    found = outlines(ellipse(3000, 4000))
    assert time.perf_counter() - started < 3
    assert len(found) == 1
