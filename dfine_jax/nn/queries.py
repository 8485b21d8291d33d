"""Queries of a decoder: the best encoder tokens, and denoising queries in front of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from dfine_jax.nn import initializers
from dfine_jax.nn.layers import LayerNorm, Linear
from dfine_jax.ops.anchors import anchors
from dfine_jax.ops.precision import at_least_float32
from dfine_jax.ops.tokens import gather_tokens, take_rows
from dfine_jax.typing import DenoisingQueries


class Proposals(NamedTuple):
    """Encoder tokens that become queries, best first."""

    content: Float[Array, "b q d"]
    boxes_logit: Float[Array, "b q 4"]  # before the sigmoid
    logits: Float[Array, "b q k"]
    index: Int[Array, "b q"]


def propose(
    memory: Float[Array, "b n d"],
    sizes: tuple[tuple[int, int], ...],
    num_queries: int,
    *,
    project: Callable[[Array], Array],
    score: Callable[[Array], Array],
    box: Callable[[Array], Array],
) -> Proposals:
    """Tokens with the highest class logit; all of them when there are fewer than ``num_queries``.

    Args:
      memory: tokens of all levels, finest first.
      sizes: height and width of the levels.
      project: of all tokens, before they are scored.
      score: class logits of projected tokens.
      box: offsets to the logits of the anchors; only the chosen tokens need them.
    """
    anchor_logit, valid = anchors(sizes)
    x = jnp.where(valid[:, None], memory, 0)
    x = project(x)
    logits = at_least_float32(score(x))
    _, index = jax.lax.top_k(logits.max(-1), min(num_queries, memory.shape[1]))
    content = gather_tokens(x, index)
    offsets = at_least_float32(box(content))
    boxes_logit = offsets + take_rows(jnp.asarray(anchor_logit, offsets.dtype), index)
    return Proposals(content, boxes_logit, gather_tokens(logits, index), index)


def attention_blocked(denoising: DenoisingQueries, num_queries: int) -> Bool[Array, "u n"]:
    """True where a denoising query (row) must not see another query (column); denoising queries come first.

    They see the matching queries and their own group; slots that do not exist are seen by nobody. Matching queries
    have no rows: they see only each other. Every row sees something.
    """
    same_group = denoising.group[:, None] == denoising.group[None, :]
    return jnp.pad(~(same_group & denoising.exists[None, :]), ((0, 0), (0, num_queries)))


class TokenProjection(nn.Module):
    """Linear layer and normalisation before queries are chosen."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        x = Linear(x.shape[-1], initializers.xavier_uniform, dtype=self.dtype, name="proj")(x)
        return LayerNorm(dtype=self.dtype, name="norm")(x)


class ClassEmbedding(nn.Module):
    """Embeddings of noised labels; the last row stands for padding, starts at zero and receives no gradient."""

    num_classes: int
    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, labels: Int[Array, "b u"]) -> Float[Array, "b u d"]:
        shape = (self.num_classes + 1, self.features)
        rows = self.param("embedding", initializers.class_embedding, shape, jnp.float32)
        rows = jnp.concatenate([rows[:-1], stop_gradient(rows[-1:])])
        return rows[labels].astype(self.dtype or rows.dtype)
