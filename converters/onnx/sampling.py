"""Deformable attention for exported graphs: index arithmetic, one gather of rows, one matrix product.

Written so that every elementwise operation works on whole rows of contiguous values: x and y of all points lie side by
side on the last axis ([.., x of p points, y of p points]), and the four corners of the bilinear weights are joined only
at the end. Coordinates and indices are float32 and int32 whatever the type of the features.

A table that all layers share has a border of zeros, and a row of it holds a pixel and its right neighbour, so that two
rows make the window of a sample. Single pixels cost OpenVINO more gathers (N 2 to 5 % slower as a whole), whole windows
a table that S is slower with in ONNX Runtime. Where every layer has values of its own, their rows are gathered as the
projection leaves them, single pixels without a border: making a table costs more than the gathers that it saves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dfine_jax.converters.onnx import ops
from dfine_jax.nn.deformable import DeformableAttention, Source


def build_table(maps: Sequence[Float[Array, "b _ _ d"]], heads: int) -> Float[Array, "b t m _"]:
    """As ``deformable.build_table``, with the right neighbour beside every row."""
    width = maps[0].shape[-1]
    levels = []
    for x in maps:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        levels.append(ops.reshape(x, x.shape[1] * x.shape[2], heads, width // heads))
    table = ops.concatenate(levels, 1)
    # The last row's neighbour is the first one: no sample starts at either.
    return ops.concatenate([table, ops.concatenate([table[:, 1:], table[:, :1]], 1)], 3)


def deformable_attention(
    module: DeformableAttention,
    params: Mapping[str, Any],
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

    pairs = not module.project_values
    if module.project_values:
        tokens = [ops.reshape(x, x.shape[1] * x.shape[2], x.shape[3]) for x in source.maps]
        values = linear(params["value_proj"], ops.concatenate(tokens, 1), module.dtype)
        table = ops.reshape(values, values.shape[1], heads, values.shape[2] // heads)
    else:
        table = source.table
        assert table is not None
    if module.discrete:
        index, corner = _pixels(source, module.num_points, reference_cxcywh, offsets, weights, pairs)
    else:
        corners = _corners_in_pairs if pairs else _corners
        index, corner = corners(source, module.num_points, reference_cxcywh, offsets, weights)
    rows = ops.flatten_rows(table, table.shape[-1])
    first = ops.first_rows(table, table.shape[1] * heads)
    if first is not None:
        index = ops.add(index, ops.reshape(first, 1, 1, 1))
    gathered = ops.take(rows, index, 0)  # [b, q, m, r, c], of pairs 2c
    channels, values = table.shape[-1] // (1 + pairs), (1 + pairs) * index.shape[-1]
    gathered = ops.reshape(gathered, query.shape[1], heads, values, channels)
    corner = ops.reshape(corner.astype(table.dtype), query.shape[1], heads, 1, values)
    x = ops.reshape(ops.matmul(corner, gathered), query.shape[1], heads * channels)
    return linear(params["output_proj"], x, module.dtype) if module.project_output else x


def linear(params: Mapping[str, Any], x: Array, dtype: Any = None) -> Array:
    """As ``Linear`` with the compute type ``dtype``: a matrix product and a bias with one axis, which runtimes fuse."""
    dtype = dtype or jnp.promote_types(x.dtype, jnp.float32)
    kernel, bias = (np.asarray(params[name]).astype(dtype) for name in ("kernel", "bias"))
    return ops.add(ops.matmul(x.astype(dtype), kernel), bias)


def _corners_in_pairs(
    source: Source,
    num_points: Sequence[int],
    reference_cxcywh: Float[Array, "b q 4"],
    offsets: Float[Array, "b q m _"],
    weights: Float[Array, "b q m p"],
) -> tuple[Int[Array, "b q m _"], Float[Array, "b q m _ 2"]]:
    """Table rows to gather (upper, lower) and the weights of both pixels in each."""
    size = _sizes(source, num_points, offsets.dtype)
    heads, points = offsets.shape[2], weights.shape[3]
    pixel = _positions(size, num_points, reference_cxcywh, offsets, shift=-0.5)
    pixel = ops.minimum(ops.clip(pixel, -1.0, None), size)
    low = ops.minimum(jnp.floor(pixel), size - 1)
    high_weight = pixel - low

    strides, index = _rows(source, num_points, heads, low, border=1)
    indices = [index, ops.add(index, jnp.asarray(strides[points:]))]

    def column(x: Array) -> Array:
        return ops.reshape(x, x.shape[1], heads, points, 1)

    right, lower = ops.split(high_weight, 2)
    left, upper = ops.split(1.0 - high_weight, 2)
    horizontal = ops.concatenate([column(left), column(right)], 4)
    rows = [column(weights * vertical) * horizontal for vertical in (upper, lower)]
    return ops.concatenate(indices, 3), ops.concatenate(rows, 3)


def _corners(
    source: Source,
    num_points: Sequence[int],
    reference_cxcywh: Float[Array, "b q 4"],
    offsets: Float[Array, "b q m _"],
    weights: Float[Array, "b q m p"],
) -> tuple[Int[Array, "b q m _"], Float[Array, "b q m _"]]:
    """Rows to gather of a table without border, and their weights, corner by corner.

    The two cells of an axis always lie inside the map, and one weighs what 1 less its distance leaves: nothing, where
    the sample's own cell is outside.
    """
    size = _sizes(source, num_points, offsets.dtype)
    pixel = _positions(size, num_points, reference_cxcywh, offsets, shift=-0.5)
    low = ops.minimum(ops.clip(jnp.floor(pixel), 0.0, None), np.maximum(size - 2, 0))
    past = pixel - low
    # A map of one cell has no second one: far away it weighs nothing.
    second = np.where(size > 1, 1, 1 << 20).astype(size.dtype)
    near, far = (ops.relu(1.0 - jnp.abs(x)) for x in (past, ops.add(past, -second)))

    strides, index = _rows(source, num_points, offsets.shape[2], low, border=0)
    right, down = np.split(np.where(size > 1, strides, 0).astype(np.int32), 2)
    below = ops.add(index, down)
    indices = [index, below, ops.add(index, right), ops.add(below, right)]
    (left_weight, upper), (right_weight, lower) = ops.split(near, 2), ops.split(far, 2)
    rows = [weights * upper, weights * lower]
    corners = [row * side for side in (left_weight, right_weight) for row in rows]
    return ops.concatenate(indices, 3), ops.concatenate(corners, 3)


def _pixels(
    source: Source,
    num_points: Sequence[int],
    reference_cxcywh: Float[Array, "b q 4"],
    offsets: Float[Array, "b q m _"],
    weights: Float[Array, "b q m p"],
    pairs: bool,
) -> tuple[Int[Array, "b q m p"], Float[Array, "b q m ..."]]:
    """Rows of single pixels and their weights; in pairs, their right neighbours weigh nothing."""
    size = _sizes(source, num_points, offsets.dtype)
    heads, points = offsets.shape[2], weights.shape[3]
    pixel = ops.clip(jnp.floor(_positions(size, num_points, reference_cxcywh, offsets, shift=0.5)), 0.0, None)
    _, index = _rows(source, num_points, heads, ops.minimum(pixel, size - 1), border=int(pairs))
    if not pairs:
        return index, weights
    column = ops.reshape(weights, weights.shape[1], heads, points, 1)
    return index, ops.multiply(column, jnp.asarray([1.0, 0.0], weights.dtype))


def _sizes(source: Source, num_points: Sequence[int], dtype: Any) -> Float[np.ndarray, " 2*p"]:
    """Width of the level of every point, then height."""
    return np.concatenate([np.repeat([s[axis] for s in source.sizes], num_points) for axis in (1, 0)]).astype(dtype)


def _positions(
    size: Float[np.ndarray, " 2*p"],
    num_points: Sequence[int],
    reference_cxcywh: Float[Array, "b q 4"],
    offsets: Float[Array, "b q m _"],
    shift: float,
) -> Float[Array, "b q m _"]:
    """x of all points, then y, in pixels of their levels plus ``shift``."""
    dtype = offsets.dtype
    share = np.repeat([0.5 / n for n in num_points], num_points)
    share = jnp.asarray(np.concatenate([share, share]), dtype)
    axis = np.repeat([0, 1], sum(num_points))[None]  # [1, 2p]
    centre = ops.multiply(ops.take(reference_cxcywh, axis, 2), size)  # [b, q, 1, 2p]
    reach = ops.multiply(ops.take(reference_cxcywh, axis + 2, 2), size * share)
    return ops.add(ops.multiply(offsets, reach), ops.add(centre, jnp.asarray(shift, dtype)))


def _rows(
    source: Source, num_points: Sequence[int], heads: int, pixel: Float[Array, "b q m _"], border: int
) -> tuple[np.ndarray, Int[Array, "b q m p"]]:
    """Steps in rows for one pixel to the right and down, and the row of each pixel."""
    strides, first = _row_numbers(source, num_points, heads, border)
    x, y = ops.split(ops.multiply(pixel.astype(jnp.int32), jnp.asarray(strides)), 2)
    return strides, ops.add(x + y, jnp.asarray(first))


def _row_numbers(source: Source, num_points: Sequence[int], heads: int, border: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps [2p] in rows for one pixel to the right and down, and the rows [m, p] of pixel (0, 0)."""
    areas = [(h + 2 * border) * (w + 2 * border) for h, w in source.sizes]
    start = np.repeat(np.cumsum([0, *areas[:-1]]), num_points)
    stride = np.repeat([w + 2 * border for _, w in source.sizes], num_points)
    strides = np.concatenate([np.ones_like(stride), stride]) * heads
    first = (start + border * (stride + 1)) * heads + np.arange(heads)[:, None]
    return strides.astype(np.int32), first.astype(np.int32)
