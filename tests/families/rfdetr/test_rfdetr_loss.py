"""RF-DETR's matching and losses: numbers of the reference, groups, and what must not change them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_train import pad_targets
from rfdetr_criterion import GROUPS, INPUTS, Case, output_of
from scipy.optimize import linear_sum_assignment

from dfine_jax.families.rfdetr.config import RFDetrLossConfig
from dfine_jax.families.rfdetr.loss import kinds, loss_terms, match
from dfine_jax.families.rfdetr.outputs import Draws
from dfine_jax.typing import Norm

SLOTS = 10  # more than are made at one time
CONFIG = RFDetrLossConfig()


@pytest.fixture(scope="module", params=[False, True], ids=["boxes", "masks"])
def case(golden, request) -> Case:
    return Case.read(golden("families/criterion_rfdetr.npz"), request.param)


@pytest.fixture(scope="module")
def with_masks(golden) -> Case:
    return Case.read(golden("families/criterion_rfdetr.npz"), True)


def step(case, inputs, targets, config=CONFIG, draws=None, points=None):
    """Sum, terms and pairs of a whole batch."""
    return _step(case.model, config, inputs, targets, draws, points)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(model, config, inputs, targets, draws, points):
    output = output_of(inputs, GROUPS)
    matching = match(output, targets, draws, config, points)
    norm = Norm(matching.counts, matching.counts)
    named = loss_terms(output, targets, draws, matching, norm, model, config, points)
    return sum(named.values()), (named, matching)


def draws(seed=0):
    return Draws(jax.random.key(seed))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_terms_pairs_and_gradients_are_the_references(case, dtype):
    rtol = 5e-6 if dtype == np.float32 else 1e-13
    with jax.enable_x64(dtype == np.float64):
        targets, points, inputs = case.targets(SLOTS, dtype), case.points(SLOTS), case.inputs(dtype)
        run = jax.jit(jax.value_and_grad(lambda x: step(case, x, targets, points=points), has_aux=True))
        (total, (named, matching)), gradients = run(inputs)
        np.testing.assert_array_equal(matching.pairs, case.match())
        np.testing.assert_array_equal(matching.counts, [6 * GROUPS, 6 * GROUPS if case.masks else 0])
        assert set(named) == set(case.info["terms"])
        assert {name.split("/")[0] for name in named} == set(kinds(case.model, CONFIG))
        for name, value in named.items():
            np.testing.assert_allclose(value, case.info["terms"][name], rtol=rtol, err_msg=name)
        np.testing.assert_allclose(total, case.info["total"], rtol=rtol)
        for name, gradient in zip(INPUTS, gradients, strict=False):
            expected = case.reference(f"grad_{name}")  # stored as float32
            scale = np.abs(expected).max()
            np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6 * scale, err_msg=name)


def test_every_group_is_matched_with_all_objects(case):
    targets = case.targets(SLOTS)
    pairs = np.asarray(step(case, case.inputs(), targets, points=case.points(SLOTS))[1][1].pairs)
    by_group = pairs.reshape(*pairs.shape[:2], GROUPS, -1)
    for image, objects in enumerate(np.asarray(targets.valid).sum(-1)):
        for slots in by_group[:, image].reshape(-1, by_group.shape[-1]):
            assert sorted(slots[slots >= 0]) == list(range(objects))


def test_matches_of_logits_and_boxes_alone_are_of_least_cost(golden):
    case = Case.read(golden("families/criterion_rfdetr.npz"), False)
    logits, boxes = (np.asarray(x, np.float64) for x in case.inputs())
    targets = case.targets(SLOTS)
    pairs = np.asarray(step(case, case.inputs(), targets)[1][1].pairs)
    each = pairs.shape[-1] // GROUPS
    for output, image, group in np.ndindex(pairs.shape[0], pairs.shape[1], GROUPS):
        rows = slice(group * each, (group + 1) * each)
        count = int(targets.valid[image].sum())
        truth = np.asarray(targets.boxes_cxcywh[image, :count], np.float64)
        x = logits[output, image, rows][:, targets.labels[image, :count]]
        p, near = 1 / (1 + np.exp(-x)), boxes[output, image, rows][:, None]
        focal = 0.25 * (1 - p) ** 2 * np.logaddexp(0, -x) - 0.75 * p**2 * np.logaddexp(0, x)
        cost = 2 * focal + 5 * np.abs(near - truth).sum(-1) - 2 * giou(near, truth)
        queries, objects = linear_sum_assignment(cost)
        expected = np.full(each, -1)
        expected[queries] = objects
        np.testing.assert_array_equal(pairs[output, image, rows], expected)


def giou(a, b):
    low = np.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = np.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    both = np.prod(np.maximum(high - low, 0), -1)
    union = np.prod(a[..., 2:], -1) + np.prod(b[..., 2:], -1) - both
    low = np.minimum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = np.maximum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    hull = np.prod(high - low, -1)
    return both / union - (hull - union) / hull


def test_the_device_matches_as_the_host_does(case):
    config = dataclasses.replace(CONFIG, assignment="device")
    pairs = step(case, case.inputs(), case.targets(4), config, points=case.points(4))[1][1].pairs
    np.testing.assert_array_equal(pairs, case.match())


def test_slots_without_objects_change_nothing(case):
    """Not even where what they hold is no number."""
    points = case.points(SLOTS)
    expected = step(case, case.inputs(), case.targets(4), points=points)[1][0]
    targets = case.targets(SLOTS)
    waste = jnp.where(targets.valid[..., None], targets.boxes_cxcywh, jnp.nan)
    named = step(case, case.inputs(), dataclasses.replace(targets, boxes_cxcywh=waste), points=points)[1][0]
    for name, value in named.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("slots", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_batch_without_objects_trains_the_background(case, slots):
    targets = pad_targets([[]] * 3, [[]] * 3, slots)
    if case.masks:
        masks = jnp.zeros((3, slots, 48, 80), jnp.uint8)
        targets = dataclasses.replace(targets, masks=masks, has_mask=targets.valid)
    run = jax.value_and_grad(lambda x: step(case, x, targets, draws=draws()), has_aux=True)
    (_, (named, matching)), gradients = run(case.inputs())
    np.testing.assert_array_equal(matching.pairs, -1)
    for name, value in named.items():
        assert (value > 0) if name.startswith("iabce") else (value == 0), name
    logits = case.inputs()[0][-1]
    p = jax.nn.sigmoid(logits)
    np.testing.assert_allclose(named["iabce/enc_0"], jnp.sum(p**2 * jax.nn.softplus(logits)), rtol=1e-6)
    assert all(np.isfinite(x).all() for x in gradients)
    assert not any(np.any(x) for x in gradients[1:])


def test_fewer_proposals_than_queries(with_masks):
    """As with the rest of the rows too dear to be taken; more objects than proposals leave some without."""
    inputs, targets, points = with_masks.inputs(), with_masks.targets(4), with_masks.points(4)
    output, kept = with_masks.output(inputs), 3
    queries = inputs[0].shape[2]
    rows = np.arange(queries).reshape(GROUPS, -1)[:, :kept].reshape(-1)
    training = output.training
    encoder = jax.tree.map(lambda x: x[:, rows], training.encoder)
    few = dataclasses.replace(
        output,
        training=dataclasses.replace(
            training, encoder=encoder, encoder_mask_embedding=training.encoder_mask_embedding[:, rows]
        ),
    )
    matching = jax.jit(lambda: match(few, targets, None, CONFIG, points))()
    np.testing.assert_array_equal(matching.pairs[:-1], with_masks.match()[:-1])
    of_proposals = np.asarray(matching.pairs[-1]).reshape(3, GROUPS, -1)
    assert np.all((of_proposals[0, :, :kept] >= 0).sum(-1) == kept)
    assert np.all((of_proposals[2, :, :kept] >= 0).sum(-1) == 2)
    norm = Norm(matching.counts, matching.counts)
    named = jax.jit(lambda: loss_terms(few, targets, None, matching, norm, with_masks.model, CONFIG, points))()
    for name, value in named.items():
        if not name.endswith("enc_0"):
            np.testing.assert_allclose(value, with_masks.info["terms"][name], rtol=5e-6, err_msg=name)
    expected, truth = 0.0, np.asarray(targets.boxes_cxcywh)
    for image, group, row in np.argwhere(of_proposals[:, :, :kept] >= 0):
        box = encoder.boxes_cxcywh[image, group * kept + row]
        expected += np.abs(box - truth[image, of_proposals[image, group, row]]).sum()
    np.testing.assert_allclose(named["bbox/enc_0"], 5 * expected / (6 * GROUPS), rtol=1e-5)
    assert all(np.isfinite(value) for value in named.values())


def test_objects_without_a_mask_train_no_mask(with_masks):
    targets, points = with_masks.targets(4), with_masks.points(4)
    without = dataclasses.replace(targets, has_mask=targets.valid.at[0, 1].set(False).at[2].set(False))
    changed = dataclasses.replace(without, masks=targets.masks.at[0, 1].set(4).at[2].set(4))
    _, (named, matching) = step(with_masks, with_masks.inputs(), without, points=points)
    np.testing.assert_array_equal(matching.counts, [6 * GROUPS, 3 * GROUPS])
    for name, value in step(with_masks, with_masks.inputs(), changed, points=points)[1][0].items():
        np.testing.assert_array_equal(value, named[name], err_msg=name)


def test_terms_of_masks_are_means_over_pairs_with_one(with_masks):
    """A second batch half of which has none does not halve them."""
    targets, points = with_masks.targets(4), with_masks.points(4)
    twice = lambda x: jnp.concatenate([x, x], 1 if x.ndim > 2 else 0)  # noqa: E731
    inputs = tuple(twice(x) if x.ndim else x for x in with_masks.inputs())
    doubled = jax.tree.map(lambda x: jnp.concatenate([x, x]), targets)
    doubled = dataclasses.replace(doubled, has_mask=doubled.valid & (jnp.arange(6) < 3)[:, None])
    wide = points._replace(terms=np.concatenate([points.terms] * 2, 1))
    named = step(with_masks, inputs, doubled, points=wide)[1][0]
    for name, value in named.items():
        if name.startswith("mask_"):
            np.testing.assert_allclose(value, with_masks.info["terms"][name], rtol=5e-6, err_msg=name)


def test_data_without_masks_train_boxes_alone(with_masks):
    targets = dataclasses.replace(with_masks.targets(4), masks=None, has_mask=None)
    named = step(with_masks, with_masks.inputs(), targets)[1][0]
    assert {name.split("/")[0] for name in named} == {"iabce", "bbox", "giou"}


def test_points_differ_by_output_and_are_the_draws(with_masks):
    """Outputs that are equal do not have the same points; the same draws do."""
    inputs = tuple(jnp.stack([x[0]] * 3) if x.ndim else x for x in with_masks.inputs())
    named, again, other = (
        step(with_masks, inputs, with_masks.targets(4), draws=draws(seed))[1][0] for seed in (1, 1, 2)
    )
    values = [named[f"mask_dice/{where}"] for where in ("aux_0", "last", "enc_0")]
    assert len({float(x) for x in values}) == 3
    np.testing.assert_allclose(values, np.mean(values), rtol=0.1)
    assert all(named[name] == again[name] for name in named)
    assert named["mask_ce/last"] != other["mask_ce/last"]


def test_half_precision_outputs_are_computed_in_float32(with_masks):
    inputs = tuple(x.astype(jnp.bfloat16) for x in with_masks.inputs())
    targets, points = with_masks.targets(4), with_masks.points(4)
    wide = step(with_masks, [x.astype(jnp.float32) for x in inputs], targets, points=points)[1][0]
    named = step(with_masks, inputs, targets, points=points)[1][0]
    for name, value in named.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, wide[name], rtol=1e-5, err_msg=name)


def test_parts_of_a_batch_add_up(with_masks):
    """The counts of the whole divide the terms of each."""
    inputs, targets, points = with_masks.inputs(), with_masks.targets(4), with_masks.points(4)
    outputs, counts = [], []
    matched = jax.jit(lambda output, targets, points: match(output, targets, None, CONFIG, points))
    for image in range(3):
        part = [x[:, image : image + 1] if x.ndim else x for x in inputs]
        here = jax.tree.map(lambda x, i=image: x[i : i + 1], targets)
        own = points._replace(terms=points.terms[:, image : image + 1])
        output = output_of(part, GROUPS)
        matching = matched(output, here, own)
        outputs.append((output, here, matching, own))
        counts.append(matching.counts)
    mean = jnp.mean(jnp.stack(counts), 0)
    run = jax.jit(
        lambda output, targets, matching, points: loss_terms(
            output, targets, None, matching, Norm(mean, mean), with_masks.model, CONFIG, points
        )
    )
    parts = [run(*part) for part in outputs]
    for name, expected in with_masks.info["terms"].items():
        np.testing.assert_allclose(np.mean([part[name] for part in parts]), expected, rtol=5e-6, err_msg=name)


def test_what_is_missing_is_said(with_masks):
    output, targets = with_masks.output(with_masks.inputs()), with_masks.targets(4)
    with pytest.raises(ValueError, match="train=True"):
        match(dataclasses.replace(output, training=None), targets, draws(), CONFIG)
    with pytest.raises(ValueError, match="draws"):
        match(output, targets, None, CONFIG)
