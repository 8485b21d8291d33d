"""Programs get the forms of the platform they are made for, not those of the machine they are made on."""

from __future__ import annotations

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from dfine_jax.ops.conv import conv2d, project
from dfine_jax.ops.platform import OTHER, traced_for

X = jax.ShapeDtypeStruct((2, 8, 8, 4), np.float32)
KERNEL = jax.ShapeDtypeStruct((3, 3, 1, 4), np.float32)


def depthwise(x, kernel):
    return conv2d(x, kernel, padding=1, groups=4)


def lowered_for(function, platforms, *shapes):
    return jax.export.export(jax.jit(function), platforms=platforms)(*shapes).mlir_module()


@pytest.mark.parametrize("platform", ["cuda", "tpu", "rocm"])
def test_a_program_for_another_platform_holds_convolutions(platform):
    text = lowered_for(depthwise, (platform,), X, KERNEL)
    assert text.count("stablehlo.convolution") == 1 and "stablehlo.slice" not in text
    loss = jax.grad(lambda x, kernel: depthwise(x, kernel).sum(), (0, 1))
    text = lowered_for(loss, (platform,), X, KERNEL)
    assert text.count("stablehlo.convolution") >= 2 and "stablehlo.slice" not in text
    text = lowered_for(lambda x, kernel: project(x, kernel), (platform,), X, np.zeros((4, 5), np.float32))
    assert text.count("stablehlo.dot_general") == 1 and "stablehlo.reshape" not in text


def test_a_program_for_the_cpu_holds_shifted_products():
    text = lowered_for(depthwise, ("cpu",), X, KERNEL)
    assert "stablehlo.convolution" not in text and text.count("stablehlo.slice") >= 9


def test_a_program_for_several_platforms_holds_the_form_of_each():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal(X.shape).astype(np.float32), rng.standard_normal(KERNEL.shape).astype(np.float32)
    made = jax.export.export(jax.jit(lambda x, kernel: depthwise(x, kernel)), platforms=("cuda", "tpu", "cpu"))
    made = made(x, kernel)
    text = made.mlir_module()
    assert "stablehlo.convolution" in text and "stablehlo.slice" in text
    np.testing.assert_allclose(made.call(x, kernel), depthwise(x, kernel), atol=1e-5)


def test_who_traces_may_say_the_platform():
    def traced(platform):
        with traced_for(platform):
            return str(jax.make_jaxpr(lambda x, kernel: depthwise(x, kernel))(X, KERNEL))

    assert "conv_general_dilated" not in traced("cpu") and "cond" not in traced("cpu")
    assert traced("onnx") == traced("cuda") == traced(OTHER)
    assert traced("cuda").count("conv_general_dilated") == 1 and "cond" not in traced("cuda")


def test_both_forms_under_transformations():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((3, *X.shape)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal(KERNEL.shape), jnp.float32)

    def total(x, kernel):
        return jnp.sin(jax.checkpoint(depthwise)(x, kernel)).sum()

    got = jax.jit(jax.vmap(jax.grad(total, (0, 1)), (0, None)))(x, kernel)
    with traced_for(OTHER):
        want = jax.jit(jax.vmap(jax.grad(lambda x, kernel: total(x, kernel), (0, 1)), (0, None)))(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, want)
