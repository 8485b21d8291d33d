"""RT-DETRv2 as the rest of the library knows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Key

from dfine_jax.families.backbones.resnet_vd import BACKBONES as RESNETS
from dfine_jax.families.family import Build, ClassLeaf, Family, Reduction
from dfine_jax.families.reduction import reduced
from dfine_jax.families.rtdetr import loss
from dfine_jax.families.rtdetr.config import FDR_DEFAULTS, RTDetrConfig, RTDetrLossConfig, check
from dfine_jax.families.rtdetr.model import RTDetr, init_variables
from dfine_jax.families.rtdetr.published import BACKBONES, DETECTORS
from dfine_jax.families.rtdetr.recipes import recipe
from dfine_jax.families.rtdetr.rules import rules
from dfine_jax.families.rtdetr.variants import VARIANTS, grid_px
from dfine_jax.families.rtdetr.weights import BACKBONE_ANCHORS, FORMATS, described, official_keys
from dfine_jax.losses.criterion import Pairs
from dfine_jax.nn.denoising import draw_denoising
from dfine_jax.typing import DenoisingQueries, Targets

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
    layers = network.config.eval_layer + 1 if reduction.layers is None else reduction.layers
    network = reduced(network, variables, reduction._replace(layers=layers))
    return network.clone(config=dataclasses.replace(network.config, eval_layer=layers - 1))


def _renewed(weights: RTDetrConfig, model: RTDetrConfig) -> str | None:
    """The box heads of all layers where they mean something else, or the quality heads alone."""
    differing = {name for name in FDR_DEFAULTS if getattr(weights, name) != getattr(model, name)}
    if "box_head" in differing or (model.box_head == "fdr" and differing - {"quality_head"}):
        return r"/decoder/(pre_bbox_head|dec_bbox_head_\d+|lqe_layers_\d+)/"
    return r"/decoder/lqe_layers_\d+/" if differing and model.box_head == "fdr" else None


def _first_conv(model: RTDetrConfig) -> tuple[str, ...]:
    return ("backbone", "conv1", "conv1_1") if model.backbone in RESNETS else ("backbone", "stem", "stem1")


def _backbone_of(model: RTDetrConfig) -> str:
    return f"{'ResNet-vd' if model.backbone in RESNETS else 'HGNetv2'}-{model.backbone}"


RTDETR: Family[RTDetrConfig, RTDetrLossConfig, DenoisingQueries, Pairs] = Family(
    name="rtdetrv2",
    title="RT-DETRv2",
    Model=RTDetrConfig,
    Loss=RTDetrLossConfig,
    variants=VARIANTS,
    smallest="r18",
    methods=("rtdetrv2", "deim"),
    parts=("backbone", "encoder", "decoder"),
    check=check,
    grid_px=grid_px,
    build=_build,
    first_conv=_first_conv,
    init=init_variables,
    reduced=_reduced,
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
    adaptable=frozenset(("sampling", *FDR_DEFAULTS)),
    renewed=_renewed,
    formats=FORMATS,
    described=described,
    published=DETECTORS,
    backbones=BACKBONES,
    backbone_of=_backbone_of,
    backbone_anchors=BACKBONE_ANCHORS,
    official_keys=official_keys,
)
