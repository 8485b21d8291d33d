"""Masks as products of embeddings of pixels, which go from layer to layer, and of queries.

Reference: models/heads/segmentation.py of package rfdetr 1.11.2.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dfine_jax.nn import initializers
from dfine_jax.nn.layers import BiasedConv, LayerNorm, Linear, activation
from dfine_jax.nn.mask_head import PixelProjection
from dfine_jax.ops.resize import resize_bilinear

EXPANSION = 4  # of the feed-forward layer of queries
STRIDE = 4  # of masks to the input


class Embeddings(NamedTuple):
    """What masks are made of: products of the two, plus ``bias``, which without proposals each query has its own of."""

    pixels: list[Float[Array, "b h w d"]]  # of the layers asked for; with proposals also those of these, last
    queries: list[Float[Array, "b q d"]]
    bias: Float[Array, "*b"]


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

        Without proposals ``hidden`` is of one layer.

        Args:
          hidden: of the last of the first ``running`` layers.
          size: height and width of the input.
        """
        bias = self.param("bias", initializers.zeros, (1,), jnp.float32)[0]
        pixel = PixelProjection(self.width, self.dtype, name="spatial_features_proj")
        block = QueryBlock(self.dtype, name="query_features_block")
        query = Linear(self.width, dtype=self.dtype, name="query_features_proj")
        x = resize_bilinear(features, size[0] // STRIDE, size[1] // STRIDE)
        maps = [x]
        for i in range(running):
            maps.append(PixelBlock(self.dtype, name=f"blocks_{i}")(maps[-1]))
        embeddings = [query(block(h)) for h in hidden]
        if proposals is None:
            turned, offset = pixel(maps[-1], embeddings[0])
            return Embeddings(maps[-1:], [turned], offset + bias)
        pixels = [pixel(x) for x in (*maps[1 + running - len(hidden) :], x)]
        return Embeddings(pixels, [*embeddings, query(block(proposals))], bias)


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
