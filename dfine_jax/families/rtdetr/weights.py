"""Official state dict and transformers' <-> our configuration and variables. Fails closed (families/state_dict.py)."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dfine_jax.config import Activation, Config, TrainConfig
from dfine_jax.errors import UserError
from dfine_jax.families import official
from dfine_jax.families.backbones.resnet_vd import BACKBONES as RESNETS
from dfine_jax.families.family import Anchor, Origin, Variables, WeightFormat
from dfine_jax.families.rtdetr import huggingface, names
from dfine_jax.families.rtdetr.config import RTDetrConfig, RTDetrLossConfig
from dfine_jax.families.rtdetr.model import STAGES
from dfine_jax.families.rtdetr.recipes import deim_loss
from dfine_jax.families.rtdetr.variants import VARIANTS

logger = logging.getLogger(__name__)

_HINTS = {
    "conv.bias": "this looks like the deployed form with merged convolutions, give the training checkpoint",
    "tgt_embed": "learned queries are not supported",
}
_HGNETS = {48: "B4", 64: "B5", 96: "B6"}  # by the channels that leave the stem

Name = Callable[[str], str]
"""The name in a file of an official key."""


def _recognise(tensors: Mapping[str, np.ndarray], name: Name = lambda key: key) -> RTDetrConfig | None:
    """Configuration of a state dict, from its shapes; None: it is of another model.

    Weights whose query position head has three layers are DEIM's, with SiLU. What leaves no trace keeps the value of
    the published ones: other activations, the way of sampling, the position order. Of two architectures with the same
    tensors the published one is taken: six decoder layers behind R50 with half the encoder's expansion answer with the
    third.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}

    def size(key: str, axis: int = 0) -> int:
        shape = shapes.get(name(key), ())
        return shape[axis] if len(shape) > axis else 0

    def count(key: str) -> int:
        number = 0
        while name(key.format(number)) in shapes:
            number += 1
        return number

    backbone = _backbone(size, count)
    width, layers = size("encoder.input_proj.0.conv.weight"), count("decoder.decoder.layers.{}.norm3.weight")
    inner = size("encoder.fpn_blocks.0.conv1.conv.weight")
    if backbone is None or not (width and layers and inner and size(_VALUES)):
        return None
    same = (config for config in VARIANTS.values() if config.backbone == backbone)
    near = min(same, key=lambda config: abs(config.encoder_expansion - inner / width))
    deep = size("decoder.query_pos_head.layers.2.weight") > 0
    answers = near.eval_layer if near.decoder_layers == layers else layers - 1
    activation: Activation = "silu" if deep else "relu"
    found = dataclasses.replace(
        near,
        encoder_width=width,
        encoder_ffn=size("encoder.encoder.0.layers.0.linear1.weight"),
        encoder_expansion=inner / width,
        encoder_layers=count("encoder.encoder.0.layers.{}.norm2.weight"),
        decoder_width=size("decoder.input_proj.0.conv.weight"),
        decoder_ffn=size("decoder.decoder.layers.0.linear1.weight"),
        decoder_layers=layers,
        eval_layer=answers,
        num_classes=size("decoder.enc_score_head.weight"),
        query_position="deep" if deep else "wide",
        decoder_activation=activation,
        mlp_activation=activation,
    )
    return official.with_sampling(found, tensors, name)


_VALUES = "decoder.decoder.layers.0.cross_attn.value_proj.weight"


def _backbone(size: Callable[..., int], count: Callable[[str], int]) -> str | None:
    stem = size("backbone.stem.stem4.conv.weight")
    if stem:
        return _HGNETS.get(stem)
    deep = size("backbone.res_layers.0.blocks.0.branch2c.conv.weight") > 0
    blocks = tuple(count(f"backbone.res_layers.{i}.blocks.{{}}.branch2a.conv.weight") for i in range(4))
    found = (key for key, spec in RESNETS.items() if spec.blocks == blocks and (spec.expansion > 1) == deep)
    return next(found, None)


def official_keys(model: RTDetrConfig) -> dict[str, str]:
    """Official key of each of our paths, in the order of the official file."""
    return official.official_keys(model, names.to_official, _order(model))


def _order(model: RTDetrConfig) -> official.Order:
    bottleneck = model.backbone in RESNETS and RESNETS[model.backbone].expansion > 1
    return functools.partial(names.order_key, bottleneck=bottleneck)


def read_official(tensors: Mapping[str, np.ndarray], model: RTDetrConfig) -> tuple[RTDetrConfig, Variables]:
    """Official state dict as variables (float32 NumPy), and the architecture.

    Raises:
      UserError: it is not of this architecture; the message names the missing, unexpected and misshapen entries.
    """
    return model, official.read(tensors, model, official_keys(model), constants(model), _HINTS)


def write_official(
    model: RTDetrConfig, variables: Mapping[str, Any], size_hw: tuple[int, int] = (640, 640)
) -> dict[str, np.ndarray]:
    """As ``official.write``.

    Raises:
      UserError: the variables are not those of this architecture, or the reference has none like it.
    """
    if model.box_head != "plain":
        raise UserError(f"the official code has no model.box_head={model.box_head}; keep the checkpoint, or export it")
    return official.write(variables, model, size_hw, official_keys(model), constants(model), _order(model))


def constants(model: RTDetrConfig) -> official.Constants:
    """Entries of the official file beside weights."""
    return official.constants(model, [4 * 2**stage for stage in STAGES], official_keys(model))


def recognise_official(
    tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None = None
) -> RTDetrConfig | None:
    """Configuration of an official state dict, from its shapes; None: it is of another model, or of a folder."""
    found = None if settings is not None or _FIRST_VERSION in tensors else _recognise(tensors)
    if found is None or not any(key.endswith("num_batches_tracked") for key in tensors):
        return found
    frozen = not any(key.startswith("backbone.") and key.endswith("num_batches_tracked") for key in tensors)
    return dataclasses.replace(found, backbone_frozen_bn=frozen)


_FIRST_VERSION = "decoder.enc_output.0.weight"  # RT-DETR's, which has most other names in common


def recognise_huggingface(
    tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None = None
) -> RTDetrConfig | None:
    """Configuration of transformers' rt_detr_v2, with what a config.json says; None: it is of another model."""
    if settings is not None and settings.get("model_type") != "rt_detr_v2":
        return None
    files = {names.of_file(name): tensor for name, tensor in tensors.items()}
    found = _recognise(files, name=lambda key: names.to_huggingface(key)[0] if names.has_huggingface(key) else "")
    return None if found is None else huggingface.as_configured(found, settings or {})


FORMATS = (
    *(
        WeightFormat("official", Anchor(anchor), recognise_official, read_official, write_official)
        for anchor in (
            ("backbone", "conv1", "conv1_1", "conv", "weight"),
            ("backbone", "stem", "stem1", "conv", "weight"),
        )
    ),
    WeightFormat(
        "huggingface",
        Anchor(("backbone", "model", "embedder", "embedder", "0", "convolution", "weight"), outer="model"),
        recognise_huggingface,
        lambda tensors, model: read_official(huggingface.to_official(tensors, _all_keys(model)), model),
        lambda model, variables, size_hw: huggingface.from_official(write_official(model, variables, size_hw)),
        huggingface.settings,
    ),
)


def _all_keys(model: RTDetrConfig) -> list[str]:
    return [*official_keys(model).values(), *constants(model)]


BACKBONE_ANCHORS = (  # of backbone files; with a detector, its backbone
    Anchor(("conv1", "conv1_1", "conv", "weight")),
    Anchor(("stem", "stem1", "conv", "weight")),
)


def described(model: RTDetrConfig, origin: Origin) -> Config:
    """The configuration of weights of another program.

    Weights with SiLU are described as DEIM's. A query position head of three layers states it, a config.json ReLU; of
    others it is what was asked for, or ReLU. What no tensor shows is discrete sampling; the published files have it in
    their names.

    Raises:
      UserError: the file says another activation than was asked for.
    """
    stated, asked = model.decoder_activation, origin.activation
    is_stated = origin.is_stated or model.query_position == "deep"
    if is_stated and asked not in (None, stated):
        raise UserError(f"{origin.source} has the activation {stated}, not {asked}; leave it out")
    if "dsp" in origin.file.lower() and model.sampling != "discrete":
        logger.warning("%s: discrete sampling assumed (by its name)", origin.source)
        model = dataclasses.replace(model, sampling="discrete")
    activation = asked or stated
    deim = activation == "silu"
    return Config(
        model=dataclasses.replace(model, decoder_activation=activation, mlp_activation=activation),
        loss=deim_loss() if deim else RTDetrLossConfig(),
        train=TrainConfig(method="deim" if deim else "rtdetrv2"),
    )
