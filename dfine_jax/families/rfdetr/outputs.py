"""What travels between the network and its losses."""

from __future__ import annotations

import flax.struct
import jax
from jaxtyping import Array, Float, Key

from dfine_jax.typing import HeadOutput, StageOutput


@flax.struct.dataclass
class GroupedOutput:
    """Training part of ``typing.ModelOutput``. Queries of group i are rows i * num_queries and the following.

    Logits have all rows of the class head (``RFDetrConfig.num_logits``). The mask of a query at a pixel is the product
    of their embeddings plus ``mask_bias``.
    """

    stages: StageOutput  # decoder layers; mask_embedding [s, b, groups * q, d]
    encoder: HeadOutput  # proposals
    encoder_mask_embedding: Float[Array, "b q d"] | None = None
    pixels: Float[Array, "s b h w d"] | None = None  # of each decoder layer, at the end those of the proposals
    mask_bias: Float[Array, ""] | None = None


@flax.struct.dataclass
class Draws:
    """What is random in a step: which blocks are dropped, and the points that masks are compared at.

    It stands where other families have additional queries (``Family.queries``).
    """

    key: Key[Array, "..."]

    def in_parts(self, parts: int) -> Draws:
        """Keys of consecutive parts of the images."""
        return Draws(jax.random.split(self.key, parts))

    def for_points(self) -> Key[Array, "..."]:
        """The key of the points alone."""
        return jax.random.fold_in(self.key, 1)
