"""DINOv2, a vision transformer (arXiv 2304.07193), whose tokens mostly see only those of their window.

RF-DETR's form of it (package rfdetr 1.11.2, models/backbone/dinov2_with_windowed_attn.py): no register tokens, several
blocks give a map, and blocks whose number, from 0, is that of a tap see the whole picture.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float, Key

from dfine_jax.nn import initializers
from dfine_jax.nn.layers import LayerNorm, Linear, activation, called
from dfine_jax.ops.attention import attend, attend_in_training
from dfine_jax.ops.conv import project
from dfine_jax.ops.resize import resize_bicubic


class Size(NamedTuple):
    """One of the published sizes."""

    width: int
    heads: int
    blocks: int


BACKBONES = {"dinov2-s": Size(384, 6, 12), "dinov2-b": Size(768, 12, 12)}
EXPANSION = 4  # of feed-forward layers
_kernel = initializers.Normal(lambda shape: 0.02)
_norm = functools.partial(LayerNorm, epsilon=1e-6)
_linear = functools.partial(Linear, kernel_init=_kernel, bias_init=initializers.zeros)


class WindowedDINOv2(nn.Module):
    """Pictures of any size in steps of ``patch_px * windows`` to one map for each tap, all at the patches' scale."""

    size: Size
    patch_px: int
    windows: int  # per side
    table: int  # side of the grid that positions were learned on
    taps: tuple[int, ...]  # so many blocks before a map; the blocks of these numbers, from 0, see all windows
    drop_path: float = 0.0  # of the last block; of those before it in proportion, the first is never dropped
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], key: Key[Array, ""] | None = None, *, train: bool
    ) -> tuple[Float[Array, "b _ _ d"], ...]:
        """Maps of the taps, normalised.

        Args:
          images: normalised.
          key: decides which blocks are dropped; None: none.
        """
        width, windows = self.size.width, self.windows
        x = PatchEmbedding(width, self.patch_px, self.dtype, name="patch_embeddings")(images)
        batch, height, across, _ = x.shape
        token = self.param("cls_token", _kernel, (1, 1, width), jnp.float32)
        # Of DINOv2's own training; it is part of every file and gets no gradient.
        self.param("mask_token", initializers.zeros, (1, width), jnp.float32)
        positions = self.param("position_embeddings", _kernel, (1, 1 + self.table**2, width), jnp.float32)
        x = x + self._of_patches(positions, height, across).astype(x.dtype)
        x = _in_windows(x, windows)
        token = (token + positions[:, :1]).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, width)), x], 1)

        norm, maps = _norm(dtype=self.dtype, name="layernorm"), []
        again = train and self.remat and not self.is_initializing()
        for i in range(self.size.blocks):
            joined = windows**2 if i in self.taps else 1
            block = Block(self.size.heads, joined, self.dtype, name=f"layer_{i}")
            kept = self._kept(key, i, x.shape[0])
            if i < max(self.taps) or self.is_initializing():
                x = called(block, x, kept, train=train, remat=again)
            if i + 1 in self.taps:
                maps.append(_joined(norm(x)[:, 1:], batch, height, across, windows))
        return tuple(maps)

    def _of_patches(self, positions: Array, height: int, across: int) -> Float[Array, "1 h w d"]:
        grid = positions[:, 1:].reshape(1, self.table, self.table, positions.shape[-1])
        return resize_bicubic(grid, height, across)

    def _kept(self, key: Key[Array, ""] | None, block: int, windows: int) -> Float[Array, "2 b 1 1"] | None:
        """What both halves of a block are multiplied by, of each window: 0, or more than 1 to keep the mean."""
        rate = self.drop_path * block / (self.size.blocks - 1)
        if key is None or not rate:
            return None
        kept = jax.random.bernoulli(jax.random.fold_in(key, block), 1 - rate, (2, windows, 1, 1))
        return kept / jnp.float32(1 - rate)


class PatchEmbedding(nn.Module):
    """Convolution with bias whose step is its size, as the product that it is."""

    features: int
    patch_px: int
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b _ _ d"]:
        batch, height, width, channels = images.shape
        side = self.patch_px
        kernel = self.param("kernel", _kernel, (side, side, channels, self.features), jnp.float32)
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


def _in_windows(x: Float[Array, "b h w d"], windows: int) -> Float[Array, "_ n d"]:
    """Tokens of every window, windows of an image row by row."""
    batch, height, across, width = x.shape
    x = x.reshape(batch, windows, height // windows, windows, across // windows, width).swapaxes(2, 3)
    return x.reshape(batch * windows**2, height * across // windows**2, width)


def _joined(x: Float[Array, "_ n d"], batch: int, height: int, across: int, windows: int) -> Float[Array, "b h w d"]:
    """Inverse of :func:`_in_windows`."""
    x = x.reshape(batch, windows, windows, height // windows, across // windows, x.shape[-1]).swapaxes(2, 3)
    return x.reshape(batch, height, across, x.shape[-1])
