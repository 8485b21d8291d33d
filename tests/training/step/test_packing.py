"""Vectors of small arrays: the same numbers, by the same names, in fewer kernels."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_optimizer import small_params

from dfine_jax.config import Config, OptimConfig
from dfine_jax.data.load.batch import Batch
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.training.step import step as steps
from dfine_jax.training.step.gradient import LossGradient
from dfine_jax.training.step.optimizer import make_optimizer, matching_rules, parameter_rules
from dfine_jax.training.step.packing import CPU_LIMIT, PackedState, Packing, size_limit
from dfine_jax.training.step.state import create_state, ema_variables, with_ema_shift
from dfine_jax.training.step.step import make_train_step, make_update, replicated

STATS = {"backbone": {"bn": {"mean": np.zeros(2, np.float32), "var": np.ones(2, np.float32)}}}
FREEZE = ("head/bias$", "proj/bias$", "(head|proj)/bias$")  # the last matches nothing that is not held already


def setup(freeze=()):
    config = Config(
        model_config("n"), LossConfig(), optim=OptimConfig(lr=1e-2, backbone_lr=3e-3, weight_decay=0.1, freeze=freeze)
    )
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), small_params())
    tx = make_optimizer(config.model, config.optim)
    return config, tx, create_state({"params": params, "batch_stats": STATS}, tx, jax.random.key(0))


def packed(state, config, limit):
    packing = Packing(state, parameter_rules(config.model, config.optim), limit)
    return PackedState(packing.pack(state, lambda tree: jax.tree.map(jnp.asarray, tree)), packing)


def same(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


FIELDS = ("params", "batch_stats", "opt_state", "ema_params", "ema_batch_stats", "step", "ema_updates", "ema_shift")


@pytest.mark.parametrize("limit", [None, 7, 1])
@pytest.mark.parametrize("freeze", [(), FREEZE])
def test_packing_keeps_every_array(limit, freeze):
    config, tx, state = setup(freeze)
    state = dataclasses.replace(state, opt_state=jax.tree.map(lambda x: x + 1, state.opt_state))
    there = packed(state, config, limit)
    for name in FIELDS:
        same(getattr(there, name), getattr(state, name), rtol=0)
    assert there.key is state.key
    leaves, vectors = jax.tree.leaves(state.params), there.packing.params.vectors
    alone = sum(limit is not None and leaf.size >= limit for leaf in leaves)
    groups = {m for m, x in zip(_matches(state, config), leaves, strict=True) if limit is None or x.size < limit}
    assert len(there.arrays.params) == alone + len(vectors) and len(vectors) == len(groups)
    shapes = there.packing.pack(jax.eval_shape(lambda: state), lambda tree: tree)
    assert jax.tree.map(jnp.shape, there.arrays) == jax.tree.map(lambda x: x.shape, shapes)


def _matches(state, config):
    return matching_rules(state.params, parameter_rules(config.model, config.optim))


@pytest.mark.parametrize("limit", [None, 7])
@pytest.mark.parametrize("freeze", [(), FREEZE])
def test_updates_are_those_of_single_arrays(limit, freeze):
    config, tx, state = setup(freeze)
    update = jax.jit(make_update(config, tx))
    there = packed(state, config, limit)
    layout, stats_layout = there.packing.params, there.packing.stats
    for step in range(4):
        grads = jax.tree.map(lambda p, s=step: jnp.sin(p * (s + 1)) / (s != 2), state.params)  # one is not finite
        stats = jax.tree.map(lambda x: x + 1, state.batch_stats)
        state, norm, finite = update(state, jnp.float32(1), grads, stats)
        arrays, packed_norm, packed_finite = update(
            there.arrays, jnp.float32(1), layout.pack(grads), stats_layout.pack(stats)
        )
        there = PackedState(arrays, there.packing)
        assert finite == packed_finite == (step != 2)
        np.testing.assert_allclose(norm, packed_norm, rtol=1e-6)
        for name in FIELDS:
            same(getattr(there, name), getattr(state, name), rtol=1e-5, atol=1e-7)
    assert int(there.step) == 4 and int(there.ema_updates) == 3


def test_what_is_read_outlives_the_step_that_takes_its_memory():
    config, _, state = setup()
    there = packed(state, config, None)
    before = there.ema_params
    expected = jax.tree.map(np.array, state.ema_params)
    jax.block_until_ready(
        jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(there.arrays.ema_params)
    )
    same(before, expected, rtol=0)


def test_the_shift_of_the_average_can_be_set():
    config, _, state = setup()
    for kind in (state, packed(state, config, None)):
        changed = with_ema_shift(kind, np.float32(-0.5))
        assert type(changed) is type(kind) and float(changed.ema_shift) == -0.5
        same(changed.params, state.params, rtol=0)


def test_gpus_pack_all_and_cpus_small_arrays():
    assert size_limit("cpu") == CPU_LIMIT and size_limit("gpu") is None


def test_the_update_of_a_model_is_few_kernels_on_a_cpu():
    """N has 428 parameters; half of a step's kernels would be their update."""
    from dfine_jax.families.dfine.model import init_variables

    config = Config(model_config("n"), LossConfig())
    tx = make_optimizer(config.model, config.optim)
    state = jax.eval_shape(lambda: create_state(init_variables(config.model, jax.random.key(0)), tx, jax.random.key(1)))
    packing = Packing(state, parameter_rules(config.model, config.optim), CPU_LIMIT)
    arrays = packing.pack(state, lambda tree: tree)
    assert len(jax.tree.leaves(state.params)) == 428 and len(arrays.params) < 80
    update = make_update(config, tx)
    fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    loss = jax.ShapeDtypeStruct((), jnp.float32)
    lowered = jax.jit(update, donate_argnums=0).lower(arrays, loss, arrays.params, arrays.batch_stats)
    text = lowered.compile(fast).as_text() or ""
    assert text[text.index("\nENTRY") :].count(" fusion(") < 700


@pytest.fixture
def quick_gradient(monkeypatch):
    """In place of the network: a loss whose gradient depends on every parameter, the images and the statistics."""

    def make_gradient(config, axis_name, mean):
        def loss_of(params, stats, images):
            moved = sum(jnp.sum(jnp.sin(p * (i + 1))) for i, p in enumerate(jax.tree.leaves(params)))
            return moved * jnp.mean(images) + sum(jnp.sum(x) for x in jax.tree.leaves(stats))

        def gradient(params, stats, stacked):
            loss, grads = jax.value_and_grad(loss_of)(params, stats, stacked.images)
            return LossGradient(loss, {"loss": loss}, grads, jax.tree.map(lambda x: 0.9 * x, stats))

        return gradient

    monkeypatch.setattr(steps, "make_gradient", make_gradient)


def taken(limit, monkeypatch, *, ahead=False, reload_at=None):
    """The state after five steps; at one of them it may be read by name and handed in anew."""
    monkeypatch.setattr(steps, "size_limit", lambda platform: limit)
    config, tx, state = setup()
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, num_denoising=0))
    step, state = make_train_step(config, tx), replicated(state)
    rows = jax.device_count()
    for index in range(5):
        images = np.full((rows, 1, 2, 2, 3), 20 * index, np.uint8)
        batch = Batch(
            images, np.zeros((rows, 1, 1), np.int32), np.ones((rows, 1, 1, 4), np.float32), np.ones((rows, 1, 1), bool)
        )
        if ahead and index == 0:
            step = step.lower(state, batch).compile()
            assert step.memory_analysis().argument_size_in_bytes > 0
        if index == reload_at:
            state = type(setup()[2])(**{name: jax.device_get(getattr(state, name)) for name in FIELDS}, key=state.key)
            state = replicated(state)
        state, metrics = step(state, batch)
    assert isinstance(state, PackedState) and bool(metrics.finite)
    return state


@pytest.mark.parametrize("limit", [None, 7])
def test_steps_move_packed_and_single_arrays_alike(limit, quick_gradient, monkeypatch):
    expected, got = taken(1, monkeypatch), taken(limit, monkeypatch)
    for name in FIELDS:
        same(getattr(got, name), getattr(expected, name), rtol=2e-5, atol=1e-6)
    same(ema_variables(got)["params"], got.ema_params, rtol=0)
    assert not np.allclose(jax.tree.leaves(got.params)[0], jax.tree.leaves(setup()[2].params)[0])


def test_a_state_read_by_name_goes_on_in_the_same_bits(quick_gradient, monkeypatch):
    expected = taken(7, monkeypatch)
    for options in ({"ahead": True}, {"reload_at": 2}, {"ahead": True, "reload_at": 3}):
        got = taken(7, monkeypatch, **options)
        for name in FIELDS:
            same(getattr(got, name), getattr(expected, name), rtol=0)
