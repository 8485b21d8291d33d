"""What only accelerators run, looked at without one: the matcher's other branch, and memory that a step gives back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from tiny import random_batch, tiny_config

from dfine_jax.families.dfine.model import init_variables
from dfine_jax.losses.matcher import assign
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.state import create_state
from dfine_jax.training.step.step import make_train_step

COST = np.random.default_rng(0).normal(size=(3, 2, 9, 5)).astype(np.float32)
VALID = np.array([[True, True, False, True, False], [False] * 5])


def test_the_branch_of_accelerators_assigns_as_that_of_cpus(monkeypatch):
    expected = np.asarray(jax.jit(assign)(COST, VALID))
    chosen = []

    def of_accelerators(*arguments, cpu, default):
        chosen.append(default)
        return default(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", of_accelerators)
    found = jax.jit(lambda cost, valid: assign(cost, valid))(COST, VALID)
    np.testing.assert_array_equal(found, expected)
    assert len(chosen) == 1 and (expected >= 0).sum() == 3 * 3
    under_vmap = jax.vmap(assign, (0, None))(COST[:, None], VALID)
    np.testing.assert_array_equal(under_vmap[:, 0], expected)
    gradient = jax.grad(lambda cost: jnp.sum(assign(cost, VALID) * 1.0) + jnp.sum(cost))(COST)
    np.testing.assert_array_equal(gradient, 1.0)


def test_the_memory_of_the_state_is_given_back():
    """Every array of the old state is the place of one of the new state."""
    config = tiny_config()
    tx = make_optimizer(config.model, config.optim)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: create_state(init_variables(config.model, key), tx, key))
    batch = random_batch(0, jax.local_device_count(), 1)
    step = make_train_step(config, tx)
    lowered = step.lower(shapes, batch).lowered
    text = lowered.as_text()
    given_back = text.count("tf.aliasing_output") + text.count("jax.buffer_donor")
    assert given_back + len(jax.tree.leaves(batch)) == len(jax.tree.leaves(lowered.args_info)) and given_back > 0
