"""Nearest-neighbour resizing with PyTorch's rounding, bilinear enlargement, bicubic resizing with antialias."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from dfine_jax.ops.precision import EXACT, at_least_float32
from dfine_jax.ops.replace import replaceable


def nearest_index(source: int, target: int) -> Int[np.ndarray, " t"]:
    """Source cell of every target cell: ``floor(i * float32(source / target))``.

    The product is rounded to float32, as in ``torch.nn.functional.interpolate``; for some sizes (640 to 736) this
    differs from exact arithmetic in a few places.
    """
    scale = np.float32(source / target) if source != target else np.float32(1)
    return np.minimum(np.floor(np.arange(target, dtype=np.float32) * scale).astype(np.int32), source - 1)


def resize_nearest(images: Shaped[Array, "b h w *c"], height: int, width: int) -> Shaped[Array, "b _ _ *c"]:
    """Images of another size, each cell a copy of one source cell."""
    _, source_height, source_width, *_ = images.shape
    if source_height != height:
        images = jnp.take(images, nearest_index(source_height, height), axis=1, mode="clip")
    if source_width != width:
        images = jnp.take(images, nearest_index(source_width, width), axis=2, mode="clip")
    return images


@replaceable
def resize_bilinear(x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b _ _ c"]:
    """Maps of another size: cells are points at their centres, those beyond the edge repeat it; nothing is averaged.

    ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False, antialias=False)``.
    """
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "linear", antialias=False)


def bicubic_weights(source: int, target: int) -> Float[np.ndarray, "t s"]:
    """What each of ``target`` cells takes of ``source`` cells, float64; rows add up to 1.

    Keys' cubic with a = -1/2 around centres of cells. It is widened where cells become fewer (antialias); what would
    lie beyond the edge counts for nothing.
    """
    step = source / target
    wide = max(step, 1.0)
    centre = (np.arange(target) + 0.5) * step - 0.5
    x = np.abs(np.arange(source) - centre[:, None]) / wide
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


@replaceable
def resize_bicubic(x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b _ _ c"]:
    """Maps of another size, in at least float32; those of the same size as they are.

    ``torch.nn.functional.interpolate(mode="bicubic", align_corners=False, antialias=True)``.
    """
    if x.shape[1:3] == (height, width):
        return x
    x = at_least_float32(x)
    down = jnp.asarray(bicubic_weights(x.shape[1], height), x.dtype)
    across = jnp.asarray(bicubic_weights(x.shape[2], width), x.dtype)
    return jnp.einsum("th,uw,bhwc->btuc", down, across, x, precision=EXACT)
