"""Linear assignment as a JAX program: shortest augmenting paths (Crouse, IEEE TAES 52(4), 2016), one step per vector.

Rows beyond a traced count are never visited, so padding costs nothing; general solvers spend most of their time on it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class _Duals(NamedTuple):
    row: Float[Array, " r"]
    column: Float[Array, " c"]
    row_of: Int[Array, " c"]  # -1 = free


class _Search(NamedTuple):
    row: Int[Array, ""]  # row whose edges are relaxed next
    distance: Float[Array, ""]  # of that row
    best: Float[Array, " c"]  # shortest distance found to each column
    previous: Int[Array, " c"]  # row before the column on that path
    done: Bool[Array, " c"]
    sink: Int[Array, ""]  # the free column reached, or -1


def assign_rows(cost: Float[Array, "r c"], count: Int[Array, ""]) -> Int[Array, " c"]:
    """Row of each column (-1 for none) when the first ``count`` rows get distinct columns at least total cost.

    Args:
      cost: finite, with at least as many columns as rows.
      count: rows to assign; the others are ignored.
    """
    rows, columns = cost.shape
    start = _Duals(jnp.zeros(rows, cost.dtype), jnp.zeros(columns, cost.dtype), jnp.full(columns, -1, jnp.int32))
    return jax.lax.fori_loop(0, count, lambda row, duals: _add_row(cost, row.astype(jnp.int32), duals), start).row_of


def _add_row(cost: Float[Array, "r c"], row: Int[Array, ""], duals: _Duals) -> _Duals:
    columns = cost.shape[1]
    start = _Search(
        row=row,
        distance=jnp.zeros((), cost.dtype),
        best=jnp.full(columns, jnp.inf, cost.dtype),
        previous=jnp.full(columns, -1, jnp.int32),
        done=jnp.zeros(columns, bool),
        sink=jnp.full((), -1, jnp.int32),
    )
    end = jax.lax.while_loop(lambda s: s.sink < 0, lambda s: _relax(cost, duals, s), start)
    slack = jnp.where(end.done, end.distance - end.best, 0.0)
    row_slack = jnp.zeros_like(duals.row).at[duals.row_of].add(jnp.where(duals.row_of >= 0, slack, 0.0))
    updated = _Duals(duals.row.at[row].add(end.distance) + row_slack, duals.column - slack, duals.row_of)
    return updated._replace(row_of=_flip_path(updated.row_of, end.previous, end.sink, row))


def _relax(cost: Float[Array, "r c"], duals: _Duals, search: _Search) -> _Search:
    through = search.distance + cost[search.row] - duals.row[search.row] - duals.column
    shorter = (through < search.best) & ~search.done
    best = jnp.where(shorter, through, search.best)
    previous = jnp.where(shorter, search.row, search.previous)
    nearest = jnp.argmin(jnp.where(search.done, jnp.inf, best)).astype(jnp.int32)
    occupant = duals.row_of[nearest]
    return _Search(
        row=jnp.maximum(occupant, 0),
        distance=best[nearest],
        best=best,
        previous=previous,
        done=search.done.at[nearest].set(True),
        sink=jnp.where(occupant < 0, nearest, -1),
    )


def _flip_path(
    row_of: Int[Array, " c"], previous: Int[Array, " c"], sink: Int[Array, ""], row: Int[Array, ""]
) -> Int[Array, " c"]:
    """Give each column on the path to ``sink`` to the row before it; that row leaves its old column to the next."""

    def back(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        row_of, column, _ = state
        owner = previous[column]
        old = jnp.argmax(row_of == owner).astype(jnp.int32)  # meaningless for the new row, where the path ends
        return row_of.at[column].set(owner), old, owner == row

    start = (row_of, sink, jnp.zeros((), bool))
    return jax.lax.while_loop(lambda state: ~state[2], back, start)[0]
