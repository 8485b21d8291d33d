"""The train state with small arrays laid end to end in a few vectors, as the compiled step wants it.

A model has hundreds of biases, scales and running statistics. Updated one by one, each costs several kernels in each of
several trees: half of all kernels of a step on a CPU, a quarter of all launches on a GPU. Laid end to end they cost a
few. On GPUs all parameters go into vectors; on CPUs large ones stay arrays of their own, which more threads share.

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
      tree: arrays or their shapes.
      groups: of each leaf; leaves of one group and one type share a vector.
      limit: see ``size_limit``.
    """

    def __init__(self, tree: PyTree, groups: Sequence[Hashable], limit: int | None) -> None:
        named, self.structure = jax.tree_util.tree_flatten_with_path(tree)
        self._shapes = [tuple(leaf.shape) for _, leaf in named]
        self._places: list[tuple[str, int] | None] = []  # vector and first element
        self._names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in named]
        vectors: dict[Hashable, str] = {}
        self._lengths: dict[str, int] = {}
        for name, (_, leaf), group in zip(self._names, named, groups, strict=True):
            size = int(np.prod(leaf.shape))
            if limit is not None and size >= limit:
                self._places.append(None)
                continue
            vector = vectors.setdefault((group, np.dtype(leaf.dtype)), name)
            start = self._lengths.get(vector, 0)
            self._places.append((vector, start))
            self._lengths[vector] = start + size
        self.packed_structure = jax.tree.structure({**dict.fromkeys(self._lengths, 0), **dict.fromkeys(self._alone, 0)})

    @property
    def vectors(self) -> frozenset[str]:
        """Names of the vectors."""
        return frozenset(self._lengths)

    @property
    def _alone(self) -> list[str]:
        return [name for name, place in zip(self._names, self._places, strict=True) if place is None]

    def pack(self, tree: PyTree, join: Callable[[list[Any]], Any] = jnp.concatenate) -> dict[str, Any]:
        """Vectors and single arrays by name."""
        parts: dict[str, list[Any]] = {name: [] for name in self._lengths}
        packed = {}
        for name, place, leaf in zip(self._names, self._places, jax.tree.leaves(tree), strict=True):
            if place is None:
                packed[name] = leaf
            else:
                parts[place[0]].append(leaf)
        return packed | {name: join([leaf.reshape(-1) for leaf in leaves]) for name, leaves in parts.items()}

    def unpack(self, packed: dict[str, Any]) -> PyTree:
        """The tree again; slices of the vectors."""
        leaves = []
        for name, place, shape in zip(self._names, self._places, self._shapes, strict=True):
            if place is None:
                leaves.append(packed[name])
            else:
                vector, start = place
                leaves.append(packed[vector][start : start + int(np.prod(shape))].reshape(shape))
        return jax.tree.unflatten(self.structure, leaves)


def within(tree: PyTree, structure: Any, change: Callable[[PyTree], PyTree]) -> PyTree:
    """``change`` of every subtree of that structure, such as the moments in an optimiser's state."""

    def is_it(node: Any) -> bool:
        return jax.tree.structure(node) == structure

    return jax.tree.map(lambda node: change(node) if is_it(node) else node, tree, is_leaf=is_it)


class Packing:
    """Layouts of parameters and statistics. Parameters share a vector if the same rules match them.

    Args:
      state: arrays by name, or their shapes.
      limit: see ``size_limit``.
    """

    def __init__(self, state: TrainState, rules: Sequence[Rule], limit: int | None) -> None:
        self.params = Layout(state.params, matching_rules(state.params, rules), limit)
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
            return packed | place({name: packed[name] for name in layout.vectors})

        return self._packed(state, pack)

    def _packed(self, state: TrainState, pack: Callable[[Layout, PyTree], dict[str, Any]]) -> TrainState:
        return dataclasses.replace(
            state,
            params=pack(self.params, state.params),
            batch_stats=pack(self.stats, state.batch_stats),
            opt_state=within(state.opt_state, self.params.structure, lambda tree: pack(self.params, tree)),
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
        layout = self.packing.params
        return within(self.arrays.opt_state, layout.packed_structure, lambda tree: self._by_name(layout, tree))

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
