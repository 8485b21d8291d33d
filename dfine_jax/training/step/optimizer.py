"""Optimisers with parameter groups, clipping by global norm, and the average of weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dfine_jax.config import ConfigError, ModelSection, OptimConfig
from dfine_jax.families import of
from dfine_jax.families.family import Rule
from dfine_jax.training.step.muon_adan import adan_decay, each_by_its_own, scale_by_adan, scale_by_muon

PyTree = Any
CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_


def parameter_rules(model: ModelSection, optim: OptimConfig) -> tuple[Rule, ...]:
    """Ordered rules: what ``optim.freeze`` holds, then those of the family."""
    held = [Rule(_valid_pattern(pattern), "frozen", 0.0, decay=False) for pattern in optim.freeze]
    return (*held, *of(model).rules(model, optim))


def _valid_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"optim.freeze: {pattern!r} is not a regular expression ({error})") from error
    return pattern


def match_rules(params: PyTree, rules: Sequence[Rule]) -> PyTree:
    """Tree like ``params`` with the rule of each leaf (the first that matches).

    Raises:
      ValueError: a leaf matches no rule, or a rule no leaf: then names and rules have drifted apart.
    """
    found = matching_rules(params, rules)
    used = {index for matching in found for index in matching}
    idle = [rules[i].pattern for i in range(len(rules)) if i not in used]
    if idle:
        raise ValueError(f"optimiser rules that match no parameter: {', '.join(map(repr, idle))}")
    return jax.tree.unflatten(jax.tree.structure(params), [rules[matching[0]] for matching in found])


def matching_rules(params: PyTree, rules: Sequence[Rule]) -> list[tuple[int, ...]]:
    """Of each leaf, the indices of all rules that match its path.

    Raises:
      ValueError: no rule matches a leaf.
    """
    compiled = [re.compile(rule.pattern) for rule in rules]
    found = []
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(str(key.key) for key in path)
        matching = tuple(index for index, regex in enumerate(compiled) if regex.search(name))
        if not matching:
            raise ValueError(f"no optimiser rule matches parameter {name!r}")
        found.append(matching)
    return found


def check_freeze(params: PyTree, optim: OptimConfig) -> tuple[int, int]:
    """Numbers of values that ``optim.freeze`` holds, and of all.

    Raises:
      ConfigError: a pattern matches nothing, or everything is held.
    """
    sizes = {
        "/".join(str(key.key) for key in path): leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    held: set[str] = set()
    for pattern in optim.freeze:
        found = {name for name in sizes if re.search(_valid_pattern(pattern), name)}
        if not found:
            raise ConfigError(
                f"optim.freeze: {pattern!r} matches no parameter; they are named like {next(iter(sizes))}"
            )
        held |= found
    if len(held) == len(sizes):
        raise ConfigError("optim.freeze holds all parameters; nothing is left to train")
    return sum(sizes[name] for name in held), sum(sizes.values())


def freeze_notes(params: PyTree, optim: OptimConfig) -> list[str]:
    """What the log says of held parameters. Errors as ``check_freeze``."""
    held, whole = check_freeze(params, optim)
    return [f"optim.freeze holds {held:,} of {whole:,} parameters"] if held else []


def zero_frozen(grads: PyTree, rules: Sequence[Rule]) -> PyTree:
    """Gradients with those of frozen parameters set to zero, so that they count in no norm."""

    def keep(grad: Array, rule: Rule) -> Array:
        return grad if rule.lr else jnp.zeros_like(grad)

    return jax.tree.map(keep, grads, match_rules(grads, rules))


def clip_coefficient(norm: Float[Array, ""], limit: float) -> Float[Array, ""]:
    """Factor that brings gradients of this global norm to at most ``limit``."""
    return jnp.minimum(1.0, limit / (norm + CLIP_EPS))


def make_optimizer(model: ModelSection, optim: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """The optimiser at the full rates on clipped gradients; ``init`` checks the rules against the parameters.

    The caller scales the updates by the schedule's share (training/step/schedule.py), which ``update`` takes too, as
    ``share``: Adan's decay is not in proportion to it. AdamW and Muon decay as torch.optim.AdamW does, by
    ``lr * weight_decay``, decoupled. Errors are those of ``check_freeze``.
    """
    ordered = parameter_rules(model, optim)

    def decays(params: PyTree) -> PyTree:
        check_freeze(params, optim)  # first, because a rule of these that matches nothing is the user's mistake
        return jax.tree.map(lambda rule: rule.decay, match_rules(params, ordered))

    def at_full_rates(updates: PyTree, state: Any, params: PyTree | None = None, *, share: Any = 1.0) -> Any:
        del params

        def scaled(update: Array, rule: Rule) -> Array:
            if rule.optimizer == "adan" and rule.decay:
                update = update * adan_decay(jnp.asarray(share, update.dtype) * rule.lr, optim.weight_decay)
            return -rule.lr * update

        return jax.tree.map(scaled, updates, match_rules(updates, ordered)), state

    adamw = optax.scale_by_adam(b1=optim.beta1, b2=optim.beta2, eps=1e-8)
    directions = adamw
    if optim.optimizer != "adamw":
        directions = each_by_its_own(
            {"adamw": adamw, "adan": scale_by_adan(), "muon": scale_by_muon()},
            lambda tree: jax.tree.map(lambda rule: rule.optimizer if rule.lr else "", match_rules(tree, ordered)),
        )
    return optax.chain(
        directions,
        optax.add_decayed_weights(optim.weight_decay, mask=decays),
        optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), at_full_rates),
    )


def ema_update(average: PyTree, new: PyTree, decay: Float[Array, ""]) -> PyTree:
    """``decay * average + (1 - decay) * new`` for every leaf."""
    return jax.tree.map(lambda a, n: a + (1 - decay).astype(a.dtype) * (n - a), average, new)
