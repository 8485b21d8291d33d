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

logger = logging.getLogger(__name__)

METHOD = "dfine-seg"
_TOLD = ("label_to_name", "img_size")  # what its ``meta`` has, and hardly that of another program


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


def trained(config: Config, model: ModelConfig, beside: Mapping[str, Any]) -> Config:
    """The configuration of its weights: order of positions, and the input that they were trained on.

    Weights with masks are its own, whether the file says so or not.
    """
    remarks = meta(beside)
    if remarks is None and not model.mask_width:
        return config
    model = dataclasses.replace(model, position_order="row_major")
    data, size = config.data, (remarks or {}).get("img_size")
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size):
        resize = "letterbox" if remarks and remarks.get("keep_ratio") else "stretch"
        if resize == "letterbox":
            logger.warning(
                "the weights were trained on pictures with grey borders, and small ones are not enlarged there; here "
                "borders are black and every picture fills the input, so that numbers differ a little"
            )
        data = dataclasses.replace(data, height_px=size[0], width_px=size[1], resize=resize)
    return dataclasses.replace(config, model=model, data=data, train=dataclasses.replace(config.train, method=METHOD))
