"""Official D-FINE state dict <-> our configuration and variables. Fails closed.

Every key is used or ignored for a stated reason, every leaf is filled exactly once with the right shape, and all
problems are reported together.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import traverse_util

from dfine_jax.config import Activation, ModelConfig
from dfine_jax.converters.torch import name_map
from dfine_jax.errors import UserError
from dfine_jax.families.dfine.variants import VARIANTS
from dfine_jax.ops.anchors import anchors
from dfine_jax.system.finite import not_finite

logger = logging.getLogger(__name__)


class Tensor(Protocol):
    """An array, or a reference to one that has not been read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Official shape."""
        ...


Variables = dict[str, Any]  # {"params": tree, "batch_stats": tree} of NumPy arrays
_LISTED = 6  # names per kind of problem in an error


def recognise(tensors: Mapping[str, Tensor], *, activation: Activation = "relu") -> ModelConfig:
    """Configuration of a state dict, from its shapes; scalars (reg_scale, up) keep the variant's values.

    Args:
      tensors: official names.
      activation: of decoder and heads. It leaves no trace in the file: D-FINE uses ``relu``, DEIM ``silu``.

    Raises:
      UserError: this is not D-FINE.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    layers = _count(shapes, "decoder.decoder.layers.")
    traits = (
        _dimension(shapes, "backbone.stem.stem4.conv.weight"),
        _dimension(shapes, "encoder.input_proj.0.conv.weight"),
        layers,
    )
    votes = {name: sum(map(_same, traits, known)) for name, known in _traits().items()}
    variant = max(votes, key=lambda name: votes[name])
    num_classes = _dimension(shapes, "decoder.enc_score_head.weight")
    if votes[variant] < 2 or num_classes is None:
        raise UserError(_not_dfine(shapes))
    config = VARIANTS[variant]
    if layers == _count(shapes, "decoder.decoder.lqe_layers.") == _count(shapes, "decoder.dec_score_head."):
        config = dataclasses.replace(config, decoder_layers=layers)
    counted = any(key.endswith("num_batches_tracked") for key in shapes)
    frozen = not any(key.startswith("backbone.") and key.endswith("num_batches_tracked") for key in shapes)
    return dataclasses.replace(
        config,
        num_classes=num_classes,
        backbone_frozen_bn=frozen if counted else config.backbone_frozen_bn,
        decoder_activation=activation,
        mlp_activation=activation,
    )


def convert_state_dict(
    tensors: Mapping[str, np.ndarray], *, activation: Activation = "relu", config: ModelConfig | None = None
) -> tuple[ModelConfig, Variables]:
    """Official state dict as configuration and variables (float32 NumPy).

    Args:
      tensors: official names and layouts, any number type.
      activation: of decoder and heads, see :func:`recognise`.
      config: the architecture when it is known; otherwise it is recognised.

    Raises:
      UserError: not D-FINE, or names the missing, unexpected and misshapen entries.
    """
    config = config or recognise(tensors, activation=activation)
    expected = leaf_shapes(config)
    official = {path: name_map.to_official(path) for path in expected}
    optional = set(_constants(config))
    missing = [key for key in official.values() if key not in tensors]
    unexpected = [key for key in tensors if key not in optional and key not in set(official.values())]
    misshapen = [
        f"{key} is {list(tensors[key].shape)}, not {list(name_map.tensor_shape(path, expected[path]))}"
        for path, key in official.items()
        if key in tensors and tuple(tensors[key].shape) != name_map.tensor_shape(path, expected[path])
    ]
    if missing or unexpected or misshapen:
        raise UserError(_mismatch(config, name_map.in_official_order(missing), unexpected, misshapen))
    config = _with_scalars(config, tensors)
    tensors = _fold_point_scale(config, tensors)
    return config, to_tree(tensors, official)


def to_tree(tensors: Mapping[str, np.ndarray], official: Mapping[str, str]) -> Variables:
    """Leaves from the tensors of their official keys, as float32.

    Args:
      official: official key of each path.

    Raises:
      UserError: a tensor is not of floating-point numbers, or has values that are not finite (in float32).
    """
    with np.errstate(over="ignore"):
        leaves = {
            path: np.ascontiguousarray(name_map.to_leaf(path, _float32(key, tensors[key])))
            for path, key in official.items()
        }
    if wrong := not_finite({official[path]: leaf for path, leaf in leaves.items()}):
        raise UserError(wrong)
    return traverse_util.unflatten_dict(leaves, sep="/")


def _float32(key: str, tensor: np.ndarray) -> np.ndarray:
    tensor = np.asarray(tensor)
    if tensor.dtype.kind in "iub" or tensor.dtype.itemsize == 1:
        raise UserError(
            f"{key} is stored as {tensor.dtype}: quantised weights cannot be converted, give those they were made from"
        )
    return np.asarray(tensor, np.float32)


def export_state_dict(
    config: ModelConfig, variables: Mapping[str, Any], *, height_px: int = 640, width_px: int = 640
) -> dict[str, np.ndarray]:
    """Variables as an official state dict: keys, their order, layouts and number types of the reference.

    Args:
      config: the architecture.
      variables: ``{"params", "batch_stats"}`` as :func:`convert_state_dict` or the model's initialisation gives them.
      height_px: evaluation height the anchors are stored for.
      width_px: evaluation width.

    Raises:
      UserError: the variables are not those of this configuration.
    """
    flat = _flat(variables)
    expected = leaf_shapes(config)
    wrong = set(expected).symmetric_difference(flat) | {
        p for p in expected if p in flat and flat[p].shape != expected[p]
    }
    if wrong:
        raise UserError(f"variables do not belong to D-FINE-{config.variant.upper()}: {_listed(sorted(wrong))}")
    out = {key: make(height_px, width_px) for key, make in _constants(config).items()}
    for path, leaf in flat.items():
        out[name_map.to_official(path)] = np.ascontiguousarray(name_map.to_tensor(path, np.asarray(leaf)))
    return {key: out[key] for key in name_map.in_official_order(out)}


_COLLECTIONS = ("params", "batch_stats")


@functools.lru_cache(maxsize=16)
def leaf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every leaf of a configuration's variables, by path; nothing is computed."""
    from dfine_jax.families.dfine.model import STRIDE, DFine

    images = jax.ShapeDtypeStruct((1, 4 * STRIDE, 4 * STRIDE, 3), np.float32)
    init = functools.partial(DFine(config).init, train=True)
    tree = jax.eval_shape(init, jax.random.key(0), images)
    return {path: tuple(leaf.shape) for path, leaf in _flat(tree).items()}


def _flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path."""
    return traverse_util.flatten_dict({name: variables.get(name, {}) for name in _COLLECTIONS}, sep="/")


def _constants(config: ModelConfig) -> dict[str, Callable[[int, int], np.ndarray]]:
    """Entries of the official file that are not in our tree (name_map.IGNORED), as functions of the input size."""
    scalar = np.asarray([config.reg_scale], np.int64 if config.reg_scale == int(config.reg_scale) else np.float32)
    entries: dict[str, Callable[[int, int], np.ndarray]] = {
        "decoder.anchors": lambda h, w: anchors(_level_sizes(config, h, w))[0][None],
        "decoder.valid_mask": lambda h, w: anchors(_level_sizes(config, h, w))[1][None, :, None],
    }
    for prefix in ("decoder.", "decoder.decoder."):
        entries[f"{prefix}up"] = lambda h, w: np.asarray([config.up], np.float32)
        entries[f"{prefix}reg_scale"] = lambda h, w: scalar
    for layer in range(config.decoder_layers):
        entries[f"decoder.decoder.layers.{layer}.cross_attn.num_points_scale"] = lambda h, w: _point_scale(config)
    for path in leaf_shapes(config):
        if path.endswith("/mean") and not (config.backbone_frozen_bn and path.startswith("batch_stats/backbone/")):
            key = name_map.to_official(path).removesuffix("running_mean") + "num_batches_tracked"
            entries[key] = lambda h, w: np.zeros((), np.int64)
    return entries


def _level_sizes(config: ModelConfig, height_px: int, width_px: int) -> list[tuple[int, int]]:
    strides = [4 * 2**stage for stage in config.return_stages]
    return [(-(-height_px // s), -(-width_px // s)) for s in strides]


def _point_scale(config: ModelConfig) -> np.ndarray:
    return np.asarray([1 / n for n in config.num_points for _ in range(n)], np.float32)


def _with_scalars(config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> ModelConfig:
    values = {}
    for name in ("reg_scale", "up"):
        keys = [key for key in (f"decoder.{name}", f"decoder.decoder.{name}") if key in tensors]
        found = {float(np.asarray(tensors[key], np.float64).reshape(-1)[0]) for key in keys}
        if len(found) > 1 or not all(0 < value < 1e3 for value in found):
            raise UserError(f"{' and '.join(keys)} hold {sorted(found)}; both must be the same positive number")
        if found and found != {getattr(config, name)}:
            logger.info("%s is %g in the file (D-FINE-%s: %g)", name, *found, config.variant, getattr(config, name))
        values[name] = found.pop() if found else getattr(config, name)
    points = _points_per_level(tensors.get("decoder.decoder.layers.0.cross_attn.num_points_scale", ()))
    if len(points) == len(config.num_points):
        values["num_points"] = points
    return dataclasses.replace(config, **values)


def _points_per_level(scale: np.ndarray | tuple[()]) -> tuple[int, ...]:
    """Read back from 1/3 1/3 1/3 1/6 ...; empty when the values are not of that form."""
    rest, points = [float(value) for value in scale], []
    while rest:
        count = round(1 / rest[0]) if rest[0] > 0 else 0
        if not np.allclose(rest[:count], 1 / max(count, 1), rtol=0.01) or not 0 < count <= len(rest):
            return ()
        points.append(count)
        del rest[:count]
    return tuple(points)


def _fold_point_scale(config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Averaging of weights also averages the constant 1 / points and lets it drift (1/3 became 0.33328).

    The model multiplies predicted offsets by the constant, so the drift moves into the layer that predicts them.
    """
    out, constant = dict(tensors), _point_scale(config)
    for layer in range(config.decoder_layers):
        prefix = f"decoder.decoder.layers.{layer}.cross_attn."
        found = np.asarray(tensors.get(f"{prefix}num_points_scale", constant), np.float32)
        if found.shape != constant.shape or not np.allclose(found, constant, rtol=0.01):
            raise UserError(f"{prefix}num_points_scale is not 1 / points per level for {config.num_points} points")
        if np.array_equal(found, constant):
            continue
        rows = np.tile(np.repeat(found.astype(np.float64) / constant, 2), config.num_heads)  # [m * p * 2]
        for name in ("weight", "bias"):
            key = f"{prefix}sampling_offsets.{name}"
            tensor = np.asarray(tensors[key], np.float64)
            out[key] = (tensor * rows.reshape(-1, *[1] * (tensor.ndim - 1))).astype(np.float32)
    return out


@functools.lru_cache(maxsize=1)
def _traits() -> dict[str, tuple[int, int, int]]:
    """Channels after the stem, encoder width and decoder layers; any two tell the variants apart."""
    from dfine_jax.families.backbones.hgnetv2 import BACKBONES

    return {
        name: (BACKBONES[config.backbone].stem[1], config.encoder_width, config.decoder_layers)
        for name, config in VARIANTS.items()
    }


def _same(found: int | None, known: int) -> bool:
    return found == known


def _dimension(shapes: Mapping[str, Sequence[int]], key: str) -> int | None:
    return shapes[key][0] if shapes.get(key) else None


def _count(shapes: Mapping[str, Any], prefix: str) -> int:
    """How many numbered modules follow a prefix."""
    return len({key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)})


# What other programs' names look like, and whose they are; the first that fits is told.
_OTHER_MODELS: tuple[tuple[str, str], ...] = (
    (r"(^|\.)model\.\d+\.(conv|cv1|m)\.", "a YOLO model"),
    (r"(^|\.)backbone\.0\.encoder\.", "RF-DETR"),
    (r"(^|\.)backbone\.(dinov3|sta)\.", "DEIMv2 with DINOv3"),
    (r"(^|\.)backbone\.res_layers\.|(^|\.)backbone\.conv1\.conv1_1\.", "RT-DETR with ResNet"),
    (r"(^|\.)backbone\.model\.embedder\.embedder\.", "transformers' RT-DETR"),
    (r"(^|\.)backbone\.model\.", "transformers' names, but not those of its D-FINE"),
    (r"(^|\.)roi_heads\.", "a Faster or Mask R-CNN"),
    (r"(^|\.)transformer\.(encoder|decoder)\.", "a DETR"),
    (r"^(stem\.stem1|backbone\.stem\.stem1)\.", "weights of the backbone alone, without a detector (see --backbone)"),
    (r"^(layer1\.0|conv1)\.|^stages\.\d+\.", "an image classifier"),
    (r"(exp_avg|momentum_buffer)", "the state of an optimiser, without weights"),
)


def _not_dfine(shapes: Mapping[str, Any]) -> str:
    names = f"{len(shapes)} entries such as {_listed(list(shapes))}"
    for pattern, whose in _OTHER_MODELS:
        if any(re.search(pattern, key) for key in shapes):
            return f"not a D-FINE state dict: the names are those of {whose} ({names})"
    return f"not a D-FINE state dict: {names}"


def _mismatch(config: ModelConfig, missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    parts = [
        f"{len(names)} {kind}: {_listed(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    hint = ""
    if any("swish_ffn" in key for key in unexpected):
        hint = "; these names are those of DEIMv2, another architecture"
    elif any("mask" in key for key in unexpected):
        hint = "; these names are those of a D-FINE that segments, another architecture"
    elif any(key.endswith("conv.bias") for key in unexpected):
        hint = "; this looks like the deployed form with merged convolutions, give the training checkpoint"
    name = f"D-FINE-{config.variant.upper()} with {config.num_classes} classes"
    return f"the entries do not fit {name} ({'; '.join(parts)}){hint}"


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(itertools.islice(names, _LISTED)) + rest
