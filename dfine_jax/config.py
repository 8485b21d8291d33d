"""Typed, frozen, complete configuration. Every field is read somewhere; unknown keys are errors."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from typing import Any, Literal

from dfine_jax.errors import UserError

Activation = Literal["relu", "silu"]
Precision = Literal["float32", "bfloat16"]


class ConfigError(UserError, ValueError):
    """A configuration key or value is wrong; the message names the key and the cure."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture. Shapes of the weights depend on nothing else."""

    variant: str
    backbone: str  # HGNetv2 size, B0..B6
    backbone_lab: bool  # learnable affine after each ReLU
    backbone_frozen_bn: bool
    backbone_frozen_stem: bool
    return_stages: tuple[int, ...]  # backbone stages given to the encoder, 0-based
    encoder_width: int
    encoder_ffn: int
    encoder_expansion: float
    encoder_depth: float
    decoder_width: int
    decoder_ffn: int
    decoder_layers: int
    num_points: tuple[int, ...]  # sampling points per level
    reg_scale: float  # "a" of the weighting function W(n)
    num_classes: int = 80
    num_queries: int = 300
    num_heads: int = 8
    reg_max: int = 32
    up: float = 0.5
    decoder_activation: Activation = "relu"  # feed-forward and localisation quality layers
    mlp_activation: Activation = "relu"  # box heads and query position head
    precision: Precision = "float32"  # compute type; boxes, softmax, sampling coordinates and losses stay float32

    @property
    def num_bins(self) -> int:
        """Bins of an edge distribution."""
        return self.reg_max + 1


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Matching costs, loss terms and denoising."""

    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    class_loss: Literal["vfl", "mal", "focal"] = "vfl"  # mal: DEIM
    weight_class: float = 1.0
    weight_bbox: float = 5.0
    weight_giou: float = 2.0
    weight_fgl: float = 0.15
    weight_ddf: float = 1.5
    vfl_alpha: float = 0.75  # of vfl and focal
    vfl_gamma: float = 2.0
    mal_gamma: float = 1.5
    mal_alpha: float = 1.0  # weight of the background in mal
    ddf_temperature: float = 5.0
    num_denoising: int = 100
    label_noise_ratio: float = 0.5
    box_noise_scale: float = 1.0
    assignment: Literal["scipy", "device"] = "scipy"


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with a schedule, global-norm clipping and an exponential moving average of the weights."""

    lr: float = 8e-4  # a rate of 0 freezes
    backbone_lr: float = 4e-4
    schedule: Literal["constant", "flat_cosine"] = "constant"  # after the warm-up; flat_cosine: DEIM
    flat_epochs: int = 0  # flat_cosine: end of the flat part
    final_epochs: int = 0  # flat_cosine: so many last epochs at the smallest rate
    min_lr_ratio: float = 1.0  # flat_cosine: smallest rate over the full one
    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 0.1
    warmup_steps: int = 500
    ema_decay: float = 0.9999
    ema_warmup_steps: int = 1000
    ema_restart: Literal["apply", "ignore"] = "apply"  # ignore: stage 2 leaves the decay alone, as the reference does
    ema_restart_decay: float = 0.9999  # from the start of stage 2 on
    ema_restart_step: float = 1e-4  # taken off the decay at every return to the best weights in stage 2
    decay_bias: bool = False  # weight decay on biases outside the backbone, as the reference does for L and X
    backbone_bn: Literal["backbone", "base"] = "backbone"  # base: full rate and no weight decay, DEIM's S and M
    freeze: tuple[str, ...] = ()  # regular expressions; parameters whose path matches stay as they are


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Images and augmentation (data/augment/schedule.py says what happens in which epoch)."""

    height_px: int = 640
    width_px: int = 640
    resize: Literal["stretch", "letterbox"] = "stretch"
    augment: Literal["dfine", "deim", "none"] = "dfine"  # deim: also mosaic and MixUp
    start_augment_epoch: int = 0  # e0: before it only flip and resize
    stop_mosaic_epoch: int = 78  # e1: end of mosaic and MixUp
    stop_augment_epoch: int = 148  # e2: from it on only flip and resize, and one input size
    photometric_prob: float = 0.5
    zoom_out_prob: float = 0.5
    iou_crop_prob: float = 0.8
    flip_prob: float = 0.5
    mosaic_prob: float = 0.5  # of an image, with augment=deim
    mosaic_cache: int = 0  # partners from so many recent images, which are still decoded; 0 = from all images
    mixup_prob: float = 0.5  # of a batch, with augment=deim
    multi_scale_repeat: int = 0  # weight of the base size among 0.75 to 1.25 times it; 0 = base size only
    clip_boxes: bool = True  # False: lose objects at the right and bottom edge to rounding, as the reference does
    mask_stride: int = 0  # masks at 1/stride of the input size travel with the boxes; 0 = no masks
    workers: int = -1  # processes that make batches; -1: one per core; 0: none, in the process that trains
    max_objects: int = 0  # slots per image; 0 = the largest count that the data and the augmentation can give


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run."""

    method: Literal["dfine", "deim"] = "dfine"  # whose recipe; kept with the weights
    epochs: int = 160
    stage2_epoch: int = 0  # first epoch (from 0) of the second stage, which starts from the best weights; 0 = none
    batch_size: int = 128  # global, over all devices
    accumulate: int = 1  # parts a batch is computed in, one after another, to save memory
    remat: tuple[Literal["backbone", "encoder", "decoder"], ...] = ()  # computed again backwards, to save memory
    patience: int = 0  # evaluations without a new best after which training ends; 0 = never
    target_ap: float = 0.0  # average precision at which training ends; 0 = never
    eval_batch_size: int = 16
    eval_every: int = 1  # epochs
    checkpoint_every: int = 1  # epochs
    checkpoint_steps: int = 0  # also every so many steps; 0 = only at the end of epochs
    max_skipped_steps: int = 20  # consecutive non-finite steps after which training stops
    seed: int = 0
    log_every: int = 10  # steps


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where numbers and pictures go besides the run folder."""

    tensorboard: bool | None = None  # event files in OUT/tensorboard; None: where tensorboardX is installed
    wandb: str = ""  # Weights & Biases: name of the project; empty: off
    pictures: int = 4  # validation images drawn with their detections after each evaluation; 0 = no pictures, no curves


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole experiment; stored in every checkpoint."""

    model: ModelConfig
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    log: LogConfig = LogConfig()


def validate(config: Config) -> None:
    """Check what types cannot: ranges of values.

    Raises:
      ConfigError: a value makes no sense; the message names the key.
    """
    rules = {
        "at least 1": ("train.epochs", "train.batch_size", "train.eval_batch_size", "train.eval_every")
        + ("train.checkpoint_every", "train.log_every", "train.max_skipped_steps", "model.num_queries")
        + ("model.num_classes", "data.height_px", "data.width_px", "train.accumulate"),
        "at least -1": ("data.workers",),
        "not negative": ("train.seed", "log.pictures", "train.checkpoint_steps", "data.max_objects")
        + ("data.start_augment_epoch", "data.stop_mosaic_epoch", "data.stop_augment_epoch")
        + ("data.mosaic_cache", "data.multi_scale_repeat", "data.mask_stride")
        + ("optim.lr", "optim.backbone_lr", "optim.weight_decay", "optim.warmup_steps")
        + ("optim.ema_warmup_steps", "loss.num_denoising", "loss.box_noise_scale", "loss.mal_gamma", "loss.mal_alpha")
        + ("optim.flat_epochs", "optim.final_epochs", "train.stage2_epoch", "train.patience")
        + ("loss.cost_class", "loss.cost_bbox", "loss.cost_giou", "loss.focal_gamma", "loss.vfl_gamma")
        + ("loss.weight_class", "loss.weight_bbox", "loss.weight_giou", "loss.weight_fgl", "loss.weight_ddf"),
        "between 0 and 1": ("data.photometric_prob", "data.zoom_out_prob", "data.iou_crop_prob", "data.flip_prob")
        + ("data.mosaic_prob", "data.mixup_prob", "train.target_ap")
        + ("loss.label_noise_ratio", "optim.ema_decay", "optim.beta1", "optim.beta2")
        + ("loss.focal_alpha", "loss.vfl_alpha")
        + ("optim.min_lr_ratio", "optim.ema_restart_decay", "optim.ema_restart_step"),
        "above 0": ("optim.clip_norm", "loss.ddf_temperature"),
    }
    holds = {
        "at least 1": lambda v: v >= 1,
        "at least -1": lambda v: v >= -1,
        "not negative": lambda v: 0 <= v < math.inf,
        "between 0 and 1": lambda v: 0 <= v <= 1,
        "above 0": lambda v: v > 0,
    }
    for rule, names in rules.items():
        for name in names:
            section, key = name.split(".")
            value = getattr(getattr(config, section), key)
            if not holds[rule](value):
                raise ConfigError(f"{name}={value} must be {rule}")
    for name in ("height_px", "width_px"):
        side = getattr(config.data, name)
        if side % 32:
            raise ConfigError(
                f"data.{name}={side} must be a multiple of 32, for example {max(32, round(side / 32) * 32)}"
            )


def from_dict(cls: type, values: dict[str, Any], where: str = "") -> Any:
    """Build a configuration dataclass from plain values; unknown, missing or mistyped keys raise ConfigError."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"unknown configuration key {where + unknown[0]!r}{_near(unknown[0], fields)}")
    out = {}
    for name, field in fields.items():
        if name in values:
            out[name] = _coerce(hints[name], values[name], where + name)
        elif field.default is dataclasses.MISSING:
            raise ConfigError(f"configuration key {where + name!r} is missing")
    return cls(**out)


def known_only(cls: type, values: dict[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """Values without keys that the dataclass or its sections do not have, and those keys, dotted."""
    hints = typing.get_type_hints(cls)
    kept, unknown = {}, []
    for name, value in values.items():
        hint = hints.get(name)
        if hint is None:
            unknown.append(prefix + name)
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, dict):
            kept[name], deeper = known_only(hint, value, f"{prefix}{name}.")
            unknown += deeper
        else:
            kept[name] = value
    return kept, unknown


def override(config: Any, assignments: typing.Sequence[str]) -> Any:
    """Apply ``section.key=value`` strings, for example ``optim.lr=2e-4``; values are JSON or bare words.

    Raises:
      ConfigError: malformed assignment, unknown key (the near ones are suggested) or a value of the wrong type.
    """
    for text in assignments:
        key, sep, raw = text.partition("=")
        if not sep:
            raise ConfigError(f"{text!r} is not an assignment; write section.key=value, for example optim.lr=2e-4")
        config = _replace(config, key.strip().split("."), raw.strip(), key.strip())
    return config


def keys(cls: type = Config, prefix: str = "") -> list[str]:
    """All dotted keys, for help texts and suggestions."""
    hints = typing.get_type_hints(cls)
    out = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        section = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        out += keys(hint, f"{prefix}{field.name}.") if section else [prefix + field.name]
    return out


def _replace(config: Any, path: list[str], raw: str, full: str) -> Any:
    hints = typing.get_type_hints(type(config))
    if path[0] not in hints:
        candidates = keys() if len(path) != len(full.split(".")) or path[0] == full or "." in full else list(hints)
        raise ConfigError(f"unknown configuration key {full!r}{_near(full, candidates)}")
    current = getattr(config, path[0])
    if dataclasses.is_dataclass(current):
        if len(path) == 1:
            raise ConfigError(f"{full!r} is a section; set one of its keys: {', '.join(hints_of(current))}")
        return dataclasses.replace(config, **{path[0]: _replace(current, path[1:], raw, full)})
    if len(path) > 1:
        raise ConfigError(f"unknown configuration key {full!r}: {path[0]!r} is a value, not a section")
    try:
        value = json.loads(raw)
    except json.JSONDecodeError:
        value = raw
    return dataclasses.replace(config, **{path[0]: _coerce(hints[path[0]], value, full)})


def hints_of(config: Any) -> list[str]:
    """Field names of a configuration section."""
    return [f.name for f in dataclasses.fields(config)]


def _near(key: str, candidates: typing.Iterable[str]) -> str:
    names = list(candidates)
    close = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
    tail = key.rsplit(".", 1)[-1]
    close = [n for n in names if n.rsplit(".", 1)[-1] == tail] + close
    return f"; did you mean {', '.join(dict.fromkeys(close))}?" if close else ""


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"configuration section {where!r} must be a mapping, not {value!r}")
        return from_dict(hint, value, where + ".")
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{where}={value!r} is not one of {', '.join(map(repr, typing.get_args(hint)))}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _coerce(next(a for a in typing.get_args(hint) if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}={value!r} must be a list, for example [1,2]")
        return tuple(_coerce(typing.get_args(hint)[0], v, where) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where}={value!r} must be of type {hint.__name__}")
    return value
