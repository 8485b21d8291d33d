"""What makes one map of those of the backbone: a block that splits channels, as YOLO's do.

Reference: models/backbone/projector.py of package rfdetr 1.11.2.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dfine_jax.nn.layers import ConvLayerNorm, LayerNorm

BOTTLENECKS = 3
_norm = functools.partial(LayerNorm, epsilon=1e-6)


class Projector(nn.Module):
    """Maps of one size, concatenated, to one of ``width`` channels."""

    width: int
    dtype: Any = None

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "b h w _"]]) -> Float[Array, "b h w d"]:
        unit = functools.partial(ConvLayerNorm, dtype=self.dtype)
        x = unit(self.width, name="cv1")(jnp.concatenate(maps, -1) if len(maps) > 1 else maps[0])
        parts = [*jnp.split(x, 2, -1)]
        for i in range(BOTTLENECKS):
            x = unit(self.width // 2, 3, name=f"m_{i}_cv1")(parts[-1])
            parts.append(unit(self.width // 2, 3, name=f"m_{i}_cv2")(x))
        x = unit(self.width, name="cv2")(jnp.concatenate(parts, -1))
        return _norm(dtype=self.dtype, name="norm")(x)
