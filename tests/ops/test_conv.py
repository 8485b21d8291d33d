"""Both forms of a convolution agree, in value and gradient, for every shape the models use."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dfine_jax.ops.conv import conv2d, depthwise_conv, project
from dfine_jax.ops.depthwise import shifted_products
from dfine_jax.ops.platform import traced_for

CASES = [  # kernel, stride, padding, groups, height, width
    (1, 1, 0, 1, 5, 7),
    (2, 1, 0, 1, 5, 7),
    (3, 2, 1, 1, 8, 6),
    (3, 1, 1, 6, 5, 7),
    (5, 1, 2, 6, 5, 7),
    (3, 2, 1, 6, 8, 6),
    (3, 2, 1, 6, 7, 5),
]


@pytest.mark.parametrize("size,stride,padding,groups,height,width", CASES)
def test_forms_agree(size, stride, padding, groups, height, width):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((2, height, width, 6)))
        kernel = jnp.asarray(rng.standard_normal((size, size, 6 // groups, 6)))

        def run(x, kernel):
            return conv2d(x, kernel, stride=stride, padding=padding, groups=groups)

        y, pull = jax.vjp(run, x, kernel)
        with traced_for("cuda"):
            expected, pull_expected = jax.vjp(run, x, kernel)
            text = str(jax.make_jaxpr(run)(x, kernel))
        assert text.count("conv_general_dilated") == 1
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, expected, atol=1e-12)
        cotangent = jnp.asarray(rng.standard_normal(y.shape))
        for got, want in zip(pull(cotangent), pull_expected(cotangent), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-12)


def test_padding_is_symmetric():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    y = depthwise_conv(x, jnp.ones((3, 3, 1, 1)), stride=2, padding=1)
    np.testing.assert_array_equal(y[0, :, :, 0], [[10, 24], [51, 90]])


def test_depthwise_accumulates_in_float32():
    kernel = jnp.asarray([1.0] + [2.0**-8] * 24, jnp.bfloat16).reshape(5, 5, 1, 1)
    y = depthwise_conv(jnp.ones((1, 5, 5, 1), jnp.bfloat16), kernel, padding=0)
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 0, 0, 0]) == 1.09375


def test_other_groups_are_refused():
    with pytest.raises(ValueError, match="groups=2"):
        conv2d(jnp.ones((1, 4, 4, 4)), jnp.ones((3, 3, 2, 4)), padding=1, groups=2)


def test_projection_forms_agree():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 3, 4)).astype(np.float32), rng.standard_normal((4, 5)).astype(np.float32)
    np.testing.assert_allclose(project(jnp.asarray(x), jnp.asarray(kernel)), x @ kernel, atol=1e-6)
    assert project(jnp.asarray(x[0, 0]), jnp.asarray(kernel)).shape == (5,)
    with traced_for("cuda"):
        text = str(jax.make_jaxpr(project)(x, kernel))
    assert "reshape" not in text


@pytest.mark.parametrize(
    "size,stride,padding,height,width", [(3, 2, 1, 7, 8), pytest.param(4, 3, 0, 11, 9, marks=pytest.mark.slow)]
)
def test_gradient_of_shifted_products_can_be_derived_again(size, stride, padding, height, width):
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(rng.standard_normal((2, height, width, 3))), rng.standard_normal((size, size, 1, 3))
        run = functools.partial(shifted_products, stride=stride, padding=padding)
        check_grads(run, (x, jnp.asarray(kernel)), order=2, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_gradient_of_depthwise_kernels_accumulates_in_float32():
    """4096 products of one, of which bfloat16 counts no further than 256."""
    x, kernel = jnp.ones((1, 64, 64, 1), jnp.bfloat16), jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    gradient = jax.grad(lambda k: shifted_products(x, k, 1, 0).astype(jnp.float32).sum())(kernel)
    assert gradient.dtype == jnp.bfloat16
    assert float(gradient[0, 0, 0, 0]) == 4096


def test_gradient_of_depthwise_is_not_one_reduction_per_tap():
    x, kernel = jnp.ones((4, 16, 16, 32)), jnp.ones((5, 5, 1, 32))

    def loss(x, kernel, scale):
        return jnp.square(shifted_products(jax.nn.relu(x * scale), kernel, 1, 2)).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, kernel, jnp.ones(32)).compile()
    assert compiled.as_text().count(" reduce(") < 5


def test_forward_mode_passes_through_single_operations():
    rng = np.random.default_rng(3)
    with jax.enable_x64(True), traced_for("cuda"):
        x, kernel = jnp.asarray(rng.standard_normal((1, 4, 5, 2))), jnp.asarray(rng.standard_normal((3, 3, 1, 2)))
        run = functools.partial(conv2d, padding=1, groups=2)
        check_grads(run, (x, kernel), order=1, modes=["fwd"], atol=1e-6, rtol=1e-6)
