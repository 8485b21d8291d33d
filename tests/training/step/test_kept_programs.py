"""Programs kept between starts: the same results without tracing, and no program for what is not the same."""

from __future__ import annotations

import dataclasses
import threading

import jax
import numpy as np
import pytest
from tiny import random_batch, tiny_config

from dfine_jax.families import of
from dfine_jax.training.step import kept_programs
from dfine_jax.training.step.kept_programs import KeptPrograms
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.programs import EvalProgram, TrainPrograms
from dfine_jax.training.step.state import create_state
from dfine_jax.training.step.step import make_eval_step, replicated

X = np.array([1.5, -2, 0], np.float32)


@pytest.fixture(autouse=True)
def no_cache_of_jax():
    """What its cache gives is not kept, and other tests may have filled it."""
    jax.config.update("jax_enable_compilation_cache", False)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()


def times(folder, factor, made_of=("times",), counted=None):
    """A kept program that multiplies by a number, which is a part of its text and not of ``made_of``."""

    def lower():
        if counted is not None:
            counted.append(factor)
        return jax.jit(lambda x: {"times": factor * x, "part": (x[:1],)}).lower(X)

    return KeptPrograms(folder, "run").program(made_of, lower)


def programs(folder):
    return sorted(folder.glob("*.program"))


def test_a_kept_program_answers_as_the_compiled_one(tmp_path):
    first, traced = times(tmp_path, 2), []
    found = times(tmp_path, 3, counted=traced)  # what is asked for by the same words is the program kept
    assert not traced and found.peak_bytes == first.peak_bytes > 0
    jax.tree.map(np.testing.assert_array_equal, found.compiled(X), {"times": 2 * X, "part": (X[:1],)})


def test_the_same_text_is_not_compiled_again(tmp_path, monkeypatch):
    """Another version of the package, or a field that does not matter to the program."""
    times(tmp_path, 2)

    def refuse(_):
        raise AssertionError("compiled")

    traced = []
    with monkeypatch.context() as patched:
        patched.setattr(kept_programs, "_compile", refuse)
        for _ in range(2):
            found = times(tmp_path, 2, ("times", "more"), traced)
        np.testing.assert_array_equal(found.compiled(X)["times"], 2 * X)
    assert traced == [2] and len(programs(tmp_path)) == 1
    np.testing.assert_array_equal(times(tmp_path, 5, ("other",)).compiled(X)["times"], 5 * X)


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: c[:40] + b"?" + c[41:], lambda c: b""])
def test_a_damaged_file_is_replaced(tmp_path, damage):
    times(tmp_path, 2)
    (file,) = programs(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    traced = []
    for _ in range(2):
        np.testing.assert_array_equal(times(tmp_path, 2, counted=traced).compiled(X)["times"], 2 * X)
    assert traced == [2] and len(file.read_bytes()) == len(whole)


def test_a_program_of_the_other_cache_is_not_kept(tmp_path):
    """Such a one has no machine code to write: the next process could not run it."""
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_enable_compilation_cache", True)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()
    try:
        times(tmp_path, 7, ("first",))  # JAX keeps it, too
        for file in programs(tmp_path):
            file.unlink()
        jax.clear_caches()
        hits = kept_programs._hits()
        found = times(tmp_path, 7, ("second",))
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    assert kept_programs._hits() == hits + 1 and not programs(tmp_path)
    np.testing.assert_array_equal(found.compiled(X)["times"], 7 * X)


def test_what_no_program_depends_on_and_what_it_does(monkeypatch):
    config = tiny_config()

    def name(config, *more):
        return kept_programs._digest(kept_programs._source(), kept_programs.of_config(config), *more)

    first = name(config)
    changes = {"log": {"pictures": 3}, "train": {"seed": 5}}
    assert all(name(tiny_config(**{section: fields})) == first for section, fields in changes.items())
    others = [name(tiny_config(**{section: {**fields}})) for section, fields in {
        "optim": {"lr": 2e-3}, "loss": {"num_denoising": 7}, "data": {"height_px": 96}, "train": {"epochs": 3},
    }.items()]  # fmt: skip
    others += [
        name(config, kept_programs.of_arrays(np.zeros(n, kind))) for n, kind in ((2, "i4"), (3, "i4"), (3, "f4"))
    ]
    others += [name(dataclasses.replace(config, model=dataclasses.replace(config.model, precision="bfloat16")))]
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    others.append(name(config))
    monkeypatch.setenv("XLA_FLAGS", "")
    with jax.default_matmul_precision("highest"):
        others.append(name(config))
    monkeypatch.setattr(kept_programs.metadata, "version", lambda name: "0")
    others.append(name(config))
    monkeypatch.undo()
    monkeypatch.setattr(kept_programs, "_source", lambda: "another")
    others.append(name(config))
    assert len({first, *others}) == 1 + len(others)


def test_what_the_last_run_used_is_read_ahead(tmp_path, monkeypatch):
    for number in (1, 2):
        times(tmp_path, number, (number,))  # each a run of its own: the last used the second
    loads, load = [], kept_programs._load
    monkeypatch.setattr(
        kept_programs, "_load", lambda file: loads.append(threading.current_thread().name) or load(file)
    )
    run = KeptPrograms(tmp_path, "run")
    for number in (2, 1):
        np.testing.assert_array_equal(run.program((number,), None).compiled(X)["times"], number * X)
    assert [name.startswith("kept-programs") for name in loads] == [True, False]
    both = KeptPrograms(tmp_path, "run")
    assert len(both._loading) == 2 and not KeptPrograms(tmp_path, "another")._loading
    programs(tmp_path)[0].write_bytes(b"")
    for number in (2, 1):
        np.testing.assert_array_equal(times(tmp_path, number, (number,)).compiled(X)["times"], number * X)


def test_the_longest_unused_go(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_programs, "_MOST", 2)
    for number in (1, 2):
        times(tmp_path, number, (number,))
    first, second = sorted(programs(tmp_path), key=lambda file: file.stat().st_mtime)
    times(tmp_path, 1, (1,))  # used after the second
    times(tmp_path, 3, (3,))
    assert first.exists() and not second.exists() and len(programs(tmp_path)) == 2
    assert len(list(tmp_path.glob("*.name"))) == 2


def test_nowhere_and_a_full_disk(tmp_path):
    assert not times(None, 2).compiled(X)["times"][2]
    (tmp_path / "file").touch()
    np.testing.assert_array_equal(times(tmp_path / "file" / "x", 2).compiled(X)["times"], 2 * X)


def test_a_run_with_kept_programs_takes_the_same_steps_and_traces_none(tmp_path, monkeypatch):
    """Train step and evaluation; the bits are those of the programs that were compiled."""
    config, batch = tiny_config(), random_batch(1, 1, 4)
    size = (config.data.height_px, config.data.width_px)

    def start():
        tx = make_optimizer(config.model, config.optim)
        variables = of(config.model).init(config.model, jax.random.key(0))
        state = replicated(create_state(variables, tx, jax.random.key(1)))
        kept = KeptPrograms(tmp_path, "run")
        evaluation = EvalProgram(make_eval_step(config), kept)
        images = np.zeros((4, *size, 3), np.uint8)
        evaluation.start({"params": state.params, "batch_stats": state.batch_stats}, images)
        answer = evaluation({"params": state.params, "batch_stats": state.batch_stats}, batch.images)
        run = TrainPrograms(config, tx, [size], 3, kept)
        run.compile(state, batch, lambda line: None)
        for _ in range(2):
            state, metrics = run(size, state, batch)
        return jax.device_get((state.arrays.params, metrics, answer)), run.peak_bytes

    compiled, peak = start()
    assert len(programs(tmp_path)) == 2

    def refuse(*_):
        raise AssertionError("traced")

    monkeypatch.setattr("dfine_jax.training.step.step.TrainStep._step", refuse)
    kept, kept_peak = start()
    jax.tree.map(np.testing.assert_array_equal, kept, compiled)
    assert kept_peak == peak
