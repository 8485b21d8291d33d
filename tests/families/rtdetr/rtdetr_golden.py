"""Weights of the reference numbers of RT-DETRv2 as our variables, by names made here and not by the library."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import golden_fill
import jax
import numpy as np

from dfine_jax.families.rtdetr.model import RTDetr
from dfine_jax.families.rtdetr.variants import VARIANTS

IMAGE = jax.ShapeDtypeStruct((1, 128, 128, 3), np.float32)


def shapes_of(config) -> dict[str, Any]:
    """The tree of variables, traced."""
    return jax.eval_shape(lambda x: RTDetr(config).init(jax.random.key(0), x, train=True), IMAGE)


def state_dict(golden, statistics: bool = True) -> dict[str, np.ndarray]:
    """Official state dict of R18; without ``statistics`` those of batch norms are 0 and 1."""
    manifest = golden("families/manifest_rtdetrv2_r18.json")
    if statistics:
        return golden_fill.state_dict(manifest, golden("families/bnstats_rtdetrv2_r18.npz"))
    listed = json.loads(Path(manifest).read_text())
    return {key: golden_fill.fill(key, tuple(shape), listed["seed"]) for key, shape in listed["random"].items()}


def official(path: str) -> str:
    """Official name of a leaf."""
    collection, *modules, leaf = path.split("/")
    leaf = f"running_{leaf}" if collection == "batch_stats" else re.sub("^(kernel|scale|embedding)$", "weight", leaf)
    key = "." + ".".join([*modules, leaf])
    key = re.sub(r"(?<!\.conv1)_(?=\d+\.)", ".", key).replace(".in_proj.", ".in_proj_")
    key = re.sub(r"^\.decoder\.layers\.", ".decoder.decoder.layers.", key)
    return re.sub(r"(res_layers\.[123]\.blocks\.0\.short\.)", r"\1conv.", key)[1:]


def variables(state, config=VARIANTS["r18"], dtype=np.float32) -> dict[str, Any]:
    """Our variables of a state dict; absent statistics are 0 and 1."""

    def leaf(path, shape) -> np.ndarray:
        name = "/".join(str(part.key) for part in path)
        key = official(name)
        if key not in state and name.startswith("batch_stats"):
            return np.full(shape.shape, float(name.endswith("var")), dtype)
        array = np.asarray(state[key], dtype)
        if name.endswith("/kernel"):
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        assert array.shape == shape.shape, name
        return np.ascontiguousarray(array)

    return jax.tree_util.tree_map_with_path(leaf, shapes_of(config))
