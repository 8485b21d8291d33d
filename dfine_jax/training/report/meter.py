"""Means and speed of an epoch."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import jax
from tqdm import tqdm

from dfine_jax.training.run.stages import Progress


class Meter:
    """Means of an epoch's finite steps, and the speed of training without evaluation and checkpoints.

    Args:
      progress: of a run that goes on within an epoch.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        progress = progress or Progress()
        self._watcher = ThreadPoolExecutor(1, "end of a step")
        self._step_end: Future[float] | None = None
        self._sums = defaultdict(float, zip(progress.summed_names, progress.sums, strict=True))
        self._count = progress.summed_steps
        self.restart()

    def noted(self, progress: Progress) -> Progress:
        """The progress with the sums so far, for ``Meter(progress)``."""
        names, sums = tuple(self._sums), tuple(self._sums.values())
        return dataclasses.replace(progress, summed_steps=self._count, summed_names=names, sums=sums)

    def restart(self) -> None:
        """Measure the speed from here on."""
        self._images, self._seconds, self._since = 0, 0.0, time.perf_counter()
        self._wait_seconds = 0.0

    def stop(self) -> None:
        """Time from here on does not count."""
        self._seconds = self._elapsed()
        self._since = float("inf")

    def add(self, images: int, values: Mapping[str, float] | None) -> None:
        """Count a step; None for one that was skipped."""
        self._images += images
        if values is not None:
            self._count += 1
            for name, value in values.items():
                self._sums[name] += value

    def dispatched(self, result: jax.Array) -> None:
        """A step was handed to the device; ``result`` is one of its outputs."""
        self._step_end = self._watcher.submit(_time_ready, result)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in which a batch is waited for; it counts from the end of the step that the device is busy with."""
        since = time.perf_counter()
        yield
        now, end = time.perf_counter(), self._step_end
        if end is None:
            self._wait_seconds += now - since
        elif end.done():
            self._wait_seconds += max(0.0, now - max(since, end.result()))

    def wait_share(self) -> float:
        """Share of the time up to now in which the device had no batch to work on."""
        return min(1.0, self._wait_seconds / max(self._elapsed(), 1e-9))

    def means(self) -> dict[str, float]:
        """Mean of each value."""
        return {name: total / self._count for name, total in self._sums.items()}

    def images_per_second(self) -> float | None:
        """Training speed up to now; None before the first image."""
        return self._images / max(self._elapsed(), 1e-9) if self._images else None

    def _elapsed(self) -> float:
        return self._seconds + max(0.0, time.perf_counter() - self._since)


class Forecast:
    """What is left of a run; for the log told once, after the first epoch in which the pace could be measured.

    Args:
      step: the pace is measured from here on.
      total: steps of the run.
    """

    def __init__(self, step: int, total: int) -> None:
        self._first, self._total, self._since, self._told = step, total, time.perf_counter(), False

    def lines(self, step: int) -> list[str]:
        """For the log, at the end of an epoch with its evaluation; none when there is nothing to tell."""
        if self._told or not self._first < step < self._total:
            return []
        self._told = True
        left = f"{self._total - step} steps, evaluations included"
        return [f"about {duration(self.left_s(step) or 0.0)} left for the other {left}"]

    def left_s(self, step: int) -> float | None:
        """Seconds from the end of ``step`` on, at the pace so far; None where it has not been measured."""
        if step <= self._first:
            return None
        return (time.perf_counter() - self._since) / (step - self._first) * (self._total - step)


def describe_bar(bar: tqdm, epoch: str, loss: float, images_per_s: float | None, ap: float | None) -> None:
    """What stands beside the progress bar of a run."""
    bar.set_description(epoch, refresh=False)
    shown = {"loss": f"{loss:.2f}"}
    shown |= {} if images_per_s is None else {"images/s": f"{images_per_s:.1f}"}
    shown |= {} if ap is None else {"AP": f"{ap:.3f}"}
    bar.set_postfix(shown, refresh=False)


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds >= 90 * 60:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 600 else f"{max(seconds / 60, 0.1):.1f} minutes"


def _time_ready(result: jax.Array) -> float:
    result.block_until_ready()
    return time.perf_counter()


def by_kind(values: Mapping[str, float]) -> dict[str, float]:
    """Values of a step with its loss terms, which are named ``kind/where``, summed to ``loss_kind``."""
    out: dict[str, float] = defaultdict(float)
    for name, value in values.items():
        kind, is_term, _ = name.partition("/")
        out[f"loss_{kind}" if is_term else name] += value
    return dict(out)
