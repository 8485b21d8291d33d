"""Convolutions in channels-last layout with explicit symmetric padding, and projections of the last axis.

XLA's CPU backend runs grouped convolutions, the gradients of 1x1 convolutions and the gradients of products with more
than two axes through generic loops; there the same sums are written as shifted products and as plain matrix products.
Other backends get one ``conv_general_dilated`` or ``dot_general``. The choice is that of ops/platform.py.
"""

from __future__ import annotations

from jax import lax
from jaxtyping import Array, Float

from dfine_jax.ops.depthwise import shifted_products
from dfine_jax.ops.platform import chosen_by_platform, for_cpu


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
    if kernel.shape[:2] == (1, 1) and stride == 1 and padding == 0 and for_cpu():
        return project(x, kernel[0, 0])
    return _convolution(x, kernel, stride, padding, groups)


@chosen_by_platform
def project(x: Float[Array, "*n i"], kernel: Float[Array, "i o"]) -> Float[Array, "*n o"]:
    """Product of the last axis with a matrix."""
    if x.ndim == 2 or not for_cpu():
        return x @ kernel
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


@chosen_by_platform
def depthwise_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw 1 c"], *, stride: int = 1, padding: int = 0
) -> Float[Array, "b ho wo c"]:
    """One filter per channel, zero padding on all four sides."""
    if for_cpu():
        return shifted_products(x, kernel, stride, padding)
    return _convolution(x, kernel, stride, padding, x.shape[-1])


def _convolution(x: Array, kernel: Array, stride: int, padding: int, groups: int) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
