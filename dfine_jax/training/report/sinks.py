"""Where a run's numbers and pictures go besides its own files: TensorBoard, Weights & Biases."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dfine_jax.config import Config
from dfine_jax.errors import UserError
from dfine_jax.system.files import write_whole
from dfine_jax.system.installed import pip_install

_WANDB_ID = "wandb_run.txt"


class Sink(Protocol):
    """Takes what a run reports; ``step`` is the number of training steps done.

    ``failures`` are the errors of a full disk or a lost connection, which are no reason to end a training.
    """

    failures: tuple[type[Exception], ...]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name; the part before a slash groups them."""
        ...

    def pictures(self, step: int, values: Mapping[str, Image.Image]) -> None:
        """Pictures by name."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


def check_installed(config: Config) -> None:
    """What ``config.log`` asks for can be had.

    Raises:
      UserError: a package is not installed.
    """
    for extra, module, off in (("tensorboard", "tensorboardX", "false"), ("wandb", "wandb", '""')):
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
