"""Nearest-neighbour resizing with PyTorch's rounding, and bilinear enlargement."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

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
