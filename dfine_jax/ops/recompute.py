"""Backward passes that compute a function again instead of keeping what is inside it.

XLA's CPU backend merges what is computed again with the forward pass, whose results are then kept all the same. It does
not look into loops, and it cannot merge what depends on a value that only the backward pass has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from dfine_jax.ops.order import after
from dfine_jax.ops.platform import chosen_by_platform, for_cpu

PyTree = Any


def image_by_image(function: Callable[..., Array], *operands: Array) -> Array:
    """``function`` of arrays that share the axis of images; its gradient needs only the operands.

    On a CPU one image is taken after another, which also keeps intermediate results in the processor's cache. Other
    backends take all at once. All modes of differentiation work.

    Args:
      function: treats every image alike; the result has the axis of images in front, too.
    """
    return _image_by_image(*operands, function=function)


@chosen_by_platform
def _image_by_image(*operands: Array, function: Callable[..., Array]) -> Array:
    if operands[0].shape[0] == 1 or not for_cpu():
        return jax.checkpoint(function)(*operands)

    def of_one(image: tuple[Array, ...]) -> Array:
        return function(*(x[None] for x in image))[0]

    return lax.map(jax.checkpoint(of_one, prevent_cse=False), operands)


def computed_again(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """``function`` of trees of arrays; its gradient needs only the arguments.

    On a CPU it can be differentiated in reverse mode only.
    """

    @chosen_by_platform
    def again(*arguments: PyTree) -> PyTree:
        form = _computed_again_on_a_cpu if for_cpu() else jax.checkpoint
        return form(function)(*arguments)

    return again


def _computed_again_on_a_cpu(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    def forward(*arguments: PyTree) -> tuple[PyTree, PyTree]:
        return function(*arguments), arguments

    def backward(arguments: PyTree, cotangents: PyTree) -> PyTree:
        known = next(x for x in jax.tree.leaves(cotangents) if jnp.issubdtype(x.dtype, jnp.floating) and x.size)
        arguments = jax.tree.map(lambda x: after(x, known), arguments)
        return jax.vjp(function, *arguments)[1](cotangents)

    again = jax.custom_vjp(function)
    again.defvjp(forward, backward)
    return again
