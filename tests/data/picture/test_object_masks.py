"""Masks of objects: against resizing each map to the whole picture, and against pycocotools."""

from __future__ import annotations

import dataclasses
import time
import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from dfine_jax.data.picture.object_masks import MapMasks, ObjectMasks, RunMasks
from dfine_jax.data.picture.run_lengths import ColumnRuns, column_runs, compressed, expanded, run_lengths, united

TIE = 1e-6  # of a probability; closer to the threshold PyTorch's float32 decides by its rounding


def encoded(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def resized(maps_logit, view_px, size_px, interpolated):
    """Probability at each pixel: one resize of each map to what it shows, of which the picture is a part."""
    torch = pytest.importorskip("torch")
    (left, top, width, height), (w, h) = view_px, size_px
    maps = torch.from_numpy(maps_logit.astype(np.float32))[:, None]
    maps = maps if interpolated == "logit" else torch.sigmoid(maps)
    shown = torch.nn.functional.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    shown = torch.sigmoid(shown) if interpolated == "logit" else shown
    return shown[:, 0].numpy()[:, -top : -top + h, -left : -left + w]


def in_boxes(boxes, size_px):
    x, y = np.arange(size_px[0]), np.arange(size_px[1])[:, None]
    return np.array([(x >= b[0]) & (x < b[2]) & (y >= b[1]) & (y < b[3]) for b in boxes])


def drawn_cases():
    """Pictures smaller and larger than their maps, of a pixel too, letterboxes, boxes beyond the edges and empty."""
    rng = np.random.default_rng(3)
    sizes = [(1, 1), (1, 30), (40, 1), (7, 5), (13, 60), (64, 48), (61, 47), (160, 90)]
    for size in sizes:
        for pad in ((0, 0), (0, 9), (6, 0)):
            for cells in ((1, 1), (2, 5), (12, 12), (17, 30)):
                xy, wh = rng.uniform(-10, size, (6, 2)), rng.uniform(0, np.multiply(size, 1.2), (6, 2))
                boxes = np.concatenate([xy, xy + wh], 1).astype(np.float32)
                boxes[1] = boxes[1].round()  # edges at pixels
                boxes[2] = [-50, -50, 500, 500]
                boxes[3, 2:] = boxes[3, :2]
                boxes[4] = boxes[4] - 1000
                view = (-pad[0], -pad[1], size[0] + 2 * pad[0], size[1] + 2 * pad[1])
                yield rng.normal(0, 3, (6, *cells)).astype(np.float32), boxes, view, size


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.95])
@pytest.mark.parametrize("interpolated", ["probability", "logit"])
def test_masks_are_those_of_maps_resized_to_the_picture(cut, threshold, interpolated):
    pixels = close = 0
    for maps, boxes, view, size in drawn_cases():
        masks = MapMasks(maps, boxes, view, size, threshold, cut, interpolated)
        probability = resized(maps, view, size, interpolated)
        expected = probability >= threshold
        if cut:
            expected &= in_boxes(boxes, size)
        undecided = np.abs(probability - threshold) < TIE
        np.testing.assert_array_equal(masks.all() | undecided, expected | undecided)
        pixels, close = pixels + expected.size, close + undecided.sum()
        for i, mask in enumerate(masks.all()):
            assert masks.rle(i) == encoded(mask)
            assert masks.area_px(i) == mask.sum()
            np.testing.assert_array_equal(masks.full(i), mask)
            rows, columns = np.nonzero(mask)
            left, top, crop = masks.crop(i)
            if len(rows):
                assert (left, top) == (columns.min(), rows.min())
                assert crop.shape == (np.ptp(rows) + 1, np.ptp(columns) + 1)
            else:
                assert crop.shape == (0, 0)
    assert pixels > 100_000
    assert close < pixels / 10_000


def test_a_probability_at_the_threshold_is_inside():
    maps = np.array([[[1e9, -1e9]], [[-1e9, 1e9]], [[0, 0]]], np.float32)  # 1, 0 and one half
    masks = MapMasks(maps, np.tile([0, 0, 5, 2], (3, 1)), (0, 0, 5, 2), (5, 2))  # pixel 2 lies halfway
    assert masks.all()[:, 0].astype(int).tolist() == [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    upright = MapMasks(maps.transpose(0, 2, 1), np.tile([0, 0, 2, 5], (3, 1)), (0, 0, 2, 5), (2, 5))
    np.testing.assert_array_equal(upright.all(), masks.all().transpose(0, 2, 1))


def test_index_of_a_pixel_decides_whether_it_is_in_the_box():
    masks = MapMasks(
        np.full((3, 4, 4), 5.0), np.array([[1, 2, 3, 4], [0.5, 1.01, 3.5, 4], [2, 2, 2, 5]]), (0, 0, 6, 6), (6, 6)
    )
    assert [(c.left_px, c.top_px, c.mask.shape) for c in map(masks.crop, range(3))] == [
        (1, 2, (2, 2)), (1, 2, (2, 3)), (0, 0, (0, 0))
    ]  # fmt: skip


@pytest.mark.parametrize("interpolated", ["probability", "logit"])
def test_numbers_that_are_none_are_outside(interpolated):
    maps = np.full((1, 4, 4), 5, np.float16)
    maps[0, :, 0], maps[0, :, 3] = np.nan, np.inf
    made = MapMasks(maps, np.array([[0, 0, 8, 8]]), (0, 0, 8, 8), (8, 8), interpolated=interpolated)
    assert made.full(0)[:, 3:].all()
    assert not made.full(0)[:, :2].any()
    assert dataclasses.replace(made, threshold=0.0).full(0).all()
    for_sure = dataclasses.replace(made, threshold=1.0).full(0)
    assert for_sure[:, 7].all() and not for_sure[:, :2].any()


def test_maps_belong_to_boxes():
    with pytest.raises(ValueError, match="do not belong together"):
        MapMasks(np.zeros((2, 4, 4)), np.zeros((3, 4)), (0, 0, 8, 8), (8, 8))


def test_objects_can_be_chosen():
    maps = np.random.default_rng(0).normal(0, 3, (4, 6, 6)).astype(np.float16)
    masks: ObjectMasks = MapMasks(maps, np.tile([1, 1, 18, 17], (4, 1)), (0, 0, 20, 20), (20, 20))
    runs: ObjectMasks = RunMasks.of_runs([masks.runs(i) for i in range(4)], (20, 20))
    for kind in (masks, runs):
        chosen = kind.select([2, 0])
        assert type(chosen) is type(kind)
        np.testing.assert_array_equal(chosen.all(), masks.all()[[2, 0]])
        assert len(kind.select(np.array([], int))) == 0
        assert kind.select([]).all().shape == (0, 20, 20)
        assert [kind.rle(i) for i in range(4)] == [encoded(mask) for mask in masks.all()]
        assert [kind.area_px(i) for i in range(4)] == masks.all().sum((1, 2)).tolist()


def random_masks(number=400):
    rng = np.random.default_rng(1)
    for _ in range(number):
        yield rng.random(rng.integers(1, 14, 2)) < rng.random()
    yield np.zeros((5, 7), bool)
    yield np.ones((5, 7), bool)
    yield np.indices((3000, 400)).sum(0) // 1000 % 2 == 0  # long runs


def test_run_lengths_are_those_of_pycocotools():
    for mask in random_masks():
        height, width = mask.shape
        counts = encoded(mask)["counts"]
        masks = RunMasks((counts,), (width, height))
        np.testing.assert_array_equal(masks.full(0), mask)
        assert compressed(run_lengths(masks.runs(0), (width, height))) == counts
        assert compressed(expanded(counts)) == counts


def test_run_lengths_of_nothing_between_others_join_them():
    runs = column_runs(np.array([2, 3, 0, 1, 4]), 5)  # 3 and 1 set pixels are 4
    assert run_lengths(runs, (2, 5)).tolist() == [2, 4, 4]


@pytest.mark.parametrize("counts", [b"", b"o", b"\x10", b"oooooooo1", b"\xff0"])
def test_what_is_no_run_length_is_told(counts):
    with pytest.raises(ValueError, match="run lengths"):
        expanded(counts)


def test_numbers_of_any_size_are_compressed():
    rng = np.random.default_rng(0)
    lengths = (rng.random(3000) * 10.0 ** rng.integers(0, 9, 3000)).astype(np.int64) + 1
    small = np.minimum(lengths, 1 << 20)
    plain = {"size": [1, int(small.sum())], "counts": small.tolist()}
    assert compressed(small) == coco_mask.frPyObjects(plain, *plain["size"])["counts"]
    np.testing.assert_array_equal(expanded(compressed(lengths)), lengths)


def test_union_of_parts_at_their_places():
    rng = np.random.default_rng(5)
    for _ in range(100):
        whole, parts = np.zeros((20, 30), bool), []
        for _ in range(rng.integers(1, 5)):
            h, w = rng.integers(1, 21), rng.integers(1, 31)
            top, left = rng.integers(0, 21 - h), rng.integers(0, 31 - w)
            mask = rng.random((h, w)) < 0.3
            whole[top : top + h, left : left + w] |= mask
            runs = RunMasks((encoded(mask)["counts"],), (int(w), int(h))).runs(0)
            parts.append(runs.shifted(int(left), int(top)))
        masks = RunMasks.of_runs([united(parts)], (30, 20))
        assert masks.rle(0) == encoded(whole)
    nothing = column_runs(np.zeros(0, np.int64), 1)
    assert united([nothing, nothing]).area_px == 0


def test_outlines_give_the_mask_back():
    for mask in random_masks(100):
        masks = RunMasks((encoded(mask)["counts"],), mask.shape[::-1])
        parts = [part.ravel().tolist() for part in masks.polygons(0)]
        back = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, *mask.shape))) if parts else 0 * mask
        np.testing.assert_array_equal(back, mask)


def test_many_masks_of_a_large_picture_take_little_time_and_memory():
    """300 masks of 12 megapixels as pixels are 3.6 GB; a run length of one is some kilobytes."""
    size, cells = (4000, 3000), (np.arange(160) + 0.5) / 160
    rng = np.random.default_rng(0)
    centre, radius = rng.uniform(0.1, 0.9, (300, 2)), rng.uniform(0.02, 0.2, (300, 2))
    across = (cells - centre[:, :1]) / radius[:, :1]
    down = (cells - centre[:, 1:]) / radius[:, 1:]
    maps = (5 * (1 - across[:, None] ** 2 - down[..., None] ** 2)).clip(-20, 20).astype(np.float16)
    boxes = np.concatenate([centre - radius, centre + radius], 1) * np.tile(size, 2)
    masks = MapMasks(maps, boxes, (0, 0, *size), size)
    tracemalloc.start()
    started = time.process_time()
    total = sum(len(masks.rle(i)["counts"]) for i in range(300))
    elapsed, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    assert total < 3e6
    assert elapsed < 3, elapsed  # a tenth of it is usual
    area = np.pi * radius.prod(1) * np.prod(size)
    assert [masks.area_px(i) for i in range(0, 300, 50)] == pytest.approx(area[::50], rel=0.05)


def test_runs_are_ordered():
    maps = np.random.default_rng(0).normal(0, 3, (1, 9, 9)).astype(np.float32)
    runs = MapMasks(maps, np.array([[2, 1, 50, 60]]), (0, 0, 64, 64), (64, 64)).runs(0)
    assert isinstance(runs, ColumnRuns)
    place = runs.column_px * 65 + runs.top_px
    assert (np.diff(place) > 0).all()
    assert (runs.top_px < runs.bottom_px).all()
    assert runs.column_px.min() >= 2
    assert runs.bottom_px.max() <= 60
