"""Terms and costs of masks at random points instead of whole maps (PointRend, arXiv 1912.08193; RF-DETR).

Points are (x, y) as fractions of the picture, so that predictions and truth may be of different sizes. A mask's logit
at a pixel is linear in the query's embedding. Costs need no map at all: pixels are sampled first and multiplied with
all queries then. Terms need the maps of queries with an object: these are made for a few slots of objects at a time,
and again in the backward pass; slots that no image of the batch fills cost nothing. Truth is a count of quarters
(``Targets.masks``), an object where it is more than two. Objects without a mask take no part; everything is computed
in at least float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from dfine_jax.losses.masks import annotated
from dfine_jax.ops.masks import masks_logit
from dfine_jax.ops.precision import at_least_float32
from dfine_jax.ops.recompute import image_by_image
from dfine_jax.typing import Targets

_HALF = 2  # of the quarters
_SLOTS = 8  # whose maps are there at one time, in all groups and images
_COSTS, _TERMS = 0, 1  # streams of random points


class Sampling(NamedTuple):
    """How many points."""

    ratio: int  # cells of a map per point
    oversample: float  # so many times the points are drawn
    importance: float  # share of the points that are the most uncertain of those

    def of_costs(self, height: int, width: int) -> int:
        """Points that all queries are compared at."""
        return height * width // self.ratio

    def of_terms(self, height: int, width: int) -> tuple[int, int, int]:
        """Points to choose from, how many of them are chosen, and further ones."""
        points = max(height, self.of_costs(height, width))
        chosen = int(self.importance * points)
        return int(points * self.oversample), chosen, points - chosen


class PointSource(Protocol):
    """Where points come from; outputs (decoder layers, then proposals) and slots are numbers, also traced ones."""

    def of_costs(self, output: Int[Array, ""], count: int, dtype: Any) -> Float[Array, "n 2"]:
        """Those that all queries of all images are compared at."""
        ...

    def of_terms(
        self, output: Int[Array, ""], slots: Int[Array, " p"], lead: tuple[int, ...], count: int, dtype: Any
    ) -> Float[Array, "... p n 2"]:
        """Those of each object in ``slots``, of ``lead``, the images and groups: [*lead, p, count, 2]."""
        ...


@flax.struct.dataclass
class RandomPoints:
    """Uniform ones."""

    key: Key[Array, ""]

    def of_costs(self, output: Int[Array, ""], count: int, dtype: Any) -> Float[Array, "n 2"]:
        """As ``PointSource``."""
        return jax.random.uniform(self._stream(_COSTS, output), (count, 2), dtype)

    def of_terms(
        self, output: Int[Array, ""], slots: Int[Array, " p"], lead: tuple[int, ...], count: int, dtype: Any
    ) -> Float[Array, "... p n 2"]:
        """As ``PointSource``."""
        key = jax.random.fold_in(self._stream(_TERMS, output), slots[0])
        return jax.random.uniform(key, (*lead, slots.shape[0], count, 2), dtype)

    def _stream(self, purpose: int, output: Int[Array, ""]) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.fold_in(self.key, purpose), output)


class Segments(NamedTuple):
    """What masks are made of, for all outputs: products of embeddings, plus a number."""

    embedding: Float[Array, "s b q d"]
    pixels: Float[Array, "s b h w d"]
    bias: Float[Array, ""]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the maps."""
        return self.pixels.shape[2], self.pixels.shape[3]


class GroupPairs(NamedTuple):
    """The query of each slot in each group; where none exists it means nothing."""

    query: Int[Array, "s b n p"]  # among the queries of all groups
    exists: Bool[Array, "s b n p"]


def pairs_of_groups(match: Int[Array, "s b q"], targets: Targets, groups: int) -> GroupPairs:
    """Pairs with a mask of matches that are one-to-one in each of consecutive groups of queries."""
    per_group = match.shape[-1] // groups
    is_its = match.reshape(*match.shape[:-1], groups, per_group)[..., None] == jnp.arange(targets.valid.shape[-1])
    query = jnp.argmax(is_its, -2) + per_group * jnp.arange(groups)[:, None]
    return GroupPairs(query, jnp.any(is_its, -2) & annotated(targets)[1][:, None])


def bilinear(maps: Float[Array, "*n h w"], points_xy: Float[Array, "*n p 2"]) -> Float[Array, "*n p"]:
    """Values at points between the centres of cells; beyond the outermost centres those of the border."""
    index, weight = _corners(points_xy, *maps.shape[-2:])
    flat = maps.reshape(*maps.shape[:-2], -1)
    values = jnp.take_along_axis(flat, index.reshape(*index.shape[:-2], -1), -1, mode="promise_in_bounds")
    return jnp.sum(values.reshape(index.shape) * weight, -1)


def bilinear_rows(cells: Float[Array, "h w d"], points_xy: Float[Array, "p 2"]) -> Float[Array, "p d"]:
    """As :func:`bilinear`, of a map of embeddings."""
    index, weight = _corners(points_xy, *cells.shape[:2])
    rows = cells.reshape(-1, cells.shape[-1]).at[index].get(mode="promise_in_bounds")  # [p, 4, d]
    return jnp.sum(at_least_float32(rows) * weight[..., None], -2)


def nearest_cell(points_xy: Float[Array, "*n p 2"], height: int, width: int) -> Int[Array, "*n p"]:
    """Number, line by line, of the cell whose centre is nearest; of two the one with the even index."""
    cell = jnp.round(_cells(points_xy, height, width)).astype(jnp.int32)
    return cell[..., 1] * width + cell[..., 0]


def uncertain_points(
    maps: Float[Array, "*n h w"], points_xy: Float[Array, "*n p 2"], sampling: Sampling
) -> Float[Array, "*n _ 2"]:
    """Of the points to choose from, those whose logit is nearest to zero, and behind them the further ones."""
    candidates, chosen, _ = sampling.of_terms(*maps.shape[-2:])
    first = points_xy[..., :candidates, :]
    certainty = jnp.abs(bilinear(lax.stop_gradient(maps), first))
    _, index = lax.top_k(-certainty, chosen)
    return jnp.concatenate([jnp.take_along_axis(first, index[..., None], -2), points_xy[..., candidates:, :]], -2)


def point_costs(
    logits: Float[Array, "q p"], truth: Bool[Array, "g p"]
) -> tuple[Float[Array, "q g"], Float[Array, "q g"]]:
    """Cross-entropy (mean over the points) and dice of all pairs."""
    logits = at_least_float32(logits)
    inside = truth.astype(logits.dtype).T
    entropy = (jax.nn.softplus(logits).sum(-1, keepdims=True) - logits @ inside) / logits.shape[-1]
    p = jax.nn.sigmoid(logits)
    return entropy, _dice(p @ inside, p.sum(-1, keepdims=True) + inside.sum(0))


def point_losses(
    logits: Float[Array, "*n p"], truth: Bool[Array, "*n p"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Cross-entropy (mean over the points) and dice of each pair."""
    logits = at_least_float32(logits)
    inside = truth.astype(logits.dtype)
    p = jax.nn.sigmoid(logits)
    entropy = jnp.mean(jax.nn.softplus(logits) - logits * inside, -1)
    return entropy, _dice(jnp.sum(p * inside, -1), jnp.sum(p, -1) + jnp.sum(inside, -1))


def point_cost(
    segments: Segments, targets: Targets, source: PointSource, sampling: Sampling, weights: tuple[float, float]
) -> Float[Array, "s b q g"]:
    """Weighted cross-entropy and dice of every query with every object; 0 for objects without a mask.

    One output after another; each compares all images at the same points. Carries no gradient.

    Args:
      weights: of cross-entropy and dice.
    """
    masks, has_mask = annotated(targets)
    embedding, pixels, bias = lax.stop_gradient(segments)
    count, dtype = sampling.of_costs(*segments.size), _point_type(embedding)

    def of_output(inputs: tuple[Array, Array, Array]) -> Array:
        output, embedding, pixels = inputs
        points = source.of_costs(output, count, dtype)

        def of_image(embedding: Array, pixels: Array, masks: Array) -> Array:
            rows = bilinear_rows(pixels, points)  # [p, d]
            logits = at_least_float32(embedding) @ rows.T + bias
            cell = nearest_cell(points, *masks.shape[-2:])
            flat = masks.reshape(masks.shape[0], masks.shape[1] * masks.shape[2])
            entropy, dice = point_costs(logits, flat[:, cell] > _HALF)
            return weights[0] * entropy + weights[1] * dice

        return image_by_image(jax.vmap(of_image), embedding, pixels, masks)

    cost = lax.map(of_output, (jnp.arange(embedding.shape[0]), embedding, pixels))
    return jnp.where(has_mask[:, None], cost, 0)


def point_terms(
    segments: Segments,
    targets: Targets,
    pairs: GroupPairs,
    source: PointSource,
    sampling: Sampling,
    normalizer: Float[Array, ""] | float,
) -> tuple[Float[Array, " s"], Float[Array, " s"]]:
    """Cross-entropy and dice of matched queries at points of their own, most of them uncertain ones, by output.

    The largest arrays are the maps of eight slots in all groups and images, [b, groups, 8, h, w].
    """
    masks, _ = annotated(targets)
    outputs, images, groups, slots = pairs.query.shape
    if slots == 0:
        zero = jnp.zeros(outputs, _point_type(segments.embedding))
        return zero, zero
    chosen = jnp.take_along_axis(segments.embedding, pairs.query.reshape(outputs, images, -1)[..., None], -2)
    chosen = chosen.reshape(outputs, images, groups, slots, -1)
    size = min(_SLOTS, slots)
    parts = -(-slots // size)
    to_parts = lambda x: _in_parts(x, parts, size)  # noqa: E731
    per_output = (jnp.arange(outputs), to_parts(chosen), segments.pixels, to_parts(pairs.exists))
    numbers = jnp.arange(parts * size).reshape(parts, size)

    def of_output(inputs: tuple[Array, Array, Array, Array]) -> Array:
        output, chosen, pixels, exists = inputs

        def of_part(part: tuple[Array, Array, Array]) -> Array:
            embedding, exists, slot = part
            compute = lambda: _of_slots(  # noqa: E731
                embedding, pixels, segments.bias, masks, exists, source, sampling, output, slot
            )
            return lax.cond(jnp.any(exists), compute, lambda: jnp.zeros(2, _point_type(embedding)))

        sums = lax.map(jax.checkpoint(of_part, prevent_cse=False), (chosen, exists, numbers))
        return jnp.sum(sums, 0)

    sums = lax.map(of_output, per_output) / normalizer
    return sums[:, 0], sums[:, 1]


def _of_slots(
    embedding: Float[Array, "b n p d"],
    pixels: Float[Array, "b h w d"],
    bias: Float[Array, ""],
    masks: UInt8[Array, "b g hh ww"],
    exists: Bool[Array, "b n p"],
    source: PointSource,
    sampling: Sampling,
    output: Int[Array, ""],
    slots: Int[Array, " p"],
) -> Float[Array, " 2"]:
    """Sums of cross-entropy and dice of some slots, in all groups and images."""
    images, groups, places, depth = embedding.shape
    maps = masks_logit(embedding.reshape(images, groups * places, depth), pixels)
    maps = (at_least_float32(maps) + bias).reshape(images, groups, places, *maps.shape[-2:])
    candidates, _, further = sampling.of_terms(*maps.shape[-2:])
    points = source.of_terms(output, slots, (images, groups), candidates + further, maps.dtype)
    points = uncertain_points(maps, points, sampling)
    cells = masks.shape[-2] * masks.shape[-1]
    slot = jnp.minimum(slots, masks.shape[1] - 1)
    cell = nearest_cell(points, *masks.shape[-2:]) + (slot * cells)[:, None]
    flat = masks.reshape(images, -1)
    truth = jnp.take_along_axis(flat, cell.reshape(images, -1), -1, mode="promise_in_bounds").reshape(cell.shape)
    entropy, dice = point_losses(bilinear(maps, points), truth > _HALF)
    return jnp.stack([jnp.sum(jnp.where(exists, x, 0)) for x in (entropy, dice)])


def _in_parts(x: Array, parts: int, size: int) -> Array:
    """[s, b, n, p, ...] to [s, parts, b, n, size, ...]; what is missing is zero."""
    x = jnp.pad(x, [(0, 0)] * 3 + [(0, parts * size - x.shape[3])] + [(0, 0)] * (x.ndim - 4))
    return jnp.moveaxis(x.reshape(*x.shape[:3], parts, size, *x.shape[4:]), 3, 1)


def _dice(overlap: Array, both: Array) -> Array:
    return 1 - (2 * overlap + 1) / (both + 1)


def _point_type(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _cells(points_xy: Float[Array, "*n 2"], height: int, width: int) -> Float[Array, "*n 2"]:
    """Place among the centres of cells, within the outermost ones."""
    size = jnp.asarray((width, height), points_xy.dtype)
    return jnp.clip(points_xy * size - 0.5, 0.0, size - 1.0)


def _corners(
    points_xy: Float[Array, "*n p 2"], height: int, width: int
) -> tuple[Int[Array, "*n p 4"], Float[Array, "*n p 4"]]:
    """Numbers of the four cells around points, and their weights."""
    place = _cells(lax.stop_gradient(points_xy), height, width)
    low = jnp.floor(place)
    x, y = (jnp.stack([1 - high, high], -1) for high in jnp.moveaxis(place - low, -1, 0))
    weight = y[..., :, None] * x[..., None, :]
    low = low.astype(jnp.int32)
    high = jnp.minimum(low + 1, jnp.asarray((width - 1, height - 1)))
    x, y = (jnp.stack([low[..., i], high[..., i]], -1) for i in (0, 1))
    index = y[..., :, None] * width + x[..., None, :]
    return index.reshape(*index.shape[:-2], 4), weight.reshape(*weight.shape[:-2], 4)
