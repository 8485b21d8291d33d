"""Computing again instead of keeping: the same derivatives, and less memory in what a CPU runs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dfine_jax.ops import recompute
from dfine_jax.ops.order import after
from dfine_jax.ops.platform import traced_for


def _deep(params, x, index):
    """Ten results of the size of ``x``, of which the gradient needs most."""
    for i in range(5):
        x = jnp.sin(jnp.tanh(x * params["scale"][i]) + index)
    return {"result": x, "index": index + 1}


def _arguments(dtype, rows=3):
    rng = np.random.default_rng(0)
    params = {"scale": jnp.asarray(rng.standard_normal(5), dtype)}
    return params, jnp.asarray(rng.standard_normal((rows, 8)), dtype), jnp.arange(8)


def _total(function):
    return lambda params, x, index: jnp.square(function(params, x, index)["result"]).sum()


@pytest.fixture(params=["cpu", "cuda"])
def form(request):
    with traced_for(request.param):
        yield


def test_derivatives_are_those_of_the_function(form):
    with jax.enable_x64(True):
        params, x, index = _arguments(np.float64)
        again = recompute.computed_again(_deep)
        assert again(params, x, index)["index"].dtype == index.dtype
        want = jax.grad(_total(_deep), (0, 1))(params, x, index)
        got = jax.jit(jax.grad(_total(again), (0, 1)))(params, x, index)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), got, want)
        check_grads(lambda p, x: _total(again)(p, x, index), (params, x), order=2, modes=["rev"], rtol=1e-5)


def test_a_cpu_keeps_only_the_arguments():
    if jax.default_backend() != "cpu":
        pytest.skip("the form for CPUs")
    arguments = _arguments(np.float32, rows=1 << 14)

    def temporaries(function):
        stages = [function] * 4

        def loss(params, x, index):
            for stage in stages:
                x = stage(params, x, index)["result"] @ jnp.eye(8)  # a product, which is never fused
            return jnp.square(x).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes / arguments[1].nbytes

    plain, barrier = temporaries(_deep), temporaries(jax.checkpoint(_deep))
    ours = temporaries(recompute.computed_again(_deep))
    print(f"arrays of the input's size: plain {plain:.1f}, with barriers {barrier:.1f}, ours {ours:.1f}")
    assert ours < 0.6 * min(plain, barrier)


def test_undefined_cotangents_stay_undefined():
    params, x, index = _arguments(np.float32)
    _, pull = jax.vjp(lambda x: recompute.computed_again(_deep)(params, x, index)["result"], x)
    assert np.isnan(pull(jnp.full_like(x, jnp.nan))[0]).all()
    infinite = after(x, jnp.full(3, jnp.inf))
    np.testing.assert_array_equal(infinite, x)
    assert np.isnan(after(x, jnp.asarray([jnp.nan, 1]))).all()
    assert after(index, jnp.asarray(jnp.nan)) is index
