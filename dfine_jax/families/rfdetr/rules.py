"""Parameter groups of the optimiser (``rfdetr.training.param_groups`` of package rfdetr 1.11.2).

Rates fall from block to block of the backbone towards the picture, by ``optim.layer_decay``, and by
``optim.component_decay`` once in the decoder's layers and twice in the backbone. In the backbone norms, biases and
embeddings have no weight decay; everywhere else norms and biases have.
"""

from __future__ import annotations

from dfine_jax.config import ConfigError, OptimConfig
from dfine_jax.families.backbones.dinov2 import BACKBONES
from dfine_jax.families.family import Rule
from dfine_jax.families.rfdetr.config import RFDetrConfig


def rules(model: RFDetrConfig, optim: OptimConfig) -> tuple[Rule, ...]:
    """Ordered rules of a variant; the last one takes the rest.

    Raises:
      ConfigError: another optimiser than AdamW.
    """
    if optim.optimizer != "adamw":
        raise ConfigError(f"optim.optimizer={optim.optimizer}: this family trains by adamw alone; leave it out")
    blocks = BACKBONES[model.backbone].blocks
    full, layer_decay = optim.backbone_lr * optim.component_decay**2, optim.layer_decay
    found = [Rule(r"^backbone/layernorm/", "backbone", full, decay=False)]  # first: the curve in the log is its rate
    for block in range(blocks):
        rate = full * layer_decay ** (blocks + 1 - block)
        found.append(Rule(rf"^backbone/layer_{block}/(norm\d/|.*/bias$)", "backbone", rate, decay=False))
        found.append(Rule(rf"^backbone/layer_{block}/", "backbone", rate, decay=True))
    embeddings = full * layer_decay ** (blocks + 2)
    found.append(Rule(r"^backbone/", "backbone", embeddings, decay=False))
    decoder = optim.lr * optim.component_decay
    found.append(Rule(r"^decoder/(layers_\d+|norm|ref_point_head)/", "decoder", decoder, decay=True))
    found.append(Rule(r"", "base", optim.lr, decay=True))
    return tuple(found)
