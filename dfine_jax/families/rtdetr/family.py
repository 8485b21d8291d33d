"""RT-DETRv2 as the rest of the library knows it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Key

from dfine_jax.config import Config, TrainConfig
from dfine_jax.errors import UserError
from dfine_jax.families import state_dict
from dfine_jax.families.backbones.resnet_vd import BACKBONES as RESNETS
from dfine_jax.families.family import Anchor, Build, ClassLeaf, Family, Origin, Reduction, Variables
from dfine_jax.families.reduction import reduced
from dfine_jax.families.rtdetr import loss
from dfine_jax.families.rtdetr.config import RTDetrConfig, RTDetrLossConfig, check
from dfine_jax.families.rtdetr.model import STRIDE, RTDetr, init_variables
from dfine_jax.families.rtdetr.names import ignored_reason
from dfine_jax.families.rtdetr.published import BACKBONES, DETECTORS
from dfine_jax.families.rtdetr.recipes import deim_loss, recipe
from dfine_jax.families.rtdetr.rules import rules
from dfine_jax.families.rtdetr.variants import VARIANTS
from dfine_jax.families.rtdetr.weights import FORMATS, official_keys
from dfine_jax.nn.denoising import draw_denoising
from dfine_jax.typing import DenoisingQueries, Targets

logger = logging.getLogger(__name__)

_FROZEN = ("backbone_frozen_stem", "backbone_frozen_bn")


def _build(model: RTDetrConfig, how: Build) -> nn.Module:
    return RTDetr(model, how.bn_axis_name, how.remat, compute_dtype=how.compute_dtype)


def _queries(
    key: Key[Array, ""], targets: Targets, model: RTDetrConfig, config: RTDetrLossConfig
) -> DenoisingQueries | None:
    return draw_denoising(
        key,
        targets,
        model.num_classes,
        config.num_denoising,
        config.label_noise_ratio,
        config.box_noise_scale,
        unfold=config.unfold_boxes,
        without_objects=config.denoise_without_objects,
    )


def _reduced(network: Any, variables: Mapping[str, Any], reduction: Reduction) -> nn.Module:
    """As ``reduced``; without a number of layers those run that answer, whatever follows them."""
    layers = reduction.layers or network.config.eval_layer + 1
    network = reduced(network, variables, reduction._replace(layers=layers))
    return network.clone(config=dataclasses.replace(network.config, eval_layer=layers - 1))


def _read_backbone(tensors: Mapping[str, np.ndarray], model: RTDetrConfig) -> Variables:
    """Variables of the backbone from a ResNet-vd or HGNetv2 trained on ImageNet, as the official files hold it.

    Raises:
      UserError: it is another one.
    """
    every = {path: key for path, key in official_keys(model).items() if key.startswith("backbone.")}
    keys = {path: key.removeprefix("backbone.") for path, key in every.items()}
    return state_dict.read_backbone(tensors, model, keys, [key for key in tensors if ignored_reason(key)])


def _described(model: RTDetrConfig, origin: Origin) -> Config:
    """The configuration of weights of another program.

    Those whose query position head has three layers are DEIM's, with SiLU. What no tensor shows is discrete sampling;
    the published files have it in their names.

    Raises:
      UserError: the file says another activation than was asked for.
    """
    stated = "silu" if model.query_position == "deep" else "relu"
    if origin.activation not in (None, stated):
        raise UserError(f"{origin.source} has the activation {stated}, not {origin.activation}; leave it out")
    if "dsp" in origin.file.lower() and model.sampling != "discrete":
        logger.warning("%s: discrete sampling assumed (by its name)", origin.source)
        model = dataclasses.replace(model, sampling="discrete")
    deim = stated == "silu"
    return Config(
        model=dataclasses.replace(model, decoder_activation=stated, mlp_activation=stated),
        loss=deim_loss() if deim else RTDetrLossConfig(),
        train=TrainConfig(method="deim" if deim else "rtdetrv2"),
    )


def _first_conv(model: RTDetrConfig) -> tuple[str, ...]:
    return ("backbone", "conv1", "conv1_1") if model.backbone in RESNETS else ("backbone", "stem", "stem1")


def _backbone_of(model: RTDetrConfig) -> str:
    return f"{'ResNet-vd' if model.backbone in RESNETS else 'HGNetv2'}-{model.backbone}"


RTDETR: Family[RTDetrConfig, RTDetrLossConfig, DenoisingQueries, loss.Pairs] = Family(
    name="rtdetrv2",
    title="RT-DETRv2",
    Model=RTDetrConfig,
    Loss=RTDetrLossConfig,
    variants=VARIANTS,
    smallest="r18",
    methods=("rtdetrv2", "deim"),
    parts=("backbone", "encoder", "decoder"),
    check=check,
    grid_px=lambda model: STRIDE,
    build=_build,
    first_conv=_first_conv,
    init=init_variables,
    reduced=_reduced,
    mask_stride=lambda model: None,
    queries=_queries,
    match=loss.match,
    terms=loss.loss_terms,
    kinds=loss.kinds,
    rules=rules,
    recipe=recipe,
    class_leaves=(
        ClassLeaf(r"/(enc_score_head|dec_score_head_\d+)/", -1),
        ClassLeaf(r"/denoising_class_embed/", 0),
    ),
    frozen=_FROZEN,
    of_method=frozenset(("decoder_activation", "mlp_activation", "query_position", "decoder_layers")),
    free=frozenset(("num_classes", "num_queries", "precision", *_FROZEN)),
    formats=FORMATS,
    described=_described,
    published=DETECTORS,
    backbones=BACKBONES,
    backbone_of=_backbone_of,
    backbone_anchors=(
        Anchor(("conv1", "conv1_1", "conv", "weight")),
        Anchor(("stem", "stem1", "conv", "weight")),
    ),
    read_backbone=_read_backbone,
    repositories={},
)
