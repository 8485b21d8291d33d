"""Muon for matrices and Adan, as dfine-seg 0.6.2 computes them, and several optimisers for one tree of parameters.

optax has both in other forms. ``optax.contrib.muon`` corrects momentum and gradient for their start before it mixes
them, each by a factor of its own, which changes the mixture. ``optax.scale_by_adan`` weighs differences of gradients by
1 - b2 where the authors' code (sail-sg/Adan) has b2, though its default for b2 is theirs; its decay is AdamW's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array, Float, Int

PyTree = Any
Named = dict[tuple[str, ...], Any]

MOMENTUM = 0.95
_NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
ADAN_BETAS = (0.98, 0.92, 0.99)
_ADAN_EPS = 1e-8


class MuonState(NamedTuple):
    """Of each matrix."""

    momentum: PyTree


class AdanState(NamedTuple):
    """Averages of gradients, of their differences, and of squares of both together; and the last gradients."""

    count: Int[Array, ""]
    first: PyTree
    difference: PyTree
    second: PyTree
    last: PyTree


def orthogonalised(matrix: Float[Array, "*k i o"]) -> Float[Array, "*k i o"]:
    """Newton-Schulz iteration: about the same singular vectors with singular values between 0.7 and 1.2, or 0.

    In the matrix's own type; the reference goes down to bfloat16.
    """
    a, b, c = _NEWTON_SCHULZ
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = jnp.swapaxes(matrix, -1, -2) if is_tall else matrix
    x = x / (jnp.sqrt(jnp.sum(jnp.square(x), (-2, -1), keepdims=True)) + 1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ jnp.swapaxes(x, -1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return jnp.swapaxes(x, -1, -2) if is_tall else x


def _averaged(decay: float, old: PyTree, new: PyTree) -> PyTree:
    return jax.tree.map(lambda a, n: decay * a + (1 - decay) * n, old, new)


def scale_by_muon() -> optax.GradientTransformation:
    """Orthogonalised Nesterov momentum of kernels [i, o] or stacks of them [k, i, o]; more outputs, larger steps."""

    def init(params: PyTree) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, MuonState]:
        del params
        momentum = _averaged(MOMENTUM, state.momentum, updates)

        def direction(mixed: Array) -> Array:
            return orthogonalised(mixed) * math.sqrt(max(1.0, mixed.shape[-1] / mixed.shape[-2]))

        return jax.tree.map(direction, _averaged(MOMENTUM, momentum, updates)), MuonState(momentum)

    return optax.GradientTransformation(init, update)


def scale_by_adan() -> optax.GradientTransformation:
    """Adan (arXiv 2208.06677) without its decay (``adan_decay``)."""
    b1, b2, b3 = ADAN_BETAS

    def init(params: PyTree) -> AdanState:
        return AdanState(jnp.zeros((), jnp.int32), *(jax.tree.map(jnp.zeros_like, params) for _ in range(4)))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, AdanState]:
        del params
        grads = updates
        count = state.count + 1
        differences = jax.tree.map(lambda g, last: jnp.where(count == 1, 0, g - last), grads, state.last)
        ahead = jax.tree.map(lambda g, d: jnp.square(g + b2 * d), grads, differences)
        first = _averaged(b1, state.first, grads)
        difference = _averaged(b2, state.difference, differences)
        second = _averaged(b3, state.second, ahead)

        def direction(m: Array, v: Array, n: Array) -> Array:
            # 1 - b^t, without the loss of digits near 1.
            c1, c2, c3 = (-jnp.expm1(math.log(b) * count.astype(m.dtype)) for b in (b1, b2, b3))
            return (m / c1 + b2 * v / c2) / (jnp.sqrt(n / c3) + _ADAN_EPS)

        new = AdanState(count, first, difference, second, grads)
        return jax.tree.map(direction, first, difference, second), new

    return optax.GradientTransformation(init, update)


def adan_decay(rate: Float[Array, ""], weight_decay: float) -> Float[Array, ""]:
    """Factor of a step that AdamW's decay is in, with which the decay is Adan's, taken after the step."""
    return 1 / (1 + rate * weight_decay)


def each_by_its_own(
    optimizers: Mapping[str, optax.GradientTransformation], name_of: Callable[[PyTree], PyTree]
) -> optax.GradientTransformation:
    """Several optimisers; what none takes does not move. Each has a state for its own parameters alone, a tuple entry.

    Args:
      name_of: of a tree of dictionaries, the name of each leaf's optimiser.
    """

    def of(name: str, tree: PyTree) -> PyTree:
        names = traverse_util.flatten_dict(name_of(tree))
        flat: Named = traverse_util.flatten_dict(tree)
        return traverse_util.unflatten_dict({path: leaf for path, leaf in flat.items() if names[path] == name})

    def init(params: PyTree) -> tuple[Any, ...]:
        return tuple(optimizer.init(of(name, params)) for name, optimizer in optimizers.items())

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, tuple[Any, ...]]:
        out: Named = traverse_util.flatten_dict(jax.tree.map(jnp.zeros_like, updates))
        states = []
        for (name, optimizer), own in zip(optimizers.items(), state, strict=True):
            moved, changed = optimizer.update(of(name, updates), own, params)
            out |= traverse_util.flatten_dict(moved)
            states.append(changed)
        return traverse_util.unflatten_dict(out), tuple(states)

    return optax.GradientTransformation(init, update)
