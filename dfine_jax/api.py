"""What programs and notebooks call; the commands do the same."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfine_jax.errors import UserError

if TYPE_CHECKING:
    import flax.linen as nn

    from dfine_jax.config import Config
    from dfine_jax.data.read.dataset import Dataset
    from dfine_jax.evaluation.score import Metrics
    from dfine_jax.prediction.detector import OpenedModel
    from dfine_jax.training.report.sinks import Sink
    from dfine_jax.training.run.stages import Result
    from dfine_jax.weights.load import LoadedModel

    Weights = str | os.PathLike[str] | LoadedModel


def build(recipe: str, *, seed: int = 0, **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A network with fresh weights, and these, as ``load`` gives trained ones.

    Args:
      recipe: ``[family-]variant``, such as ``n``.
      changes: fields of its configuration, such as ``num_classes=3``.

    Raises:
      UserError: the variant is unknown.
    """
    import jax

    from dfine_jax.families import of_recipe
    from dfine_jax.families.family import Build

    family, variant = of_recipe(recipe)
    model = dataclasses.replace(family.variants[variant], **changes)
    return family.build(model, Build()), family.init(model, jax.random.key(seed))


def default_config(
    recipe: str,
    data: Dataset,
    *,
    weights: Weights | None = None,
    method: str | None = None,
    task: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    size_px: tuple[int, int] | None = None,
    values: Sequence[str] = (),
) -> tuple[Config, list[str]]:
    """What ``dfine train RECIPE`` would do, and the lines with which it shows the plan.

    Args:
      recipe: a variant, an experiment file or a plan.
      data: to train on.
      weights: to start from; they decide the architecture. Checkpoint folder, file, published name, or a loaded model.
      method: whose recipe; None: that of the weights, else the family's own.
      task: ``detect`` or ``segment``; None: that of the weights, else the variant's.
      epochs: None: from the number of images.
      batch_size: over all devices; None: from device and recipe.
      size_px: (height, width) of the input; None: that of the weights, else the recipe's.
      values: assignments such as ``optim.lr=2e-4``.

    Raises:
      UserError: the recipe, the weights or a value is wrong.
    """
    from dfine_jax.commands.train_plan import plan

    asked = argparse.Namespace(
        recipe=recipe,
        method=method,
        task=task,
        epochs=epochs,
        batch_size=batch_size,
        size=None if size_px is None else "x".join(map(str, size_px)),
        overrides=list(values),
        backbone=None,
        card=None,
    )
    return plan(asked, data, _loaded(weights))


def train(
    config: Config,
    train_data: Dataset,
    val_data: Dataset | None,
    out: Path | str,
    *,
    weights: Weights | None = None,
    backbone: str | None = None,
    resume: bool = False,
    max_hours: float | None = None,
    callbacks: Sequence[Any] = (),
    loggers: Sequence[Sink] = (),
) -> Result:
    """Train, as ``dfine train`` does: ``out`` gets ``last``, ``best`` (the best average precision) and the log.

    Args:
      config: of ``default_config``, or an experiment's.
      val_data: evaluated after epochs; None: no evaluation, no ``best``.
      weights: to start from, what depends on the classes taken over by their names.
      backbone: a pretrained backbone to start from, a file or ``imagenet``, where there are no ``weights``.
      resume: continue the run in ``out`` exactly where it stopped.
      max_hours: stop in good order after this time.
      callbacks: objects with any of ``on_step(step, values)``, ``on_epoch(epoch, row)`` and ``on_end(result)``. An
        error in one ends the run with a checkpoint to resume from, and is raised then.
      loggers: get what TensorBoard gets: ``scalars(step, values)``, ``pictures(step, values)`` and ``close()``.
        One that fails is named in the log and left out from then on; the run goes on.

    Raises:
      UserError: configuration, data, weights and folder do not fit.
    """
    from dfine_jax.commands.train import start_weights
    from dfine_jax.training.run import loop

    if weights is not None and backbone:
        raise UserError("weights have a backbone of their own; leave out backbone")
    notes: list[str] = []
    start = None if resume else start_weights(config, _loaded(weights), backbone, train_data, notes)
    told = {"callbacks": callbacks, "loggers": loggers}
    return loop.train(
        config, train_data, val_data, out, resume=resume, start=start, notes=notes, max_hours=max_hours, **told
    )


def evaluate(model: Weights | OpenedModel, data: Dataset, *, batch_size: int = 8, workers: int = -1) -> Metrics:
    """COCO's numbers and counts of anything that detects, on a dataset whose classes it knows.

    Args:
      model: checkpoint folder, weights file, published name, exported file, or what is loaded or opened of them.
      batch_size: images at a time; exported files that take one number only take that.
      workers: processes that read pictures; -1: one per core.

    Raises:
      UserError: nothing of that kind is there, the data has no object, or classes that the model does not know.
    """
    from dfine_jax.evaluation.evaluate import check_objects, evaluate_opened
    from dfine_jax.prediction.detector import OpenedModel, open_model

    check_objects(data)
    opened = model if isinstance(model, OpenedModel) else open_model(model)
    named = str(model) if isinstance(model, (str, os.PathLike)) else "the model", str(data.annotation_file)
    size_px = opened.preprocess.height_px, opened.preprocess.width_px
    return evaluate_opened(opened, data, named=named, size_px=size_px, batch_size=batch_size, workers=workers)[0]


def _loaded(weights: Weights | None) -> LoadedModel | None:
    if not isinstance(weights, (str, os.PathLike)):
        return weights
    from dfine_jax.weights.load import load_checkpoint

    return load_checkpoint(weights)
