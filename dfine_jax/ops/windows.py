"""Maps cut into windows, whose tokens have one more in front of them, and put together again."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from dfine_jax.ops.replace import replaceable


@replaceable
def windows_of(
    x: Float[Array, "b h w d"], positions: Float[Array, "1 h w d"], token: Float[Array, "1 1 d"], windows: int
) -> Float[Array, "_ n d"]:
    """Tokens of every window behind a copy of ``token``, windows of a picture row by row.

    Args:
      positions: added to the map.
      windows: per side; divides both sides of the map.
    """
    batch, height, across, width = x.shape
    x = x + positions.astype(x.dtype)
    x = x.reshape(batch, windows, height // windows, windows, across // windows, width).swapaxes(2, 3)
    x = x.reshape(batch * windows**2, height * across // windows**2, width)
    return jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, width)), x], 1)


@replaceable
def maps_of(
    xs: Sequence[Float[Array, "_ n d"]], batch: int, height: int, across: int, windows: int
) -> tuple[Float[Array, "b h w _"], ...]:
    """Inverse of :func:`windows_of` without positions, of several.

    An exporter may answer with fewer maps, in which the channels of several lie one after another.
    """

    def joined(x: Array) -> Array:
        x = x[:, 1:].reshape(batch, windows, windows, height // windows, across // windows, x.shape[-1])
        return x.swapaxes(2, 3).reshape(batch, height, across, x.shape[-1])

    return tuple(joined(x) for x in xs)
