"""Decoder of queries that are chosen among encoder tokens and refined from layer to layer (arXiv 2304.08069).

Detectors differ in the layer, in what it samples from, in the position embedding of its queries and in the head that
moves their boxes: all are values here. Boxes, sampling coordinates and logits are at least float32 whatever the compute
type; gradients are stopped where the references detach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from dfine_jax.nn import initializers
from dfine_jax.nn.deformable import Source
from dfine_jax.nn.layers import MLP, ActivationName, ConvNorm, Linear
from dfine_jax.nn.mask_head import PixelEmbedding
from dfine_jax.nn.queries import ClassEmbedding, TokenProjection, attention_blocked, propose
from dfine_jax.ops.masks import masks_logit
from dfine_jax.ops.postprocess import Answer
from dfine_jax.ops.precision import at_least_float32
from dfine_jax.ops.tokens import gather_tokens
from dfine_jax.typing import DenoisingQueries, FDROutput, HeadOutput, ModelOutput, StageOutput, TrainingOutput

_Layer = tuple[Array, Array, Array | None, Array | None]  # logits, boxes, edge distributions, embeddings of masks


class BoxHead(Protocol):
    """What moves the boxes of all layers (nn/fdr_head.py says more); its state is a tree over the queries."""

    def init(self, hidden: Array, reference_cxcywh: Array) -> tuple[Any, Any]:
        """Boxes before the first refinement, which all layers move without gradient, or None; and the first state."""
        ...

    def step(self, state: Any, hidden: Array) -> tuple[Any, Any, Any, Any]:
        """Boxes, edge distributions or None, the boxes where the next layer looks, the next state."""
        ...

    def scored(self, logits: Array, state: Any) -> Array:
        """Class logits of the layer that ``state`` comes from."""
        ...


class QueryDecoder(nn.Module):
    """Encoder maps (finest first) to boxes and class logits, and to masks where these have a width.

    ``keep_queries[i]`` is the number of queries that go on after layer i at inference, those with the highest class
    logit of that layer's own heads; layers beyond the tuple keep all.
    """

    num_classes: int
    num_queries: int
    width: int
    num_layers: int
    eval_layer: int  # that answers at inference, from 0; those behind it only train
    layer: Callable[[str], Callable[..., Array]]  # makes a decoder layer of that name
    position: Callable[[], Callable[[Array], Array]]  # makes the head from boxes to position embeddings
    source: Callable[[Sequence[Array]], Source]  # what layers sample from, of the maps
    box_head: BoxHead
    activation: ActivationName = "relu"  # of the box head of encoder tokens
    project_all: bool = False  # also maps that have the decoder's width
    bn_axis_name: str | None = None
    dtype: Any = None
    keep_queries: tuple[int, ...] = ()
    mask_width: int = 0  # of embeddings; 0: no masks

    @nn.compact
    def __call__(
        self,
        features: Sequence[Float[Array, "b _ _ _"]],
        denoising: DenoisingQueries | None = None,
        finer: Sequence[Float[Array, "b _ _ _"]] = (),
        *,
        train: bool,
    ) -> ModelOutput:
        """Layers behind the evaluated one, and heads of those before it, run only with ``train``.

        Masks themselves are made without ``train``; losses get the embeddings.

        Args:
          denoising: needs ``train``.
          finer: maps that only masks are made of, before the encoder's.
        """
        maps = self._maps(features, train)
        memory = jnp.concatenate([x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3]) for x in maps], 1)
        proposals = propose(
            memory,
            tuple((x.shape[1], x.shape[2]) for x in maps),
            self.num_queries,
            project=TokenProjection(self.dtype, name="enc_output"),
            score=self._score_head("enc_score_head"),
            # No compute type: eight bits of mantissa are pixels at the edge of a large box.
            box=MLP(self.width, 4, 3, self.activation, zero_last=True, name="enc_bbox_head"),
        )
        content, boxes_logit = stop_gradient((proposals.content, proposals.boxes_logit))
        num_queries = content.shape[1]
        blocked = None
        embed = ClassEmbedding(self.num_classes, self.width, self.dtype, name="denoising_class_embed")
        if denoising is not None:
            content = jnp.concatenate([embed(denoising.labels), content], 1)
            boxes_logit = jnp.concatenate([denoising.boxes_logit.astype(boxes_logit.dtype), boxes_logit], 1)
            blocked = attention_blocked(denoising, num_queries)
        elif self.is_initializing():
            embed(jnp.zeros((1, 1), jnp.int32))

        source, reference_cxcywh = self.source(maps), jax.nn.sigmoid(boxes_logit)
        outputs, pre, index = self._refine(content, reference_cxcywh, proposals.index, source, blocked, train)
        pixels = None
        if self.mask_width:
            pixels = PixelEmbedding(self.mask_width, self.dtype, name="mask_decoder")([*finer, *features])
        if not train:
            embedding = outputs[-1][3]
            masks = None if embedding is None or pixels is None else masks_logit(embedding, pixels)
            return ModelOutput(Answer(*outputs[-1][:2], masks), index)
        logits, boxes, corners, embedding = jax.tree.map(lambda *layers: jnp.stack(layers), *outputs)
        fdr = None if pre is None else FDROutput(corners, stop_gradient(pre.boxes_cxcywh), pre)
        stages = StageOutput(logits, boxes, fdr, embedding)
        matching = stages.of_queries(slice(-num_queries, None))
        training = TrainingOutput(
            matching=matching,
            encoder=HeadOutput(proposals.logits, jax.nn.sigmoid(proposals.boxes_logit)),
            denoising=None if denoising is None else stages.of_queries(slice(-num_queries)),
            pixels=pixels,
        )
        return ModelOutput(Answer(matching.logits[-1], matching.boxes_cxcywh[-1]), proposals.index, training)

    def _maps(self, features: Sequence[Float[Array, "b _ _ _"]], train: bool) -> list[Float[Array, "b _ _ d"]]:
        """All levels in the decoder's width."""
        project = partial(
            ConvNorm,
            self.width,
            bn_axis_name=self.bn_axis_name,
            kernel_init=initializers.xavier_uniform,
            dtype=self.dtype,
        )
        return [
            project(name=f"input_proj_{i}")(x, train=train) if self.project_all or x.shape[-1] != self.width else x
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
    ) -> tuple[list[_Layer], HeadOutput | None, Int[Array, "b k"]]:
        """What each layer says, what stands before the first, and the tokens of the queries left.

        Unless ``train``, the evaluated layer is the last, and those before it that drop no queries are left out.
        """
        position, head = self.position(), self.box_head
        embed = self._mask_head()
        whole = train or self.is_initializing()  # so that parameters depend on neither mode
        last = self.num_layers - 1 if whole else self.eval_layer
        keep = () if whole else self.keep_queries[:last]
        outputs, pre = [], None
        for i in range(last + 1):
            x = self.layer(f"layers_{i}")(
                x, position(reference_cxcywh).astype(x.dtype), reference_cxcywh, source, blocked, train=train
            )
            score_head = self._score_head(f"dec_score_head_{i}")
            if i == 0:
                pre_boxes, state = head.init(x, reference_cxcywh)
                if train and pre_boxes is not None:
                    pre = HeadOutput(at_least_float32(score_head(x)), pre_boxes)
            boxes, corners, reference_cxcywh, state = head.step(state, x)
            if whole or i == last or i < len(keep):
                outputs.append((head.scored(at_least_float32(score_head(x)), state), boxes, corners, embed(x)))
            if i < len(keep) and keep[i] < x.shape[1]:
                _, best = jax.lax.top_k(outputs[-1][0].max(-1), keep[i])
                going_on = (x, reference_cxcywh, state, index)
                x, reference_cxcywh, state, index = jax.tree.map(partial(gather_tokens, index=best), going_on)
        return outputs, pre, index

    def _mask_head(self) -> Callable[[Array], Array | None]:
        """One for all layers; embeddings are scaled so that their products with pixels are logits."""
        if not self.mask_width:
            return lambda x: None
        head = MLP(self.width, self.mask_width, 3, dtype=self.dtype, name="mask_head")
        return lambda x: head(x) / math.sqrt(self.mask_width)

    def _score_head(self, name: str) -> Linear:
        # No compute type: logits are float32 whatever the type of the input.
        return Linear(self.num_classes, bias_init=initializers.prior_bias(), name=name)
