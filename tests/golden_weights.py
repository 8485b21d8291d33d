"""Reference weights and images, rebuilt from names, and their place in the variables of the model.

Two independent fills: the drawn one (``golden_fill.py``) and an integer hash. ``variables_from_state_dict`` applies the
naming contract to any official state dict, whole or partial.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import golden_fill
import numpy as np
from conftest import ROOT
from golden_fill import image as golden_image  # noqa: F401

_COMPUTED = re.compile(r"(^|\.)(up|reg_scale|anchors|valid_mask|num_points_scale|num_batches_tracked)$")


def _module_path(key: str) -> list[str]:
    """Module names of an official key: doubled decoder dropped, numbers glued to the name before."""
    key = re.sub(r"^decoder\.decoder\.", "decoder.", key)
    return re.sub(r"\.(?=\d+(\.|$))", "_", key).split(".")


def _leaf(key: str, value: np.ndarray) -> tuple[str, list[str], np.ndarray]:
    """Collection, path and array of one entry."""
    *path, last = _module_path(key)
    if last.startswith("running_"):
        return "batch_stats", [*path, last.removeprefix("running_")], value
    if last.startswith("in_proj_"):
        path, last = [*path, "in_proj"], last.removeprefix("in_proj_")
    if last != "weight":
        return "params", [*path, last], value
    if value.ndim == 4:
        return "params", [*path, "kernel"], value.transpose(2, 3, 1, 0)
    if value.ndim == 2:
        embedding = path[-1] == "denoising_class_embed"
        return "params", [*path, "embedding" if embedding else "kernel"], value if embedding else value.T
    return "params", [*path, "scale"], value


def variables_from_state_dict(state: Mapping[str, np.ndarray], dtype: Any = None) -> dict[str, Any]:
    """``{"params", "batch_stats"}`` of an official state dict (arrays by name); computed entries are dropped."""
    out: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for key, value in state.items():
        if _COMPUTED.search(key):
            continue
        collection, path, array = _leaf(key, np.asarray(value))
        node = out[collection]
        for name in path[:-1]:
            node = node.setdefault(name, {})
        assert path[-1] not in node, key
        node[path[-1]] = np.ascontiguousarray(array if dtype is None else array.astype(dtype))
    return out


def submodule(variables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Variables of one top-level module (``backbone``, ``encoder``, ``decoder``)."""
    return {collection: tree[name] for collection, tree in variables.items() if name in tree}


def golden_state_dict(golden: Callable[[str], Path], variant: str) -> dict[str, np.ndarray]:
    """Official state dict behind ``eval_<variant>_*``, ``step_<variant>_*`` and ``train_<variant>_*``."""
    return golden_fill.state_dict(golden(f"manifest_{variant}.json"), golden(f"bnstats_{variant}.npz"))


def official_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """Every key of the official state dict with its shape."""
    with gzip.open(ROOT / "tests" / "golden" / "keys" / f"{variant}.tsv.gz", "rt") as file:
        rows = csv.reader(file, delimiter="\t")
        return {key: tuple(json.loads(shape)) for key, shape, *_ in rows}


def hash_uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float64 values in [-1, 1) from the CRC of a name, in C order."""
    index = np.uint32(zlib.crc32(name.encode()))
    with np.errstate(over="ignore"):
        v = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint32) * np.uint32(2654435761)
        v = v + index * np.uint32(2246822519) + np.uint32(374761393)
        v ^= v >> np.uint32(15)
        v = v * np.uint32(2246822519)
        v ^= v >> np.uint32(13)
        v = v * np.uint32(3266489917)
        v ^= v >> np.uint32(16)
    return (2.0 * v.astype(np.float64) / 2.0**32 - 1.0).reshape(shape)


def _hash_value(key: str, shape: tuple[int, ...]) -> np.ndarray:
    u = hash_uniform(key, shape)
    if key.endswith("running_mean"):
        return 0.1 * u
    if key.endswith("running_var"):
        return 1 + 0.3 * u
    if key.endswith("lab.scale"):
        return 1 + 0.2 * u
    if key.endswith("sampling_offsets.bias"):
        return 2 * u
    if key.endswith("bias"):
        return 0.1 * u
    if len(shape) == 1:
        return 1 + 0.2 * u
    gain = np.sqrt(2.0) if key.startswith("backbone") else 1.0
    u = u * (gain * np.sqrt(3.0 / np.prod(shape[1:])))
    if "denoising_class_embed" in key:
        u[-1] = 0
    return u


def hash_state_dict(variant: str) -> dict[str, np.ndarray]:
    """Float32 official state dict behind ``hash_golden.json``; computed entries are left out."""
    return {
        key: _hash_value(key, shape).astype(np.float32)
        for key, shape in official_shapes(variant).items()
        if not _COMPUTED.search(key)
    }


def hash_image(side: int) -> np.ndarray:
    """Float32 images [2, side, side, 3] behind ``hash_golden.json``."""

    def blocks(size: int) -> np.ndarray:
        u = (hash_uniform(f"image{size}", (2, 3, side // size, side // size)) + 1) / 2
        return u.repeat(size, axis=2).repeat(size, axis=3)

    image = 0.5 * blocks(16) + 0.5 * blocks(80)
    return np.ascontiguousarray(image.transpose(0, 2, 3, 1).astype(np.float32))
