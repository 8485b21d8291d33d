"""A configuration in ten lines: what a run will do, and which of its values were derived or given."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from dfine_jax.config import Config
from dfine_jax.families import task
from dfine_jax.training.plan.recipes import Recipe

_WIDTH = 116
# What a family does not have is left out.
_LINES: dict[str, tuple[str, ...]] = {
    "optimiser": ("optim.optimizer", "optim.aux_optimizer", "optim.backbone_optimizer", "optim.lr", "optim.backbone_lr")
    + ("optim.layer_decay", "optim.component_decay", "optim.muon_lr_factor", "optim.adan_lr_factor")
    + ("optim.weight_decay", "optim.clip_norm"),
    "schedule": ("train.epochs", "optim.schedule", "optim.flat_epochs", "optim.final_epochs", "optim.min_lr_ratio")
    + ("optim.onecycle_rise", "optim.drop_epoch"),
    "warm-up": ("optim.warmup_steps",),
    "average": ("optim.ema_decay", "optim.ema_warmup_steps"),
    "stages": ("train.stage2_epoch", "optim.ema_restart_decay", "optim.ema_restart_step", "train.patience"),
    "augmentation": ("data.augment", "data.start_augment_epoch", "data.stop_mosaic_epoch", "data.stop_augment_epoch"),
    "size": ("data.height_px", "data.width_px", "data.resize", "data.multi_scale_repeat"),
    "batch": ("train.batch_size", "train.accumulate", "train.eval_batch_size"),
    "masks": ("model.mask_width", "model.mask_stages", "loss.weight_mask_bce", "loss.weight_mask_ce")
    + ("loss.weight_mask_dice",),
    "model": ("model.precision", "model.decoder_activation", "model.backbone_frozen_bn", "model.backbone_frozen_stem"),
    "matching": ("loss.assignment", "loss.class_loss", "loss.num_denoising"),
}
_ONLY_WITH: dict[str, tuple[str, tuple[str, ...]]] = {  # values that mean nothing otherwise
    **dict.fromkeys(("optim.flat_epochs", "optim.final_epochs"), ("optim.schedule", ("flat_cosine",))),
    "optim.min_lr_ratio": ("optim.schedule", ("flat_cosine", "drop", "cosine")),
    "optim.drop_epoch": ("optim.schedule", ("drop",)),
    "optim.onecycle_rise": ("optim.schedule", ("onecycle",)),
    "optim.warmup_steps": ("optim.schedule", ("constant", "flat_cosine", "drop", "cosine")),
    **dict.fromkeys(("optim.aux_optimizer", "optim.backbone_optimizer"), ("optim.optimizer", ("muon",))),
    **dict.fromkeys(("optim.muon_lr_factor", "optim.adan_lr_factor"), ("optim.optimizer", ("muon",))),
    "data.stop_mosaic_epoch": ("data.augment", ("dense",)),
}

_NEVER = {"model.num_classes"}  # that of the data


def plan_lines(recipe: Recipe, given: Collection[str] = ()) -> list[str]:
    """The values that shape a run, one subject per line; unmarked ones are those of the recipe's table.

    Args:
      given: keys that the user set.
    """
    config, does = recipe.config, task(recipe.config.model)
    lines = _wrapped("task", [does])
    for subject, names in _LINES.items():
        there = [name for name in names if _has(config, name)]
        meant = [name for name in there if name not in _ONLY_WITH or _means(config, *_ONLY_WITH[name])]
        if meant and (subject != "masks" or does == "segment"):
            lines += _wrapped(subject, [_marked(name, recipe, given) for name in meant])
    shown = {name for names in _LINES.values() for name in names}
    others = (set(given) | differing(config, recipe.table)) - shown - _NEVER
    if others:
        lines += _wrapped("also", [_marked(name, recipe, given) for name in sorted(others)])
    rules = list(_rules(config, recipe.table))
    return lines + (_wrapped("derived by", rules) if rules else [])


def _rules(config: Config, table: Config) -> Iterator[str]:
    """What ``recipes.rescaled`` did, in the words of docs/training.md."""
    ours, theirs = config.train, table.train
    if ours.batch_size != theirs.batch_size:
        yield f"batch {ours.batch_size} for {theirs.batch_size}: rates with its root; warm-ups and average by images"
    if ours.epochs != theirs.epochs:
        yield f"{ours.epochs} epochs for {theirs.epochs}: changes keep their share of the run"
    if config.optim.ema_decay < table.optim.ema_decay or config.optim.warmup_steps < table.optim.warmup_steps:
        yield "steps: warm-ups and average at most a tenth of them"


def _wrapped(subject: str, items: Iterable[str]) -> list[str]:
    """Lines of whole items."""
    lines, line = [], f"{subject + ':':<14}"
    for item in items:
        if len(line) + len(item) > _WIDTH and line.strip() != f"{subject}:":
            lines.append(line.rstrip())
            line = " " * 14
        line += f"{item}, "
    return [*lines, line.rstrip(", ")]


def differing(config: Config, table: Config) -> set[str]:
    """Keys whose values differ."""
    keys = set()
    for section in dataclasses.fields(config):
        ours, theirs = getattr(config, section.name), getattr(table, section.name)
        names = [field.name for field in dataclasses.fields(ours)]
        keys |= {f"{section.name}.{name}" for name in names if getattr(ours, name) != getattr(theirs, name)}
    return keys


def _has(config: Config, name: str) -> bool:
    section, key = name.split(".")
    return hasattr(getattr(config, section), key)


def _means(config: Config, name: str, values: Collection[str]) -> bool:
    return _get(config, name) in values


def _marked(name: str, recipe: Recipe, given: Collection[str]) -> str:
    value, known = _get(recipe.config, name), _get(recipe.table, name)
    text = f"{name}={_text(value)}"
    if name in given:
        return f"{text} (given)"
    if value == known:
        return text
    why = f": {recipe.reasons[name]}" if name in recipe.reasons else ""
    return f"{text} (derived{why}; {recipe.source}: {_text(known)})"


def _get(config: Config, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
