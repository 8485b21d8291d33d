"""Hybrid encoder: self-attention on the coarsest map, then top-down and bottom-up fusion.

Reference: src/zoo/dfine/hybrid_encoder.py of Peterande/D-FINE.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dfine_jax.models.initializers import xavier_uniform
from dfine_jax.models.layers import ConvNorm, LayerNorm, Linear, MultiHeadAttention, activation, upsample2x

Unit = Callable[..., ConvNorm]


def position_embedding(height: int, width: int, d: int, temperature: float = 10000.0) -> np.ndarray:
    """Sines and cosines [height * width, d] added to the tokens of the coarsest map, float64.

    The reference builds its grid column by column, while tokens run row by row: token p receives the coordinates
    (p // height, p mod height). For a square map that is the transposed embedding, for others a scrambled one.
    Published weights were trained so.
    """
    omega = temperature ** (-np.arange(d // 4) / (d // 4))
    p = np.arange(height * width)
    a, b = (p // height)[:, None] * omega, (p % height)[:, None] * omega
    return np.concatenate([np.sin(a), np.cos(a), np.sin(b), np.cos(b)], axis=1)


class TransformerLayer(nn.Module):
    """Post-norm encoder layer."""

    ffn: int
    num_heads: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], position: Float[Array, "n d"], *, train: bool
    ) -> Float[Array, "b n d"]:
        linear = functools.partial(Linear, kernel_init=xavier_uniform, dtype=self.dtype)
        y = MultiHeadAttention(self.num_heads, dtype=self.dtype, name="self_attn")(x + position, x, train=train)
        x = LayerNorm(dtype=self.dtype, name="norm1")(x + y)
        y = activation("gelu")(linear(self.ffn, name="linear1")(x))
        return LayerNorm(dtype=self.dtype, name="norm2")(x + linear(x.shape[-1], name="linear2")(y))


class Encoder(nn.Module):
    """Stack of transformer layers."""

    num_layers: int
    ffn: int
    num_heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], *, train: bool) -> Float[Array, "b h w d"]:
        b, h, w, d = x.shape
        position = jnp.asarray(position_embedding(h, w, d), x.dtype)
        tokens = x.reshape(b, h * w, d)
        for i in range(self.num_layers):
            layer = TransformerLayer(self.ffn, self.num_heads, self.dtype, name=f"layers_{i}")
            tokens = layer(tokens, position, train=train)
        return tokens.reshape(b, h, w, d)


class Bottleneck(nn.Module):
    """Sum of a 3x3 and a 1x1 convolution, activated together (RepVGG)."""

    features: int
    unit: Unit

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        y = self.unit(self.features, 3, name="conv1")(x, train=train)
        return jax.nn.silu(y + self.unit(self.features, name="conv2")(x, train=train))


class CrossStagePartial(nn.Module):
    """Two 1x1 branches, one followed by bottlenecks, added."""

    features: int
    depth: int
    unit: Unit

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool) -> Float[Array, "b h w c"]:
        y = self.unit(self.features, activation="silu", name="conv1")(x, train=train)
        for i in range(self.depth):
            y = Bottleneck(self.features, self.unit, name=f"bottlenecks_{i}")(y, train=train)
        return y + self.unit(self.features, activation="silu", name="conv2")(x, train=train)


class FusionBlock(nn.Module):
    """The reference's RepNCSPELAN4: split, two chained branches, concatenate, project."""

    width: int
    branch: int
    depth: int
    unit: Unit

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool) -> Float[Array, "b h w c"]:
        u = self.unit(2 * self.width, activation="silu", name="cv1")(x, train=train)
        outputs = [u]
        y = u[..., self.width :]
        for name in ("cv2", "cv3"):
            y = CrossStagePartial(self.branch, self.depth, self.unit, name=f"{name}_0")(y, train=train)
            y = self.unit(self.branch, 3, activation="silu", name=f"{name}_1")(y, train=train)
            outputs.append(y)
        return self.unit(self.width, activation="silu", name="cv4")(jnp.concatenate(outputs, axis=-1), train=train)


class Downsample(nn.Module):
    """1x1 convolution, then a depthwise 3x3 one that halves the grid; no activation."""

    features: int
    unit: Unit

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b ho wo c"]:
        x = self.unit(self.features, name="cv1")(x, train=train)
        return self.unit(self.features, 3, 2, groups=self.features, name="cv2")(x, train=train)


class HybridEncoder(nn.Module):
    """Backbone maps, finest first and each half the one before, to as many maps of ``width`` channels."""

    width: int
    ffn: int
    expansion: float
    depth: float
    num_heads: int = 8
    bn_axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, features: Sequence[Float[Array, "b _ _ _"]], *, train: bool) -> list[Float[Array, "b _ _ d"]]:
        unit = functools.partial(ConvNorm, bn_axis_name=self.bn_axis_name, dtype=self.dtype)
        # The reference floors before it rounds: 0.34 * 128 // 2 = 21.
        block = functools.partial(
            FusionBlock, self.width, round(self.expansion * self.width // 2), round(3 * self.depth), unit
        )
        maps = [unit(self.width, name=f"input_proj_{i}")(x, train=train) for i, x in enumerate(features)]
        maps[-1] = Encoder(1, self.ffn, self.num_heads, self.dtype, name="encoder_0")(maps[-1], train=train)
        top = len(maps) - 1
        fused = maps[top]
        laterals: list[Array] = []  # coarsest first
        for k in range(top):
            laterals.append(unit(self.width, name=f"lateral_convs_{k}")(fused, train=train))
            finer = maps[top - 1 - k]
            enlarged = upsample2x(laterals[-1])
            fused = block(name=f"fpn_blocks_{k}")(jnp.concatenate([enlarged, finer], axis=-1), train=train)
        outputs = [fused]
        for k in range(top):
            halved = Downsample(self.width, unit, name=f"downsample_convs_{k}_0")(outputs[-1], train=train)
            pair = jnp.concatenate([halved, laterals[top - 1 - k]], axis=-1)
            outputs.append(block(name=f"pan_blocks_{k}")(pair, train=train))
        return outputs
