"""Embeddings of pixels, whose products with those of queries are masks (ops/masks.py).

D-FINE-seg's mask decoder (package dfine-seg 0.6.2).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from dfine_jax.nn import initializers
from dfine_jax.nn.initializers import Initializer, fan_in_uniform
from dfine_jax.nn.layers import Conv, activation
from dfine_jax.ops.conv import project
from dfine_jax.ops.resize import resize_bilinear

GROUPS = 32  # of the normalisation; a width is a multiple of it


class GroupNorm(nn.GroupNorm):
    """Flax's, by a call of its own: jax2onnx replaces Flax's by what is slower and cannot be intercepted."""

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return super().__call__(x)


# PyTorch's epsilon; two-pass variance.
_group_norm = functools.partial(
    GroupNorm,
    num_groups=GROUPS,
    epsilon=1e-5,
    use_fast_variance=False,
    scale_init=initializers.ones,
    bias_init=initializers.zeros,
)


class PixelEmbedding(nn.Module):
    """Maps of several levels, finest first, to embeddings at twice the finest one's size."""

    width: int
    dtype: Any = None

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "b _ _ _"]]) -> Float[Array, "b h w d"]:
        _, height, width, _ = maps[0].shape
        x, *coarser = (self._normalised(level, 1, f"lateral_{i}", f"bn_{i}") for i, level in enumerate(maps))
        for level in coarser:
            x = x + resize_bilinear(level, height, width)
        x = activation("relu")(self._normalised(x, 3, "fusion_conv", "fusion_norm"))
        x = resize_bilinear(x, 2 * height, 2 * width)
        return activation("relu")(self._normalised(x, 3, "up_conv", "bn1", initializers.fan_out_normal))

    def _normalised(self, x: Array, size: int, conv: str, norm: str, init: Initializer = fan_in_uniform) -> Array:
        x = Conv(self.width, size, kernel_init=init, dtype=self.dtype, name=conv)(x)
        return _group_norm(dtype=self.dtype, name=norm)(x)


class PixelProjection(nn.Module):
    """Linear layer of pixels, which products with embeddings of queries follow.

    There are fewer queries than pixels. So where only the products are wanted, the queries are multiplied by the
    transposed matrix instead.
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w c"], queries: Float[Array, "b q d"] | None = None) -> Any:
        """Projected pixels [b, h, w, d]; or of queries what to multiply pixels as they are by, [b, q, c], and what to
        add to these products, [b, q].
        """
        channels = pixels.shape[-1]
        kernel = self.param("kernel", fan_in_uniform, (1, 1, channels, self.features), jnp.float32)
        bias = self.param("bias", initializers.uniform_bias(channels), (self.features,), jnp.float32)
        x, kernel, bias = promote_dtype(pixels if queries is None else queries, kernel, bias, dtype=self.dtype)
        if queries is None:
            return project(x, kernel[0, 0]) + bias
        return project(x, kernel[0, 0].T), project(x, bias[:, None])[..., 0]
