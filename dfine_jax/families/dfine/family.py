"""D-FINE as the rest of the library knows it."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Key

from dfine_jax.families.dfine import loss
from dfine_jax.families.dfine.config import LossConfig, ModelConfig, check
from dfine_jax.families.dfine.model import DFine, init_variables
from dfine_jax.families.dfine.published import BACKBONES, DETECTORS, REPOSITORIES
from dfine_jax.families.dfine.recipes import recipe
from dfine_jax.families.dfine.rules import rules
from dfine_jax.families.dfine.variants import VARIANTS, detecting, grid_px, mask_stride, segmenting
from dfine_jax.families.dfine.weights import BACKBONE_ANCHORS, FORMATS, described, official_keys
from dfine_jax.families.family import Build, ClassLeaf, Family
from dfine_jax.families.reduction import reduced
from dfine_jax.losses.criterion import Pairs
from dfine_jax.nn.denoising import draw_denoising
from dfine_jax.typing import DenoisingQueries, Targets

_FROZEN = ("backbone_frozen_stem", "backbone_frozen_bn")
_MASKS = ("mask_width", "mask_stages")


def _build(model: ModelConfig, how: Build) -> nn.Module:
    return DFine(model, how.bn_axis_name, how.remat, compute_dtype=how.compute_dtype)


def _queries(key: Key[Array, ""], targets: Targets, model: ModelConfig, config: LossConfig) -> DenoisingQueries | None:
    return draw_denoising(
        key, targets, model.num_classes, config.num_denoising, config.label_noise_ratio, config.box_noise_scale
    )


def _renewed(weights: ModelConfig, model: ModelConfig) -> str | None:
    """What makes masks, where it is built otherwise: of a detector all of it."""
    same = all(getattr(weights, name) == getattr(model, name) for name in _MASKS)
    return None if same else r"/decoder/mask_(decoder|head)/"


DFINE: Family[ModelConfig, LossConfig, DenoisingQueries, Pairs] = Family(
    name="dfine",
    title="D-FINE",
    Model=ModelConfig,
    Loss=LossConfig,
    variants=VARIANTS,
    smallest="n",
    methods=("dfine", "deim", "dfine-seg"),
    parts=("backbone", "encoder", "decoder"),
    check=check,
    grid_px=grid_px,
    build=_build,
    first_conv=lambda model: ("backbone", "stem", "stem1"),
    init=init_variables,
    reduced=reduced,
    mask_stride=mask_stride,
    tasks={"detect": detecting, "segment": segmenting},
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
    of_method=frozenset(("decoder_activation", "mlp_activation", "position_order")),
    free=frozenset(("num_classes", "num_queries", "precision", *_FROZEN)),
    adaptable=frozenset(_MASKS),
    renewed=_renewed,
    formats=FORMATS,
    described=described,
    published=DETECTORS,
    backbones=BACKBONES,
    backbone_of=lambda model: f"HGNetv2-{model.backbone}",
    backbone_anchors=BACKBONE_ANCHORS,
    official_keys=official_keys,
    repositories=REPOSITORIES,
)
