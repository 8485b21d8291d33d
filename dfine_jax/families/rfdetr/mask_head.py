"""Masks as products of embeddings of pixels, which go from layer to layer, and of queries.

Reference: models/heads/segmentation.py of package rfdetr 1.11.2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from dfine_jax.nn import initializers
from dfine_jax.nn.layers import LayerNorm, Linear, activation
from dfine_jax.ops.conv import conv2d
from dfine_jax.ops.resize import resize_bilinear

EXPANSION = 4  # of the feed-forward layer of queries
STRIDE = 4  # of masks to the input


class Embeddings(NamedTuple):
    """What masks are made of: products of the two, plus ``bias``."""

    pixels: list[Float[Array, "b h w d"]]  # of the layers asked for; in training also those of the proposals, last
    queries: list[Float[Array, "b q d"]]
    bias: Float[Array, ""]


class MaskHead(nn.Module):
    """One block of pixels for each decoder layer; all else is shared by the layers and the proposals."""

    width: int  # of embeddings
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "b _ _ d"],
        hidden: Sequence[Float[Array, "b q d"]],
        proposals: Float[Array, "b p d"] | None,
        size: tuple[int, int],
        running: int,
    ) -> Embeddings:
        """Embeddings of layers and, where they are given, of proposals.

        Args:
          hidden: of the last of the first ``running`` layers.
          size: height and width of the input.
        """
        bias = self.param("bias", initializers.zeros, (1,), jnp.float32)[0]
        pixel = BiasedConv(self.width, dtype=self.dtype, name="spatial_features_proj")
        block = QueryBlock(self.dtype, name="query_features_block")
        query = Linear(self.width, dtype=self.dtype, name="query_features_proj")
        x = resize_bilinear(features, size[0] // STRIDE, size[1] // STRIDE)
        first, pixels = x, []
        for i in range(running):
            x = PixelBlock(self.dtype, name=f"blocks_{i}")(x)
            if i >= running - len(hidden):
                pixels.append(pixel(x))
        embeddings = [query(block(h)) for h in hidden]
        if proposals is not None:
            pixels.append(pixel(first))
            embeddings.append(query(block(proposals)))
        return Embeddings(pixels, embeddings, bias)


class PixelBlock(nn.Module):
    """Depthwise convolution, normalisation and a linear layer, added."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        width = x.shape[-1]
        y = BiasedConv(width, 3, groups=width, dtype=self.dtype, name="dwconv")(x)
        y = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(y)
        return x + activation("gelu")(Linear(width, dtype=self.dtype, name="pwconv1")(y))


class QueryBlock(nn.Module):
    """Feed-forward layer, normalised before, added."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b q d"]) -> Float[Array, "b q d"]:
        width, linear = x.shape[-1], functools.partial(Linear, dtype=self.dtype)
        y = linear(EXPANSION * width, name="layers_0")(LayerNorm(dtype=self.dtype, name="norm_in")(x))
        return x + linear(width, name="layers_2")(activation("gelu")(y))


class BiasedConv(nn.Module):
    """Convolution of odd size with bias that keeps the map's size."""

    features: int
    kernel_size: int = 1
    groups: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", initializers.fan_in_uniform, shape, jnp.float32)
        bias = self.param("bias", initializers.uniform_bias(math.prod(shape[:-1])), (self.features,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return conv2d(x, kernel, padding=self.kernel_size // 2, groups=self.groups) + bias
