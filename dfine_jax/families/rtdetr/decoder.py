"""RT-DETRv2's decoder layer and box head, and the decoder made of them (arXiv 2407.17140).

Boxes may also come from edge distributions, as in D-FINE (``box_head``); nothing else of the decoder changes.

Reference: rtdetrv2_pytorch/src/zoo/rtdetr/rtdetrv2_decoder.py of lyuwenyu/RT-DETR.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from dfine_jax.config import Activation
from dfine_jax.families.rtdetr.config import RTDetrConfig
from dfine_jax.nn import initializers
from dfine_jax.nn.deformable import DeformableAttention, Source, own_values
from dfine_jax.nn.fdr_head import FDRHead
from dfine_jax.nn.layers import MLP, LayerNorm, Linear, MultiHeadAttention, activation
from dfine_jax.nn.query_decoder import BoxHead, QueryDecoder
from dfine_jax.ops.boxes import inverse_sigmoid
from dfine_jax.ops.fdr import EdgeBins
from dfine_jax.ops.precision import at_least_float32


@flax.struct.dataclass
class PlainState:
    """What goes from layer to layer of the plain head."""

    previous_cxcywh: Float[Array, "b n 4"]  # the boxes before, with gradient
    layers: int = flax.struct.field(pytree_node=False, default=0)  # so many have been


class PlainBoxes(NamedTuple):
    """Result of one layer, in the order of ``Refinement``."""

    boxes_cxcywh: Float[Array, "b n 4"]
    corners_logit: None
    reference_cxcywh: Float[Array, "b n 4"]  # without gradient, where the next layer looks
    state: PlainState


@dataclasses.dataclass(frozen=True)
class PlainHead:
    """Boxes that every layer moves in logit space; ``init``, ``step`` and ``scored`` as of ``FDRHead``.

    A layer samples around the box before it, without gradient. The box it is trained on is refined from the same
    values with gradient, so that the loss of a layer also moves the box of the layer before ("look forward twice",
    arXiv 2203.03605).
    """

    activation: Activation

    def init(self, hidden: Float[Array, "b n d"], reference_cxcywh: Float[Array, "b n 4"]) -> tuple[None, PlainState]:
        """No boxes, and what ``step`` starts from."""
        del hidden
        return None, PlainState(reference_cxcywh)

    def step(self, state: PlainState, hidden: Float[Array, "b n d"]) -> PlainBoxes:
        """Boxes of the next layer."""
        # No compute type: eight bits of mantissa are pixels at the edge of a large box.
        head = MLP(hidden.shape[-1], 4, 3, self.activation, zero_last=True, name=f"dec_bbox_head_{state.layers}")
        shift = at_least_float32(head(hidden))
        boxes = jax.nn.sigmoid(shift + inverse_sigmoid(state.previous_cxcywh))
        following = jax.nn.sigmoid(shift + inverse_sigmoid(stop_gradient(state.previous_cxcywh)))
        return PlainBoxes(boxes, None, stop_gradient(following), PlainState(following, state.layers + 1))

    def scored(self, logits: Float[Array, "b n k"], state: PlainState) -> Float[Array, "b n k"]:
        """The logits."""
        del state
        return logits


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward network, each added and normalised."""

    ffn: int
    num_heads: int
    num_points: tuple[int, ...]
    activation: Activation
    discrete: bool = False  # sampling
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
        x = LayerNorm(dtype=self.dtype, name="norm1")(x + attention(x + position, x, blocked, train=train))
        cross = DeformableAttention(
            self.num_heads,
            self.num_points,
            project_values=True,
            project_output=True,
            discrete=self.discrete,
            dtype=self.dtype,
            name="cross_attn",
        )
        sampled = cross(x + position, reference_cxcywh, source, train=train)
        x = LayerNorm(dtype=self.dtype, name="norm2")(x + sampled)
        xavier = initializers.xavier_uniform
        hidden = activation(self.activation)(Linear(self.ffn, xavier, dtype=self.dtype, name="linear1")(x))
        x = x + Linear(x.shape[-1], xavier, dtype=self.dtype, name="linear2")(hidden)
        return LayerNorm(dtype=self.dtype, name="norm3")(x)


def decoder(
    config: RTDetrConfig,
    bn_axis_name: str | None = None,
    dtype: Any = None,
    keep_queries: tuple[int, ...] = (),
    name: str | None = None,
) -> QueryDecoder:
    """The decoder of an architecture."""

    def layer(name: str) -> DecoderLayer:
        shape = (config.decoder_ffn, config.num_heads, config.num_points)
        return DecoderLayer(*shape, config.decoder_activation, config.sampling == "discrete", dtype, name=name)

    def position() -> MLP:
        width, xavier = config.decoder_width, initializers.xavier_uniform
        hidden, layers = (2 * width, 2) if config.query_position == "wide" else (width, 3)
        return MLP(hidden, width, layers, config.mlp_activation, kernel_init=xavier, name="query_pos_head")

    return QueryDecoder(
        num_classes=config.num_classes,
        num_queries=config.num_queries,
        width=config.decoder_width,
        num_layers=config.decoder_layers,
        eval_layer=config.eval_layer,
        layer=layer,
        position=position,
        source=own_values,
        box_head=_box_head(config),
        activation=config.mlp_activation,
        project_all=True,
        bn_axis_name=bn_axis_name,
        dtype=dtype,
        keep_queries=keep_queries,
        name=name,
    )


def _box_head(config: RTDetrConfig) -> BoxHead:
    if config.box_head == "plain":
        return PlainHead(config.mlp_activation)
    bins = EdgeBins(config.reg_max, config.up, config.reg_scale)
    return FDRHead(bins, config.mlp_activation, config.decoder_activation if config.quality_head else None)
