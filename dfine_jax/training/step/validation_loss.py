"""The training loss of validation images: the same terms, by averaged weights, without augmentation.

Additional queries and whatever else a family draws come from one fixed key, so that epochs can be compared. Batch norms
compute as at inference. Sums over batches are divided by the objects of all of them, as if the images were one batch.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dfine_jax.config import Config
from dfine_jax.data.load.batch import Batch
from dfine_jax.data.picture.images import unit_range
from dfine_jax.families import of
from dfine_jax.families.family import Build
from dfine_jax.nn.held_norms import held_norms
from dfine_jax.ops.precision import exact_products
from dfine_jax.training.step.gradient import images_and_targets
from dfine_jax.typing import Norm


class BatchLoss(NamedTuple):
    """Of one batch, or of one device's part of it."""

    terms: dict[str, Float[Array, "*d"]]  # by ``kind/where``, divided by the count where that is above 1
    count: Float[Array, "*d"]  # objects, as the family counts them; a mean over devices


def make_validation_loss(config: Config, mean: Callable[[Any], Any]) -> Callable[[Any, Batch], BatchLoss]:
    """A function of variables and a device's batch.

    Args:
      mean: averages over devices.
    """
    family, model = of(config.model), dataclasses.replace(config.model, precision="float32")
    loss: Any = dataclasses.replace(config.loss, assignment="device")  # the host is not called
    apply: Callable[..., Any] = family.build(model, Build()).apply
    scale = family.preprocess(model, config.data).scale

    def of_batch(variables: Any, batch: Batch) -> BatchLoss:
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        images, targets = images_and_targets(batch, None, family.multi_scale.resize)
        targets = dataclasses.replace(targets, boxes_cxcywh=targets.boxes_cxcywh.astype(dtype))
        queries = family.queries(jax.random.key(0), targets, model, loss)
        with exact_products(), held_norms((".*",)):
            output, _ = apply(variables, unit_range(images, dtype, scale), queries, train=True, mutable=["batch_stats"])
            matching = family.match(output, targets, queries, loss)
            counts = mean(matching.counts)
            terms = family.terms(output, targets, queries, matching, Norm(counts, matching.counts), model, loss)
        return BatchLoss(mean(terms), jnp.asarray(counts[0]))

    return of_batch


class LossTotals:
    """Sums over batches."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0.0

    def add(self, loss: BatchLoss, blank: BatchLoss | None = None, share: float = 0.0) -> None:
        """Count a batch.

        Args:
          blank: the loss of a batch of rows that only fill one up; None: not needed.
          share: of the rows of this batch that only fill it up.
        """
        count = float(np.asarray(loss.count).ravel()[0])
        for name, value in loss.terms.items():
            self._sums[name] += max(count, 1.0) * float(np.asarray(value).ravel()[0])
            if blank is not None and share:
                self._sums[name] -= share * float(np.asarray(blank.terms[name]).ravel()[0])
        self._count += count

    def values(self) -> tuple[tuple[str, ...], np.ndarray]:
        """Names, and their sums with the count of objects at the end, to be added over hosts."""
        return tuple(self._sums), np.array([*self._sums.values(), self._count])


def mean_terms(names: tuple[str, ...], sums: np.ndarray) -> Mapping[str, float]:
    """Terms by ``kind/where`` and their sum as ``loss``, of what ``LossTotals.values`` gave."""
    terms = dict(zip(names, (sums[:-1] / max(float(sums[-1]), 1.0)).tolist(), strict=True))
    return {"loss": sum(terms.values()), **terms}
