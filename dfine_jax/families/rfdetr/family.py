"""RF-DETR as the rest of the library knows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Key

from dfine_jax.errors import UserError
from dfine_jax.families.family import Build, ClassLeaf, Family, Reduction
from dfine_jax.families.rfdetr import loss, pretrained
from dfine_jax.families.rfdetr.config import RFDetrConfig, RFDetrLossConfig, check
from dfine_jax.families.rfdetr.inputs import MULTI_SCALE, preprocess, size_px
from dfine_jax.families.rfdetr.mask_head import STRIDE
from dfine_jax.families.rfdetr.model import PARTS, RFDetr, init_variables
from dfine_jax.families.rfdetr.outputs import Draws
from dfine_jax.families.rfdetr.published import DETECTORS
from dfine_jax.families.rfdetr.recipes import recipe, with_classes
from dfine_jax.families.rfdetr.rules import rules
from dfine_jax.families.rfdetr.variants import VARIANTS, detecting, grid_px, segmenting
from dfine_jax.families.rfdetr.weights import FORMATS, described, official_keys
from dfine_jax.ops.postprocess import AnswerRules
from dfine_jax.typing import Targets


def _build(model: RFDetrConfig, how: Build) -> nn.Module:
    return RFDetr(model, how.remat, how.compute_dtype)


def _queries(key: Key[Array, ""], targets: Targets, model: RFDetrConfig, config: RFDetrLossConfig) -> Draws:
    del targets, model, config
    return Draws(key)


def _reduced(network: Any, variables: Mapping[str, Any], reduction: Reduction) -> nn.Module:
    """The network with fewer queries or decoder layers; heads are shared by all layers, so any number of them answers.

    Raises:
      UserError: more is asked for than the model has, or queries that are dropped between layers.
    """
    del variables
    config: RFDetrConfig = network.config
    if reduction.prune:
        raise UserError("RF-DETR drops no queries between decoder layers; give a number of queries, or of layers")
    queries, layers = reduction.num_queries, reduction.layers
    if queries is not None and not 1 <= queries <= config.num_queries:
        raise UserError(f"{queries} queries: the model has {config.num_queries}; give 1 to {config.num_queries}")
    if layers is not None and not 1 <= layers <= config.decoder_layers:
        raise UserError(f"{layers} decoder layers: the model has {config.decoder_layers}")
    return network.clone(queries=queries, layers=layers)


def _answer_rules(model: RFDetrConfig) -> AnswerRules:
    return AnswerRules(num_top=model.num_queries, cut_to_boxes=False, clip_boxes=True, interpolated="logit")


RFDETR: Family[RFDetrConfig, RFDetrLossConfig, Draws, Any] = Family(
    name="rfdetr",
    title="RF-DETR",
    Model=RFDetrConfig,
    Loss=RFDetrLossConfig,
    variants=VARIANTS,
    smallest="nano",
    methods=("rfdetr",),
    parts=PARTS,
    check=check,
    grid_px=grid_px,
    preprocess=preprocess,
    with_classes=with_classes,
    size_px=size_px,
    multi_scale=MULTI_SCALE,
    build=_build,
    first_conv=lambda model: ("backbone", "patch_embeddings"),
    init=init_variables,
    reduced=_reduced,
    mask_stride=lambda model: 1 if model.mask_width else None,
    answer_stride=STRIDE,
    answer_rules=_answer_rules,
    is_transformer=True,
    tasks={"detect": detecting, "segment": segmenting},
    queries=_queries,
    match=loss.match,
    terms=loss.loss_terms,
    kinds=loss.kinds,
    rules=rules,
    layered=True,
    recipe=recipe,
    class_leaves=(ClassLeaf(r"/decoder/(enc_out_)?class_embed(_\d+)?/", -1),),
    frozen=(),
    of_method=frozenset(),
    free=frozenset(("num_classes", "head_rows", "drop_path", "few_tokens", "precision")),
    formats=FORMATS,
    described=described,
    published=DETECTORS,
    backbones=pretrained.BACKBONES,
    backbone_anchors=pretrained.ANCHORS,
    backbone_prefix=pretrained.PREFIX,
    fitted_backbone=pretrained.fitted,
    official_keys=official_keys,
    backbone_of=lambda model: f"DINOv2-{model.backbone[-1].upper()}",
)
