"""What a run reports: its log, with the places the configuration names, and the numbers of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dfine_jax.config import Config
from dfine_jax.data.read.dataset import Dataset
from dfine_jax.evaluation.metrics import RATIO_NAMES
from dfine_jax.evaluation.score import MASK, METRIC_NAMES, Metrics
from dfine_jax.evaluation.truth import Truth
from dfine_jax.families import of, task
from dfine_jax.training.report.examples import Examples
from dfine_jax.training.report.log import EpochRow, RunLog
from dfine_jax.training.report.meter import Meter, by_kind
from dfine_jax.training.report.run_files import VAL
from dfine_jax.training.report.run_page import RunPage
from dfine_jax.training.report.sinks import Sink, open_sinks
from dfine_jax.training.report.worst_errors import WorstErrors
from dfine_jax.training.run import hosts
from dfine_jax.training.run.stages import Progress
from dfine_jax.training.step.optimizer import parameter_rules

Rates = Callable[[int], Mapping[str, float]]


def rates_of(config: Config, schedule: Callable[[Any], Any]) -> Rates:
    """Learning rates by name at a 0-based step: ``lr``, and ``GROUP_lr`` of the groups that have their own."""
    rules = reversed(parameter_rules(config.model, config.optim))  # the one that takes the rest comes first
    full = {"lr" if rule.group == "base" else f"{rule.group}_lr": rule.lr for rule in rules if rule.lr}

    def rates(step: int) -> dict[str, float]:
        factor = float(schedule(step))
        return {name: rate * factor for name, rate in full.items()}

    return rates


def open_log(
    config: Config,
    log_dir: Path,
    finished_epochs: int,
    step: int,
    rates: Rates,
    val_data: Dataset | None,
    truth: Truth | None = None,
    page: RunPage | None = None,
    loggers: Sequence[Sink] = (),
) -> RunLog:
    """The log of a run that has done ``step`` steps; only the first host has pictures, page and sinks."""
    log_dir.mkdir(exist_ok=True)
    if hosts.index():
        return RunLog(log_dir, finished_epochs, step=step)
    number = config.log.pictures
    shown = val_data if number else None
    examples = None if shown is None else Examples(shown, number, truth)
    errors = None if shown is None else WorstErrors(shown, truth)
    sinks = [*open_sinks(config, log_dir, step), *loggers]
    reported = {"rates": rates, "examples": examples, "pictures": number > 0, "best_by": config.train.best_by}
    return RunLog(
        log_dir, finished_epochs, sinks, config.train.log_every, **reported, page=page, step=step, errors=errors
    )


def epoch_row(
    config: Config,
    meter: Meter,
    progress: Progress,
    metrics: Metrics | None,
    *,
    epoch: int,
    step: int,
    rates: Mapping[str, float],
    val_loss: Mapping[str, float] | None = None,
) -> EpochRow:
    """Numbers of the 1-based ``epoch``.

    Args:
      metrics: None: not evaluated.
      val_loss: terms of the validation images by ``kind/where``, and their sum, ``loss``.
    """
    means = by_kind(meter.means())
    row: dict[str, float | int | None] = {"epoch": epoch, "step": step, **rates}
    losses = ("loss", *(f"loss_{kind}" for kind in of(config.model).kinds(config.model, config.loss)), "grad_norm")
    row |= {name: means.get(name) for name in losses}
    if config.train.val_loss:
        validated = by_kind(val_loss or {})
        row |= {VAL + name: validated.get(name) for name in losses[:-1]}
    row |= {"images_per_s": meter.images_per_second(), "data_wait": meter.wait_share()}
    row |= {"skipped": progress.skipped, "stage": progress.stage}
    row |= _evaluated(metrics)
    if task(config.model) == "segment":
        row |= {MASK + name: value for name, value in _evaluated(metrics.masks if metrics else None).items()}
    return row


def _evaluated(metrics: Metrics | None) -> dict[str, float | None]:
    if metrics is None:
        return dict.fromkeys((*METRIC_NAMES, *RATIO_NAMES, "best_threshold"))
    numbers = {name: getattr(metrics, name) for name in METRIC_NAMES}
    return {**numbers, **metrics.report.best.numbers(), "best_threshold": metrics.report.best_threshold}
