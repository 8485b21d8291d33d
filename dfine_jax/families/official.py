"""What official state dicts of detectors with deformable decoders have in common: names, and entries beside weights.

A path is ``collection/module/.../leaf``, for example ``params/backbone/stem/stem1/conv/kernel`` for the official
``backbone.stem.stem1.conv.weight``. Numbers are glued to the name before them (``layers.0`` -> ``layers_0``) and the
doubled ``decoder.decoder.`` is written once. Names are made from paths, never the other way round.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from dfine_jax import families
from dfine_jax.config import ModelSection
from dfine_jax.errors import UserError
from dfine_jax.families.family import Variables
from dfine_jax.families.state_dict import check_fit, from_tree, leaf_shapes, to_tree
from dfine_jax.ops.anchors import anchors

_NORM = re.compile(r"bn(_?\d)?|(fusion_)?norm\d?")
_INNER_DECODER = ("layers_", "lqe_layers_")  # modules of the official decoder.decoder


def to_official(path: str) -> str:
    """Official key of one of our paths."""
    collection, *modules, leaf = path.split("/")
    if modules[0] == "decoder" and len(modules) > 1 and modules[1].startswith(_INNER_DECODER):
        modules = ["decoder", *modules]
    if collection == "batch_stats":
        leaf = f"running_{leaf}"
    elif leaf in ("kernel", "embedding") or (leaf == "scale" and _NORM.fullmatch(modules[-1])):
        leaf = "weight"
    # The three convolutions of a stem, conv1_1 to conv1_3, are called so in the official files, too.
    key = re.sub(r"(?<!\bconv1)_(?=\d+(\.|_|$))", ".", ".".join([*modules, leaf]))
    return key.replace(".in_proj.", ".in_proj_")


Order = Callable[[str], tuple[int, ...]]
"""Sort key that puts official keys into the order of the official file."""


def official_keys(model: ModelSection, name: Callable[[str], str], order: Order) -> dict[str, str]:
    """Official key of each of our paths, in the order of the official file.

    Args:
      name: official key of a path.
    """
    keys = {path: name(path) for path in leaf_shapes(model)}
    return dict(sorted(keys.items(), key=lambda item: order(item[1])))


Constants = dict[str, Callable[[int, int], np.ndarray]]
"""Entries of an official file beside weights, as functions of the input's height and width; nothing reads them here.

Of averaged weights the constant 1 / points has drifted, which ``fold_point_scale`` takes into account.
"""


class Deformable(ModelSection, Protocol):
    """Fields of a model configuration."""

    @property
    def backbone_frozen_bn(self) -> bool: ...
    @property
    def decoder_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_points(self) -> tuple[int, ...]: ...


def constants(model: Deformable, strides: Sequence[int], keys: Mapping[str, str]) -> Constants:
    """Anchors of levels of these strides, scales of sampling points, counters of batch norms that are not frozen.

    Args:
      keys: official key of each path.
    """

    def grid(height_px: int, width_px: int) -> tuple[np.ndarray, np.ndarray]:
        return anchors([(-(-height_px // s), -(-width_px // s)) for s in strides])

    scale = point_scale(model.num_points)
    entries: Constants = {
        "decoder.anchors": lambda h, w: grid(h, w)[0][None],
        "decoder.valid_mask": lambda h, w: grid(h, w)[1][None, :, None],
    }
    entries |= {f"{_cross_attention(i)}num_points_scale": lambda h, w: scale for i in range(model.decoder_layers)}
    for path, key in keys.items():
        if path.endswith("/mean") and not (model.backbone_frozen_bn and path.startswith("batch_stats/backbone/")):
            entries[key.removesuffix("running_mean") + "num_batches_tracked"] = lambda h, w: np.zeros((), np.int64)
    return entries


D = TypeVar("D", bound=Deformable)


def with_sampling(model: D, tensors: Mapping[str, np.ndarray], name: Callable[[str], str] = lambda key: key) -> D:
    """The architecture with the points per level and the heads that tensors show.

    The scale of sampling points says how many there are, and so how many heads share the rows of attention weights.
    Without it the heads are the model's, and points of another number are the same on all levels.

    Args:
      name: the name in the file of an official key.
    """
    scale = tensors.get(name(f"{_cross_attention(0)}num_points_scale"))
    weights = tensors.get(name(f"{_cross_attention(0)}attention_weights.bias"))
    rows = weights.shape[0] if weights is not None and weights.ndim else 0
    if scale is None:
        each, rest = divmod(rows, model.num_heads * len(model.num_points))
        other = each > 0 and not rest and rows != model.num_heads * sum(model.num_points)
        return dataclasses.replace(model, num_points=(each,) * len(model.num_points)) if other else model
    points = points_per_level(scale)
    if len(points) != len(model.num_points) or rows % sum(points) or not rows:
        return model
    return dataclasses.replace(model, num_points=points, num_heads=rows // sum(points))


def read(
    tensors: Mapping[str, np.ndarray],
    model: Deformable,
    keys: Mapping[str, str],
    constants: Collection[str],
    hints: Mapping[str, str],
) -> Variables:
    """A state dict as variables (float32 NumPy).

    Args:
      keys: official key of each path.
      constants: names that may be there besides.
      hints: by part of an unexpected name, what it means.

    Raises:
      UserError: it is not of this architecture; the message names the missing, unexpected and misshapen entries.
    """
    what = f"{families.title(model)} with {model.num_classes} classes"
    points = points_per_level(tensors.get(f"{_cross_attention(0)}num_points_scale", np.zeros(0)))
    if points and points != tuple(model.num_points):
        raise UserError(f"the file has {points} sampling points per level, not {tuple(model.num_points)} as {what}")
    check_fit(tensors, leaf_shapes(model), keys, constants, what, hints)
    return to_tree(fold_point_scale(tensors, model), keys)


def write(
    variables: Mapping[str, Any],
    model: ModelSection,
    size_hw: tuple[int, int],
    keys: Mapping[str, str],
    constants: Constants,
    order: Order,
) -> dict[str, np.ndarray]:
    """Variables as an official state dict: keys, their order, layouts and number types of the reference.

    Args:
      size_hw: evaluation height and width that the anchors are stored for.
      keys: official key of each path.

    Raises:
      UserError: the variables are not those of this architecture.
    """
    out = from_tree(variables, model, keys) | {key: make(*size_hw) for key, make in constants.items()}
    return {key: out[key] for key in sorted(out, key=order)}


def _cross_attention(layer: int) -> str:
    return f"decoder.decoder.layers.{layer}.cross_attn."


def point_scale(num_points: Sequence[int]) -> np.ndarray:
    """The constant, one number a point."""
    return np.asarray([1 / n for n in num_points for _ in range(n)], np.float32)


def points_per_level(scale: np.ndarray) -> tuple[int, ...]:
    """Read back from 1/3 1/3 1/3 1/6 ...; empty when the values are not of that form."""
    rest, points = np.ravel(scale).astype(np.float32).tolist(), []
    while rest:
        count = round(1 / rest[0]) if rest[0] > 0 else 0
        if not np.allclose(rest[:count], 1 / max(count, 1), rtol=0.01) or not 0 < count <= len(rest):
            return ()
        points.append(count)
        del rest[:count]
    return tuple(points)


def fold_point_scale(tensors: Mapping[str, np.ndarray], model: Deformable) -> dict[str, np.ndarray]:
    """Averaging of weights also averages the constant 1 / points and lets it drift (1/3 became 0.33328).

    The model multiplies predicted offsets by the constant, so the drift moves into the layer that predicts them.

    Raises:
      UserError: it is another constant.
    """
    out, constant = dict(tensors), point_scale(model.num_points)
    for prefix in map(_cross_attention, range(model.decoder_layers)):
        found = np.asarray(tensors.get(f"{prefix}num_points_scale", constant), np.float32)
        if found.shape != constant.shape or not np.allclose(found, constant, rtol=0.01):
            raise UserError(f"{prefix}num_points_scale is not 1 / points per level for {model.num_points} points")
        if np.array_equal(found, constant):
            continue
        rows = np.tile(np.repeat(found.astype(np.float64) / constant, 2), model.num_heads)  # [m * p * 2]
        for name in ("weight", "bias"):
            key = f"{prefix}sampling_offsets.{name}"
            tensor = np.asarray(tensors[key], np.float64)
            out[key] = (tensor * rows.reshape(-1, *[1] * (tensor.ndim - 1))).astype(np.float32)
    return out
