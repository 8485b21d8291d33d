"""The published recipes, number by number (configs/ of Peterande/D-FINE and Intellindust-AI-Lab/DEIM; dfine-seg 0.6.2).

``published("deim_coco", "s")`` is a whole configuration. What all recipes share are the defaults of ``config.py``. The
reference trains with automatic mixed precision; bfloat16 compute is its counterpart here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from dfine_jax.config import Config, DataConfig, OptimConfig, TrainConfig
from dfine_jax.families.dfine.config import LossConfig, ModelConfig
from dfine_jax.families.dfine.variants import VARIANTS, detecting, model_config, segmenting

NEVER = 500  # the reference's stop epoch of runs without a second stage


class RecipeRow(NamedTuple):
    """One line of the tables, in the reference's terms; epochs count from 0."""

    lr: float
    backbone_lr: float
    weight_decay: float
    batch: int
    epochs: int
    stop_epoch: int  # stage 2, end of the strong augmentations and of the several input sizes
    repeat: int  # weight of the base size in multi-scale training; 0 = base size only
    restart_decay: float = 0.9999
    warmup: int = 500
    ema_warmup: int = 1000


class Dense(NamedTuple):
    """What DEIM adds."""

    gamma: float  # smallest rate over the full one
    flat: int  # epochs at the full rate
    no_aug: int  # last epochs, at the smallest rate
    start: int  # first epoch with augmentation
    dense: int  # end of mosaic and MixUp


_L, _X = (2.5e-4, 1.25e-5, 1.25e-4, 32), (2.5e-4, 2.5e-6, 1.25e-4, 32)
_N, _M, _S64 = (8e-4, 4e-4, 1e-4, 128), (2.5e-4, 2.5e-5, 1.25e-4, 32), (4e-4, 2e-4, 1e-4, 64)
_S = (2.5e-4, 1.25e-4, 1.25e-4, 32)

DFINE: dict[str, dict[str, RecipeRow]] = {
    "coco": {
        "n": RecipeRow(*_N, 160, 148, 0),
        "s": RecipeRow(2e-4, 1e-4, 1e-4, 32, 132, 120, 20),
        "m": RecipeRow(2e-4, 2e-5, 1e-4, 32, 132, 120, 6),
        "l": RecipeRow(*_L, 80, 72, 4),
        "x": RecipeRow(*_X, 80, 72, 3, 0.9998),
    },
    "objects365": {
        "n": RecipeRow(*_N, 48, NEVER, 0),
        "s": RecipeRow(*_S, 36, NEVER, 20),
        "m": RecipeRow(*_M, 36, NEVER, 6),
        "l": RecipeRow(*_L, 24, NEVER, 4),
        "x": RecipeRow(*_X, 24, NEVER, 3),
    },
    "obj2coco": {
        "n": RecipeRow(*_N, 64, 56, 0, warmup=0, ema_warmup=0),
        "s": RecipeRow(*_S, 64, 56, 10, warmup=0, ema_warmup=0),
        "m": RecipeRow(*_M, 56, 48, 6, warmup=0, ema_warmup=0),
        "l": RecipeRow(*_L, 36, 30, 4, warmup=0, ema_warmup=0),
        "x": RecipeRow(*_X, 36, 30, 3, warmup=0, ema_warmup=0),
    },
    "custom": {
        "n": RecipeRow(*_N, 220, 200, 0),
        "s": RecipeRow(*_S64, 220, 200, 20),
        "m": RecipeRow(*_M, 132, 120, 6),
        "l": RecipeRow(*_L, 80, 72, 4),
        "x": RecipeRow(*_X, 80, 72, 3, 0.9998),
    },
    "crowdhuman": {
        "n": RecipeRow(*_N, 220, 200, 0),
        "s": RecipeRow(*_S64, 220, 200, 20),
        "m": RecipeRow(*_M, 220, 200, 6),
        "l": RecipeRow(*_L, 140, 120, 4),
        "x": RecipeRow(*_X, 140, 120, 3, 0.9998),
    },
}
DEIM: dict[str, dict[str, tuple[RecipeRow, Dense]]] = {
    "coco": {
        "n": (RecipeRow(*_N, 160, 148, 0, warmup=2000), Dense(1.0, 7800, 12, 4, 78)),
        "s": (RecipeRow(4e-4, 2e-4, 1e-4, 32, 132, 120, 20, warmup=2000), Dense(0.5, 64, 12, 4, 64)),
        "m": (RecipeRow(4e-4, 4e-5, 1e-4, 32, 102, 90, 6, warmup=2000), Dense(0.5, 49, 12, 4, 49)),
        "l": (RecipeRow(5e-4, 2.5e-5, 1.25e-4, 32, 58, 50, 4, warmup=2000), Dense(0.5, 29, 8, 4, 29)),
        "x": (RecipeRow(5e-4, 5e-6, 1.25e-4, 32, 58, 50, 3, 0.9998, warmup=2000), Dense(0.5, 29, 8, 4, 29)),
    },
    "obj2coco": {
        "x": (RecipeRow(*_X, 24, 20, 3, warmup=0, ema_warmup=0), Dense(1.0, 12000, 4, 2, 12)),
    },
}
# D-FINE-seg: its ``lrs``, of the backbone and of the rest. Their doubles are the largest ones by AdamW.
DFINE_SEG: dict[str, tuple[float, float]] = {
    "n": (4e-4, 8e-4),
    "s": (6e-5, 2.5e-4),
    "m": (2e-5, 1.5e-4),
    "l": (1e-5, 1.6e-4),
    "x": (2e-6, 2e-4),
}
_CLASSES = {"coco": 80, "obj2coco": 80, "objects365": 366, "custom": 777, "crowdhuman": 1}


def recipes() -> dict[str, tuple[str, ...]]:
    """Names of the published recipes with their variants."""
    tables: dict[str, dict[str, dict[str, Any]]] = {"dfine": DFINE, "deim": DEIM, "dfineseg": {"custom": DFINE_SEG}}
    return {f"{method}_{data}": tuple(rows) for method, sets in tables.items() for data, rows in sets.items()}


def published(recipe: str, variant: str) -> Config:
    """Configuration of a published recipe, for example ``deim_coco`` and ``s``.

    Raises:
      ValueError: there is no such recipe.
    """
    known = recipes()
    if variant not in known.get(recipe, ()):
        names = ", ".join(f"{name} ({' '.join(variants)})" for name, variants in known.items())
        raise ValueError(f"no published recipe {recipe!r} for {variant!r}; there are {names}")
    method, data = recipe.split("_", 1)
    if method == "dfineseg":
        return dfine_seg(variant, "segment")
    if method == "dfine":
        config = _dfine(DFINE[data][variant], variant)
    else:
        config = _deim(*DEIM[data][variant], variant, tuned=data != "coco")
    model = dataclasses.replace(config.model, num_classes=_CLASSES[data], precision="bfloat16")
    return dataclasses.replace(config, model=model)


def deim_model(variant: str) -> ModelConfig:
    """The variant as DEIM trains it: SiLU in the decoder, all batch norms and the stem trained."""
    return model_config(
        variant,
        decoder_activation="silu",
        mlp_activation="silu",
        backbone_frozen_bn=False,
        backbone_frozen_stem=False,
    )


def _dfine(row: RecipeRow, variant: str) -> Config:
    return Config(
        model=VARIANTS[variant],
        loss=LossConfig(),
        optim=_optim(row, decay_bias=variant in "lx"),
        data=DataConfig(stop_augment_epoch=row.stop_epoch, multi_scale_repeat=row.repeat),
        train=_train(row, "dfine"),
    )


def _deim(row: RecipeRow, dense: Dense, variant: str, tuned: bool) -> Config:
    return Config(
        model=VARIANTS[variant] if tuned else deim_model(variant),  # tuned: the architecture of D-FINE's weights
        loss=LossConfig(class_loss="mal"),
        optim=_optim(
            row,
            decay_bias=variant != "n",
            backbone_bn="base" if variant in "sm" else "backbone",
            schedule="flat_cosine",
            flat_epochs=dense.flat,
            final_epochs=dense.no_aug,
            min_lr_ratio=dense.gamma,
        ),
        data=DataConfig(
            augment="dense",
            start_augment_epoch=dense.start,
            stop_mosaic_epoch=dense.dense,
            stop_augment_epoch=row.epochs - dense.no_aug,
            multi_scale_repeat=row.repeat,
        ),
        train=_train(row, "deim"),
    )


def dfine_seg(variant: str, task: str) -> Config:
    """D-FINE-seg's recipe for data of one's own, by Muon and Adan; ``optim.optimizer=adamw`` makes it its AdamW recipe.

    The reference's rate of the backbone counts for L and X alone; here it counts for all, in proportion. Its batch is
    as large as memory allows, 8 in earlier versions. Pictures are mosaics, or changed a little; they are resized by
    OpenCV's linear filter, and positions have their own order.
    """
    backbone_lr, lr = DFINE_SEG[variant]
    model = (segmenting if task == "segment" else detecting)(VARIANTS[variant])
    epochs, batch = 55, 8
    return Config(
        model=dataclasses.replace(
            model, num_classes=_CLASSES["custom"], position_order="row_major", precision="bfloat16"
        ),
        loss=LossConfig(),
        optim=OptimConfig(
            lr=2 * lr,
            backbone_lr=2 * backbone_lr,
            optimizer="muon",
            backbone_optimizer="adamw" if variant in "lx" else "adan",
            schedule="onecycle",
            weight_decay=1.25e-4,
            warmup_steps=0,
            ema_decay=0.9998,
            ema_warmup_steps=2000,
            backbone_bn="no_decay",
        ),
        data=_light_mosaics(epochs, mosaic_prob=0.5 if task == "segment" else 0.8),
        train=TrainConfig(method="dfine-seg", epochs=epochs, batch_size=batch, eval_batch_size=2 * batch),
    )


def _light_mosaics(epochs: int, mosaic_prob: float) -> DataConfig:
    """D-FINE-seg's pictures: mosaics, but not in the last five epochs, and single ones that little is done to."""
    return DataConfig(
        interpolation="bilinear",
        augment="dense",
        stop_mosaic_epoch=epochs - 5,
        stop_augment_epoch=epochs,
        **dict.fromkeys(("photometric_prob", "zoom_out_prob", "iou_crop_prob", "mixup_prob"), 0.0),
        mosaic_layout="random_centre",
        mosaic_prob=mosaic_prob,
        mosaic_rotation_deg=0.0,
        mosaic_translation=0.2,
        mosaic_shear_deg=2.0,
        flip_prob=0.3,
        rotation_prob=0.05,
        brightness_prob=0.02,
        gamma_prob=0.02,
        blur_prob=0.01,
        noise_prob=0.01,
        grey_prob=0.01,
    )


def _optim(row: RecipeRow, **rest: Any) -> OptimConfig:
    return OptimConfig(
        lr=row.lr,
        backbone_lr=row.backbone_lr,
        weight_decay=row.weight_decay,
        warmup_steps=row.warmup,
        ema_warmup_steps=row.ema_warmup,
        ema_restart_decay=row.restart_decay,
        **rest,
    )


def _train(row: RecipeRow, method: Any) -> TrainConfig:
    return TrainConfig(
        method=method,
        epochs=row.epochs,
        stage2_epoch=row.stop_epoch,
        batch_size=row.batch,
        eval_batch_size=2 * row.batch,
    )
