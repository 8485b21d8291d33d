"""Masks as products of embeddings."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from dfine_jax.ops.replace import replaceable


@replaceable
def masks_logit(
    embedding: Float[Array, "*b n d"], pixels: Float[Array, "*b h w d"], offset: Float[Array, "*b n"] | None = None
) -> Float[Array, "*b n h w"]:
    """Logit of every query's mask at every pixel, summed in at least float32; ``offset`` is added to all of a query."""
    *batch, height, width, depth = pixels.shape
    pixels = pixels.reshape(*batch, height * width, depth)
    wide = jnp.promote_types(embedding.dtype, jnp.float32)
    product = jnp.einsum("...nd,...pd->...np", embedding, pixels, preferred_element_type=wide)
    if offset is not None:
        product = product + offset[..., None].astype(product.dtype)
    return product.reshape(*product.shape[:-1], height, width)
