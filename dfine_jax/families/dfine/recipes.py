"""Which of the published tables a training set of one's own starts from."""

from __future__ import annotations

import dataclasses

from dfine_jax.config import Config
from dfine_jax.families.dfine.config import ModelConfig
from dfine_jax.families.dfine.tables import dfine_seg, published, recipes
from dfine_jax.families.dfine.variants import detecting, segmenting
from dfine_jax.families.family import Start


def recipe(variant: str, start: Start, method: str, task: str) -> tuple[str, Config]:
    """Name and line of the table that a training set of one's own is derived from, with the architecture of the task.

    Positions of a model with masks are in dfine-seg's order, which is right on inputs that are not square, too. Where
    it starts from weights, these decide.

    Args:
      method: ``dfine``, ``deim`` or ``dfine-seg``.
      task: ``detect`` or ``segment``.
    """
    if method == "dfine-seg":
        return "dfineseg_custom", dfine_seg(variant, task)
    name, table = _detection(variant, start, method)
    assert isinstance(table.model, ModelConfig)
    model = detecting(table.model)
    if task == "segment":
        model = dataclasses.replace(segmenting(table.model), position_order="row_major")
    return name, dataclasses.replace(table, model=model)


def _detection(variant: str, start: Start, method: str) -> tuple[str, Config]:
    """Of the tables for detectors, which serve for masks, too.

    It is the reference's: D-FINE's for custom data, D-FINE's for COCO after Objects365 when there are weights to start
    from, DEIM's for COCO. DEIM after Objects365 is published for X; the other variants take its rule: the rates, epochs
    and frozen parts of D-FINE's table, no warm-up, and the phases of DEIM.
    """
    from dfine_jax.training.plan.recipes import COCO_IMAGES, rescaled

    if method == "dfine":
        name = "dfine_obj2coco" if start == "detector" else "dfine_custom"
        return name, published(name, variant)
    dense = published("deim_coco", variant)
    if start != "detector":
        return "deim_coco", dense
    if variant in recipes()["deim_obj2coco"]:
        return "deim_obj2coco", published("deim_obj2coco", variant)
    tuned = published("dfine_obj2coco", variant)
    phases = rescaled(dense, COCO_IMAGES, epochs=tuned.train.epochs, batch_size=dense.train.batch_size)
    rates = ("lr", "backbone_lr", "weight_decay", "warmup_steps")
    average = ("ema_decay", "ema_warmup_steps", "ema_restart_decay", "ema_restart_step")
    optim = dataclasses.replace(phases.optim, **{name: getattr(tuned.optim, name) for name in rates + average})
    return "deim_coco with the rates of dfine_obj2coco", dataclasses.replace(phases, model=tuned.model, optim=optim)
