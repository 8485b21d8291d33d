"""Muon and Adan against their formulas in NumPy, which parameters they take, and their state."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_optimizer import official_params
from test_packing import FIELDS, packed, same

from dfine_jax.config import Config, OptimConfig
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.variants import VARIANTS, model_config
from dfine_jax.training.step import optimizer
from dfine_jax.training.step.muon_adan import orthogonalised
from dfine_jax.training.step.packing import CPU_LIMIT, PackedState
from dfine_jax.training.step.state import create_state
from dfine_jax.training.step.step import make_update

OPTIM = OptimConfig(
    lr=1e-2, backbone_lr=3e-3, weight_decay=0.1, optimizer="muon", backbone_bn="no_decay", clip_norm=1e9, warmup_steps=4
)


def params():
    rng = np.random.RandomState(0)
    layer = {
        "self_attn": {"in_proj": {"kernel": rng.randn(4, 12), "bias": rng.randn(12)}},
        "cross_attn": {"attention_weights": {"kernel": rng.randn(4, 3)}},
        "linear1": {"kernel": rng.randn(4, 8)},
        "linear2": {"kernel": rng.randn(8, 4)},
        "gateway": {"gate": {"kernel": rng.randn(8, 8)}, "norm": {"scale": rng.randn(4)}},
    }
    return {
        "backbone": {
            "stem": {"conv": {"kernel": rng.randn(3, 3, 2, 2)}},
            "stages_0": {"conv": {"kernel": rng.randn(3, 2)}, "bn": {"scale": rng.randn(2)}},
        },
        "encoder": {"layers_0": {"linear1": {"kernel": rng.randn(4, 8)}, "norm1": {"scale": rng.randn(4)}}},
        "decoder": {"layers_0": layer, "head": {"kernel": rng.randn(4, 2), "bias": rng.randn(2)}},
    }


MUON = ("linear1", "linear2", "self_attn", "cross_attn", "gate/")


def treatment(name):
    """(optimiser, factor of the rate, decay) of a parameter of ``params`` by what the reference does with its name."""
    if name.startswith("backbone/"):
        return "adan", 5 * OPTIM.backbone_lr, "bn" not in name
    if name.endswith("kernel") and any(part in name for part in MUON):
        return "muon", 10 * OPTIM.lr, True
    return "adan", 5 * OPTIM.lr, name.endswith("kernel")


def newton_schulz(weight):
    x = weight.T if weight.shape[0] > weight.shape[1] else weight
    x = x / (np.sqrt((x**2).sum()) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.T if weight.shape[0] > weight.shape[1] else x


class Formulas:
    """One parameter in float64, kernels as [rows, columns] = [outputs, inputs]."""

    def __init__(self, name, value):
        self.kind, self.rate, self.decays = treatment(name)
        self.p = value.T.copy() if self.kind == "muon" else value.copy()
        self.m, self.v, self.n = (np.zeros_like(self.p) for _ in range(3))
        self.t, self.last = 0, None

    def step(self, g, share):
        self.t += 1
        lr, wd = self.rate * share, OPTIM.weight_decay * self.decays
        if self.kind == "muon":
            g = g.T
            self.m = 0.95 * self.m + 0.05 * g
            u = newton_schulz(0.05 * g + 0.95 * self.m) * math.sqrt(max(1, g.shape[0] / g.shape[1]))
            self.p = self.p * (1 - lr * wd) - lr * u
            return
        b1, b2, b3 = 0.98, 0.92, 0.99
        d = 0 if self.last is None else g - self.last
        self.last = g
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * d
        self.n = b3 * self.n + (1 - b3) * (g + b2 * d) ** 2
        c1, c2, c3 = (1 - b**self.t for b in (b1, b2, b3))
        direction = (self.m / c1 + b2 * self.v / c2) / (np.sqrt(self.n) / math.sqrt(c3) + 1e-8)
        self.p = (self.p - lr * direction) / (1 + lr * wd)

    @property
    def value(self):
        return self.p.T if self.kind == "muon" else self.p


def name_of(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float64, 1e-12), pytest.param(np.float32, 1e-6, marks=pytest.mark.slow)]
)
def test_steps_are_those_of_the_formulas(dtype, tolerance):
    with jax.enable_x64(dtype is np.float64):
        ours = jax.tree.map(lambda p: jnp.asarray(p, dtype), params())
        theirs = [Formulas(name_of(path), leaf) for path, leaf in jax.tree.leaves_with_path(params())]
        assert sum(formulas.kind == "muon" for formulas in theirs) == 6
        config = Config(model_config("n"), LossConfig(), optim=OPTIM)
        tx = optimizer.make_optimizer(config.model, config.optim)
        update = make_update(config, tx)
        state = create_state({"params": ours, "batch_stats": {}}, tx, jax.random.key(0))
        for step in range(6):
            grads = [np.sin(formulas.value * (step + 1)) for formulas in theirs]
            for formulas, grad in zip(theirs, grads, strict=True):
                formulas.step(grad, min(1, (step + 1) / 4))
            grads = jax.tree.unflatten(jax.tree.structure(ours), [jnp.asarray(g, dtype) for g in grads])
            state, _, finite = update(state, jnp.zeros(()), grads, {})
            assert finite
            for got, formulas in zip(jax.tree.leaves(state.params), theirs, strict=True):
                np.testing.assert_allclose(got, formulas.value, rtol=tolerance, atol=tolerance)


def test_what_optax_has_is_not_that():
    """If it becomes that, ours can go."""
    grads = [np.random.RandomState(i).randn(4, 3) for i in range(3)]
    formulas = {
        "muon": Formulas("encoder/linear1/kernel", np.zeros((4, 3))),
        "adan": Formulas("x/bias", np.zeros((4, 3))),
    }
    theirs = {
        "muon": optax.contrib.muon(10 * OPTIM.lr, weight_decay=OPTIM.weight_decay),
        "adan": optax.adan(5 * OPTIM.lr, eps_root=0.0),
    }
    for name, tx in theirs.items():
        value = {"w": jnp.zeros((4, 3))}
        state = tx.init(value)
        differences = []
        for grad in grads:
            formulas[name].step(grad, 1.0)
            updates, state = tx.update({"w": jnp.asarray(grad, jnp.float32)}, state, value)
            value = optax.apply_updates(value, updates)
            moved = np.abs(formulas[name].value)
            differences.append(np.max(np.abs(value["w"] - formulas[name].value)) / moved.max())
        assert differences[0] < 1e-3 and differences[2] > 0.01, name


def test_orthogonalised_keeps_singular_vectors():
    matrix = np.random.RandomState(1).randn(6, 9).astype(np.float32)
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    for tall in (False, True):
        got = np.array(orthogonalised(matrix.T)).T if tall else np.array(orthogonalised(matrix))
        inner = u.T @ got @ v.T
        assert np.abs(inner - np.diag(np.diag(inner))).max() < 2e-3
        assert 0.6 < np.diag(inner).min() and np.diag(inner).max() < 1.25
    stack = np.stack([matrix, 3 * matrix[::-1]])
    np.testing.assert_allclose(orthogonalised(stack)[1], orthogonalised(stack[1]), rtol=1e-5, atol=1e-6)
    assert not np.any(orthogonalised(np.zeros((3, 2), np.float32)))


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("backbone", ["adan", "adamw"])
def test_matrices_of_attention_and_feed_forward_layers_are_muons(variant, backbone):
    weights = official_params(variant)
    optim = dataclasses.replace(OPTIM, backbone_optimizer=backbone)
    rules = optimizer.match_rules(weights, optimizer.parameter_rules(model_config(variant), optim))
    taken, kinds = set(), {}
    for (path, leaf), rule in zip(jax.tree.leaves_with_path(weights), jax.tree.leaves(rules), strict=True):
        name = name_of(path)
        kinds.setdefault(name.startswith("backbone/") and rule.lr > 0, set()).add(rule.optimizer)
        if rule.optimizer == "muon":
            assert leaf.ndim == 2 and rule.decay and rule.lr == 0.1
            taken.add(name.split("/", 2)[-1].removeprefix("layers_0/"))
    assert kinds[True] == {backbone}
    gate = {"gateway/gate/kernel"}
    attention = {f"self_attn/{part}/kernel" for part in ("in_proj", "out_proj")}
    sampling = {f"cross_attn/{part}/kernel" for part in ("sampling_offsets", "attention_weights")}
    assert taken == {"linear1/kernel", "linear2/kernel"} | attention | sampling | gate
    matrices = sum(rule.optimizer == "muon" for rule in jax.tree.leaves(rules))
    assert matrices == 4 + 7 * model_config(variant).decoder_layers


def setup(optim=OPTIM):
    config = Config(model_config("n"), LossConfig(), optim=optim)
    tx = optimizer.make_optimizer(config.model, config.optim)
    weights = jax.tree.map(lambda x: np.asarray(x, np.float32), params())
    return config, tx, create_state({"params": weights, "batch_stats": {}}, tx, jax.random.key(0))


FROZEN = dataclasses.replace(OPTIM, freeze=("^(backbone|encoder)/", "^decoder/layers_0/"), aux_optimizer="adamw")


@pytest.mark.parametrize("limit", [None, 20, 1])
@pytest.mark.parametrize("optim", [OPTIM, FROZEN])
def test_packed_updates_are_those_of_single_arrays(limit, optim):
    config, tx, state = setup(optim)
    update = jax.jit(make_update(config, tx))
    there = packed(state, config, limit)
    layout = there.packing.params
    if limit is None and optim is OPTIM:  # both linear1 in one stack
        assert there.arrays.params["decoder/layers_0/linear1/kernel"].shape == (2, 4, 8)
    for step in range(4):
        grads = jax.tree.map(lambda p, s=step: jnp.sin(p * (s + 1)) / (s != 2), state.params)  # one is not finite
        grads = optimizer.zero_frozen(grads, optimizer.parameter_rules(config.model, optim))
        state, norm, finite = update(state, jnp.float32(1), grads, {})
        arrays, packed_norm, _ = update(there.arrays, jnp.float32(1), layout.pack(grads), {})
        there = PackedState(arrays, there.packing)
        assert finite == (step != 2)
        np.testing.assert_allclose(norm, packed_norm, rtol=1e-6)
        for name in FIELDS:
            same(getattr(there, name), getattr(state, name), rtol=1e-5, atol=1e-6)


def test_held_parameters_have_no_state_and_stay():
    config, tx, state = setup(FROZEN)
    kept = {name_of(path) for path, leaf in jax.tree.leaves_with_path(state.opt_state) if leaf.ndim}
    assert {name.rpartition("decoder/")[2] for name in kept} == {"head/kernel", "head/bias"}
    grads = jax.tree.map(jnp.ones_like, state.params)
    new, _, _ = make_update(config, tx)(state, jnp.zeros(()), grads, {})
    moved = {
        name_of(path)
        for (path, old), now in zip(jax.tree.leaves_with_path(state.params), jax.tree.leaves(new.params), strict=True)
        if np.any(old != now)
    }
    assert moved == {"decoder/head/kernel", "decoder/head/bias"}


@pytest.mark.parametrize("limit", [None, CPU_LIMIT])
def test_the_update_of_a_model_is_few_kernels(limit):
    from dfine_jax.families.dfine.model import init_variables

    config = Config(model_config("n"), LossConfig(), optim=OPTIM)
    tx = optimizer.make_optimizer(config.model, config.optim)
    state = jax.eval_shape(lambda: create_state(init_variables(config.model, jax.random.key(0)), tx, jax.random.key(1)))
    arrays = packed(state, config, limit).arrays
    stacks = [x for x in jax.tree.leaves(arrays.params) if x.ndim == 3]
    if limit is None:  # by shape: 128 x 384, 128, 512, 96, 192; 512 x 128; 256 x 256
        assert len(stacks) == 7 and sum(x.shape[0] for x in stacks) == 25
    assert len(arrays.params) < 90
