"""What files of dfine-seg say beside their tensors.

Since 0.6 a checkpoint is ``{"model": tensors, "meta": {...}}``; released ones and older ones are tensors alone.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from dfine_jax.config import Config
from dfine_jax.families.dfine.config import ModelConfig
from dfine_jax.families.dfine.published import SEG_DETECTORS
from dfine_jax.families.dfine.variants import VARIANTS, segmenting
from dfine_jax.families.family import Origin

logger = logging.getLogger(__name__)

METHOD = "dfine-seg"
LETTERBOX: dict[str, Any] = {"resize": "letterbox", "border": 114, "enlarge": False}  # as ``DataConfig`` has it
_TOLD = ("label_to_name", "img_size")  # what its ``meta`` has, and hardly that of another program
# Fields that a file of tensors holds, or that change nothing about what weights compute.
_FREE = ("num_classes", "up", "reg_scale", "precision", "backbone_frozen_bn", "backbone_frozen_stem")


def meta(beside: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Its remarks among the entries of a file; None: it is of another program, or has none."""
    found = beside.get("meta")
    return found if isinstance(found, Mapping) and all(name in found for name in _TOLD) else None


def class_names(beside: Mapping[str, Any]) -> Sequence[str] | None:
    """Names of the classes by number, where they are all there."""
    names = (meta(beside) or {}).get("label_to_name")
    if not isinstance(names, Mapping):
        return None
    by_number = {int(number): str(name) for number, name in names.items() if str(number).isdigit()}
    return [by_number[i] for i in sorted(by_number)] if sorted(by_number) == list(range(len(names))) else None


def is_released(origin: Origin) -> bool:
    """Whether a file is one of its released detectors."""
    return origin.is_published and any(origin.file == each.file for each in SEG_DETECTORS.values())


def remarks(config: Config, class_names: Sequence[str]) -> dict[str, Any]:
    """What its own loader finds beside the tensors of its weights; nothing for those that it cannot compute.

    Version 0.6.2 reads from it what the network is, its classes, and how pictures become input. It has no settings for
    the rest: a model that has something otherwise would detect nothing there, so its file does not say that it is one
    of dfine-seg; of a model with masks, which no other program has, a warning says so.
    """
    model, data = config.model, config.data
    if not isinstance(model, ModelConfig) or not (model.mask_width or model.position_order == "row_major"):
        return {}
    if others := _others(model, is_square=data.height_px == data.width_px):
        if model.mask_width:
            logger.warning(
                "dfine-seg cannot compute this model: it has no setting for %s; the file is for dfine_jax alone",
                ", ".join(f"model.{name}={value}" for name, value in others.items()),
            )
        return {}
    found = {
        "version": "0.6.2",
        "model_name": model.variant,
        "task": "segment" if model.mask_width else "detect",
        "num_classes": model.num_classes,
        "in_channels": 3,
        "label_to_name": dict(enumerate(class_names)),
        "img_size": [data.height_px, data.width_px],
        "keep_ratio": data.resize == "letterbox",
    }
    return {"meta": found}


def _others(model: ModelConfig, is_square: bool) -> dict[str, Any]:
    """Fields that dfine-seg 0.6.2 has no setting for, where they are not as it has them."""
    own = VARIANTS[model.variant]
    own = dataclasses.replace(segmenting(own) if model.mask_width else own, position_order="row_major")
    free = (*_FREE, "position_order") if is_square else _FREE
    names = (field.name for field in dataclasses.fields(model) if field.name not in free)
    return {name: getattr(model, name) for name in names if getattr(model, name) != getattr(own, name)}


def is_early(model: ModelConfig) -> bool:
    """Whether masks are those of N before 0.6, whose positions had the order of D-FINE."""
    return bool(model.mask_width) and not model.mask_stages and 1 not in model.return_stages


def trained(config: Config, model: ModelConfig, origin: Origin) -> Config:
    """The configuration of its weights: order of positions, and the input that they were trained on.

    Weights with masks are its own, whether the file says so or not. OpenCV's linear filter has resized its pictures,
    without antialiasing.
    """
    remarks = meta(origin.beside)
    if remarks is None and not model.mask_width and not is_released(origin):
        return config
    model = dataclasses.replace(model, position_order="transposed" if is_early(model) else "row_major")
    data, size = dataclasses.replace(config.data, interpolation="bilinear"), (remarks or {}).get("img_size")
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size):
        data = dataclasses.replace(data, height_px=size[0], width_px=size[1], resize="stretch")
        data = dataclasses.replace(data, **LETTERBOX) if remarks and remarks.get("keep_ratio") else data
    return dataclasses.replace(config, model=model, data=data, train=dataclasses.replace(config.train, method=METHOD))
