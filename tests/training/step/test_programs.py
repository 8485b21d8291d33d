"""Compiling ahead: order, what is said, ending early, and a device that is too small."""

from __future__ import annotations

import dataclasses
import functools
import gc
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from dfine_jax.errors import UserError
from dfine_jax.losses import host_call
from dfine_jax.system import host_memory
from dfine_jax.training.step import programs
from dfine_jax.training.step.programs import EvalProgram, TrainPrograms, programs_let_go, told_out_of_memory
from dfine_jax.training.step.state import create_state

SIZES = [(32, 32), (96, 64), (64, 64)]


@pytest.fixture
def compiled(monkeypatch):
    """Sizes in the order in which they are compiled, by programs that need a byte per pixel."""
    order = []

    class Step:
        def __init__(self, config, tx, *, steps_per_epoch, size_px):
            self.size = size_px or (64, 64)

        def lower(self, state, batch):
            return SimpleNamespace(lowered=self)

        def compile(self):
            order.append(self.size)
            area = self.size[0] * self.size[1]
            stats = SimpleNamespace(argument_size_in_bytes=0, output_size_in_bytes=0, alias_size_in_bytes=0)
            stats.temp_size_in_bytes = area << 18
            return SimpleNamespace(memory_analysis=lambda: stats)

        def with_program(self, program, state):
            return program

    monkeypatch.setattr(programs, "make_train_step", Step)
    return order


@pytest.fixture(scope="module")
def state():
    import optax

    variables = {"params": {"w": np.zeros(3, np.float32)}, "batch_stats": {}}
    return create_state(variables, optax.sgd(0.1), jax.random.key(0))


def compile_all(state, config=None, **options):
    lines = []
    made = TrainPrograms(config or tiny_config(), None, SIZES, 3)  # type: ignore[arg-type]
    made.compile(state, None, lines.append, **options)  # type: ignore[arg-type]
    return made, lines


def test_the_largest_size_comes_first_and_tells_the_memory(compiled, state):
    made, lines = compile_all(state)
    assert compiled == [(96, 64), (64, 64), (32, 32)]
    assert made.peak_bytes == 96 * 64 << 18
    assert lines[0].startswith("memory of a train step: 1.50 GiB per device")
    assert lines[1:] == ["compiled the train step in 0 s (32x32, 96x64, 64x64)"]


def test_a_stop_is_looked_for_between_sizes(compiled, state):
    _, lines = compile_all(state, stopped=lambda: len(compiled) == 1)
    assert compiled == [(96, 64)] and not any("compiled" in line for line in lines[1:])


def test_maps_of_the_evaluation_are_not_taken_for_those_of_every_size(compiled, state, monkeypatch):
    """It is compiled beside the first size, so that this one seems to need twice as many."""
    used = [1000, 1600, 1900, 2200]
    for module in (host_memory, programs):
        monkeypatch.setattr(module, "memory_maps", lambda: (used[len(compiled)], 2300))
    compile_all(state)
    assert len(compiled) == 3


@pytest.mark.parametrize(("assignment", "known"), [("scipy", False), ("scipy", True), ("device", False)])
def test_long_compiling_names_what_would_be_kept(compiled, state, monkeypatch, assignment, known):
    monkeypatch.setattr(programs, "_LONG_SECONDS", -1)
    monkeypatch.setattr(host_call, "register", lambda name, function: known)
    config = tiny_config()
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, assignment=assignment))
    _, lines = compile_all(state, config)
    assert ("with loss.assignment=device it would not" in lines[-1]) == (assignment == "scipy" and not known)


def test_what_may_run_beside_the_compiler_starts_once_and_before_it(compiled, state):
    done_at = []
    compile_all(state, meanwhile=lambda: done_at.append(len(compiled)))
    assert done_at == [0]


def double(variables, images):
    return images * variables["w"]


def test_the_evaluation_is_compiled_beside_and_waited_for():
    program = EvalProgram(jax.pmap(double, in_axes=(None, 0)))
    variables = {"w": jax.device_put(np.uint8(2))}
    images = np.ones((1, 2, 4, 4, 3), np.uint8)
    np.testing.assert_array_equal(program(variables, images), 2 * images)  # not started: compiles by itself
    lines = []
    program.start(variables, np.zeros((2, 4, 4, 3), np.uint8))
    np.testing.assert_array_equal(program(variables, images), 2 * images)
    program.tell(lines.append)
    program.tell(lines.append)
    assert len(lines) == 1 and lines[0].startswith("compiled the evaluation in 0 s; it takes 0.00 GiB")
    np.testing.assert_array_equal(program(variables, images), 2 * images)


def test_what_goes_wrong_beside_is_raised():
    def refuse(variables, images):
        raise ValueError("not today")

    program = EvalProgram(jax.pmap(refuse, in_axes=(None, 0)))
    program.start({"w": jax.device_put(np.uint8(2))}, np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="not today"):
        program({"w": np.uint8(2)}, np.ones((1, 2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="not today"):
        program.tell(print)


def test_memory_that_is_used_up_is_told_with_the_cures():
    with pytest.raises(
        UserError, match=r"ran out of memory \(RESOURCE_EXHAUSTED: 9 bytes\); .*train.accumulate=2"
    ) as told:
        with told_out_of_memory(tiny_config().model):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 bytes\nmore")
    assert "\n" not in str(told.value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), told_out_of_memory(tiny_config().model):
        raise jax.errors.JaxRuntimeError("INTERNAL: else")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_is_left_of_the_programs_of_runs():
    """A notebook trains many times; at ``vm.max_map_count`` mappings its process would die."""

    def many_kernels(x):
        for i in range(100):
            x = jnp.sort(jnp.sin(x @ x), axis=0) * i
        return x

    before = _maps()
    with programs_let_go():
        function = functools.partial(many_kernels)
        jax.pmap(function)(np.ones((1, 4, 4), np.float32))
        held = _maps() - before
    del function
    gc.collect()
    assert held > 200 and _maps() - before < held / 2, (held, _maps() - before)


def _maps() -> int:
    found = host_memory.memory_maps()
    assert found
    return found[0]
