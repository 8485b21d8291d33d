"""Weights in other programs' layouts, with the description that makes reading them back exact."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save

from dfine_jax import families
from dfine_jax.converters.torch import torch_pickle
from dfine_jax.converters.torch.description import describe, differences, read_described
from dfine_jax.converters.torch.importer import recognise
from dfine_jax.converters.torch.tensor_files import DESCRIPTION
from dfine_jax.errors import UserError
from dfine_jax.system.files import write_whole
from dfine_jax.training.run.checkpoint import Metadata

logger = logging.getLogger(__name__)


def export_weights(
    out: Path, layout: Literal["official", "huggingface"], variables: Mapping[str, Any], metadata: Metadata
) -> None:
    """Write ``{"params", "batch_stats"}`` as a file, or as a folder with its config.json where the layout has one.

    Before anything is written, the tensors are read back and their architecture compared. What the layout alone does
    not hold is told as a warning: this library reads it from the description in the file, other programs cannot.

    Args:
      out: for ``official`` a ``.pth``, ``.pt`` or ``.safetensors``, otherwise a folder.

    Raises:
      UserError: the family does not write the layout, its program cannot compute this architecture, or what is read
        back is another one.
    """
    model, family = metadata.config.model, families.of(metadata.config.model)
    form = next((form for form in family.formats if form.name == layout), None)
    if form is None or form.write is None:
        raise UserError(f"{out}: weights of {family.title} are not written in the {layout} layout")
    settings = None if form.settings is None else form.settings(model, metadata.class_names)
    tensors = form.write(model, variables, metadata.input_size_px)
    text = describe(metadata, form)
    read_described(tensors, text)
    if lost := not_held(tensors, settings, metadata):
        logger.warning(
            "%s: the %s layout does not hold %s; dfine_jax reads it from the description that it puts into the file, "
            "other programs need it in their configuration, if that has it",
            out, layout, lost,
        )  # fmt: skip
    if metadata.best_threshold is not None:
        logger.info(
            "%s: the best threshold, %g, stands in the description that dfine_jax reads; tell it to other programs",
            out, metadata.best_threshold,
        )  # fmt: skip
    _write(out, tensors, settings, text, form.remarks(metadata.config, metadata.class_names))


def not_held(tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None, metadata: Metadata) -> str:
    """Fields of the architecture that a reader of tensors and config.json alone takes for others; empty: none.

    The order of positions is left out where the input is square, so that all orders are the same there.
    """
    try:
        _, form, found = recognise(tensors, settings)
        found, _ = form.read(tensors, found)
    except UserError as error:
        return f"the whole architecture ({error})"
    lost = differences(metadata.config.model, found)
    height_px, width_px = metadata.input_size_px
    if height_px == width_px:
        lost.pop("position_order", None)
    return ", ".join(f"model.{name}={value} (taken for {other})" for name, (value, other) in lost.items())


def _write(
    out: Path,
    tensors: Mapping[str, np.ndarray],
    settings: Mapping[str, Any] | None,
    text: str,
    remarks: Mapping[str, Any],
) -> None:
    if settings is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "model.safetensors", _safetensors(tensors, {"format": "pt", DESCRIPTION: text}))
        write_whole(out / "config.json", json.dumps(settings, indent=2) + "\n")
    elif out.suffix in (".pth", ".pt"):
        torch_pickle.save(out, {"model": tensors, **remarks, DESCRIPTION: text})
    else:
        write_whole(out, _safetensors(tensors, {DESCRIPTION: text}))


def _safetensors(tensors: Mapping[str, np.ndarray], remarks: dict[str, str]) -> bytes:
    return save({key: np.asarray(value, order="C") for key, value in tensors.items()}, remarks)
