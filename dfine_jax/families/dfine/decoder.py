"""D-FINE's decoder layer, and the decoder made of it (arXiv 2410.13842; reference: src/zoo/dfine/dfine_decoder.py).

All layers sample one table of values; boxes are refined as edge distributions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dfine_jax.config import Activation
from dfine_jax.families.dfine.config import ModelConfig
from dfine_jax.nn import initializers
from dfine_jax.nn.deformable import DeformableAttention, Source, shared_values
from dfine_jax.nn.fdr_head import FDRHead
from dfine_jax.nn.layers import MLP, LayerNorm, Linear, MultiHeadAttention, activation
from dfine_jax.nn.query_decoder import QueryDecoder
from dfine_jax.ops.fdr import EdgeBins
from dfine_jax.ops.tokens import limited

POSITION_LIMIT = 10.0  # query position embeddings are clipped to this
HALF_LIMIT = 65504.0  # largest float16; the reference clips feed-forward sums to it


class Gateway(nn.Module):
    """Weighs self-attended state and sampled features by two learned gates, then normalises."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], sampled: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        zeros = initializers.zeros
        both = jnp.concatenate([x, sampled], -1)
        gates = nn.sigmoid(Linear(both.shape[-1], zeros, zeros, self.dtype, name="gate")(both))
        keep, take = jnp.split(gates, 2, -1)
        return LayerNorm(dtype=self.dtype, name="norm")(keep * x + take * sampled)


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention joined by a gateway, feed-forward network."""

    ffn: int
    num_heads: int
    num_points: tuple[int, ...]
    activation: Activation
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        position: Float[Array, "b n d"],
        reference_cxcywh: Float[Array, "b n 4"],
        source: Source,
        blocked: Bool[Array, "u n"] | None,
        *,
        train: bool,
    ) -> Float[Array, "b n d"]:
        attention = MultiHeadAttention(self.num_heads, self.dtype, name="self_attn")
        attended = attention(x + position, x, blocked, train=train)
        x = LayerNorm(dtype=self.dtype, name="norm1")(x + attended)
        cross = DeformableAttention(self.num_heads, self.num_points, dtype=self.dtype, name="cross_attn")
        x = Gateway(self.dtype, name="gateway")(x, cross(x + position, reference_cxcywh, source, train=train))
        xavier = initializers.xavier_uniform
        hidden = activation(self.activation)(Linear(self.ffn, xavier, dtype=self.dtype, name="linear1")(x))
        x = x + Linear(x.shape[-1], xavier, dtype=self.dtype, name="linear2")(hidden)
        return LayerNorm(dtype=self.dtype, name="norm3")(limited(x, HALF_LIMIT))


def decoder(
    config: ModelConfig,
    bn_axis_name: str | None = None,
    dtype: Any = None,
    keep_queries: tuple[int, ...] = (),
    name: str | None = None,
) -> QueryDecoder:
    """The decoder of an architecture."""

    def layer(name: str) -> DecoderLayer:
        shape = (config.decoder_ffn, config.num_heads, config.num_points)
        return DecoderLayer(*shape, config.decoder_activation, dtype, name=name)

    def position() -> Callable[[Array], Array]:
        width, xavier = config.decoder_width, initializers.xavier_uniform
        head = MLP(2 * width, width, 2, config.mlp_activation, kernel_init=xavier, name="query_pos_head")
        return lambda boxes_cxcywh: limited(head(boxes_cxcywh), POSITION_LIMIT)

    bins = EdgeBins(config.reg_max, config.up, config.reg_scale)
    return QueryDecoder(
        num_classes=config.num_classes,
        num_queries=config.num_queries,
        width=config.decoder_width,
        num_layers=config.decoder_layers,
        eval_layer=config.decoder_layers - 1,
        layer=layer,
        position=position,
        source=lambda maps: shared_values(maps, config.num_heads),
        box_head=FDRHead(bins, config.mlp_activation, quality=config.decoder_activation),
        activation=config.mlp_activation,
        bn_axis_name=bn_axis_name,
        dtype=dtype,
        keep_queries=keep_queries,
        mask_width=config.mask_width,
        name=name,
    )
