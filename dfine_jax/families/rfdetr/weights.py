"""Official state dict and the folder of transformers <-> our configuration and variables. Fails closed.

Official files are ``.pth`` with ``model`` and ``args``, or Lightning's ``.ckpt``; transformers writes the same names
into its safetensors.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfine_jax import families
from dfine_jax.config import Config, DataConfig, TrainConfig
from dfine_jax.data.read.coco_names import COCO_CATEGORY_IDS, COCO_NAMES
from dfine_jax.errors import UserError
from dfine_jax.families import official
from dfine_jax.families.backbones.dinov2 import BACKBONES
from dfine_jax.families.family import Anchor, Origin, Variables, WeightFormat
from dfine_jax.families.rfdetr import huggingface, names, pretrained
from dfine_jax.families.rfdetr.config import COCO_ROWS, RFDetrConfig, RFDetrLossConfig
from dfine_jax.families.rfdetr.inputs import size_px
from dfine_jax.families.rfdetr.variants import PLATFORM_LICENCE, VARIANTS, WIDE
from dfine_jax.families.state_dict import check_fit, from_tree, leaf_shapes, to_tree

logger = logging.getLogger(__name__)

_UNUSED = "_kp_active_mask"  # an empty buffer that every official file has
_PATCHES, _POSITIONS = f"{pretrained.PREFIX}{pretrained.PATCHES}", f"{pretrained.PREFIX}{pretrained.POSITIONS}"
_QUERIES = ("refpoint_embed.weight", "query_feat.weight")  # rows of all groups
# Names of tensors of files that are not read -> why.
_REFUSED = {
    "backbone.0.encoder.base_model.model.": "the backbone is that of a LoRA run; merge it into its weights where it "
    "was trained (merge_and_unload() of peft) and save the state dict again",
    "keypoint": "models with keypoints are not supported; give the weights of a detector or segmenter",
    "projector.stages.1.": "the first RF-DETR-Large, which has two levels, is not supported; take rfdetr-large-coco, "
    "which replaced it",
}


def recognise_official(
    tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None = None
) -> RFDetrConfig | None:
    """Configuration of an official state dict, from its shapes; None: it is of another model, or of a folder.

    Windows leave no trace and are those of the variant that is most alike, as are the heads of attention.

    Raises:
      UserError: it is RF-DETR, but of a form that is not supported.
    """
    return None if settings is not None else recognised(tensors)


def recognised(tensors: Mapping[str, np.ndarray]) -> RFDetrConfig | None:
    """As ``recognise_official``, also of a folder."""
    ours = "refpoint_embed.weight" in tensors and any(key.startswith("backbone.0.encoder.") for key in tensors)
    for part, why in _REFUSED.items() if ours else ():
        if any(part in key for key in tensors):
            raise UserError(why)
    shapes = {key: tuple(np.shape(tensor)) for key, tensor in tensors.items()}
    patches, positions = shapes.get(_PATCHES), shapes.get(_POSITIONS)
    head, rows = shapes.get("class_embed.weight"), shapes.get(_QUERIES[0])
    groups, layers = (_count(shapes, key) for key in ("transformer.enc_output.{}.bias", _LAYER.format("{}", "norm3")))
    points = shapes.get(_LAYER.format(0, "cross_attn.attention_weights"))
    if not (patches and positions and head and rows and groups and layers and points):
        return None
    if len(patches) != 4 or len(positions) != 3 or len(head) != 2 or rows[0] % groups or not positions[1] > 1:
        return None
    backbone = next((name for name, size in BACKBONES.items() if size.width == patches[0]), None)
    if backbone is None:
        return None
    table, queries = math.isqrt(positions[1] - 1), rows[0] // groups
    mask_width = shapes.get("segmentation_head.query_features_proj.bias", (0,))[0]
    near = _most_alike(backbone, patches[2], layers, table, queries, mask_width)
    if near is None or points[0] % near.cross_heads:
        return None
    feed_forward = shapes.get(_LAYER.format(0, "linear1"), (near.decoder_ffn,))[0]
    found = dataclasses.replace(
        near,
        backbone=backbone,
        table=table,
        width=head[1],
        num_points=points[0] // near.cross_heads,
        decoder_layers=layers,
        num_queries=queries,
        groups=groups,
        decoder_ffn=feed_forward,
        mask_width=mask_width,
    )
    coco = head[0] == COCO_ROWS
    return dataclasses.replace(
        found, head_rows="coco" if coco else "spare", num_classes=len(COCO_NAMES) if coco else head[0] - 1
    )


_LAYER = "transformer.decoder.layers.{}.{}.weight"


def _count(shapes: Mapping[str, Any], key: str) -> int:
    number = 0
    while key.format(number) in shapes:
        number += 1
    return number


def _most_alike(
    backbone: str, patch_px: int, layers: int, table: int, queries: int, mask_width: int
) -> RFDetrConfig | None:
    """The variant with these patches; of several that with as many layers, then the nearest table, then queries."""

    def distance(model: RFDetrConfig) -> tuple[int, int, int]:
        return abs(model.decoder_layers - layers), abs(model.table - table), abs(model.num_queries - queries)

    same = [
        model
        for model in VARIANTS.values()
        if (model.backbone, model.patch_px, bool(model.mask_width)) == (backbone, patch_px, bool(mask_width))
    ]
    return min(same, key=distance, default=None)


def stated(model: RFDetrConfig, beside: Mapping[str, Any]) -> RFDetrConfig:
    """The architecture with what the arguments beside the tensors say: windows, and how many classes 91 rows are of."""
    windows, classes = _argument(beside, "num_windows"), class_names(beside)
    if isinstance(windows, int) and windows > 0:
        model = dataclasses.replace(model, windows=windows)
    if model.head_rows == "coco" and classes is not None and len(classes) == COCO_ROWS - 1:
        return dataclasses.replace(model, head_rows="spare", num_classes=len(classes))
    return model


def class_names(beside: Mapping[str, Any]) -> Sequence[str] | None:
    """Names of the classes by number, where the arguments have them."""
    found = _argument(beside, "class_names")
    if not isinstance(found, (list, tuple)) or not found or not all(isinstance(name, str) for name in found):
        return None
    return list(found)


def _of_classes(model: RFDetrConfig, found: Sequence[str]) -> Sequence[str]:
    """Of names of all rows, or of all but the last, those of the classes."""
    if model.head_rows == "coco" and len(found) in (COCO_ROWS - 1, COCO_ROWS):
        return [found[row] for row in COCO_CATEGORY_IDS if row < len(found)]
    return found[:-1] if len(found) == model.num_logits else found


def remarks(config: Config, names_of_classes: Sequence[str]) -> dict[str, Any]:
    """The arguments of a run that the official program reads from its files."""
    model = config.model
    assert isinstance(model, RFDetrConfig)
    arguments: dict[str, Any] = {
        "num_classes": model.num_logits - 1,
        "num_queries": model.num_queries,
        "group_detr": model.groups,
        "num_windows": model.windows,
        "patch_size": model.patch_px,
        "dec_layers": model.decoder_layers,
        "segmentation_head": bool(model.mask_width),
    }
    if model.head_rows == "spare":
        arguments["class_names"] = list(names_of_classes)
    if config.data.height_px == config.data.width_px:
        arguments["resolution"] = config.data.height_px
    return {"args": arguments}


def _argument(beside: Mapping[str, Any], name: str) -> Any:
    """Of the run that a file is of."""
    places = [beside.get(key) for key in ("args", "hyper_parameters", "model_config")]
    inner = [place.get(key) for place in places if isinstance(place, Mapping) for key in ("model_config", "args")]
    held = (place[name] for place in (*places, *inner) if isinstance(place, Mapping) and place.get(name) is not None)
    return next(held, None)


def official_keys(model: RFDetrConfig) -> dict[str, str]:
    """Official key of each of our paths, in the order of the official file."""
    return official.official_keys(model, names.to_official, names.order_key)


def read_official(tensors: Mapping[str, np.ndarray], model: RFDetrConfig) -> tuple[RFDetrConfig, Variables]:
    """Official state dict as variables (float32 NumPy), and the architecture.

    Positions of another table are resized as the reference does. Of more queries or groups than the model has the
    first are taken, of each group.

    Raises:
      UserError: it is not of this architecture; the message names the missing, unexpected and misshapen entries.
    """
    keys, found = official_keys(model), recognised(tensors)
    tensors = dict(tensors)
    if found is not None:
        tensors = _of_groups(_of_table(tensors, model), found, model)
    what = f"{families.title(model)} with {model.num_logits} class rows"
    check_fit(tensors, leaf_shapes(model), keys, (_UNUSED,), what)
    rows = names.class_rows(model)
    tensors |= {key: tensors[key][rows] for key in keys.values() if names.has_class_rows(key)}
    return model, to_tree(tensors, keys)


def _of_table(tensors: dict[str, np.ndarray], model: RFDetrConfig) -> dict[str, np.ndarray]:
    side = pretrained.grid_side(tensors[_POSITIONS])
    if side in (0, model.table):
        return tensors
    logger.info("positions of the backbone are resized from %d to %d to a side", side, model.table)
    return {**tensors, _POSITIONS: pretrained.resized_positions(tensors[_POSITIONS], model.table)}


def _of_groups(tensors: dict[str, np.ndarray], found: RFDetrConfig, model: RFDetrConfig) -> dict[str, np.ndarray]:
    if found.groups < model.groups or found.num_queries < model.num_queries:
        return tensors
    rows = np.arange(found.groups * found.num_queries).reshape(found.groups, -1)
    rows = rows[: model.groups, : model.num_queries].reshape(-1)
    extra = [f"transformer.enc_{part}.{group}." for group in range(model.groups, found.groups) for part in _GROUPED]
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(tuple(extra))} if extra else tensors
    return {**kept, **{key: np.asarray(tensors[key])[rows] for key in _QUERIES if key in tensors}}


_GROUPED = ("output", "output_norm", "out_class_embed", "out_bbox_embed")


def write_official(
    model: RFDetrConfig, variables: Mapping[str, Any], size_hw: tuple[int, int] = (0, 0)
) -> dict[str, np.ndarray]:
    """Variables as an official state dict: keys, their order, layouts and number types of the reference.

    Raises:
      UserError: the variables are not those of this architecture.
    """
    del size_hw
    tensors = from_tree(variables, model, official_keys(model))
    rows = np.argsort(names.class_rows(model))
    tensors |= {key: tensor[rows] for key, tensor in tensors.items() if names.has_class_rows(key)}
    return {_UNUSED: np.zeros((0, 0), np.bool_)} | {key: tensors[key] for key in sorted(tensors, key=names.order_key)}


def recognise_huggingface(
    tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None = None
) -> RFDetrConfig | None:
    """Configuration of a folder of transformers' rf_detr; None: it is of another model.

    Raises:
      UserError: it asks for something that this model does not have.
    """
    if settings is None or settings.get("model_type") != "rf_detr":
        return None
    found = recognised(tensors)
    return None if found is None else huggingface.as_configured(found, settings)


FORMATS = (
    WeightFormat(
        "official",
        Anchor(("refpoint_embed", "weight")),
        recognise_official,
        read_official,
        write_official,
        class_names=class_names,
        stated=stated,
        of_classes=_of_classes,
        remarks=remarks,
    ),
    WeightFormat(
        "huggingface",
        Anchor(("refpoint_embed", "weight")),
        recognise_huggingface,
        read_official,
        lambda model, variables, size_hw: {k: v for k, v in write_official(model, variables).items() if k != _UNUSED},
        huggingface.settings,
        of_classes=_of_classes,
    ),
)


def described(model: RFDetrConfig, origin: Origin) -> Config:
    """The configuration of weights of another program, with the input that they were trained for.

    Raises:
      UserError: another activation than ReLU is asked for.
    """
    if origin.activation not in (None, "relu"):
        raise UserError(f"{origin.source} has the activation relu, not {origin.activation}; leave it out")
    if model.variant in WIDE:
        logger.warning("%s: weights of RF-DETR-%s have the licence %s", origin.source, model.variant, PLATFORM_LICENCE)
    size, asked = size_px(model), _argument(origin.beside, "resolution")
    if isinstance(asked, int) and asked > 0 and not asked % model.grid_px:
        size = asked, asked
    elif model.table != VARIANTS[model.variant].table:
        size = (model.table * model.patch_px,) * 2
    data = DataConfig(height_px=size[0], width_px=size[1])
    return Config(model=model, loss=RFDetrLossConfig(), data=data, train=TrainConfig(method="rfdetr"))
