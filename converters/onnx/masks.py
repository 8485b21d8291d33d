"""Masks in exported graphs: one matrix product, of no more embeddings than masks are asked for."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float, Int

from dfine_jax.converters.onnx import ops


class MaskFactors(NamedTuple):
    """Masks whose product is not made yet (``ops.masks.masks_logit``)."""

    embedding: Float[Array, "b n d"]
    pixels: Float[Array, "b d h w"]
    offset: Float[Array, "b n 1"] | None = None  # added to every pixel of a mask

    def logits(self) -> Float[Array, "b n h w"]:
        """The product, in the type of the factors."""
        depth, height, width = self.pixels.shape[1:]
        product = ops.matmul(self.embedding, ops.reshape(self.pixels, depth, height * width))
        if self.offset is not None:
            product = ops.add(product, self.offset.astype(product.dtype))
        return ops.reshape(product, self.embedding.shape[1], height, width)

    def logits_of(self, query: Int[Array, "b k"]) -> Float[Array, "b k h w"]:
        """Masks of some queries, which may appear several times."""
        if query.shape[1] > self.embedding.shape[1]:  # copies of a mask cost less than its product again
            return ops.gather_rows(self.logits(), query)
        offset = None if self.offset is None else ops.gather_rows(self.offset, query)
        return self._replace(embedding=ops.gather_rows(self.embedding, query), offset=offset).logits()

    def cut(self, top: int, left: int, height: int, width: int) -> MaskFactors:
        """Masks of a part of the map."""
        return self._replace(pixels=self.pixels[:, :, top : top + height, left : left + width])
