"""Both forms of a convolution agree, in value and gradient, for every shape the models use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfine_jax.ops.conv import conv2d, depthwise_conv, project
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
