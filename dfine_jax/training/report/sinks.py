"""Where a run's numbers and pictures go besides its own files: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dfine_jax.config import Config
from dfine_jax.errors import UserError
from dfine_jax.system.files import write_whole
from dfine_jax.system.installed import pip_install

_WANDB_ID, _MLFLOW_ID = "wandb_run.txt", "mlflow_run.txt"
_CALLS = ("scalars(step, values)", "pictures(step, values)", "close()")
_METHODS = tuple(call.partition("(")[0] for call in _CALLS)
_AT_ONCE = 100  # values in a message to MLflow, which takes no more parameters


class Sink(Protocol):
    """Takes what a run reports; ``step`` is the number of training steps done.

    ``failures``, where there is such an attribute, are the errors of a full disk or a lost connection, which are no
    reason to end a training; without it every error is one of them.
    """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name; the part before a slash groups them."""
        ...

    def pictures(self, step: int, values: Mapping[str, Image.Image]) -> None:
        """Pictures by name."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


def with_methods(loggers: Sequence[Sink]) -> Sequence[Sink]:
    """The loggers of a program, which have all that a run calls.

    Raises:
      UserError: one lacks a method.
    """
    for one in loggers:
        if lacking := [name for name in _METHODS if not callable(getattr(one, name, None))]:
            raise UserError(f"logger {one!r} has no {', '.join(lacking)}; a logger has {', '.join(_CALLS)}")
    return loggers


def check_installed(config: Config) -> None:
    """What ``config.log`` asks for can be had.

    Raises:
      UserError: a package is not installed.
    """
    for extra, module, off in (
        ("tensorboard", "tensorboardX", "false"),
        ("wandb", "wandb", '""'),
        ("mlflow", "mlflow", '""'),
    ):
        if getattr(config.log, extra) and importlib.util.find_spec(module) is None:
            raise UserError(
                f"log.{extra} needs a package that is not installed: {pip_install(extra)}, or set log.{extra}={off}"
            )


def open_sinks(config: Config, out_dir: Path, step: int) -> list[Sink]:
    """The sinks that ``config.log`` asks for, of a run that has done ``step`` steps."""
    sinks: list[Sink] = []
    wanted = config.log.tensorboard
    if wanted or (wanted is None and importlib.util.find_spec("tensorboardX") is not None):
        sinks.append(TensorBoard(out_dir, step))
    if config.log.wandb:
        sinks.append(WeightsAndBiases(config, out_dir))
    if config.log.mlflow:
        sinks.append(MLflow(config, out_dir))
    return sinks


class TensorBoard:
    """Event files in ``OUT/tensorboard``, written by tensorboardX, which needs no TensorFlow."""

    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, out_dir: Path, step: int) -> None:
        """Continue after ``step``: what an interrupted run wrote for later steps is marked as void."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(out_dir / "tensorboard"), purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, step: int, values: Mapping[str, Image.Image]) -> None:
        for name, picture in values.items():
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run in the project ``config.log.wandb``; a resumed one continues it. ``WANDB_MODE=offline`` sends nothing."""

    def __init__(self, config: Config, out_dir: Path) -> None:
        import wandb

        self.failures: tuple[type[Exception], ...] = (wandb.Error, OSError)
        self._image: Any = wandb.Image
        noted = out_dir / _WANDB_ID
        try:
            self._run: Any = wandb.init(
                project=config.log.wandb,
                name=out_dir.resolve().name,
                dir=str(out_dir),
                id=noted.read_text().strip() if noted.exists() else None,
                resume="allow",
                config=dataclasses.asdict(config),
            )
        except wandb.Error as error:
            raise UserError(
                f"log.wandb={config.log.wandb}: no run could be started ({str(error).splitlines()[0]}); set "
                'WANDB_API_KEY, or WANDB_MODE=offline to keep it here, or log.wandb=""'
            ) from error
        write_whole(noted, self._run.id + "\n")
        # Our step and not theirs: theirs only grows, ours falls back when a run is resumed from an earlier checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def pictures(self, step: int, values: Mapping[str, Image.Image]) -> None:
        self._run.log({**{name: self._image(picture) for name, picture in values.items()}, "step": step})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run in the experiment ``config.log.mlflow``, where ``MLFLOW_TRACKING_URI`` says; a resumed one continues it."""

    def __init__(self, config: Config, out_dir: Path) -> None:
        import mlflow
        import mlflow.entities

        self.failures: tuple[type[Exception], ...] = (mlflow.MlflowException, OSError)
        self._entities: Any = mlflow.entities
        self._client: Any = mlflow.MlflowClient()
        noted = out_dir / _MLFLOW_ID
        try:
            if noted.exists():
                self._id = noted.read_text().strip()
                self._client.update_run(self._id, status="RUNNING")
                return
            found = self._client.get_experiment_by_name(config.log.mlflow)
            experiment = found.experiment_id if found else self._client.create_experiment(config.log.mlflow)
            self._id = self._client.create_run(experiment, run_name=out_dir.resolve().name).info.run_id
            values = [self._entities.Param(key, str(value)[:500]) for key, value in _flat(dataclasses.asdict(config))]
            for part in _parts(values):
                self._client.log_batch(self._id, params=part)
        except mlflow.MlflowException as error:
            raise UserError(
                f"log.mlflow={config.log.mlflow}: no run could be started ({str(error).splitlines()[0]}); set "
                'MLFLOW_TRACKING_URI to a server or a folder, or log.mlflow=""'
            ) from error
        write_whole(noted, self._id + "\n")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now_ms = int(1000 * time.time())
        metrics = [self._entities.Metric(_allowed(name), value, now_ms, step) for name, value in values.items()]
        for part in _parts(metrics):
            self._client.log_batch(self._id, metrics=part)

    def pictures(self, step: int, values: Mapping[str, Image.Image]) -> None:
        for name, picture in values.items():
            self._client.log_image(self._id, picture.convert("RGB"), artifact_file=f"{_allowed(name)}_{step}.png")

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested sections, by names with dots."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (values[i : i + _AT_ONCE] for i in range(0, len(values), _AT_ONCE))


def _allowed(name: str) -> str:
    """A name of the letters that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
