"""What an epoch leaves in the log: a row of numbers and a line to read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dfine_jax.config import Config
from dfine_jax.evaluate import Metrics
from dfine_jax.training.meter import Meter, by_kind
from dfine_jax.training.stages import Progress

Row = dict[str, float | int | None]
_NUMBERS = [field.name for field in dataclasses.fields(Metrics)][:12]


def epoch_row(
    config: Config, meter: Meter, progress: Progress, metrics: Metrics | None, *, epoch: int, step: int, lr: float
) -> Row:
    """Numbers of the 1-based ``epoch``; ``metrics`` None: not evaluated."""
    means = by_kind(meter.means())
    return {
        "epoch": epoch,
        "step": step,
        "lr": lr,
        **{name: means.get(name) for name in _losses(config)},
        "images_per_s": meter.images_per_second(),
        "data_wait": meter.wait_share(),
        "skipped": progress.skipped,
        "stage": progress.stage,
        **(metrics.numbers() if metrics else dict.fromkeys(_NUMBERS)),
    }


def epoch_line(config: Config, meter: Meter, progress: Progress, metrics: Metrics | None, *, epoch: int) -> str:
    """The same in words."""
    means = by_kind(meter.means())
    parts = [f"epoch {epoch}/{config.train.epochs}"]
    parts += [f"{name} {means[name]:.3f}" for name in _losses(config) if name in means]
    if metrics:
        parts.append(f"AP {metrics.ap:.4f} AP50 {metrics.ap50:.4f}")
        parts.append(f"best {progress.best_ap:.4f} (epoch {progress.best_epoch})")
    parts.append(f"{meter.images_per_second():.1f} images/s, {meter.wait_share():.0%} waiting for data")
    return "  ".join(parts)


def _losses(config: Config) -> Sequence[str]:
    kinds = (config.loss.class_loss, "bbox", "giou", "fgl", "ddf")
    return ["loss", *(f"loss_{kind}" for kind in kinds), "grad_norm"]
