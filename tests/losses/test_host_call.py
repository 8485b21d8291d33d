"""Foreign functions of compiled CPU programs: results, errors, the compilation cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfine_jax.losses import host_call, matcher

ROOT = Path(__file__).resolve().parent.parent.parent
CASES = [  # queries, objects of each image, slots, layers
    (30, (7, 0, 3, 12), 25, 3),
    (5, (9, 2, 5), 9, 2),
    (300, (10, 1), 10, 5),
    (1, (1,), 1, 1),
]


def example(queries, counts, slots, layers, seed=0):
    rng = np.random.default_rng(seed)
    cost = rng.normal(size=(layers, len(counts), queries, slots)).astype("f")
    return cost, np.stack([np.isin(np.arange(slots), rng.permutation(slots)[:n]) for n in counts])


def without_foreign_functions(monkeypatch):
    monkeypatch.setattr(host_call, "register", lambda name, function: False)


@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_callback_it_replaces(case, monkeypatch):
    cost, valid = example(*case)
    assert "dfine_jax_assign" in jax.jit(matcher.assign).lower(cost, valid).as_text()
    got = jax.jit(lambda c, v: matcher.assign(c, v))(cost, valid)
    without_foreign_functions(monkeypatch)
    want = jax.jit(lambda c, v: matcher.assign(c, v))(cost, valid)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got, matcher._solve(cost, valid))


def test_under_vmap_and_with_float64():
    cost, valid = example(8, (3, 8), 8, 4)
    many = jax.vmap(lambda c: matcher.assign(c, jnp.asarray(valid)))(jnp.asarray(cost))
    np.testing.assert_array_equal(many, matcher._solve(cost, valid))
    with jax.enable_x64(True):
        double = matcher.assign(jnp.asarray(cost, jnp.float64), jnp.asarray(valid))
    np.testing.assert_array_equal(double, matcher._solve(cost, valid))


def test_an_exception_of_the_function_is_an_error_of_the_program():
    cost, valid = example(5, (2,), 3, 1)
    run = jax.jit(lambda c, v: matcher.assign(c, v))
    with pytest.raises(jax.errors.JaxRuntimeError, match="ValueError: matrix contains invalid numeric entries"):
        jax.block_until_ready(run(np.full_like(cost, np.nan), valid))
    np.testing.assert_array_equal(run(cost, valid), matcher._solve(cost, valid))  # the process lives on


def test_a_message_in_any_language_arrives():
    def refuse(x):
        raise KeyError("größer als 3 — nein")

    assert host_call.register("test_refuse", refuse)
    call = jax.jit(lambda x: jax.ffi.ffi_call("test_refuse", jax.ShapeDtypeStruct(x.shape, x.dtype))(x))
    with pytest.raises(jax.errors.JaxRuntimeError, match="KeyError: 'größer als 3 — nein'"):
        jax.block_until_ready(call(jnp.ones(3)))


def test_a_message_that_is_no_text_is_an_error_all_the_same():
    def refuse(x):
        raise ValueError("no such class: \udcff")  # as Python reads a byte that is not UTF-8

    assert host_call.register("test_refuse_surrogate", refuse)
    call = jax.jit(lambda x: jax.ffi.ffi_call("test_refuse_surrogate", jax.ShapeDtypeStruct(x.shape, x.dtype))(x))
    with pytest.raises(jax.errors.JaxRuntimeError, match="ValueError: no such class"):
        jax.block_until_ready(call(jnp.ones(3)))


def test_data_of_an_unknown_type_is_refused_not_misread():
    assert host_call.register("test_same", lambda x: x)
    call = jax.jit(lambda x: jax.ffi.ffi_call("test_same", jax.ShapeDtypeStruct(x.shape, x.dtype))(x))
    np.testing.assert_array_equal(call(jnp.arange(3.0)), [0, 1, 2])
    assert call(jnp.zeros((0, 2))).shape == (0, 2)
    with pytest.raises(jax.errors.JaxRuntimeError, match="TypeError: a buffer .* data type 16 is not known"):
        jax.block_until_ready(call(jnp.ones(3, jnp.bfloat16)))


def test_an_unknown_version_of_the_interface_is_left_alone(monkeypatch):
    monkeypatch.setattr(host_call, "_KNOWN", frozenset({(0, 999)}))
    assert not host_call.register("test_unknown_version", lambda x: x)


_PROGRAM = """
import jax, numpy as np
from jax._src import monitoring
from dfine_jax.losses.matcher import assign
hits = []
monitoring.register_event_listener(lambda name, **_: hits.append(name))
rng = np.random.default_rng(0)
match = jax.jit(lambda c, v: assign(c * 2, v))(rng.random((3, 2, 20, 5), np.float32), np.ones((2, 5), bool))
print(int(np.asarray(match).sum()), hits.count("/jax/compilation_cache/cache_hits"))
"""


def test_a_second_process_takes_the_program_from_the_cache(tmp_path):
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    runs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        runs.append(done.stdout.split())
    assert runs[0][0] == runs[1][0]
    assert int(runs[0][1]) == 0 and int(runs[1][1]) >= 1
