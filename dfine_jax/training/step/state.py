"""Everything that changes from step to step, as one tree of arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """Arrays only: the model, the optimiser and the configuration are closed over by the step.

    ``key`` never changes; the randomness of a step is derived from ``key`` and ``step``, so that a resumed run draws
    what the uninterrupted one would have drawn.
    """

    step: Int[Array, ""]  # steps taken, skipped ones included
    params: PyTree
    batch_stats: PyTree
    opt_state: optax.OptState
    ema_params: PyTree
    ema_batch_stats: PyTree
    ema_updates: Int[Array, ""]  # steps the average has seen since its start
    ema_shift: Float[Array, ""]  # added to the configured decay; stage 2 changes it
    key: PRNGKeyArray


def create_state(variables: dict[str, PyTree], tx: optax.GradientTransformation, key: PRNGKeyArray) -> TrainState:
    """State before the first step; the averaged weights start as a copy of the weights."""
    params, batch_stats = variables["params"], variables["batch_stats"]

    def copy(tree: PyTree) -> PyTree:
        return jax.tree.map(jnp.array, tree)

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=copy(params),
        batch_stats=copy(batch_stats),
        opt_state=jax.jit(tx.init)(params),  # one program, not one for each shape
        ema_params=copy(params),
        ema_batch_stats=copy(batch_stats),
        ema_updates=jnp.zeros((), jnp.int32),
        ema_shift=jnp.zeros(()),
        key=key,
    )


def ema_variables(state: TrainState) -> dict[str, PyTree]:
    """The averaged weights, which evaluation and release use."""
    return {"params": state.ema_params, "batch_stats": state.ema_batch_stats}


def with_ema_shift(state: Any, shift: Any) -> Any:
    """The state, or the packed state (training/step/packing.py), with another ``ema_shift``."""
    if isinstance(state, TrainState):
        return dataclasses.replace(state, ema_shift=shift)
    return dataclasses.replace(state, arrays=with_ema_shift(state.arrays, shift))
