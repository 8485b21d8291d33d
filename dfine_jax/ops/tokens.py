"""Choosing and limiting tokens, the steps between decoder layers that exporters write in their own way."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dfine_jax.ops.replace import replaceable


@replaceable
def gather_tokens(x: Float[Array, "b n *d"], index: Int[Array, "b q"]) -> Float[Array, "b q *d"]:
    """Tokens of every image by index, which must be in range."""
    index = index.reshape(*index.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, index, 1, mode="promise_in_bounds")


@replaceable
def take_rows(rows: Float[Array, "n d"], index: Int[Array, "b q"]) -> Float[Array, "b q d"]:
    """Rows that all images share by index."""
    return rows[index]


@replaceable
def every_image(rows: Float[Array, "n d"], batch: int) -> Float[Array, "b n d"]:
    """A copy of the rows for each image."""
    return jnp.broadcast_to(rows, (batch, *rows.shape))


@replaceable
def limited(x: Float[Array, "*n"], limit: float) -> Float[Array, "*n"]:
    """Values in [-limit, limit]."""
    return jnp.clip(x, -limit, limit)
