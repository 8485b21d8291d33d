"""Mosaic and MixUp: distributions of DEIM's definitions, exact small cases, plans by position."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dfine_jax.config import DataConfig
from dfine_jax.data.augment import mosaic as M  # noqa: N812
from dfine_jax.data.augment.geometry import warped
from dfine_jax.data.augment.sample import make_sample
from dfine_jax.data.augment.schedule import announced_sizes_px, batch_size_px, multi_scale_sizes, policy
from dfine_jax.data.load.plan import Sampling, epoch_order, epoch_plan, most_objects, num_slots
from dfine_jax.errors import UserError

SIGNIFICANCE = 1e-4  # draws are seeded: a test passes or fails for good
DEIM = DataConfig(augment="dense", start_augment_epoch=1, stop_mosaic_epoch=3, stop_augment_epoch=5)


def uniform(values, low, high):
    return stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > SIGNIFICANCE


def share(hits, expected):
    return stats.binomtest(int(np.sum(hits)), len(hits), expected).pvalue > SIGNIFICANCE


def flat(colour, width, height, boxes):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return make_sample(Image.new("RGB", (width, height), colour), boxes, np.full(len(boxes), colour[0], np.int32))


# --- mosaic ----------------------------------------------------------------------------------------------------------


def test_a_tile_has_the_short_side_and_the_aspect():
    wide = M.tile(flat((9, 0, 0), 640, 480, [[0, 0, 640, 480], [64, 48, 128, 96]]), DEIM)
    assert wide.image.size == (426, 320)  # int(320 * 640 / 480)
    np.testing.assert_allclose(wide.boxes_xyxy_px[0], [0, 0, 426, 320], atol=1e-3)
    assert M.tile(flat((9, 0, 0), 300, 500, []), DEIM).image.size == (320, 533)


def test_a_tile_is_resized_as_the_input_is():
    lines = np.zeros((64, 64, 3), np.uint8)
    lines[:, ::8] = 255  # of eight columns one; half of the pixels beside the middle of four columns see none
    scene = make_sample(Image.fromarray(lines), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    config = DataConfig(height_px=16, width_px=16, mosaic_layout="random_centre")
    means = {}
    for kind in (None, "bilinear_antialias", "bilinear"):
        means[kind] = np.asarray(M.tile(scene, dataclasses.replace(config, interpolation=kind)).image)[0, :, 0]
    np.testing.assert_array_equal(means[None], means["bilinear_antialias"])
    assert means[None].max() > 0 and not means["bilinear"].any()


def test_tiles_lie_in_the_corners_of_equal_cells(monkeypatch):
    monkeypatch.setattr(M, "random_affine", lambda *_: np.eye(2, 3))
    sizes = [(40, 30), (50, 20), (30, 30), (20, 60)]
    tiles = [flat((50 * i + 50, 0, 0), *size, [[1, 2, 11, 12]]) for i, size in enumerate(sizes)]
    whole = M.mosaic(np.random.default_rng(0), tiles, DEIM)
    assert whole.image.size == (100, 120)
    np.testing.assert_array_equal(
        whole.boxes_xyxy_px, [[1, 2, 11, 12], [51, 2, 61, 12], [1, 62, 11, 72], [51, 62, 61, 72]]
    )
    pixels, expected = np.asarray(whole.image)[..., 0], np.zeros((120, 100))
    for i, ((width, height), (x, y)) in enumerate(zip(sizes, [(0, 0), (50, 0), (0, 60), (50, 60)], strict=True)):
        expected[y : y + height, x : x + width] = 50 * i + 50
    np.testing.assert_array_equal(pixels, expected)
    assert whole.labels.tolist() == [50, 100, 150, 200]


def test_the_affine_map_has_the_distribution_of_the_definition():
    rng, width, height = np.random.default_rng(0), 800, 600
    maps = np.array([M.random_affine(rng, (width, height), (width, height), DEIM) for _ in range(4000)])
    scale = np.sqrt(np.linalg.det(maps[:, :, :2]))
    angle = np.degrees(np.arctan2(maps[:, 1, 0], maps[:, 0, 0]))
    centre = np.array([width, height]) / 2
    shift = maps[:, :, :2] @ centre + maps[:, :, 2] - centre
    assert uniform(scale, 0.5, 1.5) and uniform(angle, -10, 10)
    assert np.abs(shift - shift.round()).max() < 1e-9  # whole pixels
    jitter = np.random.default_rng(1).uniform(-0.5, 0.5, shift.shape)
    assert uniform((shift + jitter)[:, 0], -80.5, 80.5) and uniform((shift + jitter)[:, 1], -60.5, 60.5)
    correlation = np.corrcoef(np.column_stack([scale, angle, shift]).T)
    assert np.abs(correlation - np.eye(4)).max() < 0.07
    rotation = maps[:, :, :2] / scale[:, None, None]
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(2), (4000, 1, 1)), atol=1e-12)


def test_boxes_follow_the_pixels_and_are_cut_at_the_canvas():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image = np.zeros((240, 320, 3), np.uint8)
        image[80:140, 120:200] = 255
        sample = make_sample(Image.fromarray(image), np.array([[120, 80, 200, 140]], np.float32), np.zeros(1, np.int32))
        moved = warped(sample, M.random_affine(rng, (320, 240), (320, 240), DEIM), (320, 240))
        rows, columns = np.nonzero(np.asarray(moved.image)[..., 0])
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(moved.boxes_xyxy_px[0], seen, atol=1.5)
    away = warped(sample, np.array([[1, 0, 500], [0, 1, 0]], float), (320, 240))
    np.testing.assert_array_equal(away.boxes_xyxy_px, [[320, 80, 320, 140]])  # no width: sanitising drops it


def test_a_mosaic_with_empty_images():
    tiles = [flat((1, 0, 0), 20, 20, []) for _ in range(3)] + [flat((2, 0, 0), 20, 20, [[0, 0, 20, 20]])]
    assert len(M.mosaic(np.random.default_rng(0), tiles, DEIM).labels) == 1
    assert M.mosaic(np.random.default_rng(0), tiles[:3] + tiles[:1], DEIM).boxes_xyxy_px.shape == (0, 4)


def test_mix_pixels_rounds_the_weighted_sum():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (100, 7, 3), np.uint8) for _ in range(2))
    out = np.empty_like(a)
    M.mix_pixels(a, b, 0.473211, out)
    exact = 0.473211 * a.astype(np.float64) + (1 - 0.473211) * b
    assert np.abs(out - exact).max() <= 0.5 + 1e-4
    M.mix_pixels(a, b, 0.473211, a)
    np.testing.assert_array_equal(a, out)


# --- plan ------------------------------------------------------------------------------------------------------------


def test_the_policy_of_each_epoch():
    table = [policy(DEIM, epoch)[:2] for epoch in range(6)]
    assert table == [(False, False), (True, True), (True, True), (True, False), (True, False), (False, False)]
    assert [p.dense for p in (policy(dataclasses.replace(DEIM, augment="standard"), e) for e in range(6))] == [
        False
    ] * 6
    several = dataclasses.replace(DEIM, multi_scale_repeat=3)
    assert policy(several, 2).multi_scale and not any(policy(dataclasses.replace(several, augment="none"), 2))
    assert policy(DEIM, 0).flip and policy(DEIM, 5).flip


def test_a_plan_has_the_distributions_of_the_definition():
    sampling = Sampling(400, 8, 3, DEIM)
    plans = [epoch_plan(sampling, 1)] + [epoch_plan(dataclasses.replace(sampling, seed=s), 2) for s in range(40)]
    assert share(np.concatenate([p.is_mosaic for p in plans]), 0.5)
    partners = np.concatenate([p.partners.ravel() for p in plans])
    assert stats.chisquare(np.bincount(partners, minlength=400)).pvalue > SIGNIFICANCE
    mixed = np.concatenate([p.mix_share for p in plans])
    assert share(mixed < 1, 0.5) and uniform(mixed[mixed < 1], 0.45, 0.55)
    np.testing.assert_array_equal(mixed, mixed.round(6))
    for epoch in (0, 3, 5):
        quiet = epoch_plan(sampling, epoch)
        assert not quiet.is_mosaic.any() and (quiet.mix_share == 1).all()
    np.testing.assert_array_equal(plans[0].order, epoch_order(400, 400, 3, 1))


def test_partners_of_the_cache_are_recent_images_of_the_same_row():
    config = dataclasses.replace(DEIM, mosaic_cache=10, mosaic_prob=1.0)
    sampling = Sampling(40, 8, 0, config)  # five batches an epoch: the last ten reach into earlier epochs
    shown = np.concatenate([epoch_plan(sampling, e).order.reshape(5, 8) for e in range(3)])
    ages = []
    plan = epoch_plan(sampling, 2)
    for position in range(40):
        step, row = 10 + position // 8, position % 8
        recent = shown[step - 9 : step + 1, row][::-1].tolist()
        assert set(plan.partners[position].tolist()) <= set(recent)
        ages += [recent.index(p) for p in plan.partners[position] if recent.count(p) == 1]
    assert set(range(8)) <= set(ages)
    first = epoch_plan(dataclasses.replace(sampling, config=dataclasses.replace(config, start_augment_epoch=0)), 0)
    assert set(first.partners[:8].ravel().tolist()) <= set(first.order[:8].tolist())


def test_slots_hold_what_mosaic_and_mixup_bring_together():
    counts = np.random.default_rng(0).integers(0, 30, 50)
    sampling = Sampling(50, 4, 1, DEIM)
    most = most_objects(sampling, counts, 100)
    bound = 0
    for epoch in (1, 2):
        plan = epoch_plan(sampling, epoch)
        for step in range(12):
            rows = []
            for row in range(4):
                position = step * 4 + row
                own = [plan.order[position], *plan.partners[position]] if plan.is_mosaic[position] else []
                rows.append(sum(counts[i] for i in own) if own else counts[plan.order[position]])
            mixed = plan.mix_share[step] < 1
            bound = max(bound, *(rows[r] + mixed * rows[r - 1] for r in range(4)))
    assert most == bound > counts.max()
    assert most_objects(sampling, counts, 1) == counts.max()  # a run that ends before the mosaics
    assert most_objects(dataclasses.replace(sampling, config=DataConfig()), counts, 100) == counts.max()
    assert num_slots(most, 0) == -(-most // 4) * 4
    with pytest.raises(UserError, match=f"data.max_objects={most - 1}.*{most} objects"):
        num_slots(most, most - 1)


# --- input sizes -----------------------------------------------------------------------------------------------------


def test_multi_scale_sizes_are_those_of_the_reference():
    sides = [480, 512, 544, 576, 608, *[640] * 3, 800, 768, 736, 704, 672]
    assert multi_scale_sizes(640, 640, 3) == tuple((s, s) for s in sides)
    sides = [224, 256, 288, 320, 384, 352, 320]
    assert multi_scale_sizes(320, 320, 1) == tuple((s, s) for s in sides)
    for height, width in multi_scale_sizes(384, 640, 2):
        assert height % 32 == 0 and width % 32 == 0 and abs(height / width - 0.6) < 0.06


def test_the_size_of_a_batch_is_uniform_and_ends_with_the_policy():
    config, choices = dataclasses.replace(DEIM, multi_scale_repeat=2), multi_scale_sizes(640, 640, 2)
    sizes = [batch_size_px(config, 7, 2, step, choices) for step in range(6000)]
    names, counts = np.unique([s[0] for s in sizes], return_counts=True)
    weights = np.where(names == 640, 2, 1)
    assert len(names) == 11 and stats.chisquare(counts, 6000 * weights / weights.sum()).pvalue > SIGNIFICANCE
    assert sizes[:9] == [batch_size_px(config, 7, 2, step, choices) for step in range(9)]
    assert batch_size_px(config, 7, 5, 10, choices) == batch_size_px(DEIM, 7, 2, 10, ()) == (640, 640)
    assert set(sizes) == set(announced_sizes_px(config, choices, 4))
    assert announced_sizes_px(DEIM, (), 9) == ((640, 640),)
    assert (640, 640) in announced_sizes_px(config, choices, 9) and len(announced_sizes_px(config, choices, 9)) == 11
    last = config.stop_augment_epoch - 1
    assert len(announced_sizes_px(config, choices, 99, last)) == 11
    for first in (last + 1, 98, 99):  # resumed where only one size is left
        assert announced_sizes_px(config, choices, 99, first) == ((640, 640),)
