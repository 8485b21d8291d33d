"""Batches of skipped steps: kept on disk, and computed again to find out what was not finite."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dfine_jax.data.batch import Batch
from dfine_jax.errors import UserError
from dfine_jax.training import checkpoint
from dfine_jax.training.optimizer import make_optimizer
from dfine_jax.training.state import create_state
from dfine_jax.training.step import StepMetrics, make_train_step, replicated, split_over_devices

FOLDER = "skipped"
_KEPT = 3  # files; a batch can be large


def keep_batch(out_dir: Path, step: int, size_px: tuple[int, int], batch: Batch) -> Path | None:
    """Write the batch [d, b, ...] of the 0-based ``step`` as [d * b, ...]; None when enough are kept already."""
    folder = out_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if len(list(folder.glob("*.npz"))) >= _KEPT:
        return None
    file = folder / f"step_{step:08d}.npz"
    arrays: dict[str, Any] = {name: _flat(getattr(batch, name)) for name in Batch._fields}
    np.savez_compressed(file, **arrays, step=np.array(step), size_px=np.array(size_px))
    return file


def _flat(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows).reshape(-1, *rows.shape[2:])


def load_batch(file: Path | str) -> tuple[Batch, int, tuple[int, int]]:
    """Batch [b, ...], 0-based step, and (height, width) it ran at.

    Raises:
      UserError: not such a file.
    """
    try:
        with np.load(file) as content:
            batch = Batch(*(content[name] for name in Batch._fields))
            return batch, int(content["step"]), (int(content["size_px"][0]), int(content["size_px"][1]))
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{file} is not a batch kept by a run ({error})") from error


def replay(run_dir: Path | str, file: Path | str, **changes: Any) -> StepMetrics:
    """Loss terms and gradient norm of a kept batch, with the weights of the run's ``last`` and that step's randomness.

    Args:
      changes: fields of the model's configuration, for example ``precision="float32"``.

    Raises:
      UserError: the run or the file cannot be read.
    """
    batch, step, size_px = load_batch(file)
    path = Path(run_dir) / "last"
    config = checkpoint.load_metadata(path).config
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
    tx = make_optimizer(config.model, config.optim)
    weights, _ = checkpoint.load_weights(path)
    template = jax.eval_shape(lambda: create_state(weights, tx, jax.random.key(0)))
    state, _, _ = checkpoint.load_training(path, template)
    state = replicated(dataclasses.replace(state, step=np.int32(step)))
    base = (config.data.height_px, config.data.width_px)
    take = make_train_step(config, tx, steps_per_epoch=1, size_px=None if size_px == base else size_px)
    return jax.device_get(take(state, split_over_devices(batch))[1])
