"""Convolutions in channels-last layout with explicit symmetric padding, and projections of the last axis.

XLA's CPU backend runs grouped convolutions, the gradients of 1x1 convolutions and the gradients of products with more
than two axes through generic loops; there the same sums are written as shifted products and as plain matrix products.
Other backends get one ``conv_general_dilated`` or ``dot_general``. The choice is that of ops/platform.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dfine_jax.ops.platform import chosen_by_platform, for_cpu


def _rewrite() -> bool:
    return for_cpu()


@chosen_by_platform
def conv2d(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw i o"],
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Float[Array, "b ho wo o"]:
    """Cross-correlation with zero padding on all four sides; ``groups`` is 1 or the number of channels.

    Raises:
      ValueError: any other number of groups.
    """
    if groups not in (1, x.shape[-1]) or (groups > 1 and kernel.shape[-1] != groups):
        raise ValueError(f"groups={groups} must be 1 or equal the {x.shape[-1]} input and {kernel.shape[-1]} outputs")
    if groups > 1:
        return depthwise_conv(x, kernel, stride=stride, padding=padding)
    if kernel.shape[:2] == (1, 1) and stride == 1 and padding == 0 and _rewrite():
        return project(x, kernel[0, 0])
    return _convolution(x, kernel, stride, padding, groups)


@chosen_by_platform
def project(x: Float[Array, "*n i"], kernel: Float[Array, "i o"]) -> Float[Array, "*n o"]:
    """Product of the last axis with a matrix."""
    if x.ndim == 2 or not _rewrite():
        return x @ kernel
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


@chosen_by_platform
def depthwise_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw 1 c"], *, stride: int = 1, padding: int = 0
) -> Float[Array, "b ho wo c"]:
    """One filter per channel, zero padding on all four sides."""
    if _rewrite():
        return _shifted_products(x, kernel, stride, padding)
    return _convolution(x, kernel, stride, padding, x.shape[-1])


@functools.partial(jax.jit, static_argnums=(2, 3), inline=True)  # one compilation when called outside of jit
def _shifted_products(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    size_y, size_x = kernel.shape[:2]
    batch, height, width, channels = x.shape
    out_y = (height + 2 * padding - size_y) // stride + 1
    out_x = (width + 2 * padding - size_x) // stride + 1
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    total = jnp.zeros((batch, out_y, out_x, channels), jnp.promote_types(x.dtype, jnp.float32))
    for i in range(size_y):
        for j in range(size_x):
            end = (batch, i + (out_y - 1) * stride + 1, j + (out_x - 1) * stride + 1, channels)
            total = total + lax.slice(padded, (0, i, j, 0), end, (1, stride, stride, 1)) * kernel[i, j, 0]
    return total.astype(x.dtype)


def _convolution(x: Array, kernel: Array, stride: int, padding: int, groups: int) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
