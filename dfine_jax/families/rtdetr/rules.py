"""Parameter groups of the optimiser, as the regular expressions of the reference's configurations act.

Batch norms of the backbone, where they are trained, never decay. R34 alone takes the weight decay off all biases of
encoder and decoder; the others off those of norms.
"""

from __future__ import annotations

from dfine_jax.config import OptimConfig
from dfine_jax.families.family import Rule
from dfine_jax.families.optimizers import with_optimizers
from dfine_jax.families.rtdetr.config import RTDetrConfig


def rules(model: RTDetrConfig, optim: OptimConfig) -> tuple[Rule, ...]:
    """Ordered rules of a variant; the last one takes the rest."""
    found = []
    if model.backbone_frozen_stem:
        found.append(Rule(r"^backbone/(conv1|stem)/", "frozen", 0.0, decay=False))
    if model.sampling == "discrete":
        found.append(Rule(r"^decoder/layers_\d+/cross_attn/sampling_offsets/", "frozen", 0.0, decay=False))
    norms = r"^backbone/.*/(norm|bn)/"
    if model.backbone_frozen_bn:
        found.append(Rule(norms, "frozen", 0.0, decay=False))
    elif optim.backbone_bn == "base":
        found.append(Rule(norms, "base", optim.lr, decay=False))
    else:
        found.append(Rule(norms, "backbone", optim.backbone_lr, decay=False))
    found.append(Rule(r"^backbone/", "backbone", optim.backbone_lr, decay=True))
    without_decay = r"norm\d?/(scale|bias)$" if optim.decay_bias else r"(norm\d?/scale|bias)$"
    found.append(Rule(rf"^(encoder|decoder)/.*{without_decay}", "base", optim.lr, decay=False))
    found.append(Rule(r"", "base", optim.lr, decay=True))
    return with_optimizers(found, optim)
