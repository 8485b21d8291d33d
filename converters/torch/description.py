"""What this library knows of weights, carried by files in other programs' layouts.

Official layouts hold tensors alone: the way of sampling, activations, numbers of queries and the names of the classes
leave no trace there. Files written here carry the description of a checkpoint beside the tensors, where other programs
overlook it: as one more entry of a ``.pth``, in the header of a ``.safetensors``. Programs that write such a file anew
leave it out, and one that contradicts the tensors is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfine_jax import families
from dfine_jax.config import Activation, ModelSection
from dfine_jax.errors import UserError
from dfine_jax.families.family import Variables, WeightFormat
from dfine_jax.training.run.checkpoint import Metadata, metadata_from, metadata_json
from dfine_jax.weights.load import bound_fields


def describe(metadata: Metadata, form: WeightFormat[Any]) -> str:
    """The description of weights in a layout."""
    return metadata_json(metadata, layout=form.name)


def is_current(text: str, settings: Mapping[str, Any] | None) -> bool:
    """Whether a folder's config.json still says what stood there when the description was written.

    Args:
      settings: content of the config.json; None: there is none, and nothing to differ.
    """
    if settings is None:
        return True
    metadata, form = _parsed(text)
    wanted = {} if form.settings is None else form.settings(metadata.config.model, metadata.class_names)
    return bool(wanted) and all(settings.get(name) == value for name, value in wanted.items())


def read_described(tensors: Mapping[str, np.ndarray], text: str) -> tuple[Variables, Metadata]:
    """Variables (float32 NumPy) of tensors, and what their description says.

    Raises:
      UserError: the description is damaged or of a later version, or the tensors are of another architecture.
    """
    metadata, form = _parsed(text)
    model, variables = form.read(tensors, metadata.config.model)
    for name, (value, found) in differences(metadata.config.model, model).items():
        raise UserError(f"the description of the weights says model.{name}={value}, their tensors {found}")
    return variables, metadata


def differences(model: ModelSection, other: ModelSection) -> dict[str, tuple[Any, Any]]:
    """Fields that decide what is computed, with the values of both, where another architecture has other ones."""
    own, others = (bound_fields(each) | {"num_queries": each.num_queries} for each in (model, other))
    return {name: (value, others.get(name)) for name, value in own.items() if value != others.get(name)}


def check_asked(metadata: Metadata, activation: Activation | None, class_names: Sequence[str] | None) -> None:
    """Nothing is asked for that the description says otherwise.

    Raises:
      UserError: it is.
    """
    stored = metadata.config.model.decoder_activation
    if activation not in (None, stored):
        raise UserError(f"the weights know their activation ({stored}); leave {activation} out")
    if class_names is not None and tuple(class_names) != metadata.class_names:
        raise UserError("the weights know their classes; leave the names out")


def _parsed(text: str) -> tuple[Metadata, WeightFormat[Any]]:
    where = "its description"
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is damaged ({error}); take the file from where it was written") from error
    metadata, raw = metadata_from(content, where)
    families.validate(metadata.config)
    model = metadata.config.model
    if not len(metadata.class_names) == len(metadata.category_ids) == model.num_classes:
        raise UserError(f"{where} has {len(metadata.class_names)} class names for {model.num_classes} classes")
    form = next((form for form in families.of(model).formats if form.name == raw.get("layout")), None)
    if form is None:
        raise UserError(f"{where} has no layout of {families.of(model).title}: {raw.get('layout')!r}")
    return metadata, form
