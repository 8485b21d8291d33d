"""Pooling that halves a grid of even sides."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from dfine_jax.ops.replace import replaceable


@replaceable
def max_pool3x3(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """Largest of each 3x3 window around every second cell of non-negative maps; outside there are zeros."""
    x = jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)))
    rows = jnp.maximum(jnp.maximum(x[:, :-2:2], x[:, 1:-1:2]), x[:, 2::2])
    return jnp.maximum(jnp.maximum(rows[:, :, :-2:2], rows[:, :, 1:-1:2]), rows[:, :, 2::2])


@replaceable
def average_pool2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """Mean of each 2x2 block."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
