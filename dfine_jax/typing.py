"""The values that travel through the library, one type per arrow of the data's path.

Axis letters, one meaning each: ``b`` batch, ``h w`` grid, ``c`` channels, ``d`` width, ``n`` tokens, ``q`` matching
queries, ``u`` denoising queries, ``g`` padded ground-truth slots, ``k`` classes, ``l`` levels, ``m`` heads,
``p`` points, ``s`` decoder layers ("stages"), ``r`` distribution bins (reg_max + 1), ``e`` the four edges
(left, top, right, bottom).

Units: ``*_cxcywh`` and ``*_xyxy`` are fractions of the image, pixels end in ``_px``, values before a sigmoid or softmax
end in ``_logit`` (``logits`` alone is the class logits).
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from dfine_jax.ops.boxes import AnyArray
from dfine_jax.ops.postprocess import Answer

P = TypeVar("P")


@flax.struct.dataclass
class Targets:
    """Ground truth of a batch, padded to ``g`` slots; slots where ``valid`` is False hold zeros.

    Masks are there for families that train them (``Family.mask_stride``). A mask counts quarters of each cell, so that
    ``masks / 4`` is what bilinear resizing to this size makes of it. An object whose ``has_mask`` is False was
    annotated without one; its mask holds zeros, as one of which nothing is left in view does.
    """

    labels: Int[Array, "b g"]
    boxes_cxcywh: Float[Array, "b g 4"]
    valid: Bool[Array, "b g"]
    masks: UInt8[Array, "b g h w"] | None = None  # 0 to 4
    has_mask: Bool[Array, "b g"] | None = None


@flax.struct.dataclass
class DenoisingQueries:
    """Noised copies of the ground truth, prepended to the matching queries (nn/denoising.py).

    ``exists`` is the same for every image of the batch: a slot that exists nowhere is invisible to attention and to
    losses; a padding slot inside a group exists, has label ``num_classes`` and a zero box, and behaves as in the
    reference.
    """

    labels: Int[Array, "b u"]  # noised class; num_classes = padding
    boxes_logit: Float[Array, "b u 4"]  # noised cxcywh before the sigmoid
    group: Int[Array, " u"]  # which group a slot belongs to
    exists: Bool[Array, " u"]
    match: Int[Array, "b u"]  # ground-truth slot of positive queries, -1 elsewhere
    num_groups: Int[Array, ""]

    def in_parts(self, parts: int) -> DenoisingQueries:
        """Those of consecutive parts of the images: all arrays [parts, ...]."""
        rows = {name: getattr(self, name) for name in ("labels", "boxes_logit", "match")}
        common = {name: getattr(self, name) for name in ("group", "exists", "num_groups")}
        return DenoisingQueries(
            **{name: x.reshape(parts, -1, *x.shape[1:]) for name, x in rows.items()},
            **{name: jnp.broadcast_to(x, (parts, *x.shape)) for name, x in common.items()},
        )


@flax.struct.dataclass
class HeadOutput:
    """Class logits and boxes of one prediction head; arrays may carry a leading ``s`` axis."""

    logits: Float[Array, "*s b q k"]
    boxes_cxcywh: Float[Array, "*s b q 4"]


@flax.struct.dataclass
class FDROutput:
    """What losses need of a head that refines edge distributions, beside the logits and boxes of the layers."""

    corners_logit: Float[Array, "s b q e r"]  # refined edge distributions
    reference_cxcywh: Float[Array, "b q 4"]  # R0: the box every layer decodes from, no gradient
    pre: HeadOutput  # the box head before the first refinement

    def of_queries(self, part: slice) -> FDROutput:
        """The same for a part of the queries."""
        pre = HeadOutput(self.pre.logits[:, part], self.pre.boxes_cxcywh[:, part])
        return FDROutput(self.corners_logit[:, :, part], self.reference_cxcywh[:, part], pre)


@flax.struct.dataclass
class StageOutput:
    """Outputs of all decoder layers for one set of queries (matching or denoising), stacked over ``s``."""

    logits: Float[Array, "s b q k"]
    boxes_cxcywh: Float[Array, "s b q 4"]
    fdr: FDROutput | None = None  # of decoders that refine edge distributions
    mask_embedding: Float[Array, "s b q d"] | None = None  # of decoders that segment; times ``pixels``: logits

    def of_queries(self, part: slice) -> StageOutput:
        """The same for a part of the queries."""
        fdr = self.fdr and self.fdr.of_queries(part)
        masks = None if self.mask_embedding is None else self.mask_embedding[:, :, part]
        return StageOutput(self.logits[:, :, part], self.boxes_cxcywh[:, :, part], fdr, masks)


@flax.struct.dataclass
class TrainingOutput:
    """What only losses need. ``denoising`` is None when the model ran without denoising queries."""

    matching: StageOutput
    encoder: HeadOutput  # top-k encoder proposals
    denoising: StageOutput | None
    pixels: Float[Array, "b h w d"] | None = None  # embeddings of pixels, of decoders that segment


@flax.struct.dataclass
class ModelOutput:
    """Result of a network."""

    answer: Answer  # of the evaluated (training: last) layer
    topk_index: Int[Array, "b q"] | None = None  # encoder tokens that became queries, where they come from tokens
    training: Any = None  # what only the losses of the family need

    @property
    def logits(self) -> Float[AnyArray, "b q k"]:
        """Class logits of the answer."""
        return self.answer.logits

    @property
    def boxes_cxcywh(self) -> Float[AnyArray, "b q 4"]:
        """Boxes of the answer."""
        return self.answer.boxes_cxcywh

    @property
    def masks_logit(self) -> Float[AnyArray, "b q h w"] | None:
        """Masks of the answer, of networks that segment; they are made at inference only."""
        return self.answer.masks_logit


class Matching(NamedTuple, Generic[P]):
    """Which prediction is responsible for which object."""

    pairs: P
    counts: Float[Array, " n"]  # what the terms are divided by, of these images; a family gives each a meaning


class Norm(NamedTuple):
    """Counts of a whole batch, as means over the parts it is computed in; not yet limited from below."""

    over_devices: Float[Array, " n"]  # mean over devices too
    here: Float[Array, " n"]  # of this device alone
