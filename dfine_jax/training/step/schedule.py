"""Learning rate over the steps, as a share of the full rate, and the decay of the average of weights."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dfine_jax.config import Config, ConfigError, OptimConfig

Step = Int[Array, ""] | int
Share = Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class FlatCosine:
    """Steps at which DEIM's schedule turns (engine/optim/lr_scheduler.py of Intellindust-AI-Lab/DEIM)."""

    warmup: int
    flat: int  # end of the full rate; the cosine starts here
    low: int  # from here on the smallest rate
    min_ratio: float

    def __call__(self, step: Step) -> Share:
        """Share of 0-based ``step``.

        As in the reference, the rate of a step is computed from the number of steps before the last one; the very first
        step takes 1 / warm-up.
        """
        done = jnp.maximum(jnp.asarray(step) - 1, 0)
        warm = jnp.square(done / max(self.warmup, 1))
        turn = jnp.pi * (done - self.flat) / max(self.low - self.flat, 1)
        cosine = self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + jnp.cos(turn))
        share = jnp.where(done <= self.flat, 1.0, jnp.where(done >= self.low, self.min_ratio, cosine))
        if not self.warmup:
            return share
        share = jnp.where(done <= self.warmup, warm, share)
        return jnp.where(jnp.asarray(step) == 0, 1 / self.warmup, share)


@dataclasses.dataclass(frozen=True)
class Constant:
    """Linear warm-up, then the full rate (D-FINE)."""

    warmup: int

    def __call__(self, step: Step) -> Share:
        """Share of 0-based ``step``: ``(step + 1) / warmup``, then 1."""
        return jnp.minimum(1.0, (jnp.asarray(step) + 1) / max(self.warmup, 1))


@dataclasses.dataclass(frozen=True)
class OneCycle:
    """Up and down along cosines over the whole run, as torch.optim.lr_scheduler.OneCycleLR by its defaults."""

    steps: int
    rise: float  # share of the steps until the full rate

    def __call__(self, step: Step) -> Share:
        """Share of 0-based ``step``: from 1/25 to 1, then to 1/25 of 1e-4."""
        top, last = self.rise * self.steps - 1, self.steps - 1
        done = jnp.minimum(jnp.asarray(step), last)

        def between(start: float, end: float, part: Share) -> Share:
            return end + (start - end) / 2 * (1 + jnp.cos(jnp.pi * part))

        rising = between(1 / 25, 1.0, done / (top or 1))
        return jnp.where(done <= top, rising, between(1.0, 1e-4 / 25, (done - top) / ((last - top) or 1)))


@dataclasses.dataclass(frozen=True)
class Drop:
    """Linear warm-up from 0, the full rate, then a smaller one (RF-DETR)."""

    warmup: int
    drop: int  # first step at the smaller rate
    ratio: float

    def __call__(self, step: Step) -> Share:
        """Share of 0-based ``step``; the very first one of a warm-up moves nothing."""
        done = jnp.asarray(step)
        full = jnp.where(done < self.drop, 1.0, self.ratio)
        return jnp.where(done < self.warmup, done / max(self.warmup, 1), full)


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Linear warm-up from 0, then half a cosine down to the end of the run (RF-DETR)."""

    warmup: int
    steps: int
    min_ratio: float

    def __call__(self, step: Step) -> Share:
        """Share of 0-based ``step``."""
        done = jnp.asarray(step)
        turn = jnp.pi * (done - self.warmup) / max(self.steps - self.warmup, 1)
        falling = self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + jnp.cos(turn))
        return jnp.where(done < self.warmup, done / max(self.warmup, 1), falling)


def make_schedule(config: Config, steps_per_epoch: int) -> Constant | FlatCosine | OneCycle | Drop | Cosine:
    """Schedule of a run; ``steps_per_epoch`` may be 0 (unknown) for the constant one.

    Raises:
      ConfigError: the parts do not fit the number of epochs.
    """
    optim, epochs = config.optim, config.train.epochs
    if optim.schedule == "constant":
        return Constant(optim.warmup_steps)
    if steps_per_epoch < 1:
        raise ValueError(f"the {optim.schedule} schedule needs the number of steps per epoch")
    if optim.schedule == "onecycle":
        return OneCycle(epochs * steps_per_epoch, optim.onecycle_rise)
    if optim.schedule == "cosine":
        return Cosine(optim.warmup_steps, epochs * steps_per_epoch, optim.min_lr_ratio)
    if optim.schedule == "drop":
        return Drop(optim.warmup_steps, (optim.drop_epoch or epochs) * steps_per_epoch, optim.min_lr_ratio)
    if optim.final_epochs > epochs:
        raise ConfigError(f"optim.final_epochs={optim.final_epochs} must be at most train.epochs={epochs}")
    if optim.flat_epochs < epochs and optim.flat_epochs > epochs - optim.final_epochs:
        raise ConfigError(
            f"optim.flat_epochs={optim.flat_epochs} ends after the last {optim.final_epochs} of {epochs} epochs begin; "
            f"set it to {epochs - optim.final_epochs} at most"
        )
    return FlatCosine(
        warmup=optim.warmup_steps,
        flat=optim.flat_epochs * steps_per_epoch,
        low=(epochs - optim.final_epochs) * steps_per_epoch,
        min_ratio=optim.min_lr_ratio,
    )


def ema_decay(update: Step, optim: OptimConfig, shift: Share | float = 0.0) -> Share:
    """Decay of the average at the ``update``-th step, counted from 1 (reference: src/optim/ema.py).

    Where the first update copies (RF-DETR, by PyTorch's ``AveragedModel``), its decay is 0, and it counts as one.

    Args:
      shift: added to the configured decay; stage 2 changes it (training/run/stages.py).
    """
    decay = jnp.asarray(optim.ema_decay + shift)
    copies = optim.ema_first == "copy"
    if optim.ema_warmup_steps:
        decay = decay * (1 - jnp.exp(-jnp.asarray(update) / optim.ema_warmup_steps))
    return jnp.where(jnp.asarray(update) == 1, jnp.zeros_like(decay), decay) if copies else decay
