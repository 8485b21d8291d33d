"""A small train state and a description, for tests of checkpoints."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dfine_jax.config import Config, OptimConfig, TrainConfig
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.training.run.checkpoint import Metadata
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.state import create_state

CONFIG = Config(model=model_config("n", num_classes=2), loss=LossConfig(), train=TrainConfig(method="dfine"))
METADATA = Metadata(CONFIG, ("cat", "dog"), (3, 17), "dfine_n.pth", "ab" * 32, "Apache-2.0", epoch=4, ap=0.25)


def small_state(value: float = 0.0):
    leaf = lambda *shape: jnp.full(shape, value, jnp.float32)  # noqa: E731
    params = {
        "backbone": {"stem": {"conv": {"kernel": leaf(3, 2)}}},
        "encoder": {"norm": {"scale": leaf(2), "bias": leaf(2)}, "proj": {"kernel": leaf(2, 2)}},
        "decoder": {"head": {"kernel": leaf(2, 2), "bias": leaf(2)}},
    }
    stats = {"backbone": {"stem": {"bn": {"mean": leaf(2), "var": leaf(2)}}}}
    tx = make_optimizer(CONFIG.model, OptimConfig())
    state = create_state({"params": params, "batch_stats": stats}, tx, jax.random.key(7))
    return state.replace(step=jnp.asarray(11, jnp.int32), opt_state=jax.tree.map(lambda x: x + 1, state.opt_state))
