"""Hybrid encoder: self-attention on the coarsest map, then top-down and bottom-up fusion (arXiv 2304.08069).

References: src/zoo/dfine/hybrid_encoder.py of Peterande/D-FINE, src/zoo/rtdetr/hybrid_encoder.py of lyuwenyu/RT-DETR.
Detectors differ in the blocks that fuse two maps and in those that halve one; both are values here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from dfine_jax.nn.initializers import Initializer, xavier_uniform
from dfine_jax.nn.layers import (
    ActivationName,
    ConvNorm,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    Unit,
    activation,
    folded,
    upsample2x,
)
from dfine_jax.ops.conv import conv2d

Block = Callable[[Unit, str], Callable[..., Array]]
"""Makes a module from the convolution of this encoder and a name."""
PositionOrder = Literal["transposed", "row_major"]


def position_embedding(height: int, width: int, d: int, order: PositionOrder = "transposed") -> np.ndarray:
    """Sines and cosines [height * width, d] added to the tokens of the coarsest map, float64.

    Tokens run row by row. ``row_major`` gives token p its row and column. ``transposed`` is what the official programs
    compute, whose grid runs column by column: token p receives (p // height, p mod height), for a square map the
    transposed embedding, for others a scrambled one. The order belongs to the weights.
    """
    omega = 10000.0 ** (-np.arange(d // 4) / (d // 4))
    p = np.arange(height * width)
    side = height if order == "transposed" else width
    a, b = (p // side)[:, None] * omega, (p % side)[:, None] * omega
    return np.concatenate([np.sin(a), np.cos(a), np.sin(b), np.cos(b)], axis=1)


class TransformerLayer(nn.Module):
    """Post-norm encoder layer."""

    ffn: int
    num_heads: int
    kernel_init: Initializer = xavier_uniform
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], position: Float[Array, "n d"], *, train: bool
    ) -> Float[Array, "b n d"]:
        linear = functools.partial(Linear, kernel_init=self.kernel_init, dtype=self.dtype)
        y = MultiHeadAttention(self.num_heads, dtype=self.dtype, name="self_attn")(x + position, x, train=train)
        x = LayerNorm(dtype=self.dtype, name="norm1")(x + y)
        y = activation("gelu")(linear(self.ffn, name="linear1")(x))
        return LayerNorm(dtype=self.dtype, name="norm2")(x + linear(x.shape[-1], name="linear2")(y))


class Encoder(nn.Module):
    """Stack of transformer layers."""

    num_layers: int
    ffn: int
    num_heads: int
    position_order: PositionOrder = "transposed"
    kernel_init: Initializer = xavier_uniform
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], *, train: bool) -> Float[Array, "b h w d"]:
        b, h, w, d = x.shape
        position = jnp.asarray(position_embedding(h, w, d, self.position_order), x.dtype)
        tokens = x.reshape(b, h * w, d)
        for i in range(self.num_layers):
            layer = TransformerLayer(self.ffn, self.num_heads, self.kernel_init, self.dtype, name=f"layers_{i}")
            tokens = layer(tokens, position, train=train)
        return tokens.reshape(b, h, w, d)


class Bottleneck(nn.Module):
    """Sum of a 3x3 and a 1x1 convolution, activated together (RepVGG, arXiv 2101.03697).

    ``merged``: without ``train`` one convolution with the sum of both kernels, batch norms inside, computes the same.
    """

    features: int
    unit: Unit
    merged: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        wide, narrow = self.unit(self.features, 3, name="conv1"), self.unit(self.features, name="conv2")
        if self.merged and not train and not self.is_initializing():
            return jax.nn.silu(_merged(wide, narrow, x))
        y = wide(x, train=train)
        return jax.nn.silu(y + narrow(x, train=train))


def _merged(wide: ConvNorm, narrow: ConvNorm, x: Float[Array, "b h w i"]) -> Float[Array, "b h w c"]:
    (kernel, bias), (centre, centre_bias) = folded(wide), folded(narrow)
    kernel = kernel + jnp.pad(centre, ((1, 1), (1, 1), (0, 0), (0, 0)))
    x, kernel, bias = promote_dtype(x, kernel, bias + centre_bias, dtype=wide.dtype)
    return conv2d(x, kernel, padding=1) + bias


class CrossStagePartial(nn.Module):
    """Two 1x1 branches, one followed by bottlenecks, added; a third 1x1 convolution where ``out`` is another width."""

    features: int
    depth: int
    unit: Unit
    out: int | None = None
    merged: bool = False  # of the bottlenecks

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool) -> Float[Array, "b h w c"]:
        y = self.unit(self.features, activation="silu", name="conv1")(x, train=train)
        for i in range(self.depth):
            y = Bottleneck(self.features, self.unit, self.merged, name=f"bottlenecks_{i}")(y, train=train)
        y = y + self.unit(self.features, activation="silu", name="conv2")(x, train=train)
        if self.out in (None, self.features):
            return y
        return self.unit(self.out, activation="silu", name="conv3")(y, train=train)


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


def split_and_chain(width: int, expansion: float, depth: float) -> Block:
    """Fusion by ``FusionBlock``."""
    # The reference floors before it rounds: 0.34 * 128 // 2 = 21.
    branch, bottlenecks = round(expansion * width // 2), round(3 * depth)
    return lambda unit, name: FusionBlock(width, branch, bottlenecks, unit, name=name)


def depthwise_halving(width: int) -> Block:
    """Down-sampling by ``Downsample``."""
    return lambda unit, name: Downsample(width, unit, name=f"{name}_0")


def cross_stage(width: int, expansion: float) -> Block:
    """Fusion by ``CrossStagePartial`` with three merged bottlenecks."""
    inner = int(expansion * width)
    return lambda unit, name: CrossStagePartial(inner, 3, unit, width, merged=True, name=name)


def convolution_halving(width: int) -> Block:
    """Down-sampling by one activated 3x3 convolution."""
    return lambda unit, name: unit(width, 3, 2, activation="silu", name=name)


class HybridEncoder(nn.Module):
    """Backbone maps, finest first and each half the one before, to as many maps of ``width`` channels."""

    width: int
    ffn: int
    fuse: Block  # two maps side by side to one of ``width`` channels
    halve: Block  # the grid
    num_heads: int = 8
    num_layers: int = 1  # of self-attention
    lateral_activation: ActivationName | None = None
    position_order: PositionOrder = "transposed"
    linear_init: Initializer = xavier_uniform  # of the feed-forward networks
    bn_axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, features: Sequence[Float[Array, "b _ _ _"]], *, train: bool) -> list[Float[Array, "b _ _ d"]]:
        unit = functools.partial(ConvNorm, bn_axis_name=self.bn_axis_name, dtype=self.dtype)
        maps = [unit(self.width, name=f"input_proj_{i}")(x, train=train) for i, x in enumerate(features)]
        encode = Encoder(
            self.num_layers,
            self.ffn,
            self.num_heads,
            self.position_order,
            self.linear_init,
            self.dtype,
            name="encoder_0",
        )
        maps[-1] = encode(maps[-1], train=train)
        top = len(maps) - 1
        fused = maps[top]
        laterals: list[Array] = []  # coarsest first
        for k in range(top):
            lateral = unit(self.width, activation=self.lateral_activation, name=f"lateral_convs_{k}")
            laterals.append(lateral(fused, train=train))
            finer = maps[top - 1 - k]
            enlarged = upsample2x(laterals[-1])
            fused = self.fuse(unit, f"fpn_blocks_{k}")(jnp.concatenate([enlarged, finer], axis=-1), train=train)
        outputs = [fused]
        for k in range(top):
            halved = self.halve(unit, f"downsample_convs_{k}")(outputs[-1], train=train)
            pair = jnp.concatenate([halved, laterals[top - 1 - k]], axis=-1)
            outputs.append(self.fuse(unit, f"pan_blocks_{k}")(pair, train=train))
        return outputs
