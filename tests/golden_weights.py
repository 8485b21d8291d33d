"""Reference weights and images, rebuilt from names, and their place in the variables of the model.

Two independent fills: the one of the golden folder (``weights.py`` there) and the integer hash of the specification
(appendix A.1). ``variables_from_state_dict`` applies the naming contract to any official state dict, whole or partial.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

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


@lru_cache
def golden_module(golden_dir: Path) -> ModuleType:
    """``weights.py`` of the golden folder (``fill``, ``state_dict``, ``image``)."""
    spec = importlib.util.spec_from_file_location("golden_fill", golden_dir / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden_state_dict(golden_dir: Path, variant: str) -> dict[str, np.ndarray]:
    """Official state dict behind ``eval_<variant>_*`` and ``train_<variant>_*``."""
    return golden_module(golden_dir).state_dict(str(golden_dir / f"manifest_{variant}.json"))


def golden_image(golden_dir: Path, height: int, width: int, batch: int = 1, seed: int = 0) -> np.ndarray:
    """Float32 images [batch, height, width, 3] of the golden folder."""
    return golden_module(golden_dir).image(height, width, batch, seed)


def spec_keys_dir() -> Path:
    """Folder of the state-dict listings ``<variant>.tsv``; skips the test when absent."""
    candidates = (os.environ.get("DFINE_SPEC_KEYS"), ROOT.parent / "shared" / "spec" / "keys", ROOT / "tests" / "keys")
    for candidate in candidates:
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("state-dict listings not found; set DFINE_SPEC_KEYS")


def hash_uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float64 values in [-1, 1) from the CRC of a name, in C order (appendix A.1)."""
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
    rows = [line.split("\t") for line in (spec_keys_dir() / f"{variant}.tsv").read_text().splitlines()]
    return {
        key: _hash_value(key, tuple(json.loads(shape))).astype(np.float32)
        for key, shape, *_ in rows
        if not _COMPUTED.search(key)
    }


def hash_image(side: int) -> np.ndarray:
    """Float32 images [2, side, side, 3] behind ``hash_golden.json``."""

    def blocks(size: int) -> np.ndarray:
        u = (hash_uniform(f"image{size}", (2, 3, side // size, side // size)) + 1) / 2
        return u.repeat(size, axis=2).repeat(size, axis=3)

    image = 0.5 * blocks(16) + 0.5 * blocks(80)
    return np.ascontiguousarray(image.transpose(0, 2, 3, 1).astype(np.float32))
