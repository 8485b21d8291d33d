"""The box head of fine-grained distribution refinement, FDR (arXiv 2410.13842, section 4.1), for decoders of any DETR.

The first decoder layer predicts plain boxes. From then on every layer adds to the logits of one distribution per edge
and query, whose means move the edges of those first boxes. The decoder keeps its own layers and class heads; the head
takes the place of its box update::

    head = FDRHead()
    for i, layer in enumerate(layers):
        hidden = layer(hidden, reference_cxcywh)
        if i == 0:
            pre_boxes, state = head.init(hidden, reference_cxcywh)  # trained like any boxes, not refined
        boxes, corners_logit, reference_cxcywh, state = head.step(state, hidden)
        logits = head.scored(class_head(hidden), state)

A loop over layers whose boxes come from one set of heads and go into the next layer ("look forward twice") must let
that be: the sum of logits already carries the gradient of later layers to earlier ones.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from dfine_jax.nn.layers import MLP, ActivationName
from dfine_jax.ops import fdr
from dfine_jax.ops.boxes import inverse_sigmoid
from dfine_jax.ops.precision import at_least_float32

TOP_BINS = 4  # probabilities per edge that tell how sharp a distribution is
QUALITY_WIDTH = 64


def sharpness(corners_logit: Float[Array, "b n e r"]) -> Float[Array, "b n f"]:
    """The four largest probabilities of every edge, descending, and their mean, edge by edge."""
    top, _ = jax.lax.top_k(jax.nn.softmax(at_least_float32(corners_logit), -1), TOP_BINS)
    stacked = jnp.concatenate([top, top.mean(-1, keepdims=True)], -1)
    return stacked.reshape(*stacked.shape[:2], -1)


class LocationQuality(nn.Module):
    """One number per query, added to its class logits, from the sharpness of its edge distributions."""

    activation: ActivationName

    @nn.compact
    def __call__(self, corners_logit: Float[Array, "b n e r"]) -> Float[Array, "b n 1"]:
        mlp = MLP(QUALITY_WIDTH, 1, 2, self.activation, zero_last=True, name="reg_conf")
        return at_least_float32(mlp(sharpness(corners_logit)))


@flax.struct.dataclass
class FDRState:
    """What goes from layer to layer. Every array has the axis of queries second: a tree map chooses among them."""

    initial_cxcywh: Float[Array, "b n 4"]  # R0: the box that all layers move, no gradient
    corners_logit: Float[Array, "b n e r"] | None = None  # sum over the layers so far
    hidden: Float[Array, "b n d"] | None = None  # of the layer before, no gradient
    layers: int = flax.struct.field(pytree_node=False, default=0)  # so many have been


class Refinement(NamedTuple):
    """Result of one layer."""

    boxes_cxcywh: Float[Array, "b n 4"]
    corners_logit: Float[Array, "b n e r"]
    reference_cxcywh: Float[Array, "b n 4"]  # the boxes without gradient, where the next layer looks
    state: FDRState


@dataclasses.dataclass(frozen=True)
class FDRHead:
    """Boxes of all decoder layers, made of parameters of the ``nn.compact`` module whose ``__call__`` uses it.

    These are ``pre_bbox_head``, ``dec_bbox_head_i`` and ``lqe_layers_i``, one of each for a layer. Their last layers
    start at zero, so a fresh head repeats the reference boxes. They compute in at least float32 whatever the compute
    type of the decoder: eight bits of mantissa are pixels at the edge of a large box.
    """

    bins: fdr.EdgeBins = fdr.EdgeBins()
    activation: ActivationName = "relu"  # of the box heads
    quality: ActivationName | None = "relu"  # of the heads that correct class logits by sharpness; None: no such heads

    def init(
        self, hidden: Float[Array, "b n d"], reference_cxcywh: Float[Array, "b n 4"]
    ) -> tuple[Float[Array, "b n 4"], FDRState]:
        """Plain boxes from the first layer, and what ``step`` starts from.

        Args:
          hidden: output of the first layer, behind its last normalisation.
          reference_cxcywh: where that layer looked. Of a decoder that starts from points: their x and y, and 0.5 for
            width and height, whose inverse sigmoid is zero.
        """
        shift = at_least_float32(self._box_head("pre_bbox_head", hidden, 4))
        boxes = jax.nn.sigmoid(shift + inverse_sigmoid(reference_cxcywh))
        return boxes, FDRState(stop_gradient(boxes))

    def step(self, state: FDRState, hidden: Float[Array, "b n d"]) -> Refinement:
        """Boxes of the next layer.

        Args:
          state: of ``init`` for the first layer, whose ``hidden`` is given again, and of the layer before for others.
          hidden: output of this layer, behind its last normalisation.
        """
        summed = hidden if state.hidden is None else hidden + state.hidden
        corners = self._box_head(f"dec_bbox_head_{state.layers}", summed, 4 * self.bins.count)
        corners = at_least_float32(corners).reshape(*corners.shape[:2], 4, self.bins.count)
        corners = corners if state.corners_logit is None else state.corners_logit + corners
        offsets = fdr.integral(corners, jnp.asarray(self.bins.positions()))
        boxes = fdr.decode(state.initial_cxcywh, offsets, self.bins.reg_scale)
        after = FDRState(state.initial_cxcywh, corners, stop_gradient(hidden), state.layers + 1)
        return Refinement(boxes, corners, stop_gradient(boxes), after)

    def scored(self, logits: Float[Array, "b n k"], state: FDRState) -> Float[Array, "b n k"]:
        """Class logits of the layer that ``state`` comes from, corrected by the sharpness of its distributions."""
        if self.quality is None or state.corners_logit is None:
            return logits
        return logits + LocationQuality(self.quality, name=f"lqe_layers_{state.layers - 1}")(state.corners_logit)

    def _box_head(self, name: str, x: Float[Array, "b n d"], out: int) -> Float[Array, "b n o"]:
        return MLP(x.shape[-1], out, 3, self.activation, zero_last=True, name=name)(x)
