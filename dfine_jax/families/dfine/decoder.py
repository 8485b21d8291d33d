"""D-FINE decoder: query selection, deformable decoder layers and refinement of edge distributions (arXiv 2410.13842).

Reference: src/zoo/dfine/dfine_decoder.py. Boxes, distributions, sampling coordinates and logits are at least float32
whatever the compute type; gradients are stopped exactly where the reference detaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from dfine_jax.config import Activation
from dfine_jax.families.dfine.config import ModelConfig
from dfine_jax.nn import initializers
from dfine_jax.nn.deformable import DeformableAttention, Source
from dfine_jax.nn.layers import MLP, ConvNorm, LayerNorm, Linear, MultiHeadAttention, activation
from dfine_jax.nn.queries import (
    ClassEmbedding,
    Proposals,
    TokenProjection,
    attention_blocked,
    propose,
)
from dfine_jax.ops import deformable, fdr
from dfine_jax.ops.boxes import inverse_sigmoid
from dfine_jax.ops.postprocess import Answer
from dfine_jax.ops.precision import at_least_float32
from dfine_jax.ops.tokens import gather_tokens, limited
from dfine_jax.typing import DenoisingQueries, HeadOutput, ModelOutput, StageOutput, TrainingOutput

POSITION_LIMIT = 10.0  # query position embeddings are clipped to this
HALF_LIMIT = 65504.0  # largest float16; the reference clips feed-forward sums to it
TOP_BINS = 4  # probabilities per edge that tell how sharp a distribution is
QUALITY_WIDTH = 64


def sharpness(corners_logit: Float[Array, "b n e r"]) -> Float[Array, "b n f"]:
    """The four largest probabilities of every edge, descending, and their mean, edge by edge."""
    top, _ = jax.lax.top_k(jax.nn.softmax(at_least_float32(corners_logit), -1), TOP_BINS)
    stacked = jnp.concatenate([top, top.mean(-1, keepdims=True)], -1)
    return stacked.reshape(*stacked.shape[:2], -1)


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


class LocationQuality(nn.Module):
    """One number per query, added to its class logits, from the sharpness of its edge distributions."""

    activation: Activation
    dtype: Any = None

    @nn.compact
    def __call__(self, corners_logit: Float[Array, "b n e r"]) -> Float[Array, "b n 1"]:
        mlp = MLP(QUALITY_WIDTH, 1, 2, self.activation, zero_last=True, dtype=self.dtype, name="reg_conf")
        return at_least_float32(mlp(sharpness(corners_logit)))


class Decoder(nn.Module):
    """Encoder maps (finest first) to boxes and class logits.

    ``keep_queries[i]`` is the number of queries that go on after layer i at inference, those with the highest class
    logit of that layer's own heads; layers beyond the tuple keep all.
    """

    config: ModelConfig
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
        """Only the last layer's class and quality heads run when ``train`` is False; ``denoising`` needs ``train``."""
        sizes = tuple((f.shape[1], f.shape[2]) for f in features)
        maps = self._maps(features, train)
        memory = jnp.concatenate([x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3]) for x in maps], 1)
        proposals = self._proposals(memory, sizes)
        content, boxes_logit = stop_gradient((proposals.content, proposals.boxes_logit))
        num_queries = content.shape[1]
        blocked = None
        embed = ClassEmbedding(self.config.num_classes, memory.shape[-1], self.dtype, name="denoising_class_embed")
        if denoising is not None:
            content = jnp.concatenate([embed(denoising.labels), content], 1)
            boxes_logit = jnp.concatenate([denoising.boxes_logit.astype(boxes_logit.dtype), boxes_logit], 1)
            blocked = attention_blocked(denoising, num_queries)
        elif self.is_initializing():
            embed(jnp.zeros((1, 1), jnp.int32))

        source = Source(sizes, table=deformable.build_table(maps, self.config.num_heads))
        stages = self._refine(content, jax.nn.sigmoid(boxes_logit), proposals.index, source, blocked, train)
        if isinstance(stages, ModelOutput):
            return stages
        matching = _query_range(stages, -num_queries, None)
        training = TrainingOutput(
            matching=matching,
            encoder=HeadOutput(proposals.logits, jax.nn.sigmoid(proposals.boxes_logit)),
            denoising=None if denoising is None else _query_range(stages, 0, -num_queries),
        )
        return ModelOutput(Answer(matching.logits[-1], matching.boxes_cxcywh[-1]), proposals.index, training=training)

    def _maps(self, features: Sequence[Float[Array, "b _ _ _"]], train: bool) -> list[Float[Array, "b _ _ d"]]:
        """All levels in the decoder's width."""
        width, maps = self.config.decoder_width, []
        for i, x in enumerate(features):
            if x.shape[-1] != width:
                project = ConvNorm(
                    width,
                    bn_axis_name=self.bn_axis_name,
                    kernel_init=initializers.xavier_uniform,
                    dtype=self.dtype,
                    name=f"input_proj_{i}",
                )
                x = project(x, train=train)
            maps.append(x)
        return maps

    def _proposals(self, memory: Float[Array, "b n d"], sizes: tuple[tuple[int, int], ...]) -> Proposals:
        return propose(
            memory,
            sizes,
            self.config.num_queries,
            project=TokenProjection(self.dtype, name="enc_output"),
            score=self._score_head("enc_score_head"),
            box=self._box_head("enc_bbox_head", 4),
        )

    def _refine(
        self,
        x: Float[Array, "b n d"],
        reference_cxcywh: Float[Array, "b n 4"],
        index: Int[Array, "b q"],
        source: Source,
        blocked: Bool[Array, "u n"] | None,
        train: bool,
    ) -> StageOutput | ModelOutput:
        """Layers that all decode boxes from the same initial ones; unless ``train``, only the output of the last."""
        config = self.config
        project = jnp.asarray(fdr.weighting_function(config.reg_max, config.up, config.reg_scale))
        position_head = MLP(
            2 * config.decoder_width,
            config.decoder_width,
            2,
            config.mlp_activation,
            kernel_init=initializers.xavier_uniform,
            name="query_pos_head",
        )
        logits, boxes, corners = [], [], []
        summed = None
        keep = () if train else self.keep_queries[: config.decoder_layers - 1]
        for i in range(config.decoder_layers):
            wanted = train or i == config.decoder_layers - 1 or i < len(keep) or self.is_initializing()
            previous = stop_gradient(x)
            position = limited(position_head(reference_cxcywh), POSITION_LIMIT).astype(x.dtype)
            x = self._layer(i)(x, position, reference_cxcywh, source, blocked, train=train)
            score_head = self._score_head(f"dec_score_head_{i}")
            if i == 0:
                shift = at_least_float32(self._box_head("pre_bbox_head", 4)(x))
                pre_boxes = jax.nn.sigmoid(shift + inverse_sigmoid(reference_cxcywh))
                pre = HeadOutput(score_head(x), pre_boxes) if wanted else None
                initial = stop_gradient(pre_boxes)
            state = x if i == 0 else x + previous
            edges = self._box_head(f"dec_bbox_head_{i}", 4 * config.num_bins)(state)
            edges = at_least_float32(edges).reshape(*edges.shape[:2], 4, config.num_bins)
            summed = edges if summed is None else summed + edges
            decoded = fdr.decode(initial, fdr.integral(summed, project), config.reg_scale)
            reference_cxcywh = stop_gradient(decoded)
            if wanted:
                quality = LocationQuality(config.decoder_activation, name=f"lqe_layers_{i}")(summed)
                logits.append(score_head(x) + quality)
                boxes.append(decoded)
                corners.append(summed)
            if i < len(keep) and keep[i] < x.shape[1]:
                _, best = jax.lax.top_k(logits[-1].max(-1), keep[i])
                kept = (gather_tokens(t, best) for t in (x, reference_cxcywh, initial, summed, index[..., None]))
                x, reference_cxcywh, initial, summed, index = kept
                index = index[..., 0]
        if pre is None or not train:
            return ModelOutput(Answer(logits[-1], boxes[-1]), index)
        return StageOutput(jnp.stack(logits), jnp.stack(boxes), jnp.stack(corners), initial, pre)

    def _layer(self, i: int) -> DecoderLayer:
        config = self.config
        return DecoderLayer(
            config.decoder_ffn,
            config.num_heads,
            config.num_points,
            config.decoder_activation,
            self.dtype,
            name=f"layers_{i}",
        )

    def _score_head(self, name: str) -> Linear:
        # No compute type: logits are float32 whatever the type of the input.
        return Linear(self.config.num_classes, bias_init=initializers.prior_bias(), name=name)

    def _box_head(self, name: str, out: int) -> MLP:
        width = self.config.decoder_width
        # No compute type either: eight bits of mantissa are pixels at the edge of a large box.
        return MLP(width, out, 3, self.config.mlp_activation, zero_last=True, name=name)


def _query_range(stages: StageOutput, start: int, stop: int | None) -> StageOutput:
    """Outputs of a part of the queries."""
    return StageOutput(
        logits=stages.logits[:, :, start:stop],
        boxes_cxcywh=stages.boxes_cxcywh[:, :, start:stop],
        corners_logit=stages.corners_logit[:, :, start:stop],
        reference_cxcywh=stages.reference_cxcywh[:, start:stop],
        pre=HeadOutput(stages.pre.logits[:, start:stop], stages.pre.boxes_cxcywh[:, start:stop]),
    )
