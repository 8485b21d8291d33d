"""DINOv2, a vision transformer (arXiv 2304.07193), whose tokens mostly see only those of their window.

RF-DETR's form of it (package rfdetr 1.11.2, models/backbone/dinov2_with_windowed_attn.py): no register tokens, several
blocks give a map, and blocks whose number, from 0, is that of a tap see the whole picture.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dfine_jax.nn import initializers
from dfine_jax.nn.layers import LayerNorm, called
from dfine_jax.nn.vision_transformer import EPSILON, SMALL, Block, PatchEmbedding
from dfine_jax.ops.resize import resize_bicubic
from dfine_jax.ops.windows import maps_of, windows_of


class Size(NamedTuple):
    """One of the published sizes."""

    width: int
    heads: int
    blocks: int


BACKBONES = {"dinov2-s": Size(384, 6, 12), "dinov2-b": Size(768, 12, 12)}


class WindowedDINOv2(nn.Module):
    """Pictures of any size in steps of ``patch_px * windows`` to one map for each tap, all at the patches' scale."""

    size: Size
    patch_px: int
    windows: int  # per side
    table: int  # side of the grid that positions were learned on
    taps: tuple[int, ...]  # so many blocks before a map; the blocks of these numbers, from 0, see all windows
    drop_path: float = 0.0  # of the last block; of those before it in proportion, the first is never dropped
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], key: Key[Array, ""] | None = None, *, train: bool
    ) -> tuple[Float[Array, "b _ _ d"], ...]:
        """Maps of the taps, normalised.

        Args:
          images: normalised.
          key: decides which blocks are dropped; None: none.
        """
        width, windows = self.size.width, self.windows
        x = PatchEmbedding(width, self.patch_px, self.dtype, name="patch_embeddings")(images)
        batch, height, across, _ = x.shape
        token = self.param("cls_token", SMALL, (1, 1, width), jnp.float32)
        # Of DINOv2's own training; it is part of every file and gets no gradient.
        self.param("mask_token", initializers.zeros, (1, width), jnp.float32)
        positions = self.param("position_embeddings", SMALL, (1, 1 + self.table**2, width), jnp.float32)
        x = windows_of(x, self._of_patches(positions, height, across), token + positions[:, :1], windows)

        norm, taps = LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="layernorm"), []
        again = train and self.remat and not self.is_initializing()
        for i in range(self.size.blocks):
            joined = windows**2 if i in self.taps else 1
            block = Block(self.size.heads, joined, self.dtype, name=f"layer_{i}")
            kept = self._kept(key, i, x.shape[0])
            if i < max(self.taps) or self.is_initializing():
                x = called(block, x, kept, train=train, remat=again)
            if i + 1 in self.taps:
                taps.append(norm(x))
        return maps_of(taps, batch, height, across, windows)

    def _of_patches(self, positions: Array, height: int, across: int) -> Float[Array, "1 h w d"]:
        grid = positions[:, 1:].reshape(1, self.table, self.table, positions.shape[-1])
        return resize_bicubic(grid, height, across)

    def _kept(self, key: Key[Array, ""] | None, block: int, windows: int) -> Float[Array, "2 b 1 1"] | None:
        """What both halves of a block are multiplied by, of each window: 0, or more than 1 to keep the mean."""
        rate = self.drop_path * block / (self.size.blocks - 1)
        if key is None or not rate:
            return None
        kept = jax.random.bernoulli(jax.random.fold_in(key, block), 1 - rate, (2, windows, 1, 1))
        return kept / jnp.float32(1 - rate)
