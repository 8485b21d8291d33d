"""Accumulation, recomputation, bfloat16 and input sizes: what they must not change, and what they save."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from tiny import random_batch, tiny_config, tiny_segmenter, with_masks

from dfine_jax.families.dfine.model import DFine, init_variables
from dfine_jax.ops.resize import nearest_index
from dfine_jax.training.step.kept_programs import peak_bytes
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.programs import TrainPrograms
from dfine_jax.training.step.state import create_state
from dfine_jax.training.step.step import make_train_step, replicated

EXACT = {"assignment": "device"}
FAST = {"xla_backend_optimization_level": 0}  # to compile


def fresh_state(config):
    tx = make_optimizer(config.model, config.optim)
    return tx, replicated(create_state(init_variables(config.model, jax.random.key(0)), tx, jax.random.key(1)))


def take(config, batch, size_px=None):
    """Metrics, state and memory of one step."""
    tx, state = fresh_state(config)
    program = make_train_step(config, tx, size_px=size_px).lower(state, batch).compile(FAST)
    state, metrics = program(state, batch)
    return jax.device_get(metrics), jax.device_get(state.params), peak_bytes(program)


def paired_batch(pairs=2):
    """Images that come twice, so that both halves have the statistics of the whole, with different objects."""
    batch = random_batch(3, 1, 2 * pairs, counts=[3, 1, 2, 3] + [1, 3] * (pairs - 2))
    images = np.concatenate([batch.images[:, :pairs]] * 2, 1)
    return batch._replace(images=images)


def assert_close(ours, theirs, metrics, other_metrics):
    np.testing.assert_allclose(metrics.loss, other_metrics.loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.grad_norm, other_metrics.grad_norm, rtol=1e-4)
    # Adam turns rounding in tiny gradients into steps of full length, so single values may differ by a learning rate.
    apart = np.concatenate(
        [np.ravel(a - b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)]
    )
    assert np.abs(apart).max() < 2.1e-3 and np.abs(apart).mean() < 2e-5


def with_and_without_masks(test):
    """The test for a detector and a segmenter: what makes its configuration, and what completes a batch."""
    cases = [(tiny_config, lambda batch: batch), (tiny_segmenter, lambda batch: with_masks(batch, without=1))]
    return pytest.mark.parametrize(("tiny", "complete"), cases, ids=["boxes", "masks"])(test)


@pytest.mark.slow
@with_and_without_masks
def test_parts_of_a_batch_give_the_step_of_the_whole(tiny, complete):
    config = tiny(loss=EXACT)
    batch = complete(paired_batch())
    whole_metrics, whole, _ = take(config, batch)
    parts = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=2))
    metrics, params, _ = take(parts, batch)
    assert metrics.finite and set(metrics.terms) == set(whole_metrics.terms)
    for name, value in whole_metrics.terms.items():
        np.testing.assert_allclose(metrics.terms[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert_close(params, whole, metrics, whole_metrics)


def kept_mib(config, remat):
    """What the forward pass keeps for the backward pass."""
    images = np.zeros((16, 64, 64, 3), np.float32)
    variables = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))

    def residuals(variables):
        def apply(params):
            detector = DFine(config, remat=remat)
            return detector.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])

        return jax.vjp(apply, variables["params"])[1]

    leaves = jax.tree.leaves(jax.eval_shape(residuals, variables))
    return sum(x.size * x.dtype.itemsize for x in leaves) / 2**20


@pytest.mark.slow
def test_what_is_computed_again_is_not_kept():
    parts = ("backbone", "encoder", "decoder")
    model = tiny_config().model
    whole = kept_mib(model, ())
    less = {part: whole - kept_mib(model, (part,)) for part in parts}
    without = kept_mib(model, parts)
    print(f"{whole:.1f} MiB, of them {less}, without {without:.1f}")
    assert all(saved > 0.05 * whole for saved in less.values()) and without < 0.15 * whole
    np.testing.assert_allclose(sum(less.values()), whole - without, rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_held_batch_norms_do_not_drift(accumulate):
    config = tiny_config(loss=EXACT, optim={"freeze": ("^(backbone|encoder)/",)}, train={"accumulate": accumulate})
    tx, state = fresh_state(config)
    held = jax.tree.leaves((state.batch_stats, state.params["backbone"], state.params["encoder"]))
    before = [np.array(x) for x in held]
    heads = np.array(state.params["decoder"]["enc_score_head"]["kernel"])
    batch = random_batch(1, 1, 4)
    program = make_train_step(config, tx).lower(state, batch).compile(FAST)
    state, metrics = program(state, batch)
    assert metrics.finite and not np.array_equal(state.params["decoder"]["enc_score_head"]["kernel"], heads)
    after = [state.batch_stats, state.params["backbone"], state.params["encoder"]]
    averages = [state.ema_batch_stats, state.ema_params["backbone"], state.ema_params["encoder"]]
    for leaves in (jax.tree.leaves(after), jax.tree.leaves(averages)):
        assert all(np.array_equal(old, new) for old, new in zip(before, leaves, strict=True))


@pytest.mark.slow
@with_and_without_masks
def test_computing_again_changes_nothing(tiny, complete):
    config = tiny(loss=EXACT)
    batch = complete(random_batch(1, 1, 16))
    metrics, params, memory = take(config, batch)
    again = dataclasses.replace(
        config, train=dataclasses.replace(config.train, remat=("backbone", "encoder", "decoder"))
    )
    other_metrics, other, less = take(again, batch)
    assert_close(other, params, other_metrics, metrics)
    print(f"{less / 2**20:.1f} MiB instead of {memory / 2**20:.1f}")
    assert less < 0.8 * memory


@pytest.mark.slow
@with_and_without_masks
def test_bfloat16_keeps_losses_close_and_weights_in_float32(tiny, complete):
    config = tiny(loss={"assignment": "device"})
    batch = complete(random_batch(1, 1, 4))
    metrics, _, _ = take(config, batch)
    short, params, _ = take(
        dataclasses.replace(config, model=dataclasses.replace(config.model, precision="bfloat16")), batch
    )
    assert short.finite and {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
    np.testing.assert_allclose(short.loss, metrics.loss, rtol=0.05)
    assert short.loss != metrics.loss


@pytest.mark.slow
def test_every_size_is_compiled_once_and_sees_the_resized_images():
    config = tiny_config(loss=EXACT)
    batch = random_batch(1, 1, 4)
    tx, state = fresh_state(config)
    programs, lines = TrainPrograms(config, tx, [(32, 32), (64, 64)], 3), []
    programs.compile(state, batch, lines.append)
    assert "32x32, 64x64" in lines[1]
    assert "GiB per device" in lines[0] and programs.peak_bytes > 0
    _, small = programs((32, 32), state, batch)
    rows = nearest_index(64, 32)
    resized = batch._replace(images=batch.images[:, :, rows][:, :, :, rows])
    expected, _, _ = take(config, resized)
    np.testing.assert_allclose(small.loss, expected.loss, rtol=1e-5)
    np.testing.assert_allclose(small.grad_norm, expected.grad_norm, rtol=1e-3)  # float32: 1.1e-4
