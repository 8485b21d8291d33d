"""Parameter groups of the optimiser.

The groups are the ones the reference's regular expressions build when they run, not the ones they seem to mean
(configs/dfine/dfine_hgnetv2_*_coco.yml, src/core/yaml_config.py): the alternation in ``(?=.*norm|bn)`` leaves the
"backbone norm without decay" group empty, so batch norms of the backbone do decay, and in L and X so do the biases
outside the backbone. DEIM's S and M really do exempt batch norms, but at the full rate; its other sizes do not.
D-FINE-seg exempts them at the backbone's rate, and all biases and norms outside it.
"""

from __future__ import annotations

from dfine_jax.config import OptimConfig
from dfine_jax.families.dfine.config import ModelConfig
from dfine_jax.families.family import Rule
from dfine_jax.families.optimizers import with_optimizers


def rules(model: ModelConfig, optim: OptimConfig) -> tuple[Rule, ...]:
    """Ordered rules of a variant; the last one takes the rest."""
    found = []
    if model.backbone_frozen_stem:
        found.append(Rule(r"^backbone/stem/", "frozen", 0.0, decay=False))
    if model.backbone_frozen_bn:
        found.append(Rule(r"^backbone/.*/bn/", "frozen", 0.0, decay=False))
    elif optim.backbone_bn == "base":
        found.append(Rule(r"^backbone/.*/bn/", "base", optim.lr, decay=False))
    elif optim.backbone_bn == "no_decay":
        found.append(Rule(r"^backbone/.*/bn/", "backbone", optim.backbone_lr, decay=False))
    found.append(Rule(r"^backbone/", "backbone", optim.backbone_lr, decay=True))
    without_decay = r"(norm\d?|bn_?\d)/(scale|bias)$" if optim.decay_bias else r"((norm\d?|bn_?\d)/scale|bias)$"
    found.append(Rule(rf"^(encoder|decoder)/.*{without_decay}", "base", optim.lr, decay=False))
    found.append(Rule(r"", "base", optim.lr, decay=True))
    return with_optimizers(found, optim)
