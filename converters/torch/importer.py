"""Weights of other programs, whatever the file: their tensors, architecture and description."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dfine_jax import families
from dfine_jax.config import Activation, ModelSection
from dfine_jax.converters.torch.description import check_asked, is_current, read_described
from dfine_jax.converters.torch.state_dicts import tell
from dfine_jax.converters.torch.tensor_files import read_folder_tensors, read_tensors, weights_file
from dfine_jax.data.read.coco_names import (
    COCO_ALIASES,
    COCO_CATEGORY_IDS,
    COCO_NAMES,
    OBJECTS365_CLASSES,
    objects365_names,
)
from dfine_jax.errors import UserError
from dfine_jax.families.family import Family, Origin, Variables, WeightFormat
from dfine_jax.families.foreign import not_known
from dfine_jax.system.files import read_json, sha256, telling
from dfine_jax.training.run.checkpoint import Metadata
from dfine_jax.weights import hub

logger = logging.getLogger(__name__)


class _Read(NamedTuple):
    """What a file or folder holds."""

    tensors: Mapping[str, np.ndarray]
    file: Path  # that holds them, or their index
    place: str  # in the file
    settings: Mapping[str, Any] | None  # of a folder: its config.json
    description: str  # of weights that this library wrote
    beside: Mapping[str, Any]  # other entries of a file


class Recognised(NamedTuple):
    """Whose tensors they are."""

    family: Family[Any, Any, Any, Any]
    format: WeightFormat[Any]
    model: ModelSection


def import_weights(
    source: str | Path,
    *,
    activation: Activation | None = None,
    class_names: Sequence[str] | None = None,
    licence: str = "",
) -> tuple[dict[str, Any], Metadata]:
    """Variables ``{"params", "batch_stats"}`` (float32 NumPy) and their description.

    Class names come from the argument, else from what stands beside the tensors; 80 or 366 classes without names are
    taken for those of COCO or Objects365, with a warning unless the file is a published one; others get ``class_0``,
    ``class_1`` ... and the class index as category id. Files that this library wrote carry their description, which
    says all of it (description.py).

    Args:
      source: official ``.pth``, ``.safetensors`` (official or Hugging Face names) or Hugging Face folder.
      activation: of decoder and heads, where a file does not say it; None: what the family finds (``described``).
      class_names: one per class.
      licence: of the weights, recorded.

    Raises:
      UserError: the file is missing, damaged, malicious or of no family (the message lists what does not fit), has
        values that are not finite, or its activation is neither given nor to be found, or given against what the file
        says.
    """
    source = Path(source)
    try:
        with telling(source):
            read = _read(source)
            digest = sha256(read.file)
        if read.description and is_current(read.description, read.settings):
            variables, metadata = read_described(read.tensors, read.description)
            check_asked(metadata, activation, class_names)
        else:
            variables, metadata = _undescribed(source, read, digest, activation, class_names)
    except UserError as error:
        if str(source) in str(error):
            raise
        raise UserError(f"{source}: {error}") from error
    return variables, dataclasses.replace(
        metadata,
        source_file=read.file.name,
        source_entry=read.place,
        source_sha256=digest,
        licence=licence or metadata.licence,
    )


def _undescribed(
    source: Path, read: _Read, digest: str, activation: Activation | None, class_names: Sequence[str] | None
) -> tuple[Variables, Metadata]:
    if read.description:
        logger.warning("%s: config.json was changed since it was written, so it alone is followed", source)
    family, form, model = recognise(read.tensors, read.settings)
    model = form.stated(model, read.beside)
    model, variables = form.read(read.tensors, model)
    published = hub.is_published_file(read.file.name, digest)
    stated = source / "config.json" if read.settings is not None else source
    is_stated = read.settings is not None
    origin = Origin(str(stated), read.file.name, form.name, published, activation, is_stated, read.beside)
    names = class_names or form.class_names(read.beside)
    names = names or (None if read.settings is None else settings_names(read.settings))
    names = None if names is None else form.of_classes(model, names)
    names, category_ids = class_table(source, model.num_classes, names, sure=published)
    return variables, Metadata(family.described(model, origin), names, category_ids)


def recognise(tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None = None) -> Recognised:
    """Family, format and architecture of tensors.

    Args:
      settings: content of the config.json beside them, if there is one.

    Raises:
      UserError: they are of no family.
    """
    for family, form in _formats():
        model = form.recognise(tensors, settings)
        if model is not None:
            return Recognised(family, form, model)
    *others, last = (family.title for family in families.every())
    titles = f"{', '.join(others)} or {last}"
    if settings is not None:
        raise UserError(f"config.json: model_type {settings.get('model_type')!r} is not that of {titles}")
    raise UserError(not_known(tensors, titles))


def _formats() -> Iterator[tuple[Family[Any, Any, Any, Any], WeightFormat[Any]]]:
    return ((family, form) for family in families.every() for form in family.formats)


def _read(source: Path) -> _Read:
    if not source.is_dir():
        selected = read_tensors(source)
        tell(selected, source)
        return _Read(selected.tensors, source, selected.place, None, selected.description, selected.beside)
    place = source / "config.json"
    if not place.is_file():
        raise UserError(f"{source}: no config.json; give a Hugging Face folder")
    settings = read_json(place)
    if not isinstance(settings, dict):
        raise UserError(f"{place} holds no configuration")
    selected = read_folder_tensors(source)
    tell(selected, source)
    return _Read(selected.tensors, weights_file(source), "", settings, selected.description, {})


def settings_names(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of config.json's ``id2label`` in order, or None when it only numbers the classes."""
    labels = settings.get("id2label")
    if not isinstance(labels, dict) or sorted(labels, key=int) != [str(i) for i in range(len(labels))]:
        return None
    names = tuple(str(labels[str(i)]) for i in range(len(labels)))
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def class_table(
    source: Path | str, count: int, names: Sequence[str] | None, *, sure: bool = False
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Class names and original category ids of ``count`` classes named, or not, by the file.

    Args:
      sure: it is a published file, of which the classes are known.

    Raises:
      UserError: more or fewer names than classes.
    """
    assumed = {len(COCO_NAMES): "COCO", OBJECTS365_CLASSES: "Objects365"}.get(count)
    if names is None and assumed:
        if not sure:
            logger.warning(
                "%s: %d classes without names, assumed to be those of %s; if they are others, give their names "
                "(dfine convert FILE OUT --class-names NAMES.txt)",
                source, count, assumed,
            )  # fmt: skip
        return (COCO_NAMES, COCO_CATEGORY_IDS) if assumed == "COCO" else (objects365_names(), tuple(range(count)))
    if names is None:
        return tuple(f"class_{i}" for i in range(count)), tuple(range(count))
    if len(names) != count:
        raise UserError(f"{source}: {len(names)} class names for {count} classes; give one name per class")
    if tuple(COCO_ALIASES.get(name, name) for name in names) == COCO_NAMES:
        return COCO_NAMES, COCO_CATEGORY_IDS
    return tuple(names), tuple(range(count))
