"""Loss and gradient of a device's images, at once or in parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from dfine_jax.config import Config
from dfine_jax.data.load.batch import Batch
from dfine_jax.data.picture.images import unit_range
from dfine_jax.families import of
from dfine_jax.families.family import Build
from dfine_jax.nn.held_norms import held_norms
from dfine_jax.ops.resize import resize_bilinear, resize_nearest
from dfine_jax.typing import Norm, Targets

PyTree = Any


class Part(NamedTuple):
    """What the loss of some of a device's images depends on beside the parameters."""

    images: Float[Array, "b h w 3"]
    targets: Targets
    queries: Any  # additional ones of the family, or None


class LossGradient(NamedTuple):
    """Of all the images of a device."""

    loss: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]
    grads: PyTree
    batch_stats: PyTree


def make_gradient(
    config: Config, axis_name: str, mean: Callable[[Any], Any]
) -> Callable[[PyTree, PyTree, Part], LossGradient]:
    """A function of parameters, batch statistics and stacked parts (``split_parts``).

    With several parts, all are run forwards once more beforehand: the counts of the whole batch divide the losses of
    each. Batch norms that ``optim.freeze`` holds compute as at inference.

    Args:
      axis_name: of the devices that share batch statistics.
      mean: averages over them.
    """
    family, model = of(config.model), config.model
    apply: Callable[..., Any] = family.build(model, Build(axis_name, config.train.remat)).apply
    parts = config.train.accumulate

    def forward(params: PyTree, batch_stats: PyTree, part: Part) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        return apply(variables, part.images, part.queries, train=True, mutable=["batch_stats"])

    def loss_fn(params: PyTree, batch_stats: PyTree, part: Part, norm: Callable[[Array], Norm]) -> Any:
        output, changed = forward(params, batch_stats, part)
        matching = family.match(output, part.targets, part.queries, config.loss)
        counts = norm(matching.counts)
        terms = family.terms(output, part.targets, part.queries, matching, counts, model, config.loss)
        return jnp.sum(jnp.stack(list(terms.values()))), (changed.get("batch_stats", {}), terms)

    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def at_once(params: PyTree, batch_stats: PyTree, stacked: Part) -> LossGradient:
        only = jax.tree.map(lambda x: x[0], stacked)
        norm = lambda counts: Norm(mean(counts), counts)  # noqa: E731
        (loss, (batch_stats, terms)), grads = gradient(params, batch_stats, only, norm)
        return LossGradient(loss, terms, grads, batch_stats)

    def in_parts(params: PyTree, batch_stats: PyTree, stacked: Part) -> LossGradient:
        def count(part: Part) -> Array:
            output, _ = forward(params, batch_stats, part)
            return family.match(output, part.targets, part.queries, config.loss).counts

        counts = jnp.mean(jax.lax.map(count, stacked), 0)
        norm = Norm(mean(counts), counts)

        def add(carry: PyTree, part: Part) -> tuple[PyTree, tuple[Array, dict[str, Array]]]:
            summed, stats = carry
            (loss, (stats, terms)), grads = gradient(params, stats, part, lambda _: norm)
            return (jax.tree.map(jnp.add, summed, grads), stats), (loss, terms)

        start = (jax.tree.map(jnp.zeros_like, params), batch_stats)
        (summed, batch_stats), (loss, terms) = jax.lax.scan(add, start, stacked)
        loss, terms = jax.tree.map(lambda x: jnp.mean(x, 0), (loss, terms))
        return LossGradient(loss, terms, jax.tree.map(lambda g: g / parts, summed), batch_stats)

    def with_held(params: PyTree, batch_stats: PyTree, stacked: Part) -> LossGradient:
        with held_norms(config.optim.freeze):
            return (at_once if parts == 1 else in_parts)(params, batch_stats, stacked)

    return with_held


def split_parts(batch: Batch, key: Array, config: Config, size_px: tuple[int, int] | None, dtype: Any) -> Part:
    """A device's rows as the model takes them, in parts [n, b / n, ...]."""
    parts = config.train.accumulate
    images, targets = images_and_targets(batch, size_px, of(config.model).multi_scale.resize)
    targets = dataclasses.replace(targets, boxes_cxcywh=targets.boxes_cxcywh.astype(dtype))
    queries = of(config.model).queries(key, targets, config.model, config.loss)

    def rows(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), tree)

    queries = None if queries is None else queries.in_parts(parts)
    scale = of(config.model).preprocess(config.model, config.data).scale
    return Part(unit_range(rows(images), dtype, scale), rows(targets), queries)


def images_and_targets(
    batch: Batch, size_px: tuple[int, int] | None, resize: Literal["nearest", "bilinear"]
) -> tuple[UInt8[Array, "b h w 3"], Targets]:
    """Of a batch, for another size of the input: images as the family has it, masks bilinear."""
    fields = batch.each(jnp.asarray)._asdict()
    images, masks = fields.pop("images"), fields.pop("masks")
    if size_px not in (None, images.shape[1:3]):
        if masks is not None:
            stride = images.shape[1] // masks.shape[2]
            shape = (*masks.shape[:2], *(side // stride for side in size_px))
            linear = jax.image.resize(masks.astype(jnp.float32), shape, "linear", antialias=False)
            masks = jnp.round(linear).astype(masks.dtype)
        if resize == "nearest":
            images = resize_nearest(images, *size_px)
        else:
            levels = jnp.round(resize_bilinear(images.astype(jnp.float32), *size_px))
            images = levels.astype(images.dtype)
    return images, Targets(masks=masks, **fields)
