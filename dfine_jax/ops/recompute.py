"""Backward passes that compute a function again instead of keeping what is inside it."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import lax
from jaxtyping import Array

from dfine_jax.ops.conv import _rewrite


def recomputed(function: Callable[..., Array], *operands: Array) -> Array:
    """``function`` of arrays that share the axis of images; its gradient needs only the operands.

    XLA's CPU backend merges what is computed again with the forward pass, except inside of loops: there one image is
    taken after another, which also keeps intermediate results in the processor's cache. Other backends take all at
    once. All modes of differentiation work.

    Args:
      function: treats every image alike; the result has the axis of images in front, too.
    """
    if operands[0].shape[0] == 1 or not _rewrite():
        return jax.checkpoint(function)(*operands)

    def of_one(image: tuple[Array, ...]) -> Array:
        return function(*(x[None] for x in image))[0]

    return lax.map(jax.checkpoint(of_one, prevent_cse=False), operands)
