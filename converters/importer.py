"""Weights of other programs, whatever the file: the one entry for ``dfine convert`` and ``dfine_jax.load``."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters import huggingface, name_map, torch_pickle
from converters.pickle_machine import TensorRef
from converters.torch_weights import convert_state_dict, select_state_dict
from dfine_jax.coco_names import COCO_ALIASES, COCO_CATEGORY_IDS, COCO_NAMES, OBJECTS365_CLASSES, objects365_names
from dfine_jax.config import Activation, Config, LossConfig, ModelConfig, TrainConfig
from dfine_jax.errors import UserError
from dfine_jax.training.checkpoint import Metadata
from dfine_jax.variants import VARIANTS

logger = logging.getLogger(__name__)
TORCH_SUFFIXES = (".pth", ".pt", ".bin")


def import_weights(
    source: str | Path,
    *,
    activation: Activation | None = None,
    class_names: Sequence[str] | None = None,
    licence: str = "",
) -> tuple[dict[str, Any], Metadata]:
    """Variables ``{"params", "batch_stats"}`` (float32 NumPy) and their description.

    Class names come from the argument, else from a Hugging Face configuration, else 80 classes are taken for COCO's;
    other files get ``class_0``, ``class_1`` ... and the class index as category id. Weights with SiLU are described as
    DEIM's, so that training them further is done in the same way.

    Args:
      source: official ``.pth``, ``.safetensors`` (official or Hugging Face names) or Hugging Face folder.
      activation: of decoder and heads: ``relu`` (D-FINE) or ``silu`` (DEIM). Only Hugging Face folders say it; for
        other files None means what ``guess_activation`` finds, with a line that says so.
      class_names: one per class.
      licence: of the weights, recorded.

    Raises:
      UserError: the file is missing, damaged, malicious or not D-FINE; the message lists what does not fit.
    """
    source = Path(source)
    config: ModelConfig | None = None
    file, stated = source, activation
    try:
        if source.is_dir():
            tensors, config, found_names = huggingface.read_folder(source)
            class_names, file = class_names or found_names, source / "model.safetensors"
            stated = stated or config.decoder_activation
        elif source.suffix == ".safetensors":
            tensors = huggingface.read_safetensors(source)
            if huggingface.is_huggingface(tensors):
                tensors, stated = huggingface.to_official(tensors), stated or "relu"  # that port is D-FINE's alone
        else:
            tensors = _read_torch(source)
        config, variables = convert_state_dict(tensors, activation=activation or "relu", config=config)
    except UserError as error:
        if str(source) in str(error):
            raise
        raise UserError(f"{source}: {error}") from error
    _log_ignored(tensors)
    if stated is None:
        stated, reason = guess_activation(file.name, config)
        other = "relu" if stated == "silu" else "silu"
        logger.warning("%s: %s assumed (%s); otherwise give --activation %s", source, _METHODS[stated], reason, other)
    config = dataclasses.replace(config, decoder_activation=stated, mlp_activation=stated)
    deim = stated == "silu"
    names, category_ids = class_table(source, config.num_classes, class_names)
    metadata = Metadata(
        config=Config(
            model=config,
            loss=LossConfig(class_loss="mal" if deim else "vfl"),
            train=TrainConfig(method="deim" if deim else "dfine"),
        ),
        class_names=names,
        category_ids=category_ids,
        source_file=file.name,
        source_sha256=sha256(file),
        licence=licence,
    )
    return variables, metadata


_METHODS = {"relu": "D-FINE with ReLU", "silu": "DEIM with SiLU"}


def guess_activation(file_name: str, config: ModelConfig) -> tuple[Activation, str]:
    """Activation of weights that do not state it, and why: it leaves no trace in the tensors.

    DEIM's files carry its name; of the variants whose backbone D-FINE trains with frozen batch norm (L, X), DEIM trains
    them.
    """
    if "deim" in file_name.lower():
        return "silu", "by its name"
    if VARIANTS[config.variant].backbone_frozen_bn and not config.backbone_frozen_bn:
        return "silu", "its backbone was trained with its batch norms"
    return "relu", "nothing speaks for DEIM"


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    with torch_pickle.opened(path) as content:
        return torch_pickle.materialise(select_state_dict(content, TensorRef))


def _log_ignored(tensors: Mapping[str, np.ndarray]) -> None:
    reasons = [reason for key in tensors if (reason := name_map.ignored_reason(key))]
    for reason in dict.fromkeys(reasons):
        logger.debug("%d entries not taken: %s", reasons.count(reason), reason)


def class_table(source: Path, count: int, names: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Class names and original category ids of ``count`` classes named, or not, by the file.

    Raises:
      UserError: more or fewer names than classes.
    """
    coco = count == len(COCO_NAMES)
    if names is None and coco:
        logger.info("%s: 80 classes, taken for those of COCO", source)
        return COCO_NAMES, COCO_CATEGORY_IDS
    if names is None and count == OBJECTS365_CLASSES:
        logger.info("%s: %d classes, taken for those of Objects365", source, count)
        return objects365_names(), tuple(range(count))
    if names is None:
        return tuple(f"class_{i}" for i in range(count)), tuple(range(count))
    if len(names) != count:
        raise UserError(f"{source}: {len(names)} class names for {count} classes; give one name per class")
    if tuple(COCO_ALIASES.get(name, name) for name in names) == COCO_NAMES:
        return COCO_NAMES, COCO_CATEGORY_IDS
    return tuple(names), tuple(range(count))
