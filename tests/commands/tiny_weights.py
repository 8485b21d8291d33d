"""Checkpoints of tiny models: the architecture of a run that starts from them is theirs, so it is tiny, too."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
from tiny import tiny_config

from dfine_jax.config import Config
from dfine_jax.families.dfine.model import init_variables
from dfine_jax.training.run.checkpoint import Metadata, save_weights


def tiny_weights(
    folder: Path, names: tuple[str, ...] = ("cat", "circle"), *, data=None, method="dfine", **model
) -> Path:
    """A checkpoint with a value of its own in every leaf, which costs no compilation.

    Args:
      names: its classes.
      data: fields of its data configuration.
      method: whose recipe it was trained with.
      model: fields of its architecture.
    """
    config: Config = tiny_config(model={"num_classes": len(names), **model}, data={"workers": 0, **(data or {})})
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, method=method))
    shapes = jax.eval_shape(lambda: init_variables(config.model, jax.random.key(0)))
    leaves, structure = jax.tree.flatten(shapes)
    filled = [np.full(leaf.shape, 1 + i, leaf.dtype) for i, leaf in enumerate(leaves)]
    save_weights(folder, jax.tree.unflatten(structure, filled), Metadata(config, names, tuple(range(len(names)))))
    return folder
