"""Batch norms of held parts: statistics that stay, and are what the layers behind them see."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from dfine_jax.nn.held_norms import held_norms
from dfine_jax.nn.layers import ConvNorm, called
from dfine_jax.ops.platform import traced_for

IMAGES = np.random.RandomState(0).randn(4, 5, 6, 3).astype(np.float32)


class Pair(nn.Module):
    """Two parts, computed again in the backward pass where asked."""

    remat: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        x = called(ConvNorm(4, 3, activation="relu", name="first"), x, train=train, remat=self.remat)
        return called(ConvNorm(2, 3, name="second"), x, train=train, remat=self.remat)


@pytest.fixture(scope="module")
def variables():
    variables = Pair().init(jax.random.key(0), IMAGES, train=True)
    return jax.tree.map(lambda x: x + 0.3, variables)


def trained(variables, patterns, remat=False):
    """Output, new statistics, and gradients of a loss."""

    def loss(params):
        output, changed = Pair(remat).apply(
            {**variables, "params": params}, IMAGES, train=True, mutable=["batch_stats"]
        )
        return (output**2).sum(), (output, changed["batch_stats"])

    with traced_for("cpu"), held_norms(patterns):
        (_, (output, stats)), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return output, stats, grads


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_all_held_is_inference(variables):
    output, stats, _ = trained(variables, ("norm/",))
    np.testing.assert_array_equal(output, Pair().apply(variables, IMAGES, train=False))
    assert equal(stats, variables["batch_stats"])


def test_what_is_not_held_trains_on_what_it_will_see(variables):
    output, stats, _ = trained(variables, ("^first/",))
    assert equal(stats["first"], variables["batch_stats"]["first"])
    parts = [{kind: tree[name] for kind, tree in variables.items()} for name in ("first", "second")]
    seen = ConvNorm(4, 3, activation="relu").apply(parts[0], IMAGES, train=False)
    want, changed = ConvNorm(2, 3).apply(parts[1], seen, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(output, want, rtol=1e-6)
    for new, wanted in zip(jax.tree.leaves(stats["second"]), jax.tree.leaves(changed), strict=True):
        np.testing.assert_allclose(new, wanted, rtol=1e-6)


@pytest.mark.parametrize("patterns", [(), ("conv",), ("norm/scale",)])
def test_others_are_as_ever(variables, patterns):
    stats = trained(variables, patterns)[1]
    assert not any(equal(stats[name], variables["batch_stats"][name]) for name in ("first", "second"))


def test_the_backward_pass_computes_the_same_again(variables):
    kept, again = trained(variables, ("^first/",))[2], trained(variables, ("^first/",), remat=True)[2]
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    moving = trained(variables, (), remat=True)[2]
    assert not np.allclose(moving["second"]["conv"]["kernel"], again["second"]["conv"]["kernel"], rtol=0.01)
