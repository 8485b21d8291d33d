"""RF-DETR's choice of queries and its decoder: groups of learned queries at places that tokens propose.

Reference: models/transformer.py and models/lwdetr.py of package rfdetr 1.11.2 (arXiv 2511.09554, after LW-DETR, arXiv
2406.03459). Boxes, sampling coordinates and logits are at least float32 whatever the compute type.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from dfine_jax.families.rfdetr.config import RFDetrConfig
from dfine_jax.nn import initializers
from dfine_jax.nn.deformable import DeformableAttention, Source, own_values
from dfine_jax.nn.layers import MLP, LayerNorm, Linear, MultiHeadAttention, activation
from dfine_jax.ops.anchors import BASE_SIZE, MARGIN
from dfine_jax.ops.box_queries import box_embedding, moved
from dfine_jax.ops.precision import at_least_float32
from dfine_jax.ops.tokens import every_image, gather_tokens, take_rows


class Proposals(NamedTuple):
    """The best tokens of every group, best first; groups one after another."""

    content: Float[Array, "b p d"]
    logits: Float[Array, "b p k"]
    boxes_cxcywh: Float[Array, "b p 4"]
    index: Int[Array, "b p"]


class Decoded(NamedTuple):
    """What the layers asked for say."""

    hidden: list[Float[Array, "b q d"]]
    logits: list[Float[Array, "b q k"]]
    boxes_cxcywh: list[Float[Array, "b q 4"]]
    proposals: Proposals


class Decoder(nn.Module):
    """One map to queries; in training those of all groups and layers, else of the first group and the last layer."""

    config: RFDetrConfig
    queries: int | None = None  # at inference, of those of the first group; None: all
    layers: int | None = None  # that run at inference; None: all
    dtype: Any = None

    @nn.compact
    def __call__(self, features: Float[Array, "b h w d"], *, train: bool) -> Decoded:
        config = self.config
        every = train or self.is_initializing()  # so that parameters do not depend on the mode
        groups, each = (config.groups, config.num_queries) if every else (1, self.queries or config.num_queries)
        rows = config.groups * config.num_queries
        content = self.param("query_feat", initializers.Normal(lambda shape: 1.0), (rows, config.width), jnp.float32)
        shift = self.param("refpoint_embed", initializers.zeros, (rows, 4), jnp.float32)
        class_head, box_head = _class_head(config, "class_embed"), _box_head(config, "bbox_embed")

        proposals = self._propose(features, groups, each)
        reference = self._reference(shift[: groups * each], stop_gradient(proposals.boxes_cxcywh), groups)
        position = MLP(
            config.width, config.width, 2, kernel_init=initializers.xavier_uniform, dtype=self.dtype,
            name="ref_point_head",
        )(box_embedding(reference, config.width // 2).astype(features.dtype))  # fmt: skip
        x = every_image(content[: groups * each].astype(features.dtype), features.shape[0])
        source = own_values([features])
        norm, out = LayerNorm(dtype=self.dtype, name="norm"), Decoded([], [], [], proposals)
        running = config.decoder_layers if every else self.layers or config.decoder_layers
        for i in range(running):
            layer = DecoderLayer(config, groups, self.dtype, name=f"layers_{i}")
            x = layer(x, position, reference, source, train=train)
            if every or i + 1 == running:
                hidden = norm(x)
                out.hidden.append(hidden)
                out.logits.append(at_least_float32(class_head(hidden)))
                out.boxes_cxcywh.append(moved(reference, at_least_float32(box_head(hidden))))
        return out

    def _propose(self, features: Float[Array, "b h w d"], groups: int, each: int) -> Proposals:
        """Tokens with the highest class logit in each group, all where they are fewer than its queries."""
        batch, height, across, width = features.shape
        boxes, valid = token_boxes(height, across)
        memory = features.reshape(batch, height * across, width)
        if not valid.all():
            memory = memory * jnp.asarray(valid[:, None], memory.dtype)
        parts = []
        for group in range(groups):
            x = Linear(width, initializers.xavier_uniform, dtype=self.dtype, name=f"enc_output_{group}")(memory)
            x = LayerNorm(dtype=self.dtype, name=f"enc_output_norm_{group}")(x)
            logits = at_least_float32(_class_head(self.config, f"enc_out_class_embed_{group}")(x))
            index = best_tokens(logits, min(each, height * across))
            x, logits = gather_tokens(x, index), gather_tokens(logits, index)
            delta = at_least_float32(_box_head(self.config, f"enc_out_bbox_embed_{group}")(x))
            at = take_rows(jnp.asarray(boxes, delta.dtype), index)
            parts.append(Proposals(x, logits, moved(at, delta), index))
        return parts[0] if groups == 1 else Proposals(*(jnp.concatenate(x, 1) for x in zip(*parts, strict=True)))

    def _reference(
        self, shift: Float[Array, "q 4"], proposed_cxcywh: Float[Array, "b p 4"], groups: int
    ) -> Float[Array, "b q 4"]:
        """Where queries look. With fewer proposals than queries the rest look at what ``shift`` itself says."""
        batch, count = proposed_cxcywh.shape[:2]
        shift = shift.astype(proposed_cxcywh.dtype)
        if count == shift.shape[0]:
            return moved(proposed_cxcywh, shift)
        parts = groups if self.config.few_tokens == "pad" else 1
        own = shift.reshape(1, parts, -1, 4)
        near = moved(proposed_cxcywh.reshape(batch, parts, -1, 4), own[:, :, : count // parts])
        rest = own[:, :, count // parts :]
        rest = jnp.broadcast_to(rest, (batch, *rest.shape[1:]))
        return jnp.concatenate([near, rest], 2).reshape(batch, -1, 4)


class DecoderLayer(nn.Module):
    """Self-attention within a group, deformable cross-attention, feed-forward network, each added and normalised."""

    config: RFDetrConfig
    groups: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b q d"],
        position: Float[Array, "b q d"],
        reference_cxcywh: Float[Array, "b q 4"],
        source: Source,
        *,
        train: bool,
    ) -> Float[Array, "b q d"]:
        config, shape = self.config, position.shape
        norm, linear = functools.partial(LayerNorm, dtype=self.dtype), functools.partial(Linear, dtype=self.dtype)
        xavier, split = initializers.xavier_uniform, (-1, shape[1] // self.groups, shape[2])
        attention = MultiHeadAttention(config.self_heads, self.dtype, name="self_attn")
        y = attention((x + position).reshape(split), x.reshape(split), train=train)
        x = norm(name="norm1")(x + y.reshape(shape))
        cross = DeformableAttention(
            config.cross_heads,
            (config.num_points,),
            project_values=True,
            project_output=True,
            dtype=self.dtype,
            name="cross_attn",
        )
        x = norm(name="norm2")(x + cross(x + position, reference_cxcywh, source, train=train))
        y = activation(config.decoder_activation)(linear(config.decoder_ffn, xavier, name="linear1")(x))
        return norm(name="norm3")(x + linear(config.width, xavier, name="linear2")(y))


def _class_head(config: RFDetrConfig, name: str) -> Linear:
    # No compute type: logits are float32 whatever the type of the input.
    return Linear(config.num_logits, bias_init=initializers.prior_bias(), name=name)


def _box_head(config: RFDetrConfig, name: str) -> MLP:
    # No compute type: eight bits of mantissa are pixels at the edge of a large box.
    return MLP(config.width, 4, 3, zero_last=True, name=name)


def best_tokens(logits: Float[Array, "b n k"], count: int) -> Int[Array, "b p"]:
    """Tokens with the highest logit of any class, best first. Rounding may swap near ones."""
    return jax.lax.top_k(logits.max(-1), count)[1]


def token_boxes(height: int, width: int) -> tuple[Float[np.ndarray, "n 4"], Bool[np.ndarray, " n"]]:
    """Box cxcywh around each token, float32, zero where invalid; and which are valid.

    Those too near to the edge of the picture are not: the outermost of grids with 50 tokens along a side, or more.
    """
    x = (np.arange(width, dtype=np.float32) + np.float32(0.5)) / np.float32(width)
    y = (np.arange(height, dtype=np.float32) + np.float32(0.5)) / np.float32(height)
    x, y = np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))
    side = np.full((height, width), BASE_SIZE, np.float32)
    boxes = np.stack([x, y, side, side], -1).reshape(-1, 4)
    valid = np.all((boxes > np.float32(MARGIN)) & (boxes < np.float32(1 - MARGIN)), -1)
    return np.where(valid[:, None], boxes, np.float32(0)), valid
