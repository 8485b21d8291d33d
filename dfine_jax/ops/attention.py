"""Scaled dot-product attention; softmax in at least float32."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from dfine_jax.ops.precision import at_least_float32
from dfine_jax.ops.recompute import image_by_image


def attend(
    q: Float[Array, "b n m c"], k: Float[Array, "b n m c"], v: Float[Array, "b n m c"]
) -> Float[Array, "b n m c"]:
    """Every token sees every other."""
    logits = jnp.einsum("bqmd,bkmd->bmqk", q * q.shape[-1] ** -0.5, k)
    weights = jax.nn.softmax(at_least_float32(logits), axis=-1).astype(v.dtype)
    return jnp.einsum("bmqk,bkmd->bqmd", weights, v)


def attend_in_training(
    q: Float[Array, "b n m c"],
    k: Float[Array, "b n m c"],
    v: Float[Array, "b n m c"],
    blocked: Bool[Array, "*#b u n"] | None = None,
) -> Float[Array, "b n m c"]:
    """The first ``u`` tokens see all that is not blocked, the others only each other.

    Nothing of the size n x n is kept for the backward pass, and the two kinds of tokens are separate products, so none
    is computed only to be masked.

    Args:
      blocked: where one of the first tokens (row) does not see another token; a token that sees nothing gets a mean of
        all values.
    """
    if blocked is None or blocked.ndim == 2:  # of all images alike
        return image_by_image(functools.partial(_parted, blocked=blocked), q, k, v)
    return image_by_image(_parted, q, k, v, jnp.broadcast_to(blocked, (q.shape[0], *blocked.shape[1:])))


def _parted(q: Array, k: Array, v: Array, blocked: Array | None) -> Array:
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))  # [b, m, n, c]
    first = 0 if blocked is None else blocked.shape[-2]
    parts = []
    if blocked is not None:
        parts.append(_weighted_sum(q[:, :, :first], k, v, blocked if blocked.ndim == 2 else blocked[:, None]))
    if first < q.shape[2]:
        parts.append(_weighted_sum(q[:, :, first:], k[:, :, first:], v[:, :, first:], None))
    return jnp.concatenate(parts, 2).swapaxes(1, 2)


def _weighted_sum(q: Array, k: Array, v: Array, blocked: Array | None) -> Array:
    """Softmax times values, divided by the sum of the exponentials after the product."""
    logits = at_least_float32(jnp.einsum("bmqc,bmkc->bmqk", q, k))
    if blocked is not None:
        # A finite value: a row of minus infinities would give NaN for tokens that exist nowhere.
        logits = jnp.where(blocked, jnp.finfo(logits.dtype).min, logits)
    weights = jnp.exp(logits - lax.stop_gradient(jnp.max(logits, -1, keepdims=True)))
    product = jnp.einsum("bmqk,bmkc->bmqc", weights.astype(v.dtype), v)
    return (product / jnp.sum(weights, -1, keepdims=True)).astype(v.dtype)
