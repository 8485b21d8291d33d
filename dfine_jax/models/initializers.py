"""Initial values of the reference (PyTorch defaults and the explicit ones of D-FINE)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

Initializer = Callable[..., Array]

xavier_uniform: Initializer = jax.nn.initializers.xavier_uniform()


def fan_in_uniform(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for kernels [in, out] and [kh, kw, in, out]."""
    return uniform_bias(math.prod(shape[:-1]))(key, shape, dtype)


def uniform_bias(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for the bias of a layer with ``fan_in`` inputs."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def prior_bias(probability: float = 0.01) -> Initializer:
    """Bias of class logits so that every class starts with ``probability``."""
    return jax.nn.initializers.constant(-math.log((1 - probability) / probability))


def sampling_offsets_bias(num_heads: int, num_points: tuple[int, ...]) -> Initializer:
    """Bias [heads * points * 2]: head k looks along angle 2 pi k / heads, its j-th point of a level at distance j.

    Directions are scaled to a maximum norm of 1 (reference: src/zoo/dfine/dfine_decoder.py, MSDeformableAttention).
    """
    theta = 2 * np.pi * np.arange(num_heads) / num_heads
    direction = np.stack([np.cos(theta), np.sin(theta)], axis=-1)
    direction = direction / np.abs(direction).max(axis=-1, keepdims=True)
    rank = np.concatenate([np.arange(1, n + 1) for n in num_points])
    values = (direction[:, None, :] * rank[None, :, None]).reshape(-1)  # [m * p * 2]

    def init(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        del key
        return jnp.asarray(values, dtype).reshape(shape)

    return init


def class_embedding(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """N(0, 1) rows; the last row, which stands for padding, is zero."""
    return jax.random.normal(key, shape, dtype).at[-1].set(0)
