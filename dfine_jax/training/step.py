"""One training step and one evaluation step, mapped over the devices.

The two ``jax.pmap`` calls of the library are here, and all its collectives but those of synchronised batch norm, whose
axis name is set here too. The state enters and leaves without a device axis.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from dfine_jax.config import Config, ModelConfig
from dfine_jax.evaluate import Predict, Predictions
from dfine_jax.losses.criterion import detection_loss
from dfine_jax.models.denoising import make_denoising_queries, num_slots, sample_noise
from dfine_jax.models.dfine import DFine
from dfine_jax.postprocess import select
from dfine_jax.training.optimizer import clip_coefficient, ema_decay, ema_update, parameter_rules, zero_frozen
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


def make_train_step(
    config: Config, tx: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """The update as a function of state and batch; batch arrays are ``[d, b, ...]``, one row per device.

    Devices average gradients, as DistributedDataParallel does, and share batch statistics. A step with a non-finite
    loss or gradient changes nothing but the step counter. The state given is consumed (its memory is reused).
    """
    apply: Callable[..., Any] = DFine(config.model, bn_axis_name=AXIS).apply
    rules = parameter_rules(config.model, config.optim)
    mean = functools.partial(jax.lax.pmean, axis_name=AXIS)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), jax.lax.axis_index(AXIS))
        dtype = jax.tree.leaves(state.params)[0].dtype
        images, labels, boxes_cxcywh, valid = map(jnp.asarray, batch)
        images, targets = unit_range(images, dtype), Targets(labels, boxes_cxcywh.astype(dtype), valid)
        denoising = draw_denoising(key, targets, config)

        def loss_fn(params: PyTree) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            output, changed = apply(variables, images, denoising, train=True, mutable=["batch_stats"])
            loss, terms = detection_loss(output, targets, denoising, config.loss, config.model, mean)
            return loss, (changed["batch_stats"], terms)

        (loss, (batch_stats, terms)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        loss, terms, grads = mean((loss, terms, zero_frozen(grads, rules)))
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        grads = jax.tree.map(lambda g: g * clip_coefficient(norm, config.optim.clip_norm).astype(g.dtype), grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(state.step + 1, config.optim)
        new = dataclasses.replace(
            state,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema_update(state.ema_params, params, decay),
            ema_batch_stats=ema_update(state.ema_batch_stats, batch_stats, decay),
        )
        new = jax.tree.map(lambda n, o: n if n is o else jnp.where(finite, n, o), new, state)
        return dataclasses.replace(new, step=state.step + 1), StepMetrics(loss, terms, norm, finite)

    return jax.pmap(train_step, AXIS, in_axes=(None, 0), out_axes=(None, None), donate_argnums=(0,))


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

    return jax.pmap(eval_step, AXIS, in_axes=(None, 0))


def predict_function(eval_step: Callable[..., Any], variables: PyTree) -> Predict:
    """An evaluation step as a function of host images [b, h, w, 3]; rows are added where b does not divide."""
    variables = replicated(variables)

    def predict(images: np.ndarray) -> Predictions:
        devices, count = jax.local_device_count(), len(images)
        padding = np.zeros((-count % devices, *images.shape[1:]), images.dtype)
        split = np.concatenate([images, padding]).reshape(devices, -1, *images.shape[1:])
        scores, labels, boxes = (np.asarray(x).reshape(-1, *x.shape[2:])[:count] for x in eval_step(variables, split))
        return scores, labels, boxes

    return predict


def replicated(tree: PyTree) -> PyTree:
    """The tree on all devices, laid out as the steps return it: the first call then compiles for all that follow."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def split_over_devices(batch: Batch) -> Batch:
    """A host batch [b, ...] as [d, b / d, ...]."""
    devices = jax.local_device_count()
    return Batch(*(array.reshape(devices, -1, *array.shape[1:]) for array in batch))
