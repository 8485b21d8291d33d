"""RT-DETRv2 decoder: query selection, deformable decoder layers, boxes refined from layer to layer (arXiv 2407.17140).

Reference: rtdetrv2_pytorch/src/zoo/rtdetr/rtdetrv2_decoder.py of lyuwenyu/RT-DETR. Boxes, sampling coordinates and
logits are at least float32 whatever the compute type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from dfine_jax.config import Activation
from dfine_jax.families.rtdetr.config import RTDetrConfig
from dfine_jax.models import initializers
from dfine_jax.models.deformable import DeformableAttention, Source
from dfine_jax.models.layers import MLP, ConvNorm, LayerNorm, Linear, MultiHeadAttention, activation
from dfine_jax.models.queries import ClassEmbedding, TokenProjection, attention_blocked, propose
from dfine_jax.ops.boxes import inverse_sigmoid
from dfine_jax.ops.precision import at_least_float32
from dfine_jax.ops.tokens import gather_tokens
from dfine_jax.typing import Answer, DenoisingQueries, HeadOutput, ModelOutput


@flax.struct.dataclass
class TrainingOutput:
    """What only losses need. ``denoising`` is None when the model ran without denoising queries."""

    matching: HeadOutput  # of all layers: [s, b, q, ..]
    encoder: HeadOutput  # top-k encoder proposals
    denoising: HeadOutput | None  # of all layers: [s, b, u, ..]


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


class Decoder(nn.Module):
    """Encoder maps (finest first) to boxes and class logits.

    ``keep_queries[i]`` is the number of queries that go on after layer i at inference, those with the highest class
    logit of that layer's own heads; layers beyond the tuple keep all.
    """

    config: RTDetrConfig
    bn_axis_name: str | None = None
    dtype: Any = None
    keep_queries: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self,
        features: Sequence[Float[Array, "b _ _ _"]],
        denoising: DenoisingQueries | None = None,
        *,
        train: bool,
    ) -> ModelOutput:
        """Layers and heads behind the evaluated layer run only with ``train``; ``denoising`` needs ``train``."""
        config = self.config
        sizes = tuple((f.shape[1], f.shape[2]) for f in features)
        maps = self._maps(features, train)
        memory = jnp.concatenate([x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3]) for x in maps], 1)
        proposals = propose(
            memory,
            sizes,
            config.num_queries,
            project=TokenProjection(self.dtype, name="enc_output"),
            score=self._score_head("enc_score_head"),
            box=self._box_head("enc_bbox_head"),
        )
        content, boxes_logit = stop_gradient((proposals.content, proposals.boxes_logit))
        num_queries = content.shape[1]
        blocked = None
        embed = ClassEmbedding(config.num_classes, config.decoder_width, self.dtype, name="denoising_class_embed")
        if denoising is not None:
            content = jnp.concatenate([embed(denoising.labels), content], 1)
            boxes_logit = jnp.concatenate([denoising.boxes_logit.astype(boxes_logit.dtype), boxes_logit], 1)
            blocked = attention_blocked(denoising, num_queries)
        elif self.is_initializing():
            embed(jnp.zeros((1, 1), jnp.int32))

        source, reference_cxcywh = Source(sizes, maps=tuple(maps)), jax.nn.sigmoid(boxes_logit)
        if not train:
            return self._inference(content, reference_cxcywh, proposals.index, source)
        stages = self._refine(content, reference_cxcywh, source, blocked)
        matching = jax.tree.map(lambda x: x[:, :, -num_queries:], stages)
        training = TrainingOutput(
            matching=matching,
            encoder=HeadOutput(proposals.logits, jax.nn.sigmoid(proposals.boxes_logit)),
            denoising=None if denoising is None else jax.tree.map(lambda x: x[:, :, :-num_queries], stages),
        )
        return ModelOutput(Answer(matching.logits[-1], matching.boxes_cxcywh[-1]), proposals.index, training)

    def _maps(self, features: Sequence[Float[Array, "b _ _ _"]], train: bool) -> list[Float[Array, "b _ _ d"]]:
        """All levels in the decoder's width."""
        return [
            ConvNorm(
                self.config.decoder_width,
                bn_axis_name=self.bn_axis_name,
                kernel_init=initializers.xavier_uniform,
                dtype=self.dtype,
                name=f"input_proj_{i}",
            )(x, train=train)
            for i, x in enumerate(features)
        ]

    def _refine(
        self,
        x: Float[Array, "b n d"],
        reference_cxcywh: Float[Array, "b n 4"],
        source: Source,
        blocked: Bool[Array, "u n"] | None,
    ) -> HeadOutput:
        """Outputs of all layers.

        A layer samples around the box before it, without gradient. The box it is trained on is refined from the same
        values with gradient, so that the loss of a layer also moves the box of the layer before ("look forward twice",
        arXiv 2203.03605).
        """
        position_head = self._position_head()
        logits, boxes = [], []
        previous = reference_cxcywh  # with gradient
        for i in range(self.config.decoder_layers):
            position = position_head(reference_cxcywh).astype(x.dtype)
            x = self._layer(i)(x, position, reference_cxcywh, source, blocked, train=True)
            logits.append(at_least_float32(self._score_head(f"dec_score_head_{i}")(x)))
            shift = at_least_float32(self._box_head(f"dec_bbox_head_{i}")(x))
            boxes.append(jax.nn.sigmoid(shift + inverse_sigmoid(previous)))
            previous = jax.nn.sigmoid(shift + inverse_sigmoid(reference_cxcywh))
            reference_cxcywh = stop_gradient(previous)
        return HeadOutput(jnp.stack(logits), jnp.stack(boxes))

    def _inference(
        self,
        x: Float[Array, "b q d"],
        reference_cxcywh: Float[Array, "b q 4"],
        index: Int[Array, "b q"],
        source: Source,
    ) -> ModelOutput:
        """Output of the evaluated layer."""
        position_head = self._position_head()
        last = self.config.eval_layer
        for i in range(last + 1):
            position = position_head(reference_cxcywh).astype(x.dtype)
            x = self._layer(i)(x, position, reference_cxcywh, source, None, train=False)
            shift = at_least_float32(self._box_head(f"dec_bbox_head_{i}")(x))
            reference_cxcywh = jax.nn.sigmoid(shift + inverse_sigmoid(reference_cxcywh))
            keep = self.keep_queries[i] if i < min(last, len(self.keep_queries)) else x.shape[1]
            if keep < x.shape[1]:
                _, best = jax.lax.top_k(self._score_head(f"dec_score_head_{i}")(x).max(-1), keep)
                x, reference_cxcywh, index = (
                    gather_tokens(x, best),
                    gather_tokens(reference_cxcywh, best),
                    gather_tokens(index[..., None], best)[..., 0],
                )
        logits = at_least_float32(self._score_head(f"dec_score_head_{last}")(x))
        return ModelOutput(Answer(logits, reference_cxcywh), index)

    def _layer(self, i: int) -> DecoderLayer:
        config = self.config
        return DecoderLayer(
            config.decoder_ffn,
            config.num_heads,
            config.num_points,
            config.decoder_activation,
            config.sampling == "discrete",
            self.dtype,
            name=f"layers_{i}",
        )

    def _position_head(self) -> MLP:
        width, wide = self.config.decoder_width, self.config.query_position == "wide"
        hidden, layers = (2 * width, 2) if wide else (width, 3)
        xavier = initializers.xavier_uniform
        return MLP(hidden, width, layers, self.config.mlp_activation, kernel_init=xavier, name="query_pos_head")

    def _score_head(self, name: str) -> Linear:
        # No compute type: logits are float32 whatever the type of the input.
        return Linear(self.config.num_classes, bias_init=initializers.prior_bias(), name=name)

    def _box_head(self, name: str) -> MLP:
        # No compute type either: eight bits of mantissa are pixels at the edge of a large box.
        return MLP(self.config.decoder_width, 4, 3, self.config.mlp_activation, zero_last=True, name=name)
