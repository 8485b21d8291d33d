"""RT-DETRv2 decoder: query selection, deformable decoder layers, boxes refined from layer to layer (arXiv 2407.17140).

Boxes may also come from edge distributions, as in D-FINE (``box_head``); nothing else of the decoder changes.

Reference: rtdetrv2_pytorch/src/zoo/rtdetr/rtdetrv2_decoder.py of lyuwenyu/RT-DETR. Boxes, sampling coordinates and
logits are at least float32 whatever the compute type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from dfine_jax.config import Activation
from dfine_jax.families.rtdetr.config import RTDetrConfig
from dfine_jax.nn import initializers
from dfine_jax.nn.deformable import DeformableAttention, Source
from dfine_jax.nn.fdr_head import FDRHead
from dfine_jax.nn.layers import MLP, ConvNorm, LayerNorm, Linear, MultiHeadAttention, activation
from dfine_jax.nn.queries import ClassEmbedding, TokenProjection, attention_blocked, propose
from dfine_jax.ops.boxes import inverse_sigmoid
from dfine_jax.ops.fdr import EdgeBins
from dfine_jax.ops.postprocess import Answer
from dfine_jax.ops.precision import at_least_float32
from dfine_jax.ops.tokens import gather_tokens
from dfine_jax.typing import DenoisingQueries, FDROutput, HeadOutput, ModelOutput, StageOutput, TrainingOutput


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
            # No compute type: eight bits of mantissa are pixels at the edge of a large box.
            box=MLP(config.decoder_width, 4, 3, config.mlp_activation, zero_last=True, name="enc_bbox_head"),
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
        stages = self._refine(content, reference_cxcywh, proposals.index, source, blocked, train)
        if isinstance(stages, ModelOutput):
            return stages
        matching = stages.of_queries(slice(-num_queries, None))
        training = TrainingOutput(
            matching=matching,
            encoder=HeadOutput(proposals.logits, jax.nn.sigmoid(proposals.boxes_logit)),
            denoising=None if denoising is None else stages.of_queries(slice(-num_queries)),
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
        index: Int[Array, "b q"],
        source: Source,
        blocked: Bool[Array, "u n"] | None,
        train: bool,
    ) -> StageOutput | ModelOutput:
        """Outputs of all layers; unless ``train``, only that of the evaluated one."""
        position_head, head = self._position_head(), self._refinement()
        last = self.config.decoder_layers - 1 if train else self.config.eval_layer
        keep = () if train else self.keep_queries[:last]
        outputs = []
        for i in range(last + 1):
            position = position_head(reference_cxcywh).astype(x.dtype)
            x = self._layer(i)(x, position, reference_cxcywh, source, blocked, train=train)
            score_head = self._score_head(f"dec_score_head_{i}")
            if i == 0:
                pre_boxes, state = head.init(x, reference_cxcywh)
                pre = None if pre_boxes is None else HeadOutput(at_least_float32(score_head(x)), pre_boxes)
            boxes, corners, reference_cxcywh, state = head.step(state, x)
            if train or i == last or i < len(keep):
                outputs.append((head.scored(at_least_float32(score_head(x)), state), boxes, corners))
            if i < len(keep) and keep[i] < x.shape[1]:
                _, best = jax.lax.top_k(outputs[-1][0].max(-1), keep[i])
                going_on = (x, reference_cxcywh, state, index)
                x, reference_cxcywh, state, index = jax.tree.map(partial(gather_tokens, index=best), going_on)
        if not train:
            logits, boxes, _ = outputs[-1]
            return ModelOutput(Answer(logits, boxes), index)
        logits, boxes, corners = jax.tree.map(lambda *layers: jnp.stack(layers), *outputs)
        fdr = None if pre is None else FDROutput(corners, state.initial_cxcywh, pre)
        return StageOutput(logits, boxes, fdr)

    def _refinement(self) -> Any:
        """``PlainHead`` or ``FDRHead``."""
        config = self.config
        if config.box_head == "plain":
            return PlainHead(config.mlp_activation)
        bins = EdgeBins(config.reg_max, config.up, config.reg_scale)
        return FDRHead(bins, config.mlp_activation, config.decoder_activation if config.quality_head else None)

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
