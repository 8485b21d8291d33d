"""What is known between the ends of epochs: the loss of the latest steps, and how far a run has come."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dfine_jax.system.files import telling, write_whole
from dfine_jax.training.report.meter import duration
from dfine_jax.training.report.run_files import STEPS, read_steps

_HEADER = "step,loss\n"


class Underway(NamedTuple):
    """How far a run has come."""

    step: int  # steps done
    total: int
    loss: float  # of the latest step
    images_per_s: float | None  # None: not known yet
    left_s: float | None  # None: not known yet

    def text(self) -> str:
        """The end of a sentence."""
        parts = [f"step {self.step} of {self.total}, loss {self.loss:.2f}"]
        parts += [] if self.images_per_s is None else [f"{self.images_per_s:.1f} images/s"]
        parts += [] if self.left_s is None else [f"about {duration(self.left_s)} left at the pace so far"]
        return f"{', '.join(parts)}."


class StepLosses:
    """``steps.csv``: the mean loss of every few steps, held back until ``write`` so that steps wait for no disk.

    Args:
      done: steps of a run that goes on; lines of later ones, which are done again, are dropped.
      every: steps of a line; the first one of a run that goes on has those since.

    Raises:
      UserError: the system refuses.
    """

    def __init__(self, out_dir: Path, done: int, every: int) -> None:
        self._file, self._every = out_dir / STEPS, every
        self._window: list[float] = []
        self._lines: list[str] = []
        kept = _HEADER + "".join(_line(*point) for point in read_steps(out_dir) if point[0] <= done)
        with telling(self._file):
            cured = self._file.is_file() and self._file.read_bytes() != kept.encode()
        if cured:
            write_whole(self._file, kept)

    def add(self, step: int, loss: float) -> None:
        """Take the loss of the 1-based ``step``."""
        self._window.append(loss)
        if step % self._every == 0:
            self._lines.append(_line(step, sum(self._window) / len(self._window)))
            self._window.clear()

    def write(self) -> None:
        """Write what was held back.

        Raises:
          UserError: the system refuses.
        """
        if not self._lines:
            return
        with telling(self._file):
            size = self._file.stat().st_size if self._file.is_file() else 0
            try:
                with self._file.open("a") as stream:
                    stream.write(_HEADER * (size == 0) + "".join(self._lines))
            except OSError:
                with suppress(OSError):  # the first error is the one to tell
                    os.truncate(self._file, size)  # the lines are written again, not after a part of themselves
                raise
        self._lines.clear()


def _line(step: int, loss: float) -> str:
    return f"{step},{loss:.6g}\n"
