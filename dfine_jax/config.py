"""Typed, frozen, complete configuration. Every field is read somewhere; unknown keys are errors."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol

from dfine_jax.errors import UserError

Activation = Literal["relu", "silu"]
Precision = Literal["float32", "bfloat16"]
AuxOptimizer = Literal["adan", "adamw"]


class ConfigError(UserError, ValueError):
    """A configuration key or value is wrong; the message names the key and the cure."""


class ModelSection(Protocol):
    """What shared code reads of a family's model configuration, a frozen dataclass with more fields than these.

    Shapes of the weights depend on nothing else than its values.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def family(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def num_queries(self) -> int: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def decoder_activation(self) -> Activation: ...


class LossSection(Protocol):
    """A family's loss configuration: matching costs, loss terms and additional queries; a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def assignment(self) -> Literal["scipy", "device"]: ...


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """An optimiser with a schedule, global-norm clipping and an exponential moving average of the weights."""

    lr: float = 8e-4  # by AdamW, of all but the backbone; a rate of 0 freezes
    backbone_lr: float = 4e-4  # by AdamW
    # muon: Muon takes the matrices of attention and feed-forward layers; what the next two name takes the rest.
    optimizer: Literal["adamw", "muon"] = "adamw"
    aux_optimizer: AuxOptimizer = "adan"  # of what else is outside the backbone
    backbone_optimizer: AuxOptimizer = "adan"
    muon_lr_factor: float = 10.0  # rate of what Muon takes over that by AdamW
    adan_lr_factor: float = 5.0  # of what Adan takes
    schedule: Literal["constant", "flat_cosine", "onecycle"] = "constant"  # flat_cosine: DEIM; onecycle: D-FINE-seg
    onecycle_rise: float = 0.1  # onecycle: share of the run after which the full rate is reached
    flat_epochs: int = 0  # flat_cosine: end of the flat part
    final_epochs: int = 0  # flat_cosine: so many last epochs at the smallest rate
    min_lr_ratio: float = 1.0  # flat_cosine: smallest rate over the full one
    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 0.1
    warmup_steps: int = 500  # constant and flat_cosine
    ema_decay: float = 0.9999
    ema_warmup_steps: int = 1000
    ema_restart: Literal["apply", "ignore"] = "apply"  # ignore: stage 2 leaves the decay alone, as the reference does
    ema_restart_decay: float = 0.9999  # from the start of stage 2 on
    ema_restart_step: float = 1e-4  # taken off the decay at every return to the best weights in stage 2
    decay_bias: bool = False  # weight decay on biases outside the backbone
    # Of the backbone's batch norms. base: full rate and no weight decay; no_decay: the backbone's rate without it.
    backbone_bn: Literal["backbone", "base", "no_decay"] = "backbone"
    freeze: tuple[str, ...] = ()  # regular expressions; parameters whose path matches stay as they are


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Images and augmentation (data/augment/schedule.py says what happens in which epoch)."""

    height_px: int = 640
    width_px: int = 640
    resize: Literal["stretch", "letterbox"] = "stretch"
    augment: Literal["standard", "dense", "none"] = "standard"  # dense: also mosaic and MixUp
    start_augment_epoch: int = 0  # e0: before it only flip and resize
    stop_mosaic_epoch: int = 78  # e1: end of mosaic and MixUp
    stop_augment_epoch: int = 148  # e2: from it on only flip and resize, and one input size
    photometric_prob: float = 0.5
    zoom_out_prob: float = 0.5
    iou_crop_prob: float = 0.8
    flip_prob: float = 0.5
    mosaic_prob: float = 0.5  # of an image, with augment=dense
    mosaic_cache: int = 0  # partners from so many recent images, which are still decoded; 0 = from all images
    mixup_prob: float = 0.5  # of a batch, with augment=dense
    multi_scale_repeat: int = 0  # weight of the base size among 0.75 to 1.25 times it; 0 = base size only
    clip_boxes: bool = True  # False: lose objects at the right and bottom edge to rounding, as the reference does
    workers: int = -1  # processes that make batches; -1: one per core; 0: none, in the process that trains
    max_objects: int = 0  # slots per image; 0 = the largest count that the data and the augmentation can give


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run."""

    method: str = ""  # whose recipe, of the family's methods; kept with the weights; empty: not said
    epochs: int = 160
    stage2_epoch: int = 0  # first epoch (from 0) of the second stage, which starts from the best weights; 0 = none
    batch_size: int = 128  # global, over all devices
    accumulate: int = 1  # parts a batch is computed in, one after another, to save memory
    remat: tuple[str, ...] = ()  # parts (backbone, encoder, decoder) computed again backwards, to save memory
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
    """A whole experiment; stored in every checkpoint. ``model`` and ``loss`` are of one family (families/family.py)."""

    model: ModelSection
    loss: LossSection
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    log: LogConfig = LogConfig()


Sections = Callable[[Mapping[str, Any]], Mapping[str, type]]  # classes of the sections that a family decides

_RANGES: dict[str, Callable[[Any], bool]] = {
    "at least 1": lambda v: v >= 1,
    "at least -1": lambda v: v >= -1,
    "not negative": lambda v: 0 <= v < math.inf,
    "between 0 and 1": lambda v: 0 <= v <= 1,
    "above 0": lambda v: 0 < v < math.inf,
}


def check_ranges(section: str, values: Any, rules: Mapping[str, tuple[str, ...]]) -> None:
    """Fields of a section lie in their ranges.

    Args:
      rules: names of fields by range: "at least 1", "at least -1", "not negative", "between 0 and 1", "above 0".

    Raises:
      ConfigError: one does not; the message names the key.
    """
    for rule, names in rules.items():
        for name in names:
            value = getattr(values, name)
            for one in value if isinstance(value, tuple) else (value,):
                if not _RANGES[rule](one):
                    raise ConfigError(f"{section}.{name}={value} must be {rule}")


def check_shared(config: Config) -> None:
    """Check of the sections that all families share what types cannot.

    Raises:
      ConfigError: a value makes no sense; the message names the key.
    """
    check_ranges("model", config.model, {"at least 1": ("num_queries", "num_classes")})
    rules = {
        "at least 1": ("epochs", "batch_size", "eval_batch_size", "eval_every", "checkpoint_every", "log_every")
        + ("max_skipped_steps", "accumulate"),
        "not negative": ("seed", "checkpoint_steps", "stage2_epoch", "patience"),
        "between 0 and 1": ("target_ap",),
    }
    check_ranges("train", config.train, rules)
    rules = {
        "at least 1": ("height_px", "width_px"),
        "at least -1": ("workers",),
        "not negative": ("max_objects", "start_augment_epoch", "stop_mosaic_epoch", "stop_augment_epoch")
        + ("mosaic_cache", "multi_scale_repeat"),
        "between 0 and 1": ("photometric_prob", "zoom_out_prob", "iou_crop_prob", "flip_prob")
        + ("mosaic_prob", "mixup_prob"),
    }
    check_ranges("data", config.data, rules)
    rules = {
        "not negative": ("lr", "backbone_lr", "weight_decay", "warmup_steps", "ema_warmup_steps", "flat_epochs")
        + ("final_epochs", "muon_lr_factor", "adan_lr_factor"),
        "between 0 and 1": ("ema_decay", "beta1", "beta2", "min_lr_ratio", "ema_restart_decay", "ema_restart_step")
        + ("onecycle_rise",),
        "above 0": ("clip_norm",),
    }
    check_ranges("optim", config.optim, rules)
    check_ranges("log", config.log, {"not negative": ("pictures",)})


def from_dict(cls: type, values: dict[str, Any], where: str = "", sections: Sections | None = None) -> Any:
    """Build a configuration dataclass from plain values.

    Args:
      where: before the names of keys, in messages.
      sections: of the values of a ``Config``, wherever it is met: classes of its sections ``model`` and ``loss``.

    Raises:
      ConfigError: a key is unknown, missing or of another type.
    """
    hints = _hints(cls, values, sections)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"unknown configuration key {where + unknown[0]!r}{_near(unknown[0], fields)}")
    out = {}
    for name, field in fields.items():
        if name in values:
            out[name] = _coerce(hints[name], values[name], where + name, sections)
        elif field.default is dataclasses.MISSING and not _all_default(hints[name]):
            raise ConfigError(f"configuration key {where + name!r} is missing")
        elif field.default is dataclasses.MISSING:
            out[name] = hints[name]()
    return cls(**out)


def _hints(cls: type, values: Mapping[str, Any], sections: Sections | None) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return hints | dict(sections(values)) if cls is Config and sections else hints


def _all_default(hint: Any) -> bool:
    """Whether it is a section whose fields all have defaults."""
    section = isinstance(hint, type) and dataclasses.is_dataclass(hint)
    return section and all(field.default is not dataclasses.MISSING for field in dataclasses.fields(hint))


def known_only(
    cls: type, values: dict[str, Any], prefix: str = "", sections: Sections | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Values without keys that the dataclass or its sections do not have, and those keys, dotted."""
    hints = _hints(cls, values, sections)
    kept, unknown = {}, []
    for name, value in values.items():
        hint = hints.get(name)
        if hint is None:
            unknown.append(prefix + name)
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, dict):
            kept[name], deeper = known_only(hint, value, f"{prefix}{name}.", sections)
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
        config = _replace(config, key.strip().split("."), raw.strip(), key.strip(), config)
    return config


def keys(config: Any, prefix: str = "") -> list[str]:
    """All dotted keys of a configuration, for help texts and suggestions."""
    out = []
    for name in hints_of(config):
        value = getattr(config, name)
        out += keys(value, f"{prefix}{name}.") if dataclasses.is_dataclass(value) else [prefix + name]
    return out


def _replace(config: Any, path: list[str], raw: str, full: str, whole: Any) -> Any:
    hints = typing.get_type_hints(type(config))
    if path[0] not in hints:
        raise ConfigError(f"unknown configuration key {full!r}{_near(full, keys(whole))}")
    current = getattr(config, path[0])
    if dataclasses.is_dataclass(current):
        if len(path) == 1:
            raise ConfigError(f"{full!r} is a section; set one of its keys: {', '.join(hints_of(current))}")
        return dataclasses.replace(config, **{path[0]: _replace(current, path[1:], raw, full, whole)})
    if len(path) > 1:
        raise ConfigError(f"unknown configuration key {full!r}: {path[0]!r} is a value, not a section")
    try:
        value = json.loads(raw)
    except json.JSONDecodeError:
        value = raw
    return dataclasses.replace(config, **{path[0]: _coerce(hints[path[0]], value, full, None)})


def hints_of(config: Any) -> list[str]:
    """Field names of a configuration section."""
    return [f.name for f in dataclasses.fields(config)]


def _near(key: str, candidates: typing.Iterable[str]) -> str:
    names = list(candidates)
    close = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
    tail = key.rsplit(".", 1)[-1]
    close = [n for n in names if n.rsplit(".", 1)[-1] == tail] + close
    return f"; did you mean {', '.join(dict.fromkeys(close))}?" if close else ""


def _coerce(hint: Any, value: Any, where: str, sections: Sections | None) -> Any:
    origin = typing.get_origin(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"configuration section {where!r} must be a mapping, not {value!r}")
        return from_dict(hint, value, where + ".", sections)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{where}={value!r} is not one of {', '.join(map(repr, typing.get_args(hint)))}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _coerce(next(a for a in typing.get_args(hint) if a is not type(None)), value, where, sections)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}={value!r} must be a list, for example [1,2]")
        return tuple(_coerce(typing.get_args(hint)[0], v, where, sections) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where}={value!r} must be of type {hint.__name__}")
    return value
