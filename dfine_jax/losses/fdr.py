"""Terms that train edge distributions, for any decoder that refines its boxes by them (nn/fdr_head.py).

The other parts of the method are ``losses.matcher.union_match``, whose pairs train boxes and distributions of all
layers, and the plain terms of boxes for ``FDROutput.pre``.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dfine_jax.losses.terms import Truth, ddf_loss, ddf_sides, fgl_loss
from dfine_jax.ops.fdr import EdgeBins
from dfine_jax.typing import FDROutput

Sides = tuple[Float[Array, ""], Float[Array, ""]]


def fdr_terms(
    logits: Float[Array, "s b q k"],
    boxes_cxcywh: Float[Array, "s b q 4"],
    output: FDROutput,
    truth: Truth,
    normalizer: Float[Array, ""] | float,
    bins: EdgeBins,
    *,
    distil: bool = True,
    temperature: float = 5.0,
    sides: Sides | None = None,
    num_matched: Float[Array, ""] | None = None,
    exists: Bool[Array, " q"] | None = None,
) -> dict[str, Float[Array, " _"]]:
    """``fgl`` of every decoder layer and ``ddf`` of every layer but the last, which is the teacher; not weighted.

    Args:
      logits: class logits; those of the last layer weigh queries without an object in ``ddf``.
      truth: one for all layers, of the union of their assignments; without ``distil`` also one of each layer.
      normalizer: of ``fgl``, the number of pairs; ``ddf`` is a mean.
      bins: those of the head.
      distil: False: ``fgl`` alone.
      sides, num_matched: see ``ddf_sides`` and ``ddf_loss``; None: those of ``truth``.
      exists: queries that take part; None means all.
    """
    corners, project = output.corners_logit, jnp.asarray(bins.positions())
    fgl = fgl_loss(corners, boxes_cxcywh, output.reference_cxcywh, truth, project, bins.reg_scale, normalizer)
    if not distil:
        return {"fgl": fgl}
    ddf = ddf_loss(
        corners[:-1],
        boxes_cxcywh[:-1],
        corners[-1],
        logits[-1],
        truth,
        ddf_sides(truth.matched) if sides is None else sides,
        temperature,
        exists,
        num_matched,
    )
    return {"fgl": fgl, "ddf": ddf}
