"""One training step and one evaluation step, mapped over the devices.

The two ``jax.pmap`` calls of the library are here, and all its collectives but those of synchronised batch norm, whose
axis name is set here too. The state enters and leaves without a device axis.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8

from dfine_jax.config import Config, ModelConfig
from dfine_jax.evaluate import Predict, Predictions
from dfine_jax.losses.criterion import Shares, detection_loss, object_counts
from dfine_jax.models.denoising import make_denoising_queries, num_slots, sample_noise
from dfine_jax.models.dfine import DFine
from dfine_jax.ops.resize import resize_nearest
from dfine_jax.postprocess import select
from dfine_jax.training import hosts
from dfine_jax.training.optimizer import clip_coefficient, ema_update, parameter_rules, zero_frozen
from dfine_jax.training.schedule import ema_decay, make_schedule
from dfine_jax.training.state import TrainState
from dfine_jax.typing import Batch, DenoisingQueries, ModelOutput, Targets

PyTree = Any
AXIS = "devices"


@flax.struct.dataclass
class StepMetrics:
    """What a step reports, averaged over devices."""

    loss: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]  # weighted loss terms under the reference's names
    grad_norm: Float[Array, ""]  # before clipping, trainable parameters only
    finite: Bool[Array, ""]  # False: the step was skipped


def unit_range(images: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"], dtype: jnp.dtype) -> Float[Array, "b h w 3"]:
    """Images as the model takes them, in [0, 1]; images that are floating point already pass unchanged."""
    return images.astype(dtype) / 255 if images.dtype == jnp.uint8 else images


def draw_denoising(key: Array, targets: Targets, config: Config) -> DenoisingQueries | None:
    """Noised copies of the ground truth for one step, or None when they are switched off."""
    if config.loss.num_denoising == 0:
        return None
    batch, slots = targets.valid.shape
    noise = sample_noise(key, batch, num_slots(slots, config.loss.num_denoising), config.model.num_classes)
    return make_denoising_queries(
        targets,
        noise,
        config.model.num_classes,
        config.loss.num_denoising,
        config.loss.label_noise_ratio,
        config.loss.box_noise_scale,
    )


class _Part(NamedTuple):
    """What the loss of some of a device's images depends on beside the parameters."""

    images: Float[Array, "b h w 3"]
    targets: Targets
    denoising: DenoisingQueries | None


def make_train_step(
    config: Config,
    tx: optax.GradientTransformation,
    *,
    steps_per_epoch: int = 0,
    size_px: tuple[int, int] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """The update as a function of state and batch; batch arrays are ``[d, b, ...]``, one row per device.

    Devices average gradients, as DistributedDataParallel does, and share batch statistics. A step with a non-finite
    loss or gradient changes nothing but the step counter. The state given is consumed (its memory is reused).

    With ``config.train.accumulate`` = n a device computes its images in n parts, one after another. The step is that of
    the whole, except that batch norm sees one part at a time. The parts are run forwards once more beforehand: the
    number of assigned queries in the whole batch divides the box losses of each.

    Args:
      steps_per_epoch: for schedules that depend on it.
      size_px: (height, width) that the images are brought to, by nearest neighbour; None: as they come.
    """
    apply: Callable[..., Any] = DFine(config.model, bn_axis_name=AXIS, remat=config.train.remat).apply
    rules = parameter_rules(config.model, config.optim)
    schedule = make_schedule(config, steps_per_epoch)
    mean = functools.partial(jax.lax.pmean, axis_name=AXIS)
    parts = config.train.accumulate

    def forward(params: PyTree, batch_stats: PyTree, part: _Part) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        return apply(variables, part.images, part.denoising, train=True, mutable=["batch_stats"])

    def loss_fn(
        params: PyTree, batch_stats: PyTree, part: _Part, normalizers: Callable[[Array], Array], shares: Shares | None
    ) -> Any:
        output, changed = forward(params, batch_stats, part)
        loss, terms = detection_loss(
            output, part.targets, part.denoising, config.loss, config.model, normalizers, shares
        )
        return loss, (changed["batch_stats"], terms)

    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def loss_and_gradient(state: TrainState, all_parts: _Part) -> tuple[Array, dict[str, Array], PyTree, PyTree]:
        """Loss, terms, gradient and batch statistics of the device's images."""
        if parts == 1:
            only = jax.tree.map(lambda x: x[0], all_parts)
            (loss, (batch_stats, terms)), grads = gradient(state.params, state.batch_stats, only, mean, None)
            return loss, terms, grads, batch_stats

        def count(part: _Part) -> Array:
            output, _ = forward(state.params, state.batch_stats, part)
            return object_counts(output, part.targets, config.loss)

        counts = jnp.mean(jax.lax.map(count, all_parts), 0)
        normalizers, queries = mean(counts), all_parts.denoising
        denoised = jnp.zeros(()) if queries is None else jnp.sum(queries.match >= 0) / parts
        shares = Shares(counts[1], denoised.astype(counts.dtype))

        def add(carry: PyTree, part: _Part) -> tuple[PyTree, tuple[Array, dict[str, Array]]]:
            total, stats = carry
            (loss, (stats, terms)), grads = gradient(state.params, stats, part, lambda _: normalizers, shares)
            return (jax.tree.map(jnp.add, total, grads), stats), (loss, terms)

        start = (jax.tree.map(jnp.zeros_like, state.params), state.batch_stats)
        (total, batch_stats), (loss, terms) = jax.lax.scan(add, start, all_parts)
        loss, terms = jax.tree.map(lambda x: jnp.mean(x, 0), (loss, terms))
        return loss, terms, jax.tree.map(lambda g: g / parts, total), batch_stats

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), jax.lax.axis_index(AXIS))
        dtype = jax.tree.leaves(state.params)[0].dtype
        loss, terms, grads, batch_stats = loss_and_gradient(state, _split(batch, key, config, size_px, dtype))
        loss, terms, grads = mean((loss, terms, zero_frozen(grads, rules)))
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        grads = jax.tree.map(lambda g: g * clip_coefficient(norm, config.optim.clip_norm).astype(g.dtype), grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        share = schedule(state.step)
        params = optax.apply_updates(state.params, jax.tree.map(lambda u: share.astype(u.dtype) * u, updates))
        decay = ema_decay(state.ema_updates + 1, config.optim, state.ema_shift)
        new = dataclasses.replace(
            state,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema_update(state.ema_params, params, decay),
            ema_batch_stats=ema_update(state.ema_batch_stats, batch_stats, decay),
            ema_updates=state.ema_updates + 1,
        )
        new = jax.tree.map(lambda n, o: n if n is o else jnp.where(finite, n, o), new, state)
        return dataclasses.replace(new, step=state.step + 1), StepMetrics(loss, terms, norm, finite)

    return jax.pmap(train_step, AXIS, in_axes=(None, 0), out_axes=(None, None), donate_argnums=(0,))


def _split(batch: Batch, key: Array, config: Config, size_px: tuple[int, int] | None, dtype: Any) -> _Part:
    """A device's rows as the model takes them, in parts [n, b / n, ...]."""
    parts = config.train.accumulate
    images, labels, boxes_cxcywh, valid = map(
        jnp.asarray, (batch.images, batch.labels, batch.boxes_cxcywh, batch.valid)
    )
    if size_px is not None:
        images = resize_nearest(images, *size_px)
    targets = Targets(labels, boxes_cxcywh.astype(dtype), valid)
    denoising = draw_denoising(key, targets, config)

    def rows(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), tree)

    if denoising is not None:
        common = (denoising.group, denoising.exists, denoising.num_groups)
        group, exists, num_groups = (jnp.broadcast_to(x, (parts, *x.shape)) for x in common)
        by_row = (denoising.labels, denoising.boxes_logit, denoising.match)
        own_labels, own_boxes, match = rows(by_row)
        denoising = DenoisingQueries(own_labels, own_boxes, group, exists, match, num_groups)
    return _Part(unit_range(rows(images), dtype), rows(targets), denoising)


def make_eval_step(
    model_config: ModelConfig,
) -> Callable[[PyTree, Array], tuple[Float[Array, "d b n"], Int[Array, "d b n"], Float[Array, "d b n 4"]]]:
    """Scores, labels and boxes (cxcywh, best first) of images ``[d, b, h, w, 3]``, computed in float32."""
    apply: Callable[..., Any] = DFine(dataclasses.replace(model_config, precision="float32")).apply

    def eval_step(variables: PyTree, images: Array) -> tuple[Array, Array, Array]:
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        output: ModelOutput = apply(variables, unit_range(images, dtype), train=False)
        scores, labels, boxes_cxcywh = map(jnp.asarray, select(output.logits, output.boxes_cxcywh))
        return scores, labels, boxes_cxcywh

    return jax.pmap(eval_step, AXIS, in_axes=(None, 0), devices=jax.local_devices())


def predict_function(eval_step: Callable[..., Any], variables: PyTree) -> Predict:
    """An evaluation step as a function of this host's images [b, h, w, 3]; rows are added where b does not divide."""
    local = _sharding(jax.local_devices(), PartitionSpec())
    variables = jax.device_put(hosts.on_host(variables) if hosts.count() > 1 else variables, local)

    def predict(images: np.ndarray) -> Predictions:
        devices, count = jax.local_device_count(), len(images)
        padding = np.zeros((-count % devices, *images.shape[1:]), images.dtype)
        split = np.concatenate([images, padding]).reshape(devices, -1, *images.shape[1:])
        scores, labels, boxes = (np.asarray(x).reshape(-1, *x.shape[2:])[:count] for x in eval_step(variables, split))
        return scores, labels, boxes

    return predict


def replicated(tree: PyTree) -> PyTree:
    """The tree on all devices of all hosts, laid out as the steps return it: the first call compiles for all later."""
    sharding = _sharding(jax.devices(), PartitionSpec())
    if hosts.count() == 1:
        return jax.device_put(tree, sharding)

    def place(x: Any) -> Array:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(x)))
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(place, tree)


def split_over_devices(batch: Batch) -> Batch:
    """A host batch [b, ...] as [d, b / d, ...], d = the host's devices."""
    devices = jax.local_device_count()
    return type(batch)(*(array.reshape(devices, -1, *array.shape[1:]) for array in batch))


def spread(batch: Batch) -> Batch:
    """The hosts' batches [d, b, ...] as one over all devices, for a step that was compiled ahead."""
    if hosts.count() == 1:
        return batch
    sharding = _sharding(jax.devices(), PartitionSpec(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def _sharding(devices: Sequence[Any], spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), spec)
