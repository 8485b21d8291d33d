"""Values of pixels as pretrained networks take them."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from dfine_jax.ops.precision import at_least_float32
from dfine_jax.ops.replace import replaceable


@replaceable
def standardised(
    images: Float[Array, "b h w c"], mean: Sequence[float], deviation: Sequence[float]
) -> Float[Array, "b h w c"]:
    """Each channel less its mean, divided by its deviation, in at least float32."""
    images = at_least_float32(images)
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(deviation, images.dtype)
