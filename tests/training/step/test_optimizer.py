"""Parameter groups of all variants, and AdamW, clipping, warm-up and averaging against torch's definitions."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden_weights import official_shapes, variables_from_state_dict

from dfine_jax.config import ConfigError, OptimConfig
from dfine_jax.families.dfine.tables import published
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.training.step import optimizer
from dfine_jax.training.step.schedule import Constant

# Specification 1.6, measured on the reference: (tensors, elements) of backbone, no-decay and remaining parameters.
GROUPS = {
    "n": ((186, 1_850_396), (151, 16_015), (91, 1_916_280)),
    "s": ((186, 1_850_396), (191, 38_135), (111, 8_433_344)),
    "m": ((262, 6_026_626), (242, 52_780), (140, 13_510_656)),
    "l": ((75, 13_482_752), (220, 39_936), (274, 17_696_534)),
    "x": ((125, 33_206_400), (226, 56_576), (277, 29_333_142)),
}
FROZEN_STEM = {"n": 0, "s": 0, "m": 0, "l": 24_928, "x": 25_440}  # 1.4 without the scalars up and reg_scale


def official_params(variant):
    """Zero-memory parameters of a variant under our names; frozen batch norms have scale and bias too."""
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in official_shapes(variant).items()}
    return variables_from_state_dict(state)["params"]


@pytest.mark.parametrize("variant", list(GROUPS))
def test_groups_are_those_of_the_reference(variant):
    params = official_params(variant)
    optim = published("dfine_custom", variant).optim
    rules = optimizer.match_rules(params, optimizer.parameter_rules(model_config(variant), optim))
    counts = {}
    jax.tree.map(lambda r, p: counts.setdefault((r.group, r.decay), []).append(p.size), rules, params)
    groups = [counts.get(k, []) for k in (("backbone", True), ("base", False), ("base", True))]
    assert tuple((len(g), sum(g)) for g in groups) == GROUPS[variant]
    frozen = [p for p, r in zip(jax.tree.leaves(params), jax.tree.leaves(rules), strict=True) if not r.lr]
    assert sum(p.size for p in frozen if p.ndim == 4) == FROZEN_STEM[variant]
    backbone = jax.tree_util.tree_leaves_with_path(params["backbone"])
    norms = sum("bn" in jax.tree_util.keystr(path) for path, _ in backbone)
    assert sum(p.ndim == 1 for p in frozen) == (norms if FROZEN_STEM[variant] else 0)


# DEIM's own expressions on official names, in their order, with what they give: (rate, decay); the rest: base, decay.
# ``(?!.*norm|bn)`` does not exclude names with "bn" in the middle, so it takes the backbone's batch norms too.
DEIM_GROUPS = {
    "n": {
        r"^(?=.*backbone)(?!.*norm|bn).*$": ("backbone", True),
        r"^(?=.*backbone)(?=.*norm|bn).*$": ("backbone", False),
        r"^(?=.*(?:encoder|decoder))(?=.*(?:norm|bn|bias)).*$": ("base", False),
    },
    "s": {r"^(?=.*backbone)(?!.*bn).*$": ("backbone", True), r"^(?=.*(?:norm|bn)).*$": ("base", False)},
    "l": {
        r"^(?=.*backbone)(?!.*norm|bn).*$": ("backbone", True),
        r"^(?=.*(?:encoder|decoder))(?=.*(?:norm|bn)).*$": ("base", False),
    },
}


@pytest.mark.parametrize(("variant", "like"), [("n", "n"), ("s", "s"), ("m", "s"), ("l", "l"), ("x", "l")])
def test_groups_of_deim_are_those_of_its_expressions_on_official_names(variant, like):
    config = published("deim_coco", variant)
    rules = optimizer.parameter_rules(config.model, config.optim)
    found = traverse_util.flatten_dict(optimizer.match_rules(official_params(variant), rules), sep="/")
    seen = set()
    for key, shape in official_shapes(variant).items():
        tree = variables_from_state_dict({key: np.broadcast_to(np.float32(0), shape)})["params"]
        for path in traverse_util.flatten_dict(tree, sep="/"):
            groups = (group for pattern, group in DEIM_GROUPS[like].items() if re.findall(pattern, key))
            assert (found[path].group, found[path].decay) == next(groups, ("base", True)), key
            seen.add(path)
    assert seen == set(found)


def test_frozen_by_rule():
    optim = OptimConfig(lr=1.0, backbone_lr=1.0, weight_decay=0.5, freeze=("^backbone/", "head/bias$"))
    params = jax.tree.map(jnp.asarray, small_params())
    tx = optimizer.make_optimizer(model_config("n"), optim)
    grads = optimizer.zero_frozen(params, optimizer.parameter_rules(model_config("n"), optim))
    updates, _ = tx.update(grads, tx.init(params), params)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/"): bool(np.any(u))
        for path, u in jax.tree.leaves_with_path(updates)
    }
    held = {name for name, moves in moved.items() if not moves}
    assert held == {name for name in moved if name.startswith("backbone/")} | {"decoder/head/bias"}
    assert optimizer.check_freeze(params, optim)[0] == sum(np.size(p) for p in jax.tree.leaves(params["backbone"])) + 2


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("^neck/",), r"'\^neck/' matches no parameter; they are named like "),
        (("(",), "is not a regular expression"),
        (("",), "holds all parameters"),
    ],
)
def test_freezing_by_a_wrong_rule(freeze, message):
    with pytest.raises(ConfigError, match=message):
        optimizer.check_freeze(small_params(), OptimConfig(freeze=freeze))
    with pytest.raises(ConfigError, match=message):  # before anything else is wrong with it
        optimizer.make_optimizer(model_config("n"), OptimConfig(freeze=freeze)).init(small_params())


def test_a_rule_that_matches_nothing_is_an_error():
    params = {"encoder": {"norm": {"scale": jnp.ones(2)}}}
    with pytest.raises(ValueError, match="match no parameter: '\\^backbone/'"):
        optimizer.make_optimizer(model_config("n"), OptimConfig()).init(params)


def test_a_parameter_without_rule_is_an_error():
    with pytest.raises(ValueError, match="no optimiser rule matches parameter 'neck/kernel'"):
        optimizer.match_rules({"neck": {"kernel": jnp.ones(2)}}, [optimizer.Rule("^head/", "base", 1.0, True)])


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
            torch.tensor(np.array(p), requires_grad=r.lr > 0)
            for p, r in zip(jax.tree.leaves(params), matched, strict=True)
        ]
        groups = [
            {"params": [w], "base": r.lr, "weight_decay": optim.weight_decay * r.decay}
            for w, r in zip(weights, matched, strict=True)
            if r.lr
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
            share = Constant(optim.warmup_steps)(jnp.asarray(step))
            updates = jax.tree.map(lambda u, share=share: share * u, updates)
            params = jax.tree.map(jnp.add, params, updates)
            for p, w in zip(jax.tree.leaves(params), weights, strict=True):
                np.testing.assert_allclose(p, w.detach().numpy(), rtol=1e-9, atol=1e-12)
        frozen = params["backbone"]["stages_0"]["bn"]["scale"]
        assert np.array_equal(frozen, small_params()["backbone"]["stages_0"]["bn"]["scale"]) == (variant == "l")


def test_average_moves_by_the_rest_of_the_decay():
    out = optimizer.ema_update({"w": jnp.asarray(2.0)}, {"w": jnp.asarray(4.0)}, jnp.asarray(0.75))
    assert float(out["w"]) == 2.5
