"""Boxes moved in units of themselves, and what queries know of the boxes that they look at."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dfine_jax.ops.replace import replaceable

_TEMPERATURE = 10000.0


@replaceable
def moved(at_cxcywh: Float[Array, "*n 4"], delta: Float[Array, "*#n 4"]) -> Float[Array, "*n 4"]:
    """Boxes moved in units of their own sides, which grow by a factor exp(delta); not limited to the picture."""
    size = at_cxcywh[..., 2:]
    return jnp.concatenate([delta[..., :2] * size + at_cxcywh[..., :2], jnp.exp(delta[..., 2:]) * size], -1)


def wave_periods(each: int) -> Float[np.ndarray, " n"]:
    """Of the waves of ``box_embedding``, each of which has a sine and a cosine."""
    return np.power(_TEMPERATURE, 2 * (np.arange(each) // 2) / each)[::2]


@replaceable
def box_embedding(boxes_cxcywh: Float[Array, "b q 4"], each: int) -> Float[Array, "b q d"]:
    """Sines and cosines in turn, ``each`` numbers of y, of x, of the width and of the height."""
    boxes = boxes_cxcywh[..., np.array([1, 0, 2, 3])]
    angle = boxes[..., None] * (2 * np.pi) / jnp.asarray(wave_periods(each), boxes.dtype)
    waves = jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1)
    return waves.reshape(*boxes.shape[:-1], 4 * each)
