"""Layers against PyTorch and against their definitions."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from dfine_jax.nn.layers import (
    MLP,
    BatchNorm,
    ConvNorm,
    LayerNorm,
    LearnableAffine,
    MultiHeadAttention,
    activation,
    upsample2x,
)

KEY = jax.random.key(0)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parity
def test_batch_norm_matches_torch_in_training():
    torch = pytest.importorskip("torch")
    x, cotangent = random(3, 4, 5, 6) * 2 + 7, random(3, 4, 5, 6, seed=1)
    scale, bias, mean, var = random(6, seed=2), random(6, seed=3), random(6, seed=4), random(6, seed=5) ** 2
    layer = torch.nn.BatchNorm2d(6).double()
    for target, value in (
        (layer.weight, scale),
        (layer.bias, bias),
        (layer.running_mean, mean),
        (layer.running_var, var),
    ):
        target.data.copy_(torch.from_numpy(value))
    inputs = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    outputs = layer(inputs)
    outputs.backward(torch.from_numpy(cotangent).permute(0, 3, 1, 2))

    with jax.enable_x64(True):
        params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}
        stats = {"mean": jnp.asarray(mean), "var": jnp.asarray(var)}

        def run(params, x):
            return BatchNorm().apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])

        y, pull, updated = jax.vjp(jax.jit(run), params, jnp.asarray(x), has_aux=True)
        grads, grad_x = pull(jnp.asarray(cotangent))
    np.testing.assert_allclose(y, outputs.detach().permute(0, 2, 3, 1), atol=1e-12)
    np.testing.assert_allclose(grad_x, inputs.grad.permute(0, 2, 3, 1), atol=1e-12)
    np.testing.assert_allclose(grads["scale"], layer.weight.grad, atol=1e-11)
    np.testing.assert_allclose(grads["bias"], layer.bias.grad, atol=1e-11)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], layer.running_mean, atol=1e-12)
    np.testing.assert_allclose(updated["batch_stats"]["var"], layer.running_var, atol=1e-12)


def test_batch_norm_float32_survives_a_large_mean():
    x = (random(64, 64, 3) + 1000).astype(np.float32)
    variables = BatchNorm().init(KEY, x, train=True)
    settled = {"params": variables["params"], "batch_stats": {"mean": jnp.full(3, 990.0), "var": jnp.ones(3)}}
    y, _ = BatchNorm().apply(settled, x, train=True, mutable=["batch_stats"])
    exact = (x - x.mean((0, 1), dtype=np.float64)) / np.sqrt(x.var((0, 1), dtype=np.float64) + 1e-5)
    np.testing.assert_allclose(y, exact, atol=5e-4)


def test_batch_norm_init_leaves_statistics_alone():
    variables = BatchNorm().init(KEY, random(4, 3).astype(np.float32), train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)


def test_batch_norm_bfloat16_keeps_float32_statistics():
    x = jnp.asarray(random(256, 4) * 1e-2 + 1, jnp.bfloat16)
    module = BatchNorm(dtype=jnp.bfloat16)
    y, updated = module.apply(module.init(KEY, x, train=True), x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    mean = updated["batch_stats"]["mean"]
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, 0.1 * np.asarray(x, np.float64).mean(0), rtol=1e-5)


def test_frozen_batch_norm_uses_stored_statistics_and_has_no_gradient():
    x = random(8, 3).astype(np.float32)
    stats = {"mean": jnp.asarray([1.0, 2, 3]), "var": jnp.asarray([4.0, 5, 6])}
    params = {"scale": jnp.asarray([1.0, 2, 3]), "bias": jnp.asarray([0.1, 0.2, 0.3])}

    def run(params, x):
        variables = {"params": params, "batch_stats": stats}
        return BatchNorm(frozen=True).apply(variables, x, train=True, mutable=["batch_stats"])

    y, pull, updated = jax.vjp(run, params, x, has_aux=True)
    grads, grad_x = pull(jnp.ones_like(y))
    factor = params["scale"] / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(y, (x - stats["mean"]) * factor + params["bias"], atol=1e-6)
    np.testing.assert_allclose(grad_x, np.broadcast_to(factor, x.shape), rtol=1e-6)
    assert all(not np.any(g) for g in jax.tree.leaves(grads))
    np.testing.assert_array_equal(updated["batch_stats"]["mean"], stats["mean"])


SYNCHRONISED = """
import jax, jax.numpy as jnp, numpy as np
from dfine_jax.nn.layers import BatchNorm
jax.config.update("jax_enable_x64", True)
assert jax.local_device_count() == 2
x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, 3, 5)) + np.arange(4)[:, None, None, None])
w = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape))
ones = jnp.ones(5)
variables = {"params": {"scale": jnp.arange(1., 6), "bias": ones}, "batch_stats": {"mean": ones, "var": ones}}

def loss(params, x, w, axis_name=None):
    v = dict(variables, params=params)
    y, new = BatchNorm(axis_name=axis_name).apply(v, x, train=True, mutable=["batch_stats"])
    return (jnp.sin(y) * w).sum(), (y, new["batch_stats"])

run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
(_, (y, stats)), (grads, grad_x) = run(variables["params"], x, w)
halves = lambda a: a.reshape(2, 2, *a.shape[1:])
parallel = jax.pmap(lambda p, x, w: run(p, x, w, "batch"), axis_name="batch", in_axes=(None, 0, 0))
(_, (y2, stats2)), (grads2, grad_x2) = parallel(variables["params"], halves(x), halves(w))
np.testing.assert_allclose(y2.reshape(y.shape), y, atol=1e-12)
np.testing.assert_allclose(grad_x2.reshape(y.shape), grad_x, atol=1e-12)
for name in ("mean", "var"):
    for replica in range(2):
        np.testing.assert_allclose(stats2[name][replica], stats[name], atol=1e-12)
for name in ("scale", "bias"):
    np.testing.assert_allclose(grads2[name].sum(0), grads[name], atol=1e-11)
"""


def test_synchronised_batch_norm_equals_one_device():
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", SYNCHRONISED], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def attention_variables(d, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"in_proj": (d, 3 * d), "out_proj": (d, d)}
    return {
        "params": {
            name: {"kernel": 0.3 * rng.standard_normal(shape), "bias": rng.standard_normal(shape[1])}
            for name, shape in shapes.items()
        }
    }


@pytest.mark.parity
@pytest.mark.parametrize("masked", [False, True])
def test_attention_matches_torch(masked):
    torch = pytest.importorskip("torch")
    d, n = 16, 7
    query_key, value = random(2, n, d), random(2, n, d, seed=1)
    blocked = (random(n, n, seed=2) > 0.3) & ~np.eye(n, dtype=bool) if masked else None
    variables = attention_variables(d)
    layer = torch.nn.MultiheadAttention(d, 4, batch_first=True).double()
    state = {
        "in_proj_weight": variables["params"]["in_proj"]["kernel"].T,
        "in_proj_bias": variables["params"]["in_proj"]["bias"],
        "out_proj.weight": variables["params"]["out_proj"]["kernel"].T,
        "out_proj.bias": variables["params"]["out_proj"]["bias"],
    }
    layer.load_state_dict({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()})
    qk = torch.from_numpy(query_key)
    mask = None if blocked is None else torch.from_numpy(blocked)
    expected = layer(qk, qk, torch.from_numpy(value), attn_mask=mask)[0].detach()
    with jax.enable_x64(True):
        y = MultiHeadAttention(4).apply(variables, query_key, value, blocked)
        assert y.dtype == jnp.float64
    np.testing.assert_allclose(y, expected, atol=1e-12)


def test_attention_of_a_token_that_sees_nothing_is_finite():
    blocked = np.zeros((5, 5), bool)
    blocked[2] = True
    x = random(1, 5, 16).astype(np.float32)
    variables = jax.tree.map(lambda a: a.astype(np.float32), attention_variables(16))

    def total(x):
        return MultiHeadAttention(4).apply(variables, x, x, blocked).sum()

    assert np.isfinite(total(x))
    assert np.all(np.isfinite(jax.grad(total)(x)))


def test_attention_initialisation():
    params = MultiHeadAttention(8).init(KEY, jnp.ones((1, 3, 64)), jnp.ones((1, 3, 64)))["params"]
    bound = np.sqrt(6 / (4 * 64))
    kernel = params["in_proj"]["kernel"]
    assert 0.98 * bound < np.abs(kernel).max() <= bound
    assert 0.9 / 8 < np.abs(params["out_proj"]["kernel"]).max() <= 1 / 8
    assert not np.any(params["in_proj"]["bias"]) and not np.any(params["out_proj"]["bias"])


def test_mlp():
    module = MLP(hidden=8, out=4, num_layers=3)
    x = random(5, 6).astype(np.float32)
    params = module.init(KEY, x)["params"]
    assert set(params) == {"layers_0", "layers_1", "layers_2"}
    assert np.abs(params["layers_0"]["bias"]).max() <= 1 / np.sqrt(6)
    assert np.any(params["layers_0"]["bias"])
    expected = x
    for i in range(3):
        expected = expected @ params[f"layers_{i}"]["kernel"] + params[f"layers_{i}"]["bias"]
        expected = np.maximum(expected, 0) if i < 2 else expected
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, atol=1e-6)
    zero = MLP(hidden=8, out=4, num_layers=2, zero_last=True)
    assert not np.any(zero.apply(zero.init(KEY, x), x))


def test_exact_gelu():
    x = jnp.asarray([-2.0, -0.5, 0.5, 3.0])
    phi = 0.5 * (1 + jax.scipy.special.erf(x / np.sqrt(2)))
    np.testing.assert_allclose(activation("gelu")(x), x * phi, atol=1e-7)


def test_layer_norm_epsilon():
    x = (1e-3 * random(4, 32)).astype(np.float32)
    y = LayerNorm().apply({"params": {"scale": jnp.ones(32), "bias": jnp.zeros(32)}}, x)
    x = x.astype(np.float64)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_upsample_repeats_cells():
    x = random(2, 3, 4, 5)
    np.testing.assert_array_equal(upsample2x(jnp.asarray(x)), x.astype(np.float32).repeat(2, 1).repeat(2, 2))


def test_affine_follows_the_activation():
    x = jnp.ones((1, 2, 2, 3))
    module = ConvNorm(4, activation="relu", lab=True, norm_name="bn")
    variables = module.init(KEY, x, train=False)
    assert set(variables["params"]) == {"conv", "bn", "lab"}
    assert variables["params"]["lab"]["scale"].shape == (1,)
    variables["params"]["lab"] = {"scale": jnp.asarray([2.0]), "bias": jnp.asarray([-3.0])}
    assert float(module.apply(variables, -x, train=False).min()) >= -3
    assert float(LearnableAffine().apply({"params": variables["params"]["lab"]}, jnp.asarray(4.0))[0]) == 5.0
    assert set(ConvNorm(4, lab=True).init(KEY, x, train=False)["params"]) == {"conv", "norm"}
