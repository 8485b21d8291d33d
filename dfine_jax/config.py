"""Typed, frozen, complete configuration. Every field is read somewhere; unknown keys are errors."""

from __future__ import annotations

import dataclasses
import math
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
    layer_decay: float = 1.0  # rate of a block of a transformer backbone over that of the next; 1: all have one rate
    component_decay: float = 1.0  # rate of the decoder's layers over that of the heads, and its square the backbone's
    # flat_cosine: DEIM; onecycle: D-FINE-seg; drop and cosine: RF-DETR.
    schedule: Literal["constant", "flat_cosine", "onecycle", "drop", "cosine"] = "constant"
    onecycle_rise: float = 0.1  # onecycle: share of the run after which the full rate is reached
    flat_epochs: int = 0  # flat_cosine: end of the flat part
    final_epochs: int = 0  # flat_cosine: so many last epochs at the smallest rate
    min_lr_ratio: float = 1.0  # flat_cosine and cosine: smallest rate over the full one; drop: the last one over it
    drop_epoch: int = 0  # drop: first epoch (from 0) at the last rate; 0 = none
    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 0.1
    warmup_steps: int = 500  # of all but onecycle
    ema_decay: float = 0.9999
    ema_warmup_steps: int = 1000
    ema_first: Literal["mix", "copy"] = "mix"  # the first update of the average; copy: takes the weights as they are
    ema_restart: Literal["apply", "ignore"] = "apply"  # ignore: stage 2 leaves the decay alone, as the reference does
    ema_restart_decay: float = 0.9999  # from the start of stage 2 on
    ema_restart_step: float = 1e-4  # taken off the decay at every return to the best weights in stage 2
    decay_bias: bool = False  # weight decay on biases outside the backbone
    # Of the backbone's batch norms. base: full rate and no weight decay; no_decay: the backbone's rate without it.
    backbone_bn: Literal["backbone", "base", "no_decay"] = "backbone"
    freeze: tuple[str, ...] = ()  # regular expressions; parameters whose path matches stay as they are


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Images and augmentation (data/augment/schedule.py says what happens in which epoch).

    Operations with a probability work under ``standard`` and ``dense`` alike. D-FINE-seg's mixture is ``dense`` with
    ``mosaic_layout`` random_centre, with none of the distortion, zooming out, cropping and MixUp of the others.
    """

    height_px: int = 640
    width_px: int = 640
    resize: Literal["stretch", "letterbox"] = "stretch"
    # How pixels are resized (data/picture/resampling.py); None: as the family has it.
    interpolation: Literal["bilinear_antialias", "bilinear"] | None = None
    border: int = 0  # level of grey beside letterboxed pictures
    enlarge: bool = True  # False: except in training, a letterbox leaves pictures that are smaller than it as they are
    augment: Literal["standard", "dense", "none"] = "standard"  # dense: also mosaic and MixUp
    start_augment_epoch: int = 0  # e0: before it only flips, quarter turns and resize
    stop_mosaic_epoch: int = 78  # e1: end of mosaic and MixUp
    stop_augment_epoch: int = 148  # e2: from it on only these, and one input size
    photometric_prob: float = 0.5
    zoom_out_prob: float = 0.5
    iou_crop_prob: float = 0.8
    square_crop_prob: float = 0.0  # RF-DETR: of the picture with a short side as the next says, a square of random side
    square_crop_short_px: tuple[int, ...] = (400, 500, 600)
    square_crop_px: tuple[int, ...] = (384, 600)  # smallest, largest
    flip_prob: float = 0.5  # left and right
    flip_vertical_prob: float = 0.0  # up and down
    turn_90_prob: float = 0.0  # by a quarter to the left or to the right
    rotation_prob: float = 0.0  # by up to rotation_deg either way
    rotation_deg: float = 10.0
    dropout_prob: float = 0.0  # one or two black rectangles
    brightness_prob: float = 0.0  # with contrast, of the whole picture
    gamma_prob: float = 0.0
    blur_prob: float = 0.0
    noise_prob: float = 0.0  # Gaussian, of each pixel and channel
    grey_prob: float = 0.0
    mosaic_prob: float = 0.5  # of an image, with augment=dense
    mosaic_layout: Literal["grid", "random_centre"] = "grid"  # random_centre: as large as the input, then nothing else
    mosaic_rotation_deg: float = 10.0  # up to so much, either way
    mosaic_translation: float = 0.1  # up to so much of the picture, either way
    mosaic_scale: tuple[float, ...] = (0.5, 1.5)  # smallest, largest
    mosaic_shear_deg: float = 0.0  # up to so much, either way, on both axes
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
    best_by: Literal["masks", "boxes"] = "masks"  # whose AP decides what is best; without masks, that of boxes
    eval_batch_size: int = 16
    eval_every: int = 1  # epochs
    val_loss: bool = True  # the loss of the validation images beside their AP
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
    mlflow: str = ""  # MLflow: name of the experiment, where MLFLOW_TRACKING_URI says; empty: off
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


_RANGES: dict[str, Callable[[Any], bool]] = {
    "at least 1": lambda v: v >= 1,
    "at least -1": lambda v: v >= -1,
    "not negative": lambda v: 0 <= v < math.inf,
    "between 0 and 1": lambda v: 0 <= v <= 1,
    "between 0 and 45": lambda v: 0 <= v <= 45,
    "between 0 and 180": lambda v: 0 <= v <= 180,
    "above 0": lambda v: 0 < v < math.inf,
}


def check_ranges(section: str, values: Any, rules: Mapping[str, tuple[str, ...]]) -> None:
    """Fields of a section lie in their ranges.

    Args:
      rules: names of fields by range: "at least 1", "not negative", "between 0 and 1" and the others of ``_RANGES``.

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
        "between 0 and 1": tuple(f.name for f in dataclasses.fields(DataConfig) if f.name.endswith("_prob"))
        + ("mosaic_translation",),
        "above 0": ("mosaic_scale", "square_crop_short_px", "square_crop_px"),
        "between 0 and 180": ("rotation_deg", "mosaic_rotation_deg"),
        "between 0 and 45": ("mosaic_shear_deg",),
    }
    check_ranges("data", config.data, rules)
    for name in ("mosaic_scale", "square_crop_px"):
        pair = getattr(config.data, name)
        if len(pair) != 2 or pair[0] > pair[1]:
            raise ConfigError(f"data.{name}={list(pair)} must be two numbers, the smallest and the largest")
    if not config.data.square_crop_short_px:
        raise ConfigError("data.square_crop_short_px=[] must hold a number")
    rules = {
        "not negative": ("lr", "backbone_lr", "weight_decay", "warmup_steps", "ema_warmup_steps", "flat_epochs")
        + ("final_epochs", "drop_epoch", "muon_lr_factor", "adan_lr_factor"),
        "between 0 and 1": ("ema_decay", "beta1", "beta2", "min_lr_ratio", "ema_restart_decay", "ema_restart_step")
        + ("onecycle_rise", "layer_decay", "component_decay"),
        "above 0": ("clip_norm",),
    }
    check_ranges("optim", config.optim, rules)
    check_ranges("log", config.log, {"not negative": ("pictures",)})
