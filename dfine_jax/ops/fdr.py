"""Fine-grained distribution refinement (arXiv 2410.13842, section 4.1; reference src/zoo/dfine/dfine_utils.py)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dfine_jax.ops.precision import EXACT, at_least_float32
from dfine_jax.ops.replace import replaceable


def weighting_function(reg_max: int, up: float, reg_scale: float) -> Float[np.ndarray, " r"]:
    """W(n), the non-uniform bin positions of the edge distributions, in units of (box size / reg_scale).

    Antisymmetric around bin reg_max / 2; inner bins grow geometrically, the two outer bins lie at 2 * up * reg_scale.
    Computed in float32 in the reference's order of operations: its rounding decides the bin of whole-numbered offsets.
    """
    f = np.float32
    bound = f(up) * f(abs(reg_scale))
    step = f((bound + f(1.0)) ** f(2.0 / (reg_max - 2)))
    half = reg_max // 2
    inner = np.array([step ** f(i) - f(1.0) for i in range(1, half)], np.float32)
    outer = np.array([f(2.0) * bound], np.float32)
    return np.concatenate([-outer, -inner[::-1], np.zeros(1, np.float32), inner, outer])


@dataclasses.dataclass(frozen=True)
class EdgeBins:
    """What the bins of an edge's distribution stand for."""

    reg_max: int = 32  # one less than there are bins; even
    up: float = 0.5
    reg_scale: float = 4.0

    @property
    def count(self) -> int:
        """Number of bins."""
        return self.reg_max + 1

    def positions(self) -> Float[np.ndarray, " r"]:
        """W(n), as of :func:`weighting_function`."""
        return weighting_function(self.reg_max, self.up, self.reg_scale)


@replaceable
def integral(corners_logit: Float[Array, "*n e r"], project: Float[Array, " r"]) -> Float[Array, "*n e"]:
    """Expected offset of each edge: softmax over bins times W(n), in at least float32, also where products are not.

    Ten bits of mantissa, as in TF32, would move an edge of a box of 600 px by up to 0.15 px.
    """
    wide = at_least_float32(corners_logit)
    return jnp.matmul(jax.nn.softmax(wide, -1), jnp.asarray(project, wide.dtype), precision=EXACT)


@replaceable
def decode(
    reference_cxcywh: Float[Array, "*#n 4"], offsets: Float[Array, "*#n 4"], reg_scale: float
) -> Float[Array, "... 4"]:
    """Move the four edges of the reference boxes; offsets are (left, top, right, bottom), positive outwards."""
    centre, unit = reference_cxcywh[..., :2], reference_cxcywh[..., 2:] / reg_scale
    low = centre - (0.5 * reg_scale + offsets[..., :2]) * unit
    high = centre + (0.5 * reg_scale + offsets[..., 2:]) * unit
    return jnp.concatenate([0.5 * (low + high), high - low], -1)


def encode(
    reference_cxcywh: Float[Array, "*n 4"], boxes_xyxy: Float[Array, "*n 4"], reg_scale: float
) -> Float[Array, "*n 4"]:
    """Edge offsets that would move the reference onto the given boxes; inverse of :func:`decode`."""
    centre = reference_cxcywh[..., :2]
    unit = reference_cxcywh[..., 2:] / reg_scale + 1e-16
    low = (centre - boxes_xyxy[..., :2]) / unit - 0.5 * reg_scale
    high = (boxes_xyxy[..., 2:] - centre) / unit - 0.5 * reg_scale
    return jnp.concatenate([low, high], -1)


def bin_targets(
    offsets: Float[Array, "*n"], project: Float[Array, " r"]
) -> tuple[Int[Array, "*n"], Float[Array, "*n"], Float[Array, "*n"]]:
    """Left bin and the weights of the left and right bin for each offset (reference: translate_gt in dfine_utils.py).

    Below W(0) everything goes to bin 0; at or above W(r-1) everything goes to the last bin (left r-2, right weight 1).
    """
    project = jnp.asarray(project, offsets.dtype)
    last = project.shape[0] - 1
    index = jnp.sum(project <= offsets[..., None], -1) - 1  # [*n]
    below, above = index < 0, index >= last
    left = jnp.clip(index, 0, last - 1)
    to_left = jnp.abs(offsets - project[left])
    to_right = jnp.abs(project[left + 1] - offsets)
    right_weight = to_left / (to_left + to_right)
    right_weight = jnp.where(below, 0.0, jnp.where(above, 1.0, right_weight))
    return left, 1.0 - right_weight, right_weight
