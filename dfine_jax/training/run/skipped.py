"""Batches of skipped steps: kept on disk, and computed again to find out what was not finite."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dfine_jax.data.load.batch import Batch
from dfine_jax.errors import UserError
from dfine_jax.system.files import write_whole
from dfine_jax.training.run import checkpoint
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.state import create_state
from dfine_jax.training.step.step import StepMetrics, make_train_step, replicated, split_over_devices

FOLDER = "skipped"
_KEPT = 3  # files; a batch can be large


def keep_batch(out_dir: Path, step: int, size_px: tuple[int, int], batch: Batch) -> Path | None:
    """Write the batch [d, b, ...] of the 0-based ``step`` as [d * b, ...]; None when enough are kept already."""
    folder = out_dir / FOLDER
    if len(list(folder.glob("*.npz"))) >= _KEPT:
        return None
    file = folder / f"step_{step:08d}.npz"
    arrays: dict[str, Any] = {name: value for name, value in batch.each(_flat)._asdict().items() if value is not None}
    with io.BytesIO() as stream:
        np.savez_compressed(stream, **arrays, step=np.array(step), size_px=np.array(size_px))
        write_whole(file, stream.getvalue())
    return file


class Taken(NamedTuple):
    """A step that the devices may still be working on."""

    step: int  # from 0
    size_px: tuple[int, int]
    batch: Batch  # [d, b, ...]
    metrics: StepMetrics


class SkippedSteps:
    """Counts the steps in a row that were not finite, and keeps what is needed to look into them.

    Args:
      log_dir: of this host; gets the batches.
      out_dir: of the run; the first host writes the state there.
      limit: so many in a row end the run.
    """

    def __init__(self, log_dir: Path, out_dir: Path, limit: int) -> None:
        self._log_dir, self._out_dir, self._limit, self._in_a_row = log_dir, out_dir, limit, 0

    def finite(self) -> None:
        """A step was taken."""
        self._in_a_row = 0

    def add(self, taken: Taken, bad: Sequence[str], keep_state: Callable[[Path], None]) -> str:
        """Count a skipped step; a line for the log.

        Args:
          bad: values that were not finite.
          keep_state: writes the state to a folder; called for the first batch that is kept.
        """
        self._in_a_row += 1
        first = not (self._out_dir / FOLDER).exists()
        file = keep_batch(self._log_dir, taken.step, taken.size_px, taken.batch)
        if file and first:
            keep_state(self._out_dir / FOLDER / file.stem)
        kept = f"; its batch is in {file}" if file else ""
        return f"step {taken.step} was skipped: {', '.join(bad[:4])} not finite{kept}"

    @property
    def too_many(self) -> bool:
        """The run must end."""
        return self._in_a_row >= self._limit

    def message(self) -> str:
        """Why it ends, and the cure."""
        return (
            f"{self._in_a_row} steps in a row had a non-finite loss or gradient; lower optim.lr, or check the data and "
            f"the starting weights (the state before them is in {self._out_dir / 'last'})"
        )


def _flat(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows).reshape(-1, *rows.shape[2:])


def load_batch(file: Path | str) -> tuple[Batch, int, tuple[int, int]]:
    """Batch [b, ...], 0-based step, and (height, width) it ran at.

    Raises:
      UserError: not such a file.
    """
    try:
        with np.load(file) as content:
            present = [name for name in Batch._fields if name in content or name not in Batch._field_defaults]
            batch = Batch(**{name: content[name] for name in present})
            return batch, int(content["step"]), (int(content["size_px"][0]), int(content["size_px"][1]))
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{file} is not a batch kept by a run ({error})") from error


def replay(run_dir: Path | str, file: Path | str, **changes: Any) -> StepMetrics:
    """Loss terms and gradient norm of a kept batch, with that step's randomness.

    The weights are those kept beside the first batch (a skipped step changes none; one that followed before it was
    noticed may have), for the other batches those of the run's ``last``.

    Args:
      changes: fields of the model's configuration, for example ``precision="float32"``.

    Raises:
      UserError: the run or the file cannot be read, or the batch cannot be split over the devices of this machine.
    """
    batch, step, size_px = load_batch(file)
    rows, devices = len(batch.images), jax.local_device_count()
    if rows % devices:
        raise UserError(
            f"{file} has {rows} images, which cannot be split over {devices} devices; show fewer to this process "
            "(CUDA_VISIBLE_DEVICES=0)"
        )
    kept = Path(run_dir) / FOLDER / Path(file).stem
    path = kept if kept.is_dir() else Path(run_dir) / "last"
    config = checkpoint.load_metadata(path).config
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
    tx = make_optimizer(config.model, config.optim)
    weights, _ = checkpoint.load_weights(path)
    template = jax.eval_shape(lambda: create_state(weights, tx, jax.random.key(0)))
    state, _, _ = checkpoint.load_training(path, template)
    state = replicated(dataclasses.replace(state, step=np.int32(step)))
    take = make_train_step(config, tx, steps_per_epoch=1, size_px=size_px)
    return jax.device_get(take(state, split_over_devices(batch))[1])
