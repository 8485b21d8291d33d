"""Weights of other programs, whatever the file: their tensors, architecture and description."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dfine_jax.config import Activation, Config, LossConfig, ModelConfig, TrainConfig
from dfine_jax.converters.torch import huggingface, name_map
from dfine_jax.converters.torch.state_dicts import tell
from dfine_jax.converters.torch.tensor_files import read_tensors, weights_file
from dfine_jax.converters.torch.torch_weights import convert_state_dict
from dfine_jax.data.read.coco_names import (
    COCO_ALIASES,
    COCO_CATEGORY_IDS,
    COCO_NAMES,
    OBJECTS365_CLASSES,
    objects365_names,
)
from dfine_jax.errors import UserError
from dfine_jax.families.dfine.variants import VARIANTS
from dfine_jax.system.files import sha256, telling
from dfine_jax.training.run.checkpoint import Metadata
from dfine_jax.weights import hub

logger = logging.getLogger(__name__)


class _Read(NamedTuple):
    """What a file or folder says."""

    tensors: Mapping[str, np.ndarray]  # official names
    file: Path  # that holds them, or their index
    place: str = ""  # in the file
    config: ModelConfig | None = None
    class_names: Sequence[str] | None = None
    activation: Activation | None = None
    activation_file: Path | None = None  # that states the activation and cannot be overruled


def import_weights(
    source: str | Path,
    *,
    activation: Activation | None = None,
    class_names: Sequence[str] | None = None,
    licence: str = "",
) -> tuple[dict[str, Any], Metadata]:
    """Variables ``{"params", "batch_stats"}`` (float32 NumPy) and their description.

    Class names come from the argument, else from a Hugging Face configuration; 80 or 366 classes without names are
    taken for those of COCO or Objects365, with a warning unless the file is a published one; others get ``class_0``,
    ``class_1`` ... and the class index as category id. Weights with SiLU are described as DEIM's, so that training them
    further is done in the same way.

    Args:
      source: official ``.pth``, ``.safetensors`` (official or Hugging Face names) or Hugging Face folder.
      activation: of decoder and heads: ``relu`` (D-FINE) or ``silu`` (DEIM). Hugging Face folders say it, published
        files have ReLU; for other files None means what ``guess_activation`` finds, with a warning that says so.
      class_names: one per class.
      licence: of the weights, recorded.

    Raises:
      UserError: the file is missing, damaged, malicious or not D-FINE (the message lists what does not fit), has values
        that are not finite, or its activation is neither given nor to be found, or given against what the file says.
    """
    source = Path(source)
    try:
        with telling(source):
            read = _read(source)
            digest = sha256(read.file)
        if read.activation_file and activation not in (None, read.activation):
            raise UserError(
                f"{read.activation_file} says that the activation is {read.activation}, not {activation}; leave it out"
            )
        config, variables = convert_state_dict(read.tensors, activation=activation or "relu", config=read.config)
        published = hub.is_published_file(read.file.name, digest)
        stated = activation or read.activation or ("relu" if published else None) or _found(source, read.file, config)
        names, category_ids = class_table(source, config.num_classes, class_names or read.class_names, sure=published)
    except UserError as error:
        if str(source) in str(error):
            raise
        raise UserError(f"{source}: {error}") from error
    _log_ignored(read.tensors)
    deim = stated == "silu"
    config = dataclasses.replace(config, decoder_activation=stated, mlp_activation=stated)
    metadata = Metadata(
        config=Config(
            model=config,
            loss=LossConfig(class_loss="mal" if deim else "vfl"),
            train=TrainConfig(method="deim" if deim else "dfine"),
        ),
        class_names=names,
        category_ids=category_ids,
        source_file=read.file.name,
        source_entry=read.place,
        source_sha256=digest,
        licence=licence,
    )
    return variables, metadata


def _read(source: Path) -> _Read:
    if source.is_dir():
        tensors, config, names = huggingface.read_folder(source)
        stated = source / "config.json"
        return _Read(tensors, weights_file(source), "", config, names, config.decoder_activation, stated)
    selected = read_tensors(source)
    tell(selected, source)
    if huggingface.is_huggingface(selected.tensors):  # that port is D-FINE's alone
        return _Read(huggingface.to_official(selected.tensors), source, selected.place, activation="relu")
    return _Read(selected.tensors, source, selected.place)


_METHODS = {"relu": "D-FINE with ReLU", "silu": "DEIM with SiLU"}


def _found(source: Path, file: Path, config: ModelConfig) -> Activation:
    found = guess_activation(file.name, config)
    if found is None:
        raise UserError(
            f"{source} does not say which activation its decoder has, and with the wrong one it detects nothing: give "
            "--activation relu (D-FINE) or silu (DEIM), to dfine convert first where a command has no such option; in "
            "Python activation='relu'"
        )
    activation, reason = found
    other = "relu" if activation == "silu" else "silu"
    logger.warning("%s: %s assumed (%s); otherwise give --activation %s", source, _METHODS[activation], reason, other)
    return activation


def guess_activation(file_name: str, config: ModelConfig) -> tuple[Activation, str] | None:
    """Activation of weights that do not state it, and why; it leaves no trace in the tensors. None: nothing says it.

    DEIM's files carry its name, as D-FINE's do; of the variants whose backbone D-FINE trains with frozen batch norm (L,
    X), DEIM trains them.
    """
    name = file_name.lower().replace("-", "").replace("_", "")
    if "deim" in name:
        return "silu", "by its name"
    if VARIANTS[config.variant].backbone_frozen_bn and not config.backbone_frozen_bn:
        return "silu", "its backbone was trained with its batch norms"
    return ("relu", "by its name") if "dfine" in name else None


def _log_ignored(tensors: Mapping[str, np.ndarray]) -> None:
    reasons = [reason for key in tensors if (reason := name_map.ignored_reason(key))]
    for reason in dict.fromkeys(reasons):
        logger.debug("%d entries not taken: %s", reasons.count(reason), reason)


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
