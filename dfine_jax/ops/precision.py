"""How exactly products of float32 numbers are computed.

GPUs since Ampere and TPUs multiply float32 matrices with fewer bits than float32 has (TensorFloat-32: ten bits of
mantissa) unless told otherwise. Training may; what is measured, drawn, compared or exported is computed in float32.
"""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EXACT = jax.lax.Precision.HIGHEST


def at_least_float32(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The array in its own type or, when that is shorter, in float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def exact_products() -> contextlib.AbstractContextManager[None]:
    """Float32 products are float32 on every device, for what is traced inside."""
    return jax.default_matmul_precision("highest")


def inference_products() -> contextlib.AbstractContextManager[None]:
    """As ``exact_products``, unless JAX's own setting asks for something (``jax.default_matmul_precision``)."""
    asked = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return contextlib.nullcontext() if asked else exact_products()
