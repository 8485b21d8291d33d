"""Deformable sampling against a loop in NumPy and against numerical derivatives."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dfine_jax.ops import deformable

SIZES = ((4, 6), (2, 3))
POINTS = (3, 2)
HEADS = 2


def _inputs(seed: int, low: float = -0.3, high: float = 1.3, dtype=np.float64):
    rng = np.random.default_rng(seed)
    tokens = sum(h * w for h, w in SIZES)
    memory = rng.standard_normal((2, tokens, 6)).astype(dtype)
    points = rng.uniform(low, high, (2, 5, HEADS, sum(POINTS), 2)).astype(dtype)
    return memory, points, rng.random(points.shape[:-1]).astype(dtype)


def _loop(memory, points, weights):
    """Bilinear samples with zeros outside, one at a time."""
    b, q, m, _, _ = points.shape
    c = memory.shape[-1] // m
    level_of = np.repeat(np.arange(len(SIZES)), POINTS)
    start = np.cumsum([0] + [h * w for h, w in SIZES])
    out = np.zeros((b, q, m, c))
    for i, j, k, p in np.ndindex(points.shape[:-1]):
        h, w = SIZES[level_of[p]]
        grid = memory[i, start[level_of[p]] :][: h * w].reshape(h, w, m, c)[:, :, k]
        x, y = points[i, j, k, p] * (w, h) - 0.5
        for row in (int(np.floor(y)), int(np.floor(y)) + 1):
            for col in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= row < h and 0 <= col < w:
                    out[i, j, k] += weights[i, j, k, p] * (1 - abs(y - row)) * (1 - abs(x - col)) * grid[row, col]
    return out.reshape(b, q, m * c)


def _maps(memory):
    ends = np.cumsum([h * w for h, w in SIZES])
    levels = jnp.split(jnp.asarray(memory), ends[:-1], 1)
    return [x.reshape(x.shape[0], h, w, x.shape[2]) for x, (h, w) in zip(levels, SIZES, strict=True)]


def _sample(memory, points, weights):
    return deformable.sample(deformable.build_table(_maps(memory), HEADS), SIZES, POINTS, points, weights)


@pytest.mark.parametrize(("low", "high"), [(-0.3, 1.3), (0.2, 0.8), (-9.0, 9.0)])
def test_equals_a_plain_loop(low, high):
    memory, points, weights = _inputs(0, low, high)
    with jax.enable_x64(True):
        got = jax.jit(_sample)(memory, points, weights)
        assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, _loop(memory, points, weights), atol=1e-13)


def test_exact_at_pixel_centres_and_on_the_border():
    memory, points, weights = _inputs(1)
    edges = np.array([-1.0, 0.0, 1.0, 0.5 / 6, 1 - 0.5 / 6, 1e6, -1e6])
    points[:] = np.random.default_rng(2).choice(edges, points.shape)
    with jax.enable_x64(True):
        got = _sample(memory, points, weights)
    np.testing.assert_allclose(got, _loop(memory, points, weights), atol=1e-13)


def test_derivatives():
    with jax.enable_x64(True):
        check_grads(_sample, _inputs(3), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_far_outside_gives_zero_and_no_gradient():
    memory, points, weights = _inputs(4, 3.0, 4.0, np.float32)
    value, gradient = jax.value_and_grad(lambda *a: _sample(*a).sum(), (0, 1, 2))(memory, points, weights)
    assert value == 0
    assert all(not np.any(g) for g in gradient)


def test_half_precision_rows_keep_coordinates_in_float32():
    memory, points, weights = _inputs(5, dtype=np.float32)
    got = _sample(jnp.asarray(memory, jnp.bfloat16), points, weights)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), _loop(memory, points, weights), atol=0.05)


def test_undefined_coordinates_do_not_read_outside_the_table():
    memory, points, weights = _inputs(6, dtype=np.float32)
    points[0, 0] = np.nan
    got = np.asarray(jax.jit(_sample)(memory, points, weights))
    assert np.isnan(got[0, 0]).all()
    assert np.isfinite(got[1]).all() and np.isfinite(got[0, 1:]).all()


def test_training_gathers_again_with_the_same_gradient():
    """Derivatives, and what is kept for them, against the plain form; only the order of sums differs."""
    memory, points, weights = _inputs(3)

    def run(memory, points, weights, train):
        table = deformable.build_table(_maps(memory), HEADS)
        return deformable.sample(table, SIZES, POINTS, points, weights, train=train)

    with jax.enable_x64(True):
        arrays = tuple(map(jnp.asarray, (memory, points, weights)))
        (kept, pull), (again, pull_again) = (jax.vjp(functools.partial(run, train=t), *arrays) for t in (False, True))
        np.testing.assert_allclose(again, kept, atol=1e-14)
        for got, want in zip(pull_again(again), pull(again), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-12)
        check_grads(functools.partial(run, train=True), arrays, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)
    gathered = points[..., 0].size * 4 * 3
    assert max(x.size for x in jax.tree.leaves(pull)) >= gathered > max(x.size for x in jax.tree.leaves(pull_again))
