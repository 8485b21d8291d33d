"""PyTorch's state dicts and our variables: layouts, and the rule that everything fits. Names are the families'.

Every tensor is used or left out for a stated reason, every leaf is filled exactly once with the right shape, and all
problems are reported together.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dfine_jax import families
from dfine_jax.config import ModelSection
from dfine_jax.errors import UserError
from dfine_jax.families.family import Build, Variables
from dfine_jax.system.finite import not_finite

_COLLECTIONS = ("params", "batch_stats")
_LISTED = 6  # names per kind of problem in an error


class Tensor(Protocol):
    """An array, or a reference to one that has not been read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        ...


@functools.lru_cache(maxsize=16)
def leaf_shapes(model: ModelSection) -> dict[str, tuple[int, ...]]:
    """Shape of every leaf of a model's variables, by path ``collection/module/.../leaf``; nothing is computed."""
    import jax

    family = families.of(model)
    side = 4 * family.grid_px(model)
    images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    init = functools.partial(family.build(model, Build()).init, train=True)
    return {path: tuple(leaf.shape) for path, leaf in flat(jax.eval_shape(init, jax.random.key(0), images)).items()}


def flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path."""
    from flax import traverse_util

    return traverse_util.flatten_dict({name: variables.get(name, {}) for name in _COLLECTIONS}, sep="/")


def to_leaf(path: str, tensor: np.ndarray) -> np.ndarray:
    """PyTorch's tensor in our layout: convolutions O,I,h,w -> h,w,I,O and linear layers out,in -> in,out."""
    if not path.endswith("/kernel"):
        return tensor
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def to_tensor(path: str, leaf: np.ndarray) -> np.ndarray:
    """Inverse of :func:`to_leaf`."""
    if not path.endswith("/kernel"):
        return leaf
    return leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T


def tensor_shape(path: str, leaf_shape: tuple[int, ...]) -> tuple[int, ...]:
    """PyTorch's shape of a leaf."""
    return to_tensor(path, np.broadcast_to(np.empty(()), leaf_shape)).shape


def check_fit(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    keys: Mapping[str, str],
    optional: Collection[str],
    what: str,
    hints: Mapping[str, str] | None = None,
) -> None:
    """Tensors are exactly those of a model.

    Args:
      expected: shapes of leaves by path.
      keys: the tensor's name of each path, in the order of the file.
      optional: names that may be there besides.
      what: the model, in words.
      hints: by part of an unexpected name, what it means.

    Raises:
      UserError: some are missing, unexpected or of another shape; the message lists them.
    """
    wanted = set(keys.values())
    unexpected = [key for key in tensors if key not in optional and key not in wanted]
    problems = {
        "missing": [key for key in keys.values() if key not in tensors],
        "unexpected": unexpected,
        "misshapen": [
            f"{key} is {list(tensors[key].shape)}, not {list(tensor_shape(path, expected[path]))}"
            for path, key in keys.items()
            if key in tensors and tuple(tensors[key].shape) != tensor_shape(path, expected[path])
        ],
    }
    parts = [f"{len(names)} {kind}: {listed(names)}" for kind, names in problems.items() if names]
    if parts:
        meant = (meaning for part, meaning in (hints or {}).items() if any(part in key for key in unexpected))
        hint = next((f"; {meaning}" for meaning in meant), "")
        raise UserError(f"the entries do not fit {what} ({'; '.join(parts)}){hint}")


def to_tree(tensors: Mapping[str, np.ndarray], keys: Mapping[str, str]) -> Variables:
    """Variables from the tensors of their names, as float32.

    Args:
      keys: the tensor's name of each path.

    Raises:
      UserError: a tensor is not of floating-point numbers, or has values that are not finite (in float32).
    """
    from flax import traverse_util

    with np.errstate(over="ignore"):
        leaves = {path: np.ascontiguousarray(to_leaf(path, _float32(key, tensors[key]))) for path, key in keys.items()}
    if wrong := not_finite({keys[path]: leaf for path, leaf in leaves.items()}):
        raise UserError(wrong)
    return {name: {} for name in _COLLECTIONS} | traverse_util.unflatten_dict(leaves, sep="/")


def from_tree(variables: Mapping[str, Any], model: ModelSection, keys: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Tensors by name from variables.

    Raises:
      UserError: the variables are not those of the model.
    """
    leaves, expected = flat(variables), leaf_shapes(model)
    wrong = set(expected).symmetric_difference(leaves)
    wrong |= {path for path in expected if path in leaves and leaves[path].shape != expected[path]}
    if wrong:
        raise UserError(f"variables do not belong to {families.title(model)}: {listed(sorted(wrong))}")
    return {keys[path]: np.ascontiguousarray(to_tensor(path, np.asarray(leaf))) for path, leaf in leaves.items()}


def read_backbone(tensors: Mapping[str, np.ndarray], model: ModelSection) -> Variables:
    """``{"params", "batch_stats"}`` of a backbone alone, whose names are those of a detector without its prefix.

    Raises:
      UserError: it is another backbone; the message lists what does not fit.
    """
    family = families.of(model)
    every, prefix = family.official_keys(model).items(), family.backbone_prefix
    keys = {path: key.removeprefix(prefix) for path, key in every if key.startswith(prefix)}
    tensors = family.fitted_backbone(tensors, model)
    counters = [key for key in tensors if key.endswith("num_batches_tracked")]
    what = f"{family.backbone_of(model)}, the backbone of {families.title(model)}"
    check_fit(tensors, leaf_shapes(model), keys, counters, what)
    tree = to_tree(tensors, keys)
    return {name: tree[name].get("backbone", {}) for name in _COLLECTIONS}


def _float32(key: str, tensor: np.ndarray) -> np.ndarray:
    tensor = np.asarray(tensor)
    if tensor.dtype.kind in "iub" or tensor.dtype.itemsize == 1:
        raise UserError(
            f"{key} is stored as {tensor.dtype}: quantised weights cannot be converted, give those they were made from"
        )
    return np.asarray(tensor, np.float32)


def listed(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(itertools.islice(names, _LISTED)) + rest
