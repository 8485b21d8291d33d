"""Before a run: checks of configuration, data, devices and folder; loaders; what its checkpoints say."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from dfine_jax.config import Config
from dfine_jax.data.augment.schedule import policy
from dfine_jax.data.load.pipeline import EvalLoader, TrainLoader
from dfine_jax.data.load.workers import automatic_workers
from dfine_jax.data.read.audit import why_nothing_to_learn
from dfine_jax.data.read.dataset import Dataset, check_same_categories
from dfine_jax.errors import UserError
from dfine_jax.evaluation.truth import Truth, annotated
from dfine_jax.families import of, task, validate
from dfine_jax.system.files import replaced_path, write_whole
from dfine_jax.training.report.run_files import COMMAND, PLAN, plan_text
from dfine_jax.training.report.run_page import Origin
from dfine_jax.training.report.sinks import check_installed
from dfine_jax.training.run import hosts
from dfine_jax.training.run.checkpoint import Metadata
from dfine_jax.training.step.optimizer import freeze_notes
from dfine_jax.training.step.programs import sizes_notes
from dfine_jax.training.step.schedule import make_schedule

STAGE1 = "stage1"  # folder of the state that stage 2 starts from, in the run's


@dataclasses.dataclass(frozen=True)
class StartWeights:
    """Weights a run starts from, made for the classes of the data, and where they come from."""

    variables: dict[str, Any]
    source: Metadata | None = None


def check(config: Config, train_data: Dataset, val_data: Dataset | None) -> None:
    """Configuration, data and devices fit.

    Raises:
      UserError: they do not; the message names the value and the cure.
    """
    validate(config)
    if why := why_nothing_to_learn(train_data):
        raise UserError(f"nothing to train on: {train_data.annotation_file} {why} (dfine check --data DIR shows more)")
    make_schedule(config, 1)
    check_installed(config)
    if val_data is not None:
        check_same_categories(train_data, val_data)
    if config.model.num_classes != len(train_data.names):
        raise UserError(
            f"model.num_classes={config.model.num_classes}, but {train_data.annotation_file} has "
            f"{len(train_data.names)} classes; set model.num_classes={len(train_data.names)}"
        )
    of_hosts = Counter(device.process_index for device in jax.devices())
    if len(set(of_hosts.values())) > 1:
        told = ", ".join(f"{of_hosts[host]} on host {host}" for host in sorted(of_hosts))
        raise UserError(f"hosts must have equal numbers of devices, not {told}; hide some (CUDA_VISIBLE_DEVICES)")
    devices, batch, parts = jax.device_count(), config.train.batch_size, config.train.accumulate
    if batch % (devices * parts):
        over = f"the {devices} devices it is split over" + (f", times train.accumulate={parts}" if parts > 1 else "")
        raise UserError(f"train.batch_size={batch} must be a multiple of {over}")


def claim(out_dir: Path, resume: bool) -> None:
    """Make the folder ready for a run.

    Raises:
      UserError: it holds a run, or, to resume, none.
    """
    last = out_dir / "last"
    states = (last, replaced_path(last))
    resumable = any((path / "metadata.json").is_file() for path in states)
    held = any(path.exists() for path in (*states, out_dir / "best", out_dir / "metrics.csv"))
    hosts.wait_for_all("look at the run folder")  # before the first host changes anything
    if resume and not resumable:
        cure = "remove it, or choose another folder, and start" if held else "start"
        raise UserError(f"{out_dir} holds no checkpoint 'last' to continue from; {cure} without --resume")
    if held and not resume:
        cure = "continue it with --resume or" if resumable else "it ended before its first checkpoint: remove it or"
        raise UserError(f"{out_dir} holds a run; {cure} choose another folder")
    out_dir.mkdir(parents=True, exist_ok=True)


@contextmanager
def claimed(out_dir: Path, resume: bool) -> Iterator[None]:
    """As ``claim``; nothing is left of a run that is refused inside, where the folder is new and still empty."""
    new = not out_dir.exists()
    claim(out_dir, resume)
    try:
        yield
    except UserError:
        if new:
            with suppress(OSError):
                out_dir.rmdir()
        raise


def keep_origin(out_dir: Path, config: Config, origin: Origin) -> None:
    """Write down what a new run was started with: its configuration as a plan, and its command."""
    write_whole(out_dir / PLAN, plan_text(config))
    if origin.command:
        write_whole(out_dir / COMMAND, origin.command + "\n")


def check_same_data(now: Metadata, stored: Metadata, folder: Path) -> None:
    """A resumed run has the data it was started with.

    Raises:
      UserError: it has not.
    """
    cure = f"resume with the same data, or start a new run with --weights {folder / 'last'}"
    if now.classes != stored.classes:
        raise UserError(f"the data has other classes than the run in {folder} was started with; {cure}")
    if stored.num_images and now.num_images != stored.num_images:
        raise UserError(
            f"the data has {now.num_images} training images, the run in {folder} had {stored.num_images}; {cure}"
        )


def make_loaders(
    config: Config, train_data: Dataset, val_data: Dataset | None
) -> tuple[TrainLoader, EvalLoader | None]:
    """Batches of this host for training and, where there is validation data, evaluation.

    Raises:
      UserError: the data does not fit the configuration.
    """
    data, train = config.data, config.train
    workers = automatic_workers() if data.workers < 0 else data.workers
    common = {"workers": workers, "host_index": hosts.index(), "host_count": hosts.count()}
    run = {"batch_size": train.batch_size, "seed": train.seed, "epochs": train.epochs}
    family, model = of(config.model), config.model
    preprocess, sizes_px = family.preprocess(model, data), family.multi_scale.sizes_px(model, data)
    made = preprocess
    if family.multi_scale.from_largest and policy(data, 0).multi_scale:
        height_px, width_px = max(sizes_px, key=math.prod)
        made = dataclasses.replace(preprocess, height_px=height_px, width_px=width_px)
    loader = TrainLoader(train_data, data, made, sizes_px, **common, **run, mask_stride=family.mask_stride(model))
    if val_data is None:
        return loader, None
    if not val_data.max_objects:
        loader.notes += (
            f"{val_data.annotation_file} annotates no object: there is no AP and no best, and train.patience does not "
            "end the run",
        )
    devices = jax.local_device_count()
    rows = -(-train.eval_batch_size // jax.device_count()) * devices
    losses = {"objects": train.val_loss and val_data.max_objects > 0, "mask_stride": family.mask_stride(model)}
    return loader, EvalLoader(val_data, preprocess, **common, batch_size=rows, **losses)


def val_truth(config: Config, val_data: Dataset | None) -> Truth | None:
    """What evaluations compare with; of models that segment, masks are drawn now, once for all of them.

    Raises:
      UserError: a mask cannot be drawn.
    """
    if val_data is None or task(config.model) != "segment":
        return val_data
    return annotated(val_data, masks=True)


def opening_notes(config: Config, loader: TrainLoader, params: Any, sizes_px: Sequence[tuple[int, int]]) -> list[str]:
    """What a run, and its rehearsal, say before the first step is compiled.

    Raises:
      ConfigError: a pattern of ``optim.freeze`` matches nothing, or everything is held.
    """
    return [*loader.notes, *freeze_notes(params, config.optim), *sizes_notes(sizes_px)]


def describe(config: Config, train_data: Dataset, start: StartWeights | None) -> Metadata:
    """What the checkpoints of a new run say about it."""
    source = start.source if start else None
    return Metadata(
        config,
        train_data.names,
        train_data.classes.ids,
        source_file=source.source_file if source else "",
        source_sha256=source.source_sha256 if source else "",
        licence=source.licence if source else "",
        num_images=len(train_data),
    )
