"""A training run: steps, evaluation, checkpoints, logs; started, stopped and continued without loss."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from tqdm import tqdm

from dfine_jax.config import Config, validate
from dfine_jax.data.batch import EvalBatch
from dfine_jax.data.coco import Dataset, check_same_categories
from dfine_jax.data.pipeline import EvalLoader, TrainLoader
from dfine_jax.errors import UserError
from dfine_jax.evaluate import Metrics, evaluate
from dfine_jax.models.dfine import init_variables
from dfine_jax.training import checkpoint
from dfine_jax.training.checkpoint import Metadata, Progress
from dfine_jax.training.log import RunLog
from dfine_jax.training.meter import Meter, by_kind
from dfine_jax.training.optimizer import make_optimizer, warmup_factor
from dfine_jax.training.state import TrainState, create_state, ema_variables
from dfine_jax.training.step import (
    StepMetrics,
    make_eval_step,
    make_train_step,
    predict_function,
    replicated,
    split_over_devices,
)

_LOSSES = ["loss", "loss_vfl", "loss_bbox", "loss_giou", "loss_fgl", "loss_ddf", "grad_norm"]
_NUMBERS = [field.name for field in dataclasses.fields(Metrics)][:12]


@dataclasses.dataclass(frozen=True)
class Start:
    """Weights a run starts from, made for the classes of the data, and where they come from."""

    variables: dict[str, Any]
    source: Metadata | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    finished: bool  # False: stopped by a signal, to be resumed
    best_ap: float  # -1: never evaluated
    best_epoch: int
    metrics: Metrics | None  # of the last evaluation in this process


def train(
    config: Config,
    train_data: Dataset,
    val_data: Dataset | None,
    out_dir: Path | str,
    *,
    resume: bool = False,
    start: Start | None = None,
    notes: Sequence[str] = (),
) -> Result:
    """Train, and keep ``last`` (all that resuming needs) and ``best`` (averaged weights of the best AP) in ``out_dir``.

    SIGINT and SIGTERM end the run after the current step with a whole ``last``; a second one ends it at once. A resumed
    run continues with the next batch and, on CPU, ends in the same bits as one that was never stopped.

    Args:
      config: the experiment; ``config.model.num_classes`` must be the data's.
      val_data: evaluated every ``config.train.eval_every`` epochs; None: no evaluation, no ``best``.
      out_dir: must not hold a run unless ``resume``.
      start: weights to start from instead of fresh ones.
      notes: lines for the log, such as how the configuration was chosen.

    Raises:
      UserError: the folder holds a run (or, to resume, none), or data, configuration and devices do not fit.
    """
    out_dir = Path(out_dir)
    _check(config, train_data, val_data)
    _claim(out_dir, resume)
    with _stop_on_signals() as stop:
        return _Run(config, train_data, val_data, out_dir, start).run(resume, stop, notes)


class _StopError(Exception):
    """A signal came during evaluation."""


class _Run:
    def __init__(
        self, config: Config, train_data: Dataset, val_data: Dataset | None, out_dir: Path, start: Start | None
    ) -> None:
        self.config, self.out_dir, self.val_data = config, out_dir, val_data
        data, train = config.data, config.train
        size = {"height_px": data.height_px, "width_px": data.width_px}
        self.loader = TrainLoader(
            train_data,
            **size,
            batch_size=train.batch_size,
            max_objects=data.max_objects,
            seed=train.seed,
            augment=data,
            workers=data.workers,
        )
        devices = jax.local_device_count()
        eval_batch = -(-train.eval_batch_size // devices) * devices
        self.eval_loader = (
            None if val_data is None else EvalLoader(val_data, **size, batch_size=eval_batch, workers=data.workers)
        )
        self.tx = make_optimizer(config.model, config.optim)
        self.step = make_train_step(config, self.tx)
        self.eval_step = make_eval_step(config.model)
        init_key, self.key = jax.random.split(jax.random.key(train.seed))
        self.init_variables = lambda: start.variables if start else init_variables(config.model, init_key)
        source = start.source if start else None
        self.metadata = Metadata(
            config,
            train_data.names,
            train_data.category_ids,
            source_file=source.source_file if source else "",
            source_sha256=source.source_sha256 if source else "",
            licence=source.licence if source else "",
            num_images=len(train_data),
        )
        self.progress = Progress()
        self.metrics: Metrics | None = None
        self.skipped_in_a_row = 0

    def run(self, resume: bool, stop: threading.Event, notes: Sequence[str]) -> Result:
        """From the first or the next step to the last, or to a signal."""
        epochs, steps = self.config.train.epochs, self.loader.steps_per_epoch
        state = self._resumed() if resume else create_state(self.init_variables(), self.tx, self.key)
        state, step = replicated(state), int(state.step)
        self.first_step = self.recorded = step
        self.log = RunLog(self.out_dir, self.progress.epoch)
        for note in notes:
            self.log.line(note)
        if resume:
            self.log.line(f"resumed at step {step} of {epochs * steps}, epoch {step // steps + 1}")
        batches = iter(self.loader.batches(step))
        every = self.config.train.checkpoint_steps
        with tqdm(total=epochs * steps, initial=step, unit="step", disable=None, dynamic_ncols=True) as bar:
            meter, pending = Meter(), None
            while not stop.is_set():
                if step and step % steps == 0 and self.progress.epoch < step // steps:
                    self._record(meter, pending, bar)
                    pending = None
                    meter.stop()
                    if not self._finish_epoch(state, step // steps, meter, stop):
                        break
                    meter = Meter()
                if step >= epochs * steps:
                    break
                state, metrics = self.step(state, split_over_devices(next(batches)))
                step += 1
                self._record(meter, pending, bar)  # the step before: the device is at work meanwhile
                pending = metrics
                if every and step % every == 0 and step % steps:
                    self._record(meter, pending, bar)
                    pending = None
                    self._save(state)
            self._record(meter, pending, bar)
        if stop.is_set():
            self._save(state)
            self.log.line(f"stopped at step {step} of {epochs * steps}; continue with --resume")
        return Result(not stop.is_set(), self.progress.best_ap, self.progress.best_epoch, self.metrics)

    def _resumed(self) -> TrainState:
        shapes = jax.eval_shape(lambda: create_state(self.init_variables(), self.tx, self.key))
        state, metadata, self.progress = checkpoint.load_training(self.out_dir / "last", shapes)
        self._check_same_data(metadata)
        self.metadata = dataclasses.replace(metadata, config=self.config)
        return state

    def _check_same_data(self, stored: Metadata) -> None:
        now, folder = self.metadata, self.out_dir
        cure = f"resume with the same data, or start a new run with --weights {folder / 'last'}"
        if (now.class_names, now.category_ids) != (stored.class_names, stored.category_ids):
            raise UserError(f"the data has other classes than the run in {folder} was started with; {cure}")
        if stored.num_images and now.num_images != stored.num_images:
            raise UserError(
                f"the data has {now.num_images} training images, the run in {folder} had {stored.num_images}; {cure}"
            )

    def _record(self, meter: Meter, metrics: StepMetrics | None, bar: tqdm) -> None:
        if metrics is None:
            return
        host: StepMetrics = jax.device_get(metrics)
        bar.update()
        self.recorded += 1  # a disabled bar does not count
        if self.recorded == self.first_step + 1:
            meter.restart()  # the first step was mostly compilation
        if host.finite:
            self.skipped_in_a_row = 0
            values = {"loss": float(host.loss), "grad_norm": float(host.grad_norm)}
            meter.add(self.config.train.batch_size, values | {k: float(v) for k, v in host.terms.items()})
        else:
            self._skipped(host)
            meter.add(self.config.train.batch_size, None)
        if self.recorded % self.config.train.log_every == 0 or self.recorded == self.first_step + 1:
            epoch = min((self.recorded - 1) // self.loader.steps_per_epoch + 1, self.config.train.epochs)
            bar.set_description(f"epoch {epoch}/{self.config.train.epochs}", refresh=False)
            shown = {"loss": f"{host.loss:.2f}", "images/s": f"{meter.images_per_second():.1f}"}
            if self.progress.best_ap >= 0:
                shown["AP"] = f"{self.metrics.ap if self.metrics else self.progress.best_ap:.3f}"
            bar.set_postfix(shown, refresh=False)

    def _skipped(self, metrics: StepMetrics) -> None:
        self.skipped_in_a_row += 1
        self.progress = dataclasses.replace(self.progress, skipped=self.progress.skipped + 1)
        self.log.line(f"a step was skipped: loss {metrics.loss:g}, gradient norm {metrics.grad_norm:g}")
        if self.skipped_in_a_row >= self.config.train.max_skipped_steps:
            raise UserError(
                f"{self.skipped_in_a_row} steps in a row had a non-finite loss or gradient; lower optim.lr, or check "
                f"the data and the starting weights (the state before them is in {self.out_dir / 'last'})"
            )

    def _finish_epoch(self, state: TrainState, epoch: int, meter: Meter, stop: threading.Event) -> bool:
        """Evaluate, log and save; False if a signal came before the evaluation was done."""
        train = self.config.train
        evaluated = self.val_data is not None and (epoch % train.eval_every == 0 or epoch == train.epochs)
        if evaluated:
            self.metrics = self._evaluate(state, stop)
            if self.metrics is None:
                return False
        best = evaluated and self.metrics is not None and self.metrics.ap > self.progress.best_ap
        if best and self.metrics is not None:
            self.progress = dataclasses.replace(self.progress, best_ap=self.metrics.ap, best_epoch=epoch)
        self.progress = dataclasses.replace(self.progress, epoch=epoch)
        ap = self.metrics.ap if evaluated and self.metrics else None
        self.metadata = dataclasses.replace(self.metadata, epoch=epoch, ap=ap)
        if best:
            checkpoint.save_weights(self.out_dir / "best", ema_variables(state), self.metadata)
        # With every new best, so that the record of the best is never older than the best itself.
        if best or epoch % train.checkpoint_every == 0 or epoch == train.epochs:
            self._save(state)
        self._log_epoch(state, epoch, meter, evaluated)
        return True

    def _evaluate(self, state: TrainState, stop: threading.Event) -> Metrics | None:
        assert self.val_data is not None and self.eval_loader is not None
        loader: EvalLoader = self.eval_loader
        predict = predict_function(self.eval_step, ema_variables(state))

        def until_stopped() -> Iterator[EvalBatch]:
            for batch in tqdm(loader, total=len(loader), unit="batch", desc="evaluate", leave=False, disable=None):
                if stop.is_set():
                    raise _StopError
                yield batch

        try:
            return evaluate(predict, until_stopped(), self.val_data.annotation_file, self.val_data)
        except _StopError:
            return None

    def _log_epoch(self, state: TrainState, epoch: int, meter: Meter, evaluated: bool) -> None:
        means = by_kind(meter.means())
        metrics = self.metrics if evaluated else None
        numbers = metrics.numbers() if metrics else dict.fromkeys(_NUMBERS)
        self.log.row(
            {
                "epoch": epoch,
                "step": int(state.step),
                "lr": self.config.optim.lr * float(warmup_factor(state.step - 1, self.config.optim.warmup_steps)),
                **{name: means.get(name) for name in _LOSSES},
                "images_per_s": meter.images_per_second(),
                "skipped": self.progress.skipped,
                **numbers,
            }
        )
        parts = [f"epoch {epoch}/{self.config.train.epochs}"]
        parts += [f"{name} {means[name]:.3f}" for name in _LOSSES if name in means]
        if metrics:
            parts.append(f"AP {metrics.ap:.4f} AP50 {metrics.ap50:.4f}")
            parts.append(f"best {self.progress.best_ap:.4f} (epoch {self.progress.best_epoch})")
        self.log.line("  ".join([*parts, f"{meter.images_per_second():.1f} images/s"]))

    def _save(self, state: TrainState) -> None:
        checkpoint.save_training(self.out_dir / "last", state, self.metadata, self.progress)


def _check(config: Config, train_data: Dataset, val_data: Dataset | None) -> None:
    validate(config)
    if val_data is not None:
        check_same_categories(train_data, val_data)
    if config.model.num_classes != len(train_data.names):
        raise UserError(
            f"model.num_classes={config.model.num_classes}, but {train_data.annotation_file} has "
            f"{len(train_data.names)} classes; set model.num_classes={len(train_data.names)}"
        )
    devices = jax.local_device_count()
    if config.train.batch_size % devices:
        raise UserError(
            f"train.batch_size={config.train.batch_size} must be a multiple of the {devices} devices it is split over"
        )


def _claim(out_dir: Path, resume: bool) -> None:
    last = out_dir / "last"
    held = any(path.exists() for path in (last, checkpoint.replaced_path(last), out_dir / "best", out_dir / "metrics.csv"))
    if held and not resume:
        raise UserError(f"{out_dir} holds a run; continue it with --resume or choose another folder")
    if resume:
        checkpoint.settled(last)
    out_dir.mkdir(parents=True, exist_ok=True)


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; the second signal acts as usual. Outside the main thread, an idle event."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        stop.set()
        for each, handler in previous.items():
            signal.signal(each, handler)

    # A handler that was not set from Python reads as None.
    previous: dict[int, Any] = {n: signal.getsignal(n) or signal.SIG_DFL for n in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
