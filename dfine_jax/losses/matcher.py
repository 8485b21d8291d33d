"""One-to-one assignment of ground truth to queries (reference: src/zoo/dfine/matcher.py, dfine_criterion.py).

A match is an array [.., b, q] of ground-truth slots, -1 for unmatched queries, so that losses stay dense.
"""

from __future__ import annotations

from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array, Bool, Float, Int
from scipy.optimize import linear_sum_assignment

from dfine_jax.losses import host_call
from dfine_jax.losses.assignment import assign_rows
from dfine_jax.ops.boxes import clamped_xyxy, iou_and_giou
from dfine_jax.ops.precision import at_least_float32
from dfine_jax.typing import Targets

_ON_HOST = "dfine_jax_assign"  # of the foreign function, in compiled programs
_LARGEST = float(np.finfo(np.float32).max)


class Costs(Protocol):
    """Weights of the costs; every family's loss configuration has them."""

    @property
    def cost_class(self) -> float: ...
    @property
    def cost_bbox(self) -> float: ...
    @property
    def cost_giou(self) -> float: ...
    @property
    def focal_alpha(self) -> float: ...
    @property
    def focal_gamma(self) -> float: ...


def matching_cost(
    logits: Float[Array, "*s b q k"], boxes_cxcywh: Float[Array, "*s b q 4"], targets: Targets, config: Costs
) -> Float[Array, "*s b q g"]:
    """Focal class cost, L1 on cxcywh and negative GIoU of every query with every ground-truth slot, weighted.

    NaN becomes 1.0 and infinity the largest float32, as in the reference. Columns of padding slots mean nothing. At
    least float32; carries no gradient.
    """
    return finite_cost(raw_matching_cost(logits, boxes_cxcywh, targets, config))


def raw_matching_cost(
    logits: Float[Array, "*s b q k"],
    boxes_cxcywh: Float[Array, "*s b q 4"],
    targets: Targets,
    config: Costs,
    *,
    logarithm: Literal["of_shifted", "of_sigmoid"] = "of_shifted",
    least_area: float = 0.0,
) -> Float[Array, "*s b q g"]:
    """As :func:`matching_cost`, with whatever is not finite in it.

    Args:
      logarithm: in the class cost. of_shifted: of the score plus 1e-8, which limits the cost; of_sigmoid: of the score
        itself, computed from the logit.
      least_area: as for ``boxes.iou_and_giou``.
    """
    logits = at_least_float32(jax.lax.stop_gradient(logits))
    boxes = jax.lax.stop_gradient(boxes_cxcywh).astype(logits.dtype)
    labels = jnp.broadcast_to(targets.labels[:, None, :], (*logits.shape[:-1], targets.labels.shape[-1]))
    logits = jnp.take_along_axis(logits, labels, -1)  # [*s, b, q, g]
    # Not 1 - p, to whose 1 compilers add the tiny number, which is lost there.
    p, rest = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    if logarithm == "of_sigmoid":
        minus_log_p, minus_log_rest = jax.nn.softplus(-logits), jax.nn.softplus(logits)
    else:
        minus_log_p, minus_log_rest = -jnp.log(p + 1e-8), -jnp.log(rest + 1e-8)
    positive = config.focal_alpha * rest**config.focal_gamma * minus_log_p
    negative = (1.0 - config.focal_alpha) * p**config.focal_gamma * minus_log_rest
    truth = jax.lax.stop_gradient(targets.boxes_cxcywh.astype(logits.dtype))[:, None]  # [b, 1, g, 4]
    boxes = boxes[..., None, :]  # [*s, b, q, 1, 4]
    l1 = jnp.sum(jnp.abs(boxes - truth), -1)
    _, giou = iou_and_giou(clamped_xyxy(boxes), clamped_xyxy(truth), least_area)
    return config.cost_bbox * l1 + config.cost_class * (positive - negative) - config.cost_giou * giou


def finite_cost(cost: Float[Array, "*s b q g"]) -> Float[Array, "*s b q g"]:
    """The cost, where it is a number; as in the reference NaN becomes 1.0, and infinity the largest float32."""
    return jnp.nan_to_num(cost, nan=1.0, posinf=_LARGEST, neginf=-_LARGEST)


def above_finite_cost(cost: Float[Array, "*s b q g"], valid: Bool[Array, "b g"]) -> Float[Array, "*s b q g"]:
    """The cost, where it is a number; elsewhere one above all costs of the objects of the same output.

    It is the largest of these plus the largest magnitude plus one; the largest float32 where none is finite.
    """
    of_output = (-3, -2, -1)
    counts = jnp.isfinite(cost) & valid[:, None]
    highest = jnp.max(cost, of_output, keepdims=True, initial=-jnp.inf, where=counts)
    largest = jnp.max(jnp.abs(cost), of_output, keepdims=True, initial=0.0, where=counts)
    above = jnp.where(jnp.isfinite(highest), jnp.minimum(highest + largest + 1.0, _LARGEST), _LARGEST)
    return jnp.where(jnp.isfinite(cost), cost, above)


def assign(
    cost: Float[Array, "*s b q g"], valid: Bool[Array, "b g"], method: Literal["scipy", "device"] = "scipy"
) -> Int[Array, "*s b q"]:
    """Assignment of least total cost for each matrix, using the valid columns only: min(q, objects) pairs each.

    Args:
      cost: finite costs, in one array for all layers and images: "scipy" makes one host call for all of them.
      valid: which columns hold an object.
      method: "scipy" solves on the host, "device" inside the compiled program. Both reach the optimum; where several
        assignments reach it they may pick different ones.

    Returns:
      Ground-truth slot of each query, -1 for none. No gradient flows back.
    """
    cost = jax.lax.stop_gradient(cost)
    return _assign_on_host(cost, valid) if method == "scipy" else _assign_on_device(cost, valid)


def is_cacheable(method: str) -> bool:
    """Whether programs for the default backend that ``assign`` by this method can be kept by the compilation cache."""
    return method == "device" or (jax.default_backend() == "cpu" and host_call.register(_ON_HOST, _solve))


def union_match(matches: Int[Array, "t b q"], num_gt: int) -> Int[Array, "b q"]:
    """Union of the matches of all ``t`` outputs: each query takes the slot it was matched to most often.

    This is the reference's "global optimal" set. Ties go to the smallest slot (the reference leaves them to an unstable
    sort); one object may serve several queries.
    """
    if num_gt == 0:
        return jnp.full(matches.shape[1:], -1, jnp.int32)
    counts = jnp.sum(matches[..., None] == jnp.arange(num_gt), 0)  # [b, q, g]
    return jnp.where(jnp.any(counts > 0, -1), jnp.argmax(counts, -1), -1).astype(jnp.int32)


def _assign_on_host(cost: Float[Array, "*s b q g"], valid: Bool[Array, "b g"]) -> Int[Array, "*s b q"]:
    # On CPU pure_callback hands over jax arrays; reading them waits for a copy made by the thread pool whose threads
    # all sit in callbacks when there are more simulated devices than cores: a deadlock (jax 0.10.2: 8 devices, 2 cores,
    # [5, 4, 300, 100]). A foreign function and buffer_callback get plain host memory instead, and a program with the
    # former can be kept by the compilation cache. On other platforms the callbacks occupy no thread of the CPU
    # backend, and pure_callback does the transfers.
    shape = jax.ShapeDtypeStruct(cost.shape[:-1], jnp.int32)
    if cost.size == 0:
        return jnp.full(shape.shape, -1, jnp.int32)

    def into_buffers(_: object, out: np.ndarray, cost: np.ndarray, valid: np.ndarray) -> None:
        np.asarray(out)[...] = _solve(np.asarray(cost), np.asarray(valid))

    def in_memory(cost: jax.Array, valid: jax.Array) -> jax.Array:
        if host_call.register(_ON_HOST, _solve):
            return jax.ffi.ffi_call(_ON_HOST, shape, vmap_method="sequential")(cost, valid)
        return buffer_callback(into_buffers, shape, vmap_method="sequential")(cost, valid)

    def with_arrays(cost: jax.Array, valid: jax.Array) -> jax.Array:
        return jax.pure_callback(
            lambda cost, valid: _solve(np.asarray(cost), np.asarray(valid)),
            shape,
            cost,
            valid,
            vmap_method="sequential",
        )

    return jax.lax.platform_dependent(cost, valid, cpu=in_memory, default=with_arrays)


def _solve(cost: Float[np.ndarray, "*s b q g"], valid: Bool[np.ndarray, "b g"]) -> Int[np.ndarray, "*s b q"]:
    match = np.full(cost.shape[:-1], -1, np.int32)
    columns = [np.flatnonzero(row) for row in valid]
    for index in np.ndindex(*cost.shape[:-2]):
        slots = columns[index[-1]]
        queries, places = linear_sum_assignment(cost[index][:, slots])
        match[index][queries] = slots[places]
    return match


def _assign_on_device(cost: Float[Array, "*s b q g"], valid: Bool[Array, "b g"]) -> Int[Array, "*s b q"]:
    *lead, num_queries, num_gt = cost.shape
    if cost.size == 0:
        return jnp.full((*lead, num_queries), -1, jnp.int32)
    cost = jnp.clip(cost, -1e6, 1e6)  # keeps sums of costs finite
    extra = max(num_gt - num_queries, 0)
    if extra:
        # Surplus objects go to extra queries of cost zero; real costs below zero make real queries always preferable.
        highest = jnp.max(jnp.where(valid[:, None, :], cost, -1e6), (-2, -1), keepdims=True)
        cost = jnp.pad(cost - highest - 1.0, [(0, 0)] * len(lead) + [(0, extra), (0, 0)])
    order = jnp.argsort(~valid, axis=-1, stable=True)  # objects first

    def solve(matrix: jax.Array, order: jax.Array, count: jax.Array) -> jax.Array:
        row = assign_rows(matrix[:, order].T, count)[:num_queries]
        return jnp.where(row >= 0, order[row], -1).astype(jnp.int32)

    over_images = jax.vmap(solve)
    flat = cost.reshape(-1, *cost.shape[-3:])
    match = jax.vmap(over_images, (0, None, None))(flat, order, jnp.sum(valid, -1))
    return match.reshape(*lead, num_queries)
