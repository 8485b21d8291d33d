"""Costs, assignment on host and device, the cross-layer union, and freedom from deadlock under pmap."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from golden_train import pad_targets
from scipy.optimize import linear_sum_assignment

from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.losses.matcher import assign, matching_cost, union_match

METHODS = ("scipy", "device")


def random_targets(counts, slots, seed=0, classes=7):
    rng = np.random.default_rng(seed)
    return pad_targets(
        [rng.integers(0, classes, n) for n in counts], [rng.uniform(0.05, 0.9, (n, 4)) for n in counts], slots
    )


def total(cost, match):
    picked = np.take_along_axis(np.asarray(cost, np.float64), np.maximum(match, 0)[..., None], -1)[..., 0]
    return np.sum(picked * (match >= 0), -1)


def test_cost_of_single_pairs_follows_the_formula():
    rng = np.random.default_rng(0)
    logits, boxes = rng.normal(size=(2, 1, 4, 7)).astype("f"), rng.uniform(0.1, 0.8, (2, 1, 4, 4)).astype("f")
    targets = random_targets((3,), 5)
    cost = np.asarray(matching_cost(jnp.asarray(logits), jnp.asarray(boxes), targets, LossConfig()))
    for s, q, g in np.ndindex(2, 4, 3):
        p = 1 / (1 + np.exp(-np.float64(logits[s, 0, q, targets.labels[0, g]])))
        focal = 0.25 * (1 - p) ** 2 * -np.log(p + 1e-8) - 0.75 * p**2 * -np.log(1 - p + 1e-8)
        a, b = np.float64(boxes[s, 0, q]), np.float64(targets.boxes_cxcywh[0, g])
        (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = ((*(x[:2] - x[2:] / 2), *(x[:2] + x[2:] / 2)) for x in (a, b))
        inter = max(0, min(ax2, bx2) - max(ax1, bx1)) * max(0, min(ay2, by2) - max(ay1, by1))
        union = a[2] * a[3] + b[2] * b[3] - inter
        hull = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
        giou = inter / union - (hull - union) / hull
        want = 5 * np.abs(a - b).sum() + 2 * focal - 2 * giou
        np.testing.assert_allclose(cost[s, 0, q, g], want, rtol=2e-5)


def test_a_certain_class_costs_a_number():
    """In a compiled program too, where 1 - p + tiny is no more than 1 - p, whose logarithm may be infinite."""
    boxes = jnp.full((1, 3, 4), 0.5)
    targets = pad_targets([[0]], [[[0.5, 0.5, 0.5, 0.5]]])
    logits = jnp.array([[[0.0], [30.0], [-30.0]]])
    cost = jax.jit(lambda logits: matching_cost(logits, boxes, targets, LossConfig(cost_bbox=0, cost_giou=0)))(logits)
    certain = 0.75 * -np.log(1e-8)
    np.testing.assert_allclose(cost[0, 1:, 0], [-2 * certain, 2 * 0.25 * -np.log(1e-8)], rtol=1e-3)


def test_nan_and_infinite_costs_become_the_values_of_the_reference():
    logits = jnp.zeros((1, 3, 2)).at[0, 0].set(jnp.nan)
    boxes = jnp.full((1, 3, 4), 0.5).at[0, 1, 0].set(jnp.inf)
    cost = matching_cost(logits, boxes, pad_targets([[0]], [[(0.5, 0.5, 0.2, 0.2)]]), LossConfig())
    assert np.isfinite(cost).all()
    assert cost[0, 0, 0] == 1.0
    zero_area = matching_cost(jnp.zeros((1, 1, 2)), jnp.zeros((1, 1, 4)), pad_targets([[0]], [[[0] * 4]]), LossConfig())
    assert zero_area[0, 0, 0] == 1.0


def test_negative_sizes_are_zero_for_the_overlap_only():
    targets = pad_targets([[0]], [[(0.5, 0.5, 0.2, 0.2)]])
    config = LossConfig(cost_class=0.0, cost_giou=0.0)
    cost = matching_cost(jnp.zeros((1, 1, 2)), jnp.array([[[0.5, 0.5, -0.2, 0.2]]]), targets, config)
    np.testing.assert_allclose(cost[0, 0, 0], 5 * 0.4, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("queries", "counts", "slots"),
    [(30, (7, 0, 3, 12), 12), (30, (7, 0, 3, 12), 25), (5, (9, 2, 5), 9), (5, (0, 0, 0), 4), (6, (6, 8, 1), 8)],
)
def test_assignment_is_optimal_and_one_to_one(method, queries, counts, slots):
    rng = np.random.default_rng(queries)
    cost = rng.normal(size=(3, len(counts), queries, slots)).astype("f")
    valid = np.stack([np.isin(np.arange(slots), rng.permutation(slots)[:n]) for n in counts])
    match = np.asarray(jax.jit(lambda c, v: assign(c, v, method))(cost, valid))
    assert match.shape == (3, len(counts), queries) and match.dtype == np.int32
    for s, b in np.ndindex(3, len(counts)):
        used = match[s, b][match[s, b] >= 0]
        assert len(used) == len(set(used)) == min(queries, counts[b])
        assert valid[b][used].all()
        columns = np.flatnonzero(valid[b])
        rows, picks = linear_sum_assignment(cost[s, b][:, columns])
        np.testing.assert_allclose(total(cost[s, b], match[s, b]), cost[s, b][rows, columns[picks]].sum(), rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_hard_assignments_reach_the_optimum(method):
    """Costs of few distinct values and nearly equal rows: long augmenting paths and many ties."""
    rng = np.random.default_rng(3)
    cost = np.concatenate(
        [
            rng.integers(0, 4, (6, 1, 60, 40)).astype("f"),
            (rng.normal(size=(6, 1, 1, 40)) + 0.01 * rng.normal(size=(6, 1, 60, 40))).astype("f"),
            np.add.outer(np.arange(60.0), np.arange(40.0))[None, None].repeat(2, 0).astype("f") ** 1.5,
        ]
    )
    valid = np.arange(40)[None] < 38
    match = np.asarray(assign(jnp.asarray(cost), jnp.asarray(valid), method))
    for i in range(len(cost)):
        rows, columns = linear_sum_assignment(cost[i, 0, :, :38])
        np.testing.assert_allclose(total(cost[i, 0], match[i, 0]), cost[i, 0][rows, columns].sum(), rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_no_object_slots_at_all(method):
    match = assign(jnp.zeros((2, 3, 4, 0)), jnp.zeros((3, 0), bool), method)
    assert match.shape == (2, 3, 4) and (np.asarray(match) == -1).all()
    assert (np.asarray(union_match(match, 0)) == -1).all()


@pytest.mark.parametrize("method", METHODS)
def test_enormous_costs_are_survived(method):
    cost = np.random.default_rng(0).normal(size=(1, 6, 4)).astype("f")
    cost[0, 2] = np.finfo("f").max
    cost[0, 3] = -np.finfo("f").max
    match = np.asarray(assign(jnp.asarray(cost), jnp.ones((1, 4), bool), method))[0]
    assert sorted(match[match >= 0]) == [0, 1, 2, 3]
    assert match[3] >= 0 and match[2] == -1


@pytest.mark.parametrize("method", METHODS)
def test_no_gradient_flows_through_the_matcher(method):
    targets = random_targets((3, 1), 4)

    def loss(logits, boxes):
        match = assign(matching_cost(logits, boxes, targets, LossConfig()), targets.valid, method)
        return jnp.sum(jnp.where(match >= 0, boxes[..., 0], 0.0)) + 0.0 * jnp.sum(logits)

    boxes = jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.9, (2, 10, 4)), jnp.float32)
    grads = jax.jit(jax.grad(loss, (0, 1)))(jnp.zeros((2, 10, 7)), boxes)
    assert float(jnp.abs(grads[0]).max()) == 0.0
    assert float(grads[1].sum()) == 4.0


def test_union_counts_votes_and_breaks_ties_downwards():
    matches = jnp.array(
        [
            [[0, 2, -1, 3, -1, 1]],
            [[0, 1, -1, 3, 2, 0]],
            [[1, 2, -1, 1, -1, 0]],
            [[1, 1, -1, 1, -1, 2]],
        ]
    )
    np.testing.assert_array_equal(union_match(matches, 4), [[0, 1, -1, 1, 2, 0]])


def test_union_equals_the_walk_of_the_reference():
    rng = np.random.default_rng(1)
    matches = np.where(rng.random((5, 3, 40)) < 0.5, rng.integers(0, 6, (5, 3, 40)), -1)
    got = np.asarray(union_match(jnp.asarray(matches), 6))
    for b in range(3):
        pairs = [(q, g) for row in matches[:, b] for q, g in enumerate(row) if g >= 0]
        unique = sorted(set(pairs))
        want = {}
        for q, g in sorted(unique, key=lambda pair: -pairs.count(pair)):
            want.setdefault(q, g)
        np.testing.assert_array_equal(got[b], [want.get(q, -1) for q in range(40)])


_PMAP = """
import jax, jax.numpy as jnp, numpy as np
from dfine_jax.losses.matcher import assign
assert jax.local_device_count() == 8
valid = jnp.arange({g}) < {g} - 3
def step(x):
    match = assign(jnp.sin(x @ jnp.full(({g}, {g}), 0.01)) + x, jnp.broadcast_to(valid, (4, {g})))
    return jax.lax.pmean(jnp.sum(jnp.where(match >= 0, x[..., 0], 0.0)), "device")
run = jax.pmap(jax.grad(step), axis_name="device")
x = np.random.default_rng(0).random((8, 5, 4, 300, {g}), np.float32)
for i in range(50):
    out = run(x)
    if i % 8 == 7:  # more than 32 steps in flight hang on simulated devices even without callbacks
        jax.block_until_ready(out)
assert np.isfinite(np.asarray(out)).all()
np.testing.assert_allclose(np.asarray(out).sum(), 8 * 5 * 4 * ({g} - 3), rtol=1e-4)
print("finished")
"""


@pytest.mark.parametrize("slots", [50, 100])
def test_fifty_steps_on_eight_simulated_devices_do_not_deadlock(slots):
    """With pure_callback instead of host buffers the larger size hangs at the first step (jax 0.10.2, two cores)."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", _PMAP.format(g=slots)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "finished" in done.stdout
