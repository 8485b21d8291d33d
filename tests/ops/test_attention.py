"""Attention in training against the plain form, in value, gradient and memory."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dfine_jax.ops.attention import attend, attend_in_training
from dfine_jax.ops.platform import traced_for

TOKENS, FIRST = 9, 4


def _inputs(dtype=np.float64, images=2, tokens=TOKENS):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((images, tokens, 3, 5)), dtype) for _ in range(3)]


def _blocked(images=None):
    rng = np.random.default_rng(1)
    blocked = rng.random((FIRST, TOKENS) if images is None else (images, FIRST, TOKENS)) > 0.6
    blocked[..., 2, :] = True  # a token that sees nothing
    return blocked


def _masked(q, k, v, blocked):
    """One product of all tokens with all, most of it masked away."""
    first = blocked.shape[-2]
    others = jnp.arange(TOKENS) < first
    full = jnp.concatenate([blocked, jnp.broadcast_to(others, (*blocked.shape[:-2], TOKENS - first, TOKENS))], -2)
    logits = jnp.einsum("bqmd,bkmd->bmqk", q, k) / np.sqrt(q.shape[-1])
    full = full if full.ndim == 2 else full[:, None]
    return jnp.einsum("bmqk,bkmd->bqmd", jax.nn.softmax(jnp.where(full, -1e30, logits), -1), v)


@pytest.fixture(params=["cpu", "cuda"], ids=["one image after another", "all at once"])
def form(request):
    with traced_for(request.param):
        yield


@pytest.mark.parametrize("mask", ["none", "shared", "of each image"])
def test_training_equals_the_plain_form_with_its_gradient(form, mask):
    with jax.enable_x64(True):
        arrays = _inputs()
        if mask == "none":
            plain, training = attend, attend_in_training
        else:
            blocked = jnp.asarray(_blocked(None if mask == "shared" else 2))
            plain = functools.partial(_masked, blocked=blocked)
            training = functools.partial(attend_in_training, blocked=blocked)
        (want, pull), (got, pull_own) = jax.vjp(plain, *arrays), jax.vjp(jax.jit(training), *arrays)
        np.testing.assert_allclose(got, want, atol=1e-14)
        for a, b in zip(pull_own(jnp.sin(want)), pull(jnp.sin(want)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-13)


def test_both_modes_of_differentiation(form):
    with jax.enable_x64(True):
        training = functools.partial(attend_in_training, blocked=jnp.asarray(_blocked()))
        check_grads(training, _inputs(), order=2, modes=["fwd", "rev"], atol=1e-5, rtol=1e-5)


def test_weights_are_not_kept(form):
    arrays = _inputs(np.float32, tokens=32)
    kept = {f.__name__: jax.vjp(f, *arrays)[1] for f in (attend, attend_in_training)}
    largest = {name: max(x.size for x in jax.tree.leaves(pull)) for name, pull in kept.items()}
    assert largest["attend"] == 2 * 3 * 32 * 32
    assert largest["attend_in_training"] == 2 * 32 * 3 * 5


def test_half_precision_stays_close(form):
    exact = _masked(*_inputs(np.float32), _blocked())
    got = attend_in_training(*_inputs(jnp.bfloat16), _blocked())
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), exact, atol=0.03)


def test_loops_can_be_mapped():
    arrays = [jnp.stack([x, 2 * x]) for x in _inputs(np.float32)]
    got = jax.vmap(functools.partial(attend_in_training, blocked=_blocked()))(*arrays)
    for i in range(2):
        np.testing.assert_allclose(got[i], _masked(*(x[i] for x in arrays), _blocked()), atol=1e-5)


def test_temporaries_on_a_cpu_are_those_of_one_image():
    """What XLA's CPU backend computes again outside of a loop it merges with the forward pass."""
    if jax.default_backend() != "cpu":
        pytest.skip("the loop is for CPUs")

    def temporaries_mib(function):
        q, k, v = _inputs(np.float32, images=8, tokens=128)
        gradient = jax.jit(jax.grad(lambda *a: jnp.square(function(*a)).sum(), (0, 1, 2)))
        return gradient.lower(q, k, v).compile().memory_analysis().temp_size_in_bytes / 2**20

    one_image = 4 * 3 * 128 * 128 / 2**20
    assert temporaries_mib(attend) > 2 * 8 * one_image
    assert temporaries_mib(attend_in_training) < 4 * one_image
