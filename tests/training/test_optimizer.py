"""Parameter groups of all variants, and AdamW, clipping, warm-up and averaging against torch's definitions."""

from __future__ import annotations

import csv
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import variables_from_state_dict

from dfine_jax.config import OptimConfig
from dfine_jax.training import optimizer
from dfine_jax.training.recipes import CUSTOM
from dfine_jax.variants import model_config

# Specification 1.6, measured on the reference: (tensors, elements) of backbone, no-decay and remaining parameters.
GROUPS = {
    "n": ((186, 1_850_396), (151, 16_015), (91, 1_916_280)),
    "s": ((186, 1_850_396), (191, 38_135), (111, 8_433_344)),
    "m": ((262, 6_026_626), (242, 52_780), (140, 13_510_656)),
    "l": ((75, 13_482_752), (220, 39_936), (274, 17_696_534)),
    "x": ((125, 33_206_400), (226, 56_576), (277, 29_333_142)),
}
FROZEN_STEM = {"n": 0, "s": 0, "m": 0, "l": 24_928, "x": 25_440}  # 1.4 without the scalars up and reg_scale


def official_params(keys_dir, variant):
    """Zero-memory parameters of a variant under our names; frozen batch norms have scale and bias too."""
    state = {}
    with open(keys_dir / f"{variant}.tsv") as file:
        for key, shape, *_ in csv.reader(file, delimiter="\t"):
            state[key] = np.broadcast_to(np.float32(0), tuple(map(int, re.findall(r"\d+", shape))))
    return variables_from_state_dict(state)["params"]


@pytest.mark.parametrize("variant", list(GROUPS))
def test_groups_are_those_of_the_reference(golden_dir, variant):
    keys = golden_dir.parent / "spec" / "keys"
    if not keys.is_dir():
        pytest.skip("key lists of the official models not found")
    params = official_params(keys, variant)
    optim = OptimConfig(decay_bias=CUSTOM[variant].decay_bias)
    rules = optimizer.match_rules(params, optimizer.parameter_rules(model_config(variant), optim))
    counts = {}
    jax.tree.map(lambda r, p: counts.setdefault((r.lr, r.decay), []).append(p.size), rules, params)
    groups = [counts.get(k, []) for k in (("backbone", True), ("base", False), ("base", True))]
    assert tuple((len(g), sum(g)) for g in groups) == GROUPS[variant]
    frozen = [p for p, r in zip(jax.tree.leaves(params), jax.tree.leaves(rules), strict=True) if r.lr == "frozen"]
    assert sum(p.size for p in frozen if p.ndim == 4) == FROZEN_STEM[variant]
    backbone = jax.tree_util.tree_leaves_with_path(params["backbone"])
    norms = sum("bn" in jax.tree_util.keystr(path) for path, _ in backbone)
    assert sum(p.ndim == 1 for p in frozen) == (norms if FROZEN_STEM[variant] else 0)


def test_a_rule_that_matches_nothing_is_an_error():
    params = {"encoder": {"norm": {"scale": jnp.ones(2)}}}
    with pytest.raises(ValueError, match="match no parameter: '\\^backbone/'"):
        optimizer.make_optimizer(model_config("n"), OptimConfig()).init(params)


def test_a_parameter_without_rule_is_an_error():
    with pytest.raises(ValueError, match="no optimiser rule matches parameter 'neck/kernel'"):
        optimizer.match_rules({"neck": {"kernel": jnp.ones(2)}}, [optimizer.Rule("^head/", "base", True)])


def small_params():
    rng = np.random.RandomState(0)
    return {
        "backbone": {
            "stem": {"conv": {"kernel": rng.randn(3, 2)}, "bn": {"scale": rng.randn(2)}},
            "stages_0": {"conv": {"kernel": rng.randn(3, 2)}, "bn": {"scale": rng.randn(2)}},
        },
        "encoder": {
            "proj": {"kernel": rng.randn(4, 2), "bias": rng.randn(2)},
            "norm1": {"scale": rng.randn(2), "bias": rng.randn(2)},
        },
        "decoder": {"head": {"kernel": rng.randn(4, 2), "bias": rng.randn(2)}},
    }


@pytest.mark.parametrize(("variant", "decay_bias"), [("n", False), ("l", True)])
def test_update_is_torch_adamw(variant, decay_bias):
    torch = pytest.importorskip("torch")
    optim = OptimConfig(lr=1e-2, backbone_lr=3e-3, weight_decay=0.1, warmup_steps=4, decay_bias=decay_bias)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, small_params())
        tx = optimizer.make_optimizer(model_config(variant), optim)
        rules = optimizer.parameter_rules(model_config(variant), optim)
        matched = jax.tree.leaves(optimizer.match_rules(params, rules))
        weights = [
            torch.tensor(np.array(p), requires_grad=r.lr != "frozen")
            for p, r in zip(jax.tree.leaves(params), matched, strict=True)
        ]
        rate = {"base": optim.lr, "backbone": optim.backbone_lr}
        groups = [
            {"params": [w], "base": rate[r.lr], "weight_decay": optim.weight_decay * r.decay}
            for w, r in zip(weights, matched, strict=True)
            if r.lr != "frozen"
        ]
        reference = torch.optim.AdamW(groups, lr=1.0)
        state = tx.init(params)
        for step in range(6):
            grads = jax.tree.map(lambda p, s=step: jnp.sin(p * (s + 1)), params)
            for w in weights:
                w.grad = torch.sin(w.detach() * (step + 1)) if w.requires_grad else None
            for group in reference.param_groups:
                group["lr"] = group["base"] * min(1.0, (step + 1) / 4)
            norm = torch.nn.utils.clip_grad_norm_([w for w in weights if w.requires_grad], 0.1)
            reference.step()

            grads = optimizer.zero_frozen(grads, rules)
            ours = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
            np.testing.assert_allclose(ours, norm.item(), rtol=1e-12)
            grads = jax.tree.map(lambda g, n=ours: g * optimizer.clip_coefficient(n, 0.1), grads)
            updates, state = tx.update(grads, state, params)
            params = jax.tree.map(jnp.add, params, updates)
            for p, w in zip(jax.tree.leaves(params), weights, strict=True):
                np.testing.assert_allclose(p, w.detach().numpy(), rtol=1e-9, atol=1e-12)
        frozen = params["backbone"]["stages_0"]["bn"]["scale"]
        assert np.array_equal(frozen, small_params()["backbone"]["stages_0"]["bn"]["scale"]) == (variant == "l")


def test_warmup_counts_from_one():
    factors = [float(optimizer.warmup_factor(jnp.asarray(k), 4)) for k in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert optimizer.warmup_factor(jnp.asarray(0), 0) == 1.0


def test_average_follows_the_reference():
    optim = OptimConfig(ema_decay=0.9999, ema_warmup_steps=1000)
    np.testing.assert_allclose(optimizer.ema_decay(jnp.asarray(1), optim), 0.9999 * (1 - np.exp(-1 / 1000)), rtol=1e-4)
    constant = OptimConfig(ema_decay=0.9, ema_warmup_steps=0)
    np.testing.assert_allclose(optimizer.ema_decay(jnp.asarray(1), constant), 0.9, rtol=1e-6)
    out = optimizer.ema_update({"w": jnp.asarray(2.0)}, {"w": jnp.asarray(4.0)}, jnp.asarray(0.75))
    assert float(out["w"]) == 2.5
