"""Deformable attention for exported graphs: index arithmetic, one gather of rows, one matrix product.

Written so that every elementwise operation works on whole rows of contiguous values: x and y of all points lie side by
side on the last axis ([.., x of p points, y of p points]), and the four corners of the bilinear weights are joined only
at the end. Coordinates and indices are float32 and int32 whatever the type of the features.

Three forms of the table, which differ in how many neighbours one gather takes: single rows ("row"), a row and its right
neighbour ("pair", table twice as large), the whole 2x2 window ("quad", four times as large).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from converters import onnx_ops as ops
from dfine_jax.models.decoder import DeformableAttention, Source

Form = Literal["row", "pair", "quad"]


def build_table(maps: Sequence[Float[Array, "b _ _ d"]], heads: int, form: Form) -> Float[Array, "b t m c"]:
    """As ``deformable.build_table``; with "pair" and "quad" a row also holds its right and lower neighbours."""
    width = maps[0].shape[-1]
    levels = []
    for x in maps:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = ops.reshape(x, x.shape[1] * x.shape[2], heads, width // heads)
        levels.append(x)
    table = ops.concatenate(levels, 1)
    if form == "row":
        return table
    pair = ops.concatenate([table, _shifted(table, 1)], 3)
    if form == "pair":
        return pair
    below = [_shifted(level, x.shape[2] + 2) for level, x in zip(_levels(pair, maps), maps, strict=True)]
    return ops.concatenate([pair, ops.concatenate(below, 1)], 3)


def _levels(table: Array, maps: Sequence[Array]) -> list[Array]:
    ends = np.cumsum([(x.shape[1] + 2) * (x.shape[2] + 2) for x in maps])
    return [table[:, end - (x.shape[1] + 2) * (x.shape[2] + 2) : end] for end, x in zip(ends, maps, strict=True)]


def _shifted(rows: Array, by: int) -> Array:
    """Row i + by in place of row i; the last rows, which no sample starts at, repeat."""
    return ops.concatenate([rows[:, by:], rows[:, :by]], 1)


def deformable_attention(
    module: DeformableAttention,
    params: Mapping[str, Any],
    form: Form,
    query: Float[Array, "b q d"],
    reference_cxcywh: Float[Array, "b q 4"],
    source: Source,
) -> Float[Array, "b q d"]:
    """As ``DeformableAttention``."""
    heads, points = module.num_heads, sum(module.num_points)
    dtype = query.dtype if module.dtype is None else module.dtype
    float_type = reference_cxcywh.dtype
    # Columns of the offsets come as (head, point, xy); here x of all points, then y.
    order = np.arange(heads * points * 2).reshape(heads, points, 2).transpose(0, 2, 1).reshape(-1)
    permuted = {name: np.asarray(leaf)[..., order] for name, leaf in params["sampling_offsets"].items()}
    offsets = linear(permuted, query, dtype).astype(float_type)
    weights = linear(params["attention_weights"], query, dtype).astype(float_type)
    offsets = ops.reshape(offsets, query.shape[1], heads, 2 * points)
    weights = ops.softmax(ops.reshape(weights, query.shape[1], heads, points))

    index, corner = _corners(source, module.num_points, form, reference_cxcywh, offsets, weights)
    rows = ops.flatten_rows(source.table, source.table.shape[-1])
    first = ops.first_rows(source.table, source.table.shape[1] * heads)
    if first is not None:
        index = ops.add(index, ops.reshape(first, 1, 1, 1))
    gathered = ops.take(rows, index, 0)  # [b, q, m, g, window * c]
    channels = source.table.shape[-1] // {"row": 1, "pair": 2, "quad": 4}[form]
    gathered = ops.reshape(gathered, query.shape[1], heads, 4 * points, channels)
    corner = ops.reshape(corner.astype(source.table.dtype), query.shape[1], heads, 1, 4 * points)
    return ops.reshape(ops.matmul(corner, gathered), query.shape[1], heads * channels)


def linear(params: Mapping[str, Any], x: Array, dtype: Any = None) -> Array:
    """As ``Linear`` with the compute type ``dtype``: a matrix product and a bias with one axis, which runtimes fuse."""
    dtype = dtype or jnp.promote_types(x.dtype, jnp.float32)
    kernel, bias = (jnp.asarray(params[name], dtype) for name in ("kernel", "bias"))
    return ops.add(ops.matmul(x.astype(dtype), kernel), bias)


def _corners(
    source: Source,
    num_points: Sequence[int],
    form: Form,
    reference_cxcywh: Float[Array, "b q 4"],
    offsets: Float[Array, "b q m 2p"],
    weights: Float[Array, "b q m p"],
) -> tuple[Int[Array, "b q m g"], Float[Array, "b q m 4p"]]:
    """Table rows to gather and the weight of every row in them."""
    dtype, heads, points = offsets.dtype, offsets.shape[2], weights.shape[3]
    size = np.concatenate([np.repeat([s[axis] for s in source.sizes], num_points) for axis in (1, 0)])  # [2p]
    share = np.repeat([0.5 / n for n in num_points], num_points)
    size, share = jnp.asarray(size, dtype), jnp.asarray(np.concatenate([share, share]), dtype)
    axis = np.repeat([0, 1], points)[None]  # [1, 2p]
    centre = ops.multiply(ops.take(reference_cxcywh, axis, 2), size)  # [b, q, 1, 2p]
    reach = ops.multiply(ops.take(reference_cxcywh, axis + 2, 2), size * share)
    pixel = ops.add(ops.multiply(offsets, reach), ops.add(centre, jnp.asarray(-0.5, dtype)))
    pixel = ops.minimum(ops.clip(pixel, -1.0, None), size)
    low = ops.minimum(jnp.floor(pixel), size - 1)
    high_weight = pixel - low

    strides, first = _row_numbers(source, num_points, heads)
    x, y = ops.split(ops.multiply(low.astype(jnp.int32), jnp.asarray(strides)), 2)
    index = ops.add(x + y, jnp.asarray(first))
    right, down = heads, jnp.asarray(strides[points:])
    if form == "row":
        below = ops.add(index, down)
        indices = [index, ops.add(index, jnp.int32(right)), below, ops.add(below, jnp.int32(right))]
    else:
        indices = [index, ops.add(index, down)] if form == "pair" else [index]

    right_weight, lower_weight = ops.split(high_weight, 2)
    left_weight, upper_weight = ops.split(1.0 - high_weight, 2)
    upper, lower = weights * upper_weight, weights * lower_weight
    corners = [upper * left_weight, upper * right_weight, lower * left_weight, lower * right_weight]
    if form == "row":
        return ops.concatenate(indices, 3), ops.concatenate(corners, 3)
    # Weights of one gathered row lie side by side: p first, then the corners in it.
    return _interleaved(indices, corners, points)


def _interleaved(indices: list[Array], corners: list[Array], points: int) -> tuple[Array, Array]:
    """Order (gather, point, corner within the gather)."""
    per_gather = len(corners) // len(indices)
    columns = [ops.reshape(w, w.shape[1], w.shape[2], points, 1) for w in corners]
    groups = [columns[i : i + per_gather] for i in range(0, len(columns), per_gather)]
    joined = [ops.reshape(ops.concatenate(g, 4), *g[0].shape[1:3], per_gather * points) for g in groups]
    if len(indices) == 1:
        return indices[0], joined[0]
    return ops.concatenate(indices, 3), ops.concatenate(joined, 3)


def _row_numbers(source: Source, num_points: Sequence[int], heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps [2p] in rows for one pixel to the right and down, and the rows [m, p] of pixel (0, 0)."""
    areas = [(h + 2) * (w + 2) for h, w in source.sizes]
    start = np.repeat(np.cumsum([0, *areas[:-1]]), num_points)
    stride = np.repeat([w + 2 for _, w in source.sizes], num_points)
    strides = np.concatenate([np.ones_like(stride), stride]) * heads
    first = (start + stride + 1) * heads + np.arange(heads)[:, None]  # inside the border
    return strides.astype(np.int32), first.astype(np.int32)
