"""Deformable attention of queries with reference boxes (arXiv 2010.04159)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dfine_jax.nn import initializers
from dfine_jax.nn.layers import Linear
from dfine_jax.ops import deformable


class Source(NamedTuple):
    """What decoder layers sample from, finest level first.

    Attributes:
      sizes: height and width of the levels.
      table: of ``deformable.build_table``, where all layers sample the same values.
      maps: the levels, where every layer projects values of its own.
    """

    sizes: tuple[tuple[int, int], ...]
    table: Float[Array, "b t m c"] | None = None
    maps: tuple[Float[Array, "b _ _ d"], ...] = ()


def shared_values(maps: Sequence[Float[Array, "b _ _ d"]], num_heads: int) -> Source:
    """The maps themselves, sampled by all layers."""
    return Source(_sizes(maps), table=deformable.build_table(maps, num_heads))


def own_values(maps: Sequence[Float[Array, "b _ _ d"]]) -> Source:
    """The maps, of which every layer projects values of its own."""
    return Source(_sizes(maps), maps=tuple(maps))


def _sizes(maps: Sequence[Array]) -> tuple[tuple[int, int], ...]:
    return tuple((x.shape[1], x.shape[2]) for x in maps)


class DeformableAttention(nn.Module):
    """Samples around reference boxes, at offsets in units of half a box side over the level's number of points.

    ``project_values`` and ``project_output`` are linear layers before and behind the sampling. ``discrete`` takes the
    pixel at each point instead of interpolating; its offsets get no gradient.
    """

    num_heads: int
    num_points: tuple[int, ...]
    project_values: bool = False
    project_output: bool = False
    discrete: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "b n d"],
        reference_cxcywh: Float[Array, "b n 4"],
        source: Source,
        *,
        train: bool = False,
    ) -> Float[Array, "b n d"]:
        shape = (*query.shape[:2], self.num_heads, sum(self.num_points))
        zeros, xavier = initializers.zeros, initializers.xavier_uniform
        offset_bias = initializers.sampling_offsets_bias(self.num_heads, self.num_points)
        heads_points = self.num_heads * sum(self.num_points)
        offsets = Linear(2 * heads_points, zeros, offset_bias, self.dtype, name="sampling_offsets")(query)
        weights = Linear(heads_points, zeros, zeros, self.dtype, name="attention_weights")(query)
        offsets = offsets.astype(reference_cxcywh.dtype).reshape(*shape, 2)
        weights = jax.nn.softmax(weights.astype(reference_cxcywh.dtype).reshape(shape), -1)

        share = np.repeat([0.5 / n for n in self.num_points], self.num_points)[:, None]  # [p, 1], of the box's size
        reference = reference_cxcywh[:, :, None, None, :]
        points_xy = reference[..., :2] + offsets * jnp.asarray(share, offsets.dtype) * reference[..., 2:]
        table = source.table
        if self.project_values:
            value = Linear(query.shape[-1], xavier, zeros, self.dtype, name="value_proj")
            table = deformable.build_table([value(x) for x in source.maps], self.num_heads)
        assert table is not None
        sample = deformable.sample_pixels if self.discrete else deformable.sample
        x = sample(table, source.sizes, self.num_points, points_xy, weights, train=train)
        if self.project_output:
            x = Linear(query.shape[-1], xavier, zeros, self.dtype, name="output_proj")(x)
        return x
