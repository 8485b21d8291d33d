"""Official state dict and transformers' <-> our configuration and variables. Fails closed (families/state_dict.py)."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfine_jax.config import Activation, Config, TrainConfig
from dfine_jax.errors import UserError
from dfine_jax.families import official
from dfine_jax.families.dfine import dfine_seg, huggingface, names
from dfine_jax.families.dfine.config import LossConfig, ModelConfig
from dfine_jax.families.dfine.variants import VARIANTS
from dfine_jax.families.family import Anchor, Origin, Variables, WeightFormat

logger = logging.getLogger(__name__)

_HINTS = {
    "swish_ffn": "these names are those of DEIMv2, another architecture",
    "mask": "these are masks of another kind than dfine-seg's",
    "conv.bias": "this looks like the deployed form with merged convolutions, give the training checkpoint",
}
# RT-DETRv4 (arXiv 2510.25257) is this architecture with SiLU. A projection to its teacher's features serves training
# alone.
_PROJECTOR = ("encoder.feature_projector.0.weight", "encoder.feature_projector.0.bias")


def recognise_official(
    tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None = None
) -> ModelConfig | None:
    """Configuration of an official state dict, from its shapes; None: it is of another model, or of a folder.

    Activations leave no trace and keep the variant's values but in RT-DETRv4, whose files are known by the projection
    to its teacher. Scalars (reg_scale, up) are the variant's, too, until ``read_official``.
    """
    if settings is not None:
        return None
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    layers = _count(shapes, "decoder.decoder.layers.")
    traits = (
        _dimension(shapes, "backbone.stem.stem4.conv.weight"),
        _dimension(shapes, "encoder.input_proj.0.conv.weight"),
        layers,
    )
    votes = {name: sum(a == b for a, b in zip(traits, known, strict=True)) for name, known in _traits().items()}
    variant = max(votes, key=lambda name: votes[name])
    num_classes = _dimension(shapes, "decoder.enc_score_head.weight")
    if votes[variant] < 2 or num_classes is None or _PROJECTION in shapes:
        return None
    config = VARIANTS[variant]
    if layers == _count(shapes, "decoder.decoder.lqe_layers.") == _count(shapes, "decoder.dec_score_head."):
        config = dataclasses.replace(config, decoder_layers=layers)
    counted = any(key.endswith("num_batches_tracked") for key in shapes)
    frozen = not any(key.startswith("backbone.") and key.endswith("num_batches_tracked") for key in shapes)
    config = dataclasses.replace(
        config,
        num_classes=num_classes,
        backbone_frozen_bn=frozen if counted else config.backbone_frozen_bn,
        decoder_activation="silu" if _PROJECTOR[0] in shapes else config.decoder_activation,
        mlp_activation="silu" if _PROJECTOR[0] in shapes else config.mlp_activation,
    )
    return official.with_sampling(_with_masks(config, shapes), tensors)


def _with_masks(model: ModelConfig, shapes: Mapping[str, Sequence[int]]) -> ModelConfig:
    """With the masks that tensors show: of one level more than the encoder's, it is the backbone's before them.

    Models with masks come from dfine-seg, whose position embedding has the right order on inputs that are not square,
    but for those of its early versions, which only N shows.
    """
    width, levels = _dimension(shapes, "decoder.mask_decoder.up_conv.weight"), len(model.return_stages)
    if width is None:
        return model
    finer = max(_count(shapes, "decoder.mask_decoder.lateral.") - levels, 0)
    stages = tuple(model.return_stages[0] - i for i in range(finer, 0, -1))
    model = dataclasses.replace(model, mask_width=width, mask_stages=stages)
    return model if dfine_seg.is_early(model) else dataclasses.replace(model, position_order="row_major")


_PROJECTION = "decoder.decoder.layers.0.cross_attn.value_proj.weight"  # of detectors with the same backbone


def official_keys(model: ModelConfig) -> dict[str, str]:
    """Official key of each of our paths, in the order of the official file."""
    return official.official_keys(model, official.to_official, names.order_key)


def read_official(tensors: Mapping[str, np.ndarray], model: ModelConfig) -> tuple[ModelConfig, Variables]:
    """Official state dict as variables (float32 NumPy), and the architecture with the file's scalars.

    Args:
      tensors: official names and layouts, any number type.

    Raises:
      UserError: it is not of this architecture; the message names the missing, unexpected and misshapen entries.
    """
    known_besides = {*constants(model), *_PROJECTOR}
    variables = official.read(tensors, model, official_keys(model), known_besides, _HINTS)
    return _with_scalars(model, tensors), variables


def write_official(
    model: ModelConfig, variables: Mapping[str, Any], size_hw: tuple[int, int] = (640, 640)
) -> dict[str, np.ndarray]:
    """As ``official.write``.

    Raises:
      UserError: the variables are not those of this architecture.
    """
    return official.write(variables, model, size_hw, official_keys(model), constants(model), names.order_key)


def constants(model: ModelConfig) -> official.Constants:
    """Entries of the official file beside weights."""
    scalar = np.asarray([model.reg_scale], np.int64 if model.reg_scale == int(model.reg_scale) else np.float32)
    strides = [4 * 2**stage for stage in model.return_stages]
    entries = official.constants(model, strides, official_keys(model))
    for prefix in ("decoder.", "decoder.decoder."):
        entries[f"{prefix}up"] = lambda h, w: np.asarray([model.up], np.float32)
        entries[f"{prefix}reg_scale"] = lambda h, w: scalar
    return entries


def _with_scalars(model: ModelConfig, tensors: Mapping[str, np.ndarray]) -> ModelConfig:
    """The file's scalars in the fewest digits that are the same number there; the model's own where they are that."""
    values = {}
    for name in ("reg_scale", "up"):
        keys = [key for key in (f"decoder.{name}", f"decoder.decoder.{name}") if key in tensors]
        scalars = [scalar for key in keys for scalar in np.ravel(tensors[key])[:1]]
        found, known = {float(str(scalar)) for scalar in scalars}, getattr(model, name)
        if len(found) != min(len(keys), 1) or not all(0 < value < 1e3 for value in found):
            raise UserError(f"{' and '.join(keys)} hold {sorted(found)}; both must be the same positive number")
        if all(scalar == np.asarray(known, scalar.dtype) for scalar in scalars):
            continue
        values[name] = found.pop()
        logger.info("%s is %g in the file (D-FINE-%s: %g)", name, values[name], model.variant, known)
    return dataclasses.replace(model, **values)


@functools.lru_cache(maxsize=1)
def _traits() -> dict[str, tuple[int, int, int]]:
    """Channels after the stem, encoder width and decoder layers; any two tell the variants apart."""
    from dfine_jax.families.backbones.hgnetv2 import BACKBONES

    return {
        name: (BACKBONES[model.backbone].stem[1], model.encoder_width, model.decoder_layers)
        for name, model in VARIANTS.items()
    }


def _dimension(shapes: Mapping[str, Sequence[int]], key: str) -> int | None:
    return shapes[key][0] if shapes.get(key) else None


def _count(shapes: Mapping[str, Any], prefix: str) -> int:
    """How many numbered modules follow a prefix."""
    return len({key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)})


def recognise_huggingface(
    tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None = None
) -> ModelConfig | None:
    """Configuration of transformers' D-FINE, with what a config.json says; None: it is of another model."""
    if not huggingface.is_mine(tensors, settings):
        return None
    found = recognise_official(huggingface.to_official(tensors))
    return found if found is None or settings is None else huggingface.as_configured(found, settings)


FORMATS = (
    WeightFormat(
        "official",
        Anchor(("backbone", "stem", "stem1", "conv", "weight")),
        recognise_official,
        read_official,
        write_official,
        class_names=dfine_seg.class_names,
        remarks=dfine_seg.remarks,
    ),
    WeightFormat(
        "huggingface",
        Anchor(("backbone", "model", "embedder", "stem1", "convolution", "weight"), outer="model"),
        recognise_huggingface,
        lambda tensors, model: read_official(huggingface.to_official(tensors), model),
    ),
)


BACKBONE_ANCHORS = (Anchor(("stem", "stem1", "conv", "weight")),)  # of backbone files; with a detector, its backbone
_BY_NAME = "by its name"
_METHODS = {"relu": "D-FINE with ReLU", "silu": "DEIM with SiLU"}


def described(model: ModelConfig, origin: Origin) -> Config:
    """The configuration of weights of another program.

    Weights with SiLU are described as DEIM's, those with masks as D-FINE-seg's, so that training them further is done
    in the same way. Hugging Face's port says the activation in its configuration and has ReLU without one, published
    files and those that say that they are dfine-seg's have ReLU, RT-DETRv4's have SiLU; for others it is what was asked
    for, or what ``guess_activation`` finds, with a warning.

    Raises:
      UserError: nothing tells the activation, or the file says another one than was asked for.
    """
    asked, stated = origin.activation, model.decoder_activation
    is_stated = origin.is_stated or stated == "silu"
    if is_stated and asked not in (None, stated):
        raise UserError(f"{origin.source} says that the activation is {stated}, not {asked}; leave it out")
    of_seg = dfine_seg.meta(origin.beside) is not None
    known = "relu" if origin.is_published or origin.format == "huggingface" or of_seg else None
    activation = stated if is_stated else asked or known or _guessed(model, origin)
    deim = activation == "silu"
    model = dataclasses.replace(model, decoder_activation=activation, mlp_activation=activation)
    config = Config(
        model=model,
        loss=LossConfig(class_loss="mal" if deim else "vfl"),
        train=TrainConfig(method="deim" if deim else "dfine"),
    )
    return config if deim else dfine_seg.trained(config, model, origin)


def _guessed(model: ModelConfig, origin: Origin) -> Activation:
    found = guess_activation(origin.file, model)
    if model.mask_width and found != ("silu", _BY_NAME):
        found = "relu", "dfine-seg's weights with masks have it"
    if found is None:
        raise UserError(
            f"{origin.source} does not say which activation its decoder has, and with the wrong one it detects "
            "nothing: give --activation relu (D-FINE) or silu (DEIM, RT-DETRv4), to dfine convert first where a "
            "command has no such option; in Python activation='relu'"
        )
    activation, reason = found
    other = "relu" if activation == "silu" else "silu"
    logger.warning(
        "%s: %s assumed (%s); otherwise give --activation %s", origin.source, _METHODS[activation], reason, other
    )
    return activation


def guess_activation(file_name: str, model: ModelConfig) -> tuple[Activation, str] | None:
    """Activation of weights that do not state it, and why; it leaves no trace in the tensors. None: nothing says it.

    Files of DEIM and RT-DETRv4 carry their names, as D-FINE's do; of the variants whose backbone D-FINE trains with
    frozen batch norm (L, X), DEIM trains them.
    """
    name = file_name.lower().replace("-", "").replace("_", "")
    if "deim" in name or re.search("rt(detr)?v4", name):
        return "silu", _BY_NAME
    if VARIANTS[model.variant].backbone_frozen_bn and not model.backbone_frozen_bn:
        return "silu", "its backbone was trained with its batch norms"
    return ("relu", _BY_NAME) if "dfine" in name else None
