"""Which optimiser takes which parameters of a query detector, where AdamW does not take all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dfine_jax.config import OptimConfig
from dfine_jax.families.family import Optimizer, Rule

# Kernels of attention and feed-forward layers; D-FINE-seg chooses the same by their names (dfine-seg 0.6.2).
_MATRICES = r"^(encoder|decoder)/.*(self_attn|cross_attn|linear[12]|gateway/gate)(/.+)?/kernel$"


def with_optimizers(rules: Sequence[Rule], optim: OptimConfig) -> tuple[Rule, ...]:
    """Rules for AdamW, of which the last takes the rest, as those of the configured optimisers, at their rates."""
    if optim.optimizer == "adamw":
        return tuple(rules)
    factor = {"adamw": 1.0, "adan": optim.adan_lr_factor}

    def moved(rule: Rule) -> Rule:
        name: Optimizer = optim.backbone_optimizer if rule.pattern.startswith("^backbone/") else optim.aux_optimizer
        return dataclasses.replace(rule, lr=factor[name] * rule.lr, optimizer=name)

    muon = Rule(_MATRICES, "muon", optim.muon_lr_factor * optim.lr, decay=True, optimizer="muon")
    return (*map(moved, rules[:-1]), muon, moved(rules[-1]))
