"""The compiled train steps of a run, one per input size, made before the first step; and what memory they take."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

from dfine_jax.config import Config, ModelSection
from dfine_jax.data.load.batch import Batch
from dfine_jax.errors import UserError
from dfine_jax.families import of
from dfine_jax.losses.matcher import is_cacheable
from dfine_jax.system.host_memory import (
    collection_paused,
    give_back_memory,
    keep_freed_memory,
    memory_maps,
    require_maps,
)
from dfine_jax.training.run import hosts
from dfine_jax.training.step import kept_programs
from dfine_jax.training.step.kept_programs import KeptPrograms
from dfine_jax.training.step.state import TrainState
from dfine_jax.training.step.step import StepMetrics, make_train_step, spread

Size = tuple[int, int]
_GIB = 1 << 30
_LONG_SECONDS = 20


class TrainPrograms:
    """``programs(size_px, state, batch)`` takes a step at that size."""

    def __init__(
        self,
        config: Config,
        tx: optax.GradientTransformationExtraArgs,
        sizes_px: Sequence[Size],
        steps: int,
        kept: KeptPrograms | None = None,
    ) -> None:
        self._steps: dict[Size, Any] = {
            size: make_train_step(config, tx, steps_per_epoch=steps, size_px=size) for size in sizes_px
        }
        self._assignment, self._model = config.loss.assignment, config.model
        self._kept = (kept if is_cacheable(self._assignment) else None) or KeptPrograms(None)
        self._made_of = (kept_programs.of_config(config), steps)
        self.peak_bytes = 0  # of a device, over all sizes; known after compile

    def __call__(self, size_px: Size, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        """State and metrics after the step; the state given is consumed."""
        return self._steps[size_px](state, spread(batch))

    def compile(
        self,
        state: TrainState,
        batch: Batch,
        say: Callable[[str], None],
        stopped: Callable[[], bool] = lambda: False,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """Compile for all sizes with a progress bar, and say how long it took and what memory a device will need.

        Args:
          batch: as the steps will get it.
          stopped: whether the run should end; on one host, the sizes that are left are then left out.
          meanwhile: called once, when the first program goes from Python to the compiler: starts what may run beside.
        """
        if jax.default_backend() == "cpu":
            keep_freed_memory()
        started = time.perf_counter()
        needed = 0  # memory maps of a program
        largest_first = sorted(self._steps, key=math.prod, reverse=True)  # what does not fit is told early
        with tqdm(largest_first, unit="size", desc="compile", leave=False, disable=None) as bar:
            for size in bar:
                if stopped() and hosts.count() == 1:
                    return
                bar.set_postfix_str(f"{size[0]}x{size[1]}")
                require_maps(needed)
                before = memory_maps()
                first = size == largest_first[0]
                peak = self._compile(size, state, batch, (meanwhile if first else None) or (lambda: None))
                if first:
                    self.peak_bytes = peak
                    say(memory_line(self.peak_bytes, state, self._model))
                after = memory_maps()
                # Of the last size alone: beside the first ones the evaluation is compiled, whose maps count, too.
                needed = after[0] - before[0] if before and after else 0
        give_back_memory()
        hosts.wait_for_all("compiled")
        seconds = time.perf_counter() - started
        advice = ""
        if seconds > _LONG_SECONDS and not is_cacheable(self._assignment):
            advice = "; the next start compiles again, with loss.assignment=device it would not"
        say(f"compiled the train step in {seconds:.0f} s ({_names(self._steps)}){advice}")

    def _compile(self, size: Size, state: TrainState, batch: Batch, meanwhile: Callable[[], None]) -> int:
        """Compile for one size, or take what was kept; the memory it takes."""
        step = self._steps[size]
        made_of = ("train", *self._made_of, size, kept_programs.of_arrays((state, batch)))
        program = self._kept.program(made_of, lambda: step.lower(state, batch).lowered, meanwhile)
        self._steps[size] = step.with_program(program.compiled, state)
        return program.peak_bytes


def sizes_notes(sizes_px: Sequence[Size]) -> list[str]:
    """What the log says of several input sizes."""
    if len(sizes_px) < 2:
        return []
    return [f"input sizes of this run: {_names(sizes_px)}; each is compiled once, before the first step"]


def _names(sizes_px: Iterable[Size]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in sizes_px)


class EvalProgram:
    """``program(variables, images)``: the evaluation step, compiled while the train step is; called before, it waits.

    On several hosts it compiles when first called.

    Args:
      made_of: what the step was made of (``KeptPrograms.program``).
    """

    def __init__(self, eval_step: Any, kept: KeptPrograms | None = None, made_of: Sequence[Any] = ()) -> None:
        self._step, self._kept, self._made_of = eval_step, kept or KeptPrograms(None), made_of
        self._compiling: Future[tuple[Any, str]] | None = None

    def start(self, variables: Any, given: Any) -> None:
        """Compile, in a thread on CPUs; elsewhere compilers measure, and must be alone.

        Args:
          given: what the step gets of this host, with one axis for all devices, or the like of it: images [b, h, w, 3].
        """
        if hosts.count() > 1:
            return
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), variables)
        worker = ThreadPoolExecutor(1, "compile-evaluation")
        self._compiling = worker.submit(self._compile, shapes, given)
        worker.shutdown(wait=jax.default_backend() != "cpu")  # the thread ends with its only task

    def tell(self, say: Callable[[str], None]) -> None:
        """Once it is compiled, say so, once; what went wrong is raised here."""
        if self._compiling and self._compiling.done():
            (self._step, note), self._compiling = self._compiling.result(), None
            say(note)

    def __call__(self, variables: Any, given: Any) -> Any:
        """As of ``make_eval_step``."""
        step = self._compiling.result()[0] if self._compiling else self._step
        return step(variables, given)

    def _compile(self, variables: Any, given: Any) -> tuple[Any, str]:
        """The program and a line about it."""
        started = time.perf_counter()
        devices = jax.local_device_count()
        given = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), given)

        def lower() -> Any:
            with collection_paused():
                return self._step.lower(variables, given)

        made_of = ("evaluate", *self._made_of, kept_programs.of_arrays((variables, given)))
        program = self._kept.program(made_of, lower)
        seconds, gib = time.perf_counter() - started, program.peak_bytes / _GIB
        return program.compiled, f"compiled the evaluation in {seconds:.0f} s; it takes {gib:.2f} GiB per device"


def less_memory(model: ModelSection) -> str:
    """Values of the configuration with which a step takes less memory and longer."""
    return f"train.accumulate=2, or train.remat={json.dumps(of(model).parts, separators=(',', ':'))}"


def memory_line(peak: int, state: TrainState, model: ModelSection) -> str:
    """The need of a device in words, with a warning and the cures when it exceeds what the device has."""
    parts = (state.params, state.batch_stats, state.opt_state, state.ema_params, state.ema_batch_stats)
    held = sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(parts))
    text = f"memory of a train step: {peak / _GIB:.2f} GiB per device, {held / _GIB:.2f} of it weights and optimiser"
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    if limit and peak > limit:
        text += (
            f"; the device has {limit / _GIB:.2f} GiB, so this will not fit: take a smaller --batch-size, or "
            + less_memory(model)
        )
    return text


@contextmanager
def programs_let_go() -> Iterator[None]:
    """At the end, what JAX keeps of compiled programs is dropped, on CPUs.

    ``jax.pmap`` keeps its programs for the life of the process. There each has thousands of memory mappings, so that
    the third or fourth training of a notebook would meet the system's limit (``require_maps``).
    """
    try:
        yield
    finally:
        if jax.default_backend() == "cpu":
            jax.clear_caches()


@contextmanager
def told_out_of_memory(model: ModelSection) -> Iterator[None]:
    """Memory of the device that is used up becomes a UserError with the cures; all else stays what it is."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).splitlines()[0]
        raise UserError(
            f"the device ran out of memory ({first}); take a smaller --batch-size, or continue with --resume and "
            f"{less_memory(model)}, or a smaller train.eval_batch_size"
        ) from error
