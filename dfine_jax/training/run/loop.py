"""A training run: steps, evaluation, stages, checkpoints, logs; started, stopped and continued without loss."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dfine_jax.config import Config
from dfine_jax.data.load.batch import Batch
from dfine_jax.data.read.dataset import Dataset
from dfine_jax.errors import UserError
from dfine_jax.evaluation.score import Metrics
from dfine_jax.families import of
from dfine_jax.losses.matcher import is_cacheable
from dfine_jax.training.report.callbacks import Callbacks
from dfine_jax.training.report.epoch_log import epoch_row, open_log, rates_of
from dfine_jax.training.report.examples import save_inputs
from dfine_jax.training.report.meter import Forecast, Meter, describe_bar
from dfine_jax.training.report.run_page import Origin, RunPage, about_data
from dfine_jax.training.report.sinks import Sink, with_methods
from dfine_jax.training.report.underway import Underway
from dfine_jax.training.run import checkpoint, hosts, setup, stages
from dfine_jax.training.run.setup import STAGE1, StartWeights, check_same_data, describe, make_loaders, opening_notes
from dfine_jax.training.run.skipped import FOLDER, SkippedSteps, Taken
from dfine_jax.training.run.stages import Result
from dfine_jax.training.run.stop import Stop, stop_on_signals
from dfine_jax.training.run.validation import Validation
from dfine_jax.training.step.kept_programs import KeptPrograms, of_config
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.programs import EvalProgram, TrainPrograms, programs_let_go, told_out_of_memory
from dfine_jax.training.step.schedule import make_schedule
from dfine_jax.training.step.state import TrainState, create_state, ema_variables, with_ema_shift
from dfine_jax.training.step.step import StepMetrics, make_eval_step, replicated, split_over_devices

_ASK_HOSTS_EVERY = 10  # steps


def train(
    config: Config,
    train_data: Dataset,
    val_data: Dataset | None,
    out_dir: Path | str,
    *,
    resume: bool = False,
    start: StartWeights | None = None,
    notes: Sequence[str] = (),
    max_hours: float | None = None,
    kept_programs: Path | None = None,
    origin: Origin | None = None,
    callbacks: Sequence[Any] = (),
    loggers: Sequence[Sink] = (),
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
      max_hours: stop as by a signal after so much time.
      kept_programs: folder of compiled programs for the next start (training/step/kept_programs.py); for commands.
      origin: how the run was started, for its page.
      callbacks: told of steps, epochs and the end (training/report/callbacks.py); loggers: given what TensorBoard is.

    Raises:
      UserError: the folder holds a run (or, to resume, none); data, configuration, devices or memory do not fit.
    """
    out_dir = Path(out_dir)
    setup.check(config, train_data, val_data)
    origin, about = origin or Origin(), about_data(train_data, val_data, describe(config, train_data, start))
    page = RunPage(out_dir, config, about, origin)
    claimed, told_errors = setup.claimed(out_dir, resume), page.telling_errors()
    with claimed, told_errors, stop_on_signals(max_hours) as stop, programs_let_go(), told_out_of_memory(config.model):
        told = Callbacks(callbacks, stop.request), with_methods(loggers)
        run = _Run(config, train_data, val_data, out_dir, start, stop, kept_programs, page, origin, *told)
        return run.run(resume, notes)


class _Run:
    def __init__(
        self,
        config: Config,
        train_data: Dataset,
        val_data: Dataset | None,
        out_dir: Path,
        start: StartWeights | None,
        stop: Stop,
        kept: Path | None,
        page: RunPage,
        origin: Origin,
        callbacks: Callbacks,
        loggers: Sequence[Sink],
    ) -> None:
        self.callbacks, self.loggers, self.page, self.origin = callbacks, loggers, page, origin
        self.config, self.out_dir, self.val_data, self.stop = config, out_dir, val_data, stop
        self.loader, self.eval_loader = make_loaders(config, train_data, val_data)
        train, self.truth = config.train, setup.val_truth(config, val_data)
        self.steps = self.loader.steps_per_epoch
        self.total = train.epochs * self.steps
        self.tx = make_optimizer(config.model, config.optim)
        self.rates = rates_of(config, make_schedule(config, self.steps))
        is_cacheable(config.loss.assignment)  # makes known the host's function, without which no program can be read
        self.kept = KeptPrograms(kept if hosts.count() == 1 else None, of_config(config), self.steps)
        with_loss = self.eval_loader is not None and self.eval_loader.has_objects
        made_of = config.model, config.data, config.loss if with_loss else None
        self.eval_step = EvalProgram(make_eval_step(config, with_loss=with_loss), self.kept, made_of)
        self.validate, rules = None, of(config.model).answer_rules(config.model)
        if val_data is not None and self.eval_loader is not None and self.truth is not None:
            self.validate = Validation(val_data, self.eval_loader, self.truth, self.eval_step, stop, rules)
        self.init_key, self.key = jax.random.split(jax.random.key(train.seed))
        self.init_variables = lambda key: start.variables if start else of(config.model).init(config.model, key)
        self.metadata = describe(config, train_data, start)
        self.progress = stages.Progress()
        self.metrics: Metrics | None = None
        self.meter, self.forecast = Meter(), Forecast(0, self.total)

    def run(self, resume: bool, notes: Sequence[str]) -> Result:
        """From the first or the next step to the last, or to a signal."""
        state = self._resumed() if resume else create_state(self.init_variables(self.init_key), self.tx, self.key)
        step = self.first_step = self.recorded = int(state.step)
        sizes = self.loader.sizes_px(self.config.train.epochs, step // self.steps)
        notes = (*notes, *opening_notes(self.config, self.loader, state.params, sizes))
        state, self.meter = replicated(state), Meter(self.progress)
        self.programs = TrainPrograms(self.config, self.tx, sizes, self.steps, self.kept)
        first = hosts.index() == 0
        log_dir = self.out_dir if first else self.out_dir / f"host{hosts.index()}"
        known = self.progress.epoch, step, self.rates, self.val_data, self.truth, self.page, self.loggers
        self.log = open_log(self.config, log_dir, *known)
        self.skips = SkippedSteps(log_dir, self.out_dir, self.config.train.max_skipped_steps)
        for note in notes:
            self.log.line(note)
        if resume:
            self.log.line(f"resumed at step {step} of {self.total}, epoch {step // self.steps + 1}")
        else:
            shutil.rmtree(log_dir / FOLDER, ignore_errors=True)
            if first:
                setup.keep_origin(self.out_dir, self.config, self.origin)
        self.log.show()
        self.bar = tqdm(total=self.total, initial=step, unit="step", disable=None, dynamic_ncols=True)
        with closing(self.log), self.bar, closing(self.loader.batches(step)) as batches:
            state, step = self._steps(state, step, batches)
        finished = self.progress.epoch >= self.config.train.epochs or self.progress.ended_early
        why = f" ({self.stop.reason})" if self.stop.reason else ""
        stopped = f"stopped at step {step} of {self.total}{why}"
        if not finished:
            self._save(state)
            self.log.line(f"{stopped}; continue with {self.origin.resume or '--resume'}")
        elif first:
            shutil.rmtree(self.out_dir / STAGE1, ignore_errors=True)
        if finished:
            self.log.finish()
        else:
            self.log.show(f"The run was {stopped}; it can go on with --resume.")
        result = Result(finished, self.progress.best_ap, self.progress.best_epoch, self.metrics)
        if first:
            self.callbacks.end(result)
        return result

    def _steps(self, state: TrainState, step: int, batches: Iterator[Any]) -> tuple[TrainState, int]:
        every = self.config.train.checkpoint_steps
        pending, compiled = None, False
        while not self._stops(step):
            if step and step % self.steps == 0 and self.progress.epoch < step // self.steps:
                self._record(pending, state)
                pending = None
                self.meter.stop()
                next_state = self._finish_epoch(state, step // self.steps)
                if next_state is None:
                    break
                state = next_state
            if step >= self.total or self.progress.ended_early:
                break
            state = self._second_stage(state, step)
            with self._kept(state, pending), self.meter.waiting():
                batch, size = next(batches), self.loader.size_px(step)
            split = split_over_devices(batch)
            if not compiled:
                self._prepare(state, step, batch, split)
                compiled = True
                if self._stops(step):
                    break
            state, metrics = self.programs(size, state, split)
            self.meter.dispatched(metrics.loss)
            self.eval_step.tell(self.log.line)
            step += 1
            self._record(pending, state)  # the step before: the device is at work meanwhile
            pending = Taken(step - 1, size, split, metrics)
            if every and step % every == 0 and step % self.steps:
                self._record(pending, state)
                pending = None
                self._save(state)
        self._record(pending, state)
        return state, step

    def _prepare(self, state: TrainState, step: int, batch: Batch, split: Batch) -> None:
        """Before the first step of this process: a picture of what the model gets, programs, a first ``last``."""
        if step == 0 and self.config.log.pictures and hosts.index() == 0:
            save_inputs(self.config, self.loader, batch, self.metadata.class_names, self.out_dir / "augmented.jpg")
        empty = self.eval_loader.empty() if self.eval_loader else None
        evaluation_too = None if empty is None else lambda: self.eval_step.start(ema_variables(state), empty)
        self.programs.compile(state, split, self.log.line, self.stop.is_set, evaluation_too)
        if step == 0:
            self._save(state)  # from here on there is something to resume

    @contextmanager
    def _kept(self, state: TrainState, pending: Taken | None = None) -> Iterator[None]:
        """What has been trained is saved before unusable data ends the run; with other hosts this cannot be agreed."""
        try:
            yield
        except UserError:
            if hosts.count() == 1 and int(state.step):
                self._record(pending, state)
                self._save(state)
            raise

    def _stops(self, step: int) -> bool:
        if hosts.count() == 1:
            return self.stop.is_set()
        return step % _ASK_HOSTS_EVERY == 0 and self.stop.agreed()

    def _load(self, name: str) -> tuple[TrainState, checkpoint.Metadata, stages.Progress]:
        shapes = jax.eval_shape(lambda key: create_state(self.init_variables(key), self.tx, self.key), self.init_key)
        return checkpoint.load_training(self.out_dir / name, shapes)

    def _resumed(self) -> TrainState:
        state, metadata, self.progress = self._load("last")
        check_same_data(self.metadata, metadata, self.out_dir)
        self.metadata = dataclasses.replace(metadata, config=self.config)
        return state

    def _second_stage(self, state: TrainState, step: int) -> TrainState:
        first = self.config.train.stage2_epoch
        if self.progress.stage == 2 or not first or step != first * self.steps:
            return state
        self.progress = stages.second_stage(self.progress)
        self.log.line(f"stage 2 begins with epoch {first + 1}")
        return self._from_start(state)

    def _from_start(self, state: TrainState) -> TrainState:
        """The best state of stage 1, at the step of now."""
        shift = np.asarray(stages.ema_shift(self.progress, self.config.optim), state.ema_shift.dtype)
        if not (self.out_dir / STAGE1).is_dir():
            self.log.line("no evaluated epoch to return to: training goes on from here")
            return replicated(with_ema_shift(state, shift))
        best, metadata, _ = self._load(STAGE1)
        decay = self.config.optim.ema_decay + float(shift)
        self.log.line(f"back to the weights of epoch {metadata.epoch}; decay of the average {decay:.6g}")
        return replicated(dataclasses.replace(best, step=np.asarray(hosts.on_host(state.step)), ema_shift=shift))

    def _record(self, taken: Taken | None, state: TrainState) -> None:
        if taken is None:
            return
        host: StepMetrics = hosts.on_host(taken.metrics)
        self.bar.update()
        self.recorded += 1  # a disabled bar does not count
        values = {"loss": float(host.loss), "grad_norm": float(host.grad_norm)}
        values |= {k: float(v) for k, v in host.terms.items()}
        if host.finite:
            self.skips.finite()
            self.meter.add(self.config.train.batch_size, values)
            self.log.step(self.recorded, values)
        else:
            self.meter.add(self.config.train.batch_size, None)
            self._skipped(taken, values, state)
        if hosts.index() == 0:
            self.callbacks.step(self.recorded, values)
        if self.recorded == self.first_step + 1:
            self.meter.restart()  # the first step's time is that of compiling
            self.forecast = Forecast(self.recorded, self.total)
        if self.recorded % self.config.train.log_every == 0 or self.recorded == self.first_step + 1:
            train, ap = self.config.train, None
            if self.progress.best_ap >= 0:
                ap = self.metrics.deciding_ap(train.best_by) if self.metrics else self.progress.best_ap
            epoch = f"epoch {taken.step // self.steps + 1}/{train.epochs}"
            loss, speed, left_s = values["loss"], self.meter.images_per_second(), self.forecast.left_s(self.recorded)
            describe_bar(self.bar, epoch, loss, speed, ap)
            self.log.underway(Underway(self.recorded, self.total, loss, speed, left_s))

    def _skipped(self, taken: Taken, values: dict[str, float], state: TrainState) -> None:
        self.progress = dataclasses.replace(self.progress, skipped=self.progress.skipped + 1)
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        self.log.line(self.skips.add(taken, bad, lambda folder: self._write(folder, state)))
        if self.skips.too_many:
            self._save(state)  # the skipped steps have changed nothing in it but their number
            raise UserError(self.skips.message())

    def _finish_epoch(self, state: TrainState, epoch: int) -> TrainState | None:
        """Evaluate, log and save; the state to continue from, None if a signal came before the evaluation was done."""
        train = self.config.train
        evaluated = self.val_data is not None and (epoch % train.eval_every == 0 or epoch == train.epochs)
        validated = None
        if evaluated and self.validate:
            with self._kept(state):
                validated = self.validate(ema_variables(state), self.log.observe)
            if validated is None:
                return None
        metrics = validated.metrics if validated else None
        self.metrics = metrics or self.metrics
        ap = metrics.deciding_ap(train.best_by) if metrics else None
        self.metadata = checkpoint.judged(self.metadata, epoch, metrics)
        verdict = stages.judged(self.progress, ap, epoch, train, kept=(self.out_dir / STAGE1).is_dir())
        self.progress = dataclasses.replace(verdict.progress, epoch=epoch)
        step, first, val_loss = int(state.step), hosts.index() == 0, validated.loss if validated else {}
        known = {"epoch": epoch, "step": step, "rates": self.rates(step - 1), "val_loss": val_loss}
        row = epoch_row(self.config, self.meter, self.progress, metrics, **known)
        self.log.row(row)
        for text in self.forecast.lines(step):
            self.log.line(text)
        self.meter = Meter()
        if metrics and verdict.is_best:
            if first:
                checkpoint.save_weights(self.out_dir / "best", ema_variables(state), self.metadata)
                self.log.best(metrics)
            hosts.wait_for_all("best written")
        if verdict.is_start:
            self._write(self.out_dir / STAGE1, state)
        if self.progress.ended_early and epoch < train.epochs:
            self.log.line(stages.why_ended(self.progress))
        elif verdict.go_back and epoch < train.epochs:
            state = self._from_start(state)
        # With every new best, so that the record of the best is never older than the best itself.
        ends = epoch == train.epochs or self.progress.ended_early
        if any(verdict[1:]) or epoch % train.checkpoint_every == 0 or ends:
            self._save(state)
        if first:
            self.log.draw(step, metrics, verdict.is_best, epoch)  # what can be lost comes last
            self.callbacks.epoch(epoch, row)
        self.meter.restart()
        return state

    def _save(self, state: TrainState) -> None:
        self._write(self.out_dir / "last", state)
        hosts.wait_for_all("last written")

    def _write(self, folder: Path, state: TrainState) -> None:
        if hosts.index() == 0:
            checkpoint.save_training(folder, state, self.metadata, self.meter.noted(self.progress))
