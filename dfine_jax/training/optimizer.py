"""AdamW with the reference's parameter groups, clipping by global norm, linear warm-up, and the average of weights.

The groups are the ones the reference's regular expressions build when they run, not the ones they seem to mean
(configs/dfine/dfine_hgnetv2_*_coco.yml, src/core/yaml_config.py): the alternation in ``(?=.*norm|bn)`` leaves the
"backbone norm without decay" group empty, so batch norms of the backbone do decay, and in L and X so do the biases
outside the backbone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dfine_jax.config import ModelConfig, OptimConfig

PyTree = Any
CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_


@dataclasses.dataclass(frozen=True)
class Rule:
    """Treatment of the parameters whose ``/``-joined path matches and no earlier rule claimed."""

    pattern: str
    lr: Literal["base", "backbone", "frozen"]
    decay: bool


def parameter_rules(model: ModelConfig, optim: OptimConfig) -> tuple[Rule, ...]:
    """Ordered rules of a variant; the last one takes the rest."""
    rules = []
    if model.backbone_frozen_stem:
        rules.append(Rule(r"^backbone/stem/", "frozen", decay=False))
    if model.backbone_frozen_bn:
        rules.append(Rule(r"^backbone/.*/bn/", "frozen", decay=False))
    rules.append(Rule(r"^backbone/", "backbone", decay=True))
    without_decay = r"norm\d?/(scale|bias)$" if optim.decay_bias else r"(norm\d?/scale|bias)$"
    rules.append(Rule(rf"^(encoder|decoder)/.*{without_decay}", "base", decay=False))
    rules.append(Rule(r"", "base", decay=True))
    return tuple(rules)


def match_rules(params: PyTree, rules: Sequence[Rule]) -> PyTree:
    """Tree like ``params`` with the rule of each leaf (the first that matches).

    Raises:
      ValueError: a leaf matches no rule, or a rule no leaf: then names and rules have drifted apart.
    """
    compiled = [re.compile(rule.pattern) for rule in rules]
    used = set()

    def rule_of(path: Any, _: Any) -> Rule:
        name = "/".join(str(key.key) for key in path)
        for index, regex in enumerate(compiled):
            if regex.search(name):
                used.add(index)
                return rules[index]
        raise ValueError(f"no optimiser rule matches parameter {name!r}")

    matched = jax.tree_util.tree_map_with_path(rule_of, params)
    idle = [rules[i].pattern for i in range(len(rules)) if i not in used]
    if idle:
        raise ValueError(f"optimiser rules that match no parameter: {', '.join(map(repr, idle))}")
    return matched


def zero_frozen(grads: PyTree, rules: Sequence[Rule]) -> PyTree:
    """Gradients with those of frozen parameters set to zero, so that they count in no norm."""

    def keep(grad: Array, rule: Rule) -> Array:
        return jnp.zeros_like(grad) if rule.lr == "frozen" else grad

    return jax.tree.map(keep, grads, match_rules(grads, rules))


def clip_coefficient(norm: Float[Array, ""], limit: float) -> Float[Array, ""]:
    """Factor that brings gradients of this global norm to at most ``limit``."""
    return jnp.minimum(1.0, limit / (norm + CLIP_EPS))


def warmup_factor(step: Int[Array, ""], warmup_steps: int) -> Float[Array, ""] | float:
    """Share of the learning rate at 0-based ``step``: ``(step + 1) / warmup_steps``, then 1."""
    return jnp.minimum(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


class _RateState(NamedTuple):
    count: Int[Array, ""]


def _scale_by_rates(rules: Sequence[Rule], optim: OptimConfig) -> optax.GradientTransformation:
    """Last link of the chain: minus the learning rate of each parameter's rule, warmed up."""
    rates = {"base": optim.lr, "backbone": optim.backbone_lr, "frozen": 0.0}

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, _RateState]:
        del params
        factor = warmup_factor(state.count, optim.warmup_steps)

        def scale(u: Array, rule: Rule) -> Array:
            return -rates[rule.lr] * jnp.asarray(factor, u.dtype) * u

        return jax.tree.map(scale, updates, match_rules(updates, rules)), _RateState(state.count + 1)

    return optax.GradientTransformation(lambda params: _RateState(jnp.zeros((), jnp.int32)), update)


def make_optimizer(model: ModelConfig, optim: OptimConfig) -> optax.GradientTransformation:
    """AdamW on gradients that are already clipped; ``init`` checks the rules against the parameters.

    Matches torch.optim.AdamW: decay ``lr * weight_decay`` is decoupled and warms up with the learning rate.
    """
    rules = parameter_rules(model, optim)

    def decays(params: PyTree) -> PyTree:
        return jax.tree.map(lambda rule: rule.decay, match_rules(params, rules))

    return optax.chain(
        optax.scale_by_adam(b1=optim.beta1, b2=optim.beta2, eps=1e-8),
        optax.add_decayed_weights(optim.weight_decay, mask=decays),
        _scale_by_rates(rules, optim),
    )


def ema_decay(update: Int[Array, ""], optim: OptimConfig) -> Float[Array, ""]:
    """Decay of the average at the ``update``-th step, counted from 1 (reference: src/optim/ema.py)."""
    if optim.ema_warmup_steps == 0:
        return jnp.asarray(optim.ema_decay)
    return optim.ema_decay * (1 - jnp.exp(-update / optim.ema_warmup_steps))


def ema_update(average: PyTree, new: PyTree, decay: Float[Array, ""]) -> PyTree:
    """``decay * average + (1 - decay) * new`` for every leaf."""
    return jax.tree.map(lambda a, n: a + (1 - decay).astype(a.dtype) * (n - a), average, new)
