"""Programs kept between starts: the same results without tracing, and no program for what is not the same."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from tiny import random_batch, tiny_config

from dfine_jax.families import of
from dfine_jax.training.step import kept_programs
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.programs import EvalProgram, TrainPrograms
from dfine_jax.training.step.state import create_state
from dfine_jax.training.step.step import make_eval_step, replicated


def double(x):
    return {"twice": 2 * x, "shape": (x[:1],)}


def compiled_double():
    return kept_programs.Program(jax.jit(double).lower(np.ones(3, np.float32)).compile(), 12)


def test_a_kept_program_answers_as_the_compiled_one(tmp_path):
    file = kept_programs.file_of(tmp_path, "double")
    assert kept_programs.find(file) is None
    kept_programs.keep(file, compiled_double())
    found = kept_programs.find(kept_programs.file_of(tmp_path, "double"))
    x = np.array([1.5, -2, 0], np.float32)
    assert found.peak_bytes == 12
    jax.tree.map(np.testing.assert_array_equal, found.compiled(x), double(x))


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: c[:40] + b"?" + c[41:], lambda c: b""])
def test_a_damaged_file_is_none(tmp_path, damage):
    file = kept_programs.file_of(tmp_path, "double")
    kept_programs.keep(file, compiled_double())
    file.write_bytes(damage(file.read_bytes()))
    assert kept_programs.find(file) is None


def test_what_no_program_depends_on_and_what_it_does(tmp_path, monkeypatch):
    config = tiny_config()

    def file(config, *more):
        return kept_programs.file_of(tmp_path, kept_programs.of_config(config), *more)

    first = file(config)
    changes = {"log": {"pictures": 3}, "train": {"seed": 5}}
    assert all(file(tiny_config(**{name: fields})) == first for name, fields in changes.items())
    others = [file(tiny_config(**{name: {**fields}})) for name, fields in {
        "optim": {"lr": 2e-3}, "loss": {"num_denoising": 7}, "data": {"height_px": 96}, "train": {"epochs": 3},
    }.items()]  # fmt: skip
    others += [
        file(config, kept_programs.of_arrays(np.zeros(n, kind))) for n, kind in ((2, "i4"), (3, "i4"), (3, "f4"))
    ]
    others += [file(dataclasses.replace(config, model=dataclasses.replace(config.model, precision="bfloat16")))]
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    others.append(file(config))
    monkeypatch.setenv("XLA_FLAGS", "")
    with jax.default_matmul_precision("highest"):
        others.append(file(config))
    monkeypatch.setattr(kept_programs.metadata, "version", lambda name: "0")
    others.append(file(config))
    monkeypatch.undo()
    monkeypatch.setattr(kept_programs, "_source", lambda: "another")
    others.append(file(config))
    assert len({first, *others}) == 1 + len(others)


def test_the_longest_unused_go(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_programs, "_MOST", 2)
    program = compiled_double()
    files = [tmp_path / f"{name}.program" for name in "abc"]
    for file in files[:2]:
        kept_programs.keep(file, program)
    assert kept_programs.find(files[0])  # used after b
    kept_programs.keep(files[2], program)
    assert [file.exists() for file in files] == [True, False, True]


def test_nowhere_and_a_full_disk(tmp_path):
    kept_programs.keep(None, compiled_double())
    assert kept_programs.find(None) is None and kept_programs.file_of(None, 1) is None
    (tmp_path / "file").touch()
    kept_programs.keep(tmp_path / "file" / "x.program", compiled_double())


def test_a_run_with_kept_programs_takes_the_same_steps_and_traces_none(tmp_path, monkeypatch):
    """Train step and evaluation; the bits are those of the programs that were compiled."""
    config, batch = tiny_config(), random_batch(1, 1, 4)
    size = (config.data.height_px, config.data.width_px)

    def start():
        tx = make_optimizer(config.model, config.optim)
        variables = of(config.model).init(config.model, jax.random.key(0))
        state = replicated(create_state(variables, tx, jax.random.key(1)))
        evaluation = EvalProgram(
            make_eval_step(config), lambda *more: kept_programs.file_of(tmp_path, "evaluate", *more)
        )
        evaluation.start({"params": state.params, "batch_stats": state.batch_stats}, (4, *size, 3))
        answer = evaluation({"params": state.params, "batch_stats": state.batch_stats}, batch.images)
        programs = TrainPrograms(config, tx, [size], 3, tmp_path)
        programs.compile(state, batch, lambda line: None)
        for _ in range(2):
            state, metrics = programs(size, state, batch)
        return jax.device_get((state.arrays.params, metrics, answer)), programs.peak_bytes

    compiled, peak = start()
    assert len(list(tmp_path.glob("*.program"))) == 2

    def refuse(*_):
        raise AssertionError("traced")

    monkeypatch.setattr("dfine_jax.training.step.step.TrainStep._step", refuse)
    kept, kept_peak = start()
    jax.tree.map(np.testing.assert_array_equal, kept, compiled)
    assert kept_peak == peak
