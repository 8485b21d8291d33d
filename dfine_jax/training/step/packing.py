"""The train state with small arrays laid end to end in a few vectors, as the compiled step wants it.

A model has hundreds of biases, scales and running statistics. Updated one by one, each costs several kernels in each of
several trees: half of all kernels of a step on a CPU, a quarter of all launches on a GPU. Laid end to end they cost a
few. On GPUs all parameters go into vectors; on CPUs large ones stay arrays of their own, which more threads share. What
Muon takes are stacks of matrices of one shape in place of vectors.

Checkpoints, evaluations and everything else get arrays by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dfine_jax.families.family import Rule
from dfine_jax.training.step.optimizer import matching_rules
from dfine_jax.training.step.state import TrainState

PyTree = Any
CPU_LIMIT = 4096  # elements: from here on arrays stay by themselves on CPUs


def size_limit(platform: str) -> int | None:
    """Elements from which on an array stays by itself; None: none does."""
    return CPU_LIMIT if platform == "cpu" else None


class Layout:
    """Where each leaf of a tree lies: in a vector, which has the name of its first leaf, or alone under its own.

    Args:
      tree: arrays or their shapes, in dictionaries.
      groups: of each leaf; leaves of one group and one type share a vector.
      limit: see ``size_limit``.
      matrices: whether each leaf stays a matrix; those of one shape then share a stack [k, i, o].
    """

    def __init__(
        self, tree: PyTree, groups: Sequence[Hashable], limit: int | None, matrices: Sequence[bool] | None = None
    ) -> None:
        named = _named(tree)
        self._paths = {name: tuple(key.key for key in path) for name, path, _ in named}
        self._shapes = {name: tuple(leaf.shape) for name, _, leaf in named}
        self._places: dict[str, tuple[str, int] | None] = {}  # vector and first element
        self._stacked: dict[str, tuple[int, ...]] = {}  # shape of the matrices of a stack
        vectors: dict[Hashable, str] = {}
        lengths: dict[str, int] = {}
        for (name, _, leaf), group, is_matrix in zip(named, groups, matrices or [False] * len(named), strict=True):
            size = int(np.prod(leaf.shape))
            if limit is not None and size >= limit:
                self._places[name] = None
                continue
            shape = self._shapes[name] if is_matrix else None
            vector = vectors.setdefault((group, np.dtype(leaf.dtype), shape), name)
            if shape:
                self._stacked[vector] = shape
            start = lengths.get(vector, 0)
            self._places[name] = (vector, start)
            lengths[vector] = start + size
        self.vectors = frozenset(lengths)  # their names, and those of the stacks

    def pack(self, tree: PyTree, join: Callable[[list[Any]], Any] = jnp.concatenate) -> dict[str, Any]:
        """Vectors and single arrays by name, of the tree or of whole groups of it."""
        parts: dict[str, list[Any]] = {}
        packed = {}
        for name, _, leaf in _named(tree):
            place = self._places[name]
            if place is None:
                packed[name] = leaf
            else:
                parts.setdefault(place[0], []).append(leaf.reshape(-1))
        for name, leaves in parts.items():
            joined = join(leaves)
            packed[name] = joined.reshape(-1, *self._stacked[name]) if name in self._stacked else joined
        return packed

    def unpack(self, packed: dict[str, Any]) -> PyTree:
        """The tree again; slices of the vectors."""
        leaves = {}
        for name, place in self._places.items():
            vector, start = place or (name, 0)
            if vector not in packed:
                continue
            whole, shape = packed[vector], self._shapes[name]
            part = whole if place is None else whole.reshape(-1)[start : start + int(np.prod(shape))].reshape(shape)
            leaves[self._paths[name]] = part
        return traverse_util.unflatten_dict(leaves)


def _named(tree: PyTree) -> list[tuple[str, tuple[Any, ...], Any]]:
    """Name, path and leaf of all leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), path, leaf) for path, leaf in leaves]


def each_tree(state: PyTree, change: Callable[[dict[str, Any]], PyTree]) -> PyTree:
    """An optimiser's state with ``change`` of every dictionary in it: arrays by the names of parameters."""

    def is_tree(node: Any) -> bool:
        return isinstance(node, dict)

    return jax.tree.map(lambda node: change(node) if is_tree(node) else node, state, is_leaf=is_tree)


class Packing:
    """Layouts of parameters and statistics. Parameters share a vector if the same rules match them.

    Args:
      state: arrays by name, or their shapes.
      limit: see ``size_limit``.
    """

    def __init__(self, state: TrainState, rules: Sequence[Rule], limit: int | None) -> None:
        matching = matching_rules(state.params, rules)
        matrices = [rules[first].optimizer == "muon" and rules[first].lr > 0 for first, *_ in matching]
        self.params = Layout(state.params, matching, limit, matrices)
        statistics = [None] * len(jax.tree.leaves(state.batch_stats))
        self.stats = Layout(state.batch_stats, statistics, limit)

    def pack(self, state: TrainState, place: Callable[[PyTree], PyTree]) -> TrainState:
        """The state for the step.

        Args:
          place: puts vectors, which come from the host, on the devices.
        """
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
            return jax.eval_shape(lambda state: self._packed(state, lambda layout, tree: layout.pack(tree)), state)

        def pack(layout: Layout, tree: PyTree) -> dict[str, Any]:
            packed = layout.pack(tree, lambda leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]))
            return packed | place({name: packed[name] for name in layout.vectors & packed.keys()})

        return self._packed(state, pack)

    def _packed(self, state: TrainState, pack: Callable[[Layout, PyTree], dict[str, Any]]) -> TrainState:
        return dataclasses.replace(
            state,
            params=pack(self.params, state.params),
            batch_stats=pack(self.stats, state.batch_stats),
            opt_state=each_tree(state.opt_state, lambda tree: pack(self.params, tree)),
            ema_params=pack(self.params, state.ema_params),
            ema_batch_stats=pack(self.stats, state.ema_batch_stats),
        )


@flax.struct.dataclass
class PackedState:
    """A train state as the step returns it: reads like ``TrainState``; what lies in vectors comes from the host."""

    arrays: TrainState  # packed
    packing: Packing = flax.struct.field(pytree_node=False)

    def _by_name(self, layout: Layout, packed: dict[str, Any]) -> PyTree:
        # Copies, because the next step takes the memory of the vectors.
        return layout.unpack({name: np.array(x) if name in layout.vectors else x for name, x in packed.items()})

    @property
    def params(self) -> PyTree:
        """Parameters by name."""
        return self._by_name(self.packing.params, self.arrays.params)

    @property
    def batch_stats(self) -> PyTree:
        """Running statistics by name."""
        return self._by_name(self.packing.stats, self.arrays.batch_stats)

    @property
    def opt_state(self) -> PyTree:
        """The optimiser's state, moments by name."""
        return each_tree(self.arrays.opt_state, lambda tree: self._by_name(self.packing.params, tree))

    @property
    def ema_params(self) -> PyTree:
        """Averaged parameters by name."""
        return self._by_name(self.packing.params, self.arrays.ema_params)

    @property
    def ema_batch_stats(self) -> PyTree:
        """Averaged running statistics by name."""
        return self._by_name(self.packing.stats, self.arrays.ema_batch_stats)

    @property
    def step(self) -> Int[Array, ""]:
        """Steps taken."""
        return self.arrays.step

    @property
    def ema_updates(self) -> Int[Array, ""]:
        """Steps the average has seen."""
        return self.arrays.ema_updates

    @property
    def ema_shift(self) -> Float[Array, ""]:
        """Added to the configured decay."""
        return self.arrays.ema_shift

    @property
    def key(self) -> PRNGKeyArray:
        """Of all random draws."""
        return self.arrays.key


State = TrainState | PackedState
