"""Building blocks of vision transformers: patches of a picture as tokens, blocks of attention and feed-forward layers.

Both halves of a block are normalised before, scaled and added (DINOv2, arXiv 2304.07193).
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from dfine_jax.nn import initializers
from dfine_jax.nn.layers import LayerNorm, Linear, activation
from dfine_jax.ops.attention import attend, attend_in_training
from dfine_jax.ops.conv import project

EXPANSION = 4  # of feed-forward layers
EPSILON = 1e-6  # of norms
SMALL = initializers.Normal(lambda shape: 0.02)
_norm = functools.partial(LayerNorm, epsilon=EPSILON)
_linear = functools.partial(Linear, kernel_init=SMALL, bias_init=initializers.zeros)


class PatchEmbedding(nn.Module):
    """Convolution with bias whose step is its size, as the product that it is."""

    features: int
    patch_px: int
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b _ _ d"]:
        batch, height, width, channels = images.shape
        side = self.patch_px
        kernel = self.param("kernel", SMALL, (side, side, channels, self.features), jnp.float32)
        bias = self.param("bias", initializers.zeros, (self.features,), jnp.float32)
        images, kernel, bias = promote_dtype(images, kernel, bias, dtype=self.dtype)
        x = images.reshape(batch, height // side, side, width // side, side * channels).swapaxes(2, 3)
        x = x.reshape(batch, height // side, width // side, side * side * channels)
        return project(x, kernel.reshape(-1, self.features)) + bias


class Block(nn.Module):
    """Attention and feed-forward layer, each normalised before, scaled and added."""

    heads: int
    joined: int  # windows of a picture that see each other
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], kept: Float[Array, "2 b 1 1"] | None, *, train: bool
    ) -> Float[Array, "b n d"]:
        width, linear = x.shape[-1], functools.partial(_linear, dtype=self.dtype)
        y = Attention(self.heads, self.joined, self.dtype, name="attention")(
            _norm(dtype=self.dtype, name="norm1")(x), train=train
        )
        x = x + self._scaled(y, "layer_scale1", None if kept is None else kept[0])
        y = activation("gelu")(linear(EXPANSION * width, name="fc1")(_norm(dtype=self.dtype, name="norm2")(x)))
        y = linear(width, name="fc2")(y)
        return x + self._scaled(y, "layer_scale2", None if kept is None else kept[1])

    def _scaled(self, y: Float[Array, "b n d"], name: str, kept: Float[Array, "b 1 1"] | None) -> Array:
        y = y * self.param(name, initializers.ones, (y.shape[-1],), jnp.float32).astype(y.dtype)
        return y if kept is None else y * kept.astype(y.dtype)


class Attention(nn.Module):
    """Self-attention within a window, or among some that are joined with all their class tokens."""

    heads: int
    joined: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool) -> Float[Array, "b n d"]:
        batch, tokens, width = x.shape
        linear = functools.partial(_linear, width, dtype=self.dtype)
        shape = (batch // self.joined, self.joined * tokens, self.heads, width // self.heads)
        q, k, v = (linear(name=name)(x).reshape(shape) for name in ("query", "key", "value"))
        x = attend_in_training(q, k, v) if train else attend(q, k, v)
        return linear(name="output")(x.reshape(batch, tokens, width))
