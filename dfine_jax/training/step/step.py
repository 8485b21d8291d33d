"""One training step and one evaluation step, mapped over the devices.

The two ``jax.pmap`` calls of the library are here, and all its collectives but those of synchronised batch norm, whose
axis name is set here too. The state enters and leaves without a device axis.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from dfine_jax.config import Config
from dfine_jax.data.load.batch import Batch
from dfine_jax.data.picture.images import unit_range
from dfine_jax.evaluation.evaluate import Predict
from dfine_jax.families import of
from dfine_jax.families.family import Build
from dfine_jax.ops.platform import traced_for
from dfine_jax.ops.postprocess import Selected, select
from dfine_jax.ops.precision import exact_products
from dfine_jax.system.host_memory import collection_paused
from dfine_jax.training.run import hosts
from dfine_jax.training.step.gradient import make_gradient, split_parts
from dfine_jax.training.step.optimizer import clip_coefficient, ema_update, parameter_rules, zero_frozen
from dfine_jax.training.step.packing import PackedState, Packing, State, size_limit
from dfine_jax.training.step.schedule import ema_decay, make_schedule
from dfine_jax.training.step.state import TrainState
from dfine_jax.training.step.validation_loss import make_validation_loss
from dfine_jax.typing import ModelOutput

PyTree = Any
AXIS = "devices"


@flax.struct.dataclass
class StepMetrics:
    """What a step reports, averaged over devices."""

    loss: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]  # weighted loss terms by kind/where
    grad_norm: Float[Array, ""]  # before clipping, trainable parameters only
    finite: Bool[Array, ""]  # False: the step was skipped


class TrainStep:
    """The update as a function of state and batch; batch arrays are ``[d, b, ...]``, one row per device.

    Devices average gradients, as DistributedDataParallel does, and share batch statistics. A step with a non-finite
    loss or gradient changes nothing but the step counter. The state given is consumed (its memory is reused); the one
    returned holds small arrays in vectors (training/step/packing.py), and is what the next step takes as it is.

    With ``config.train.accumulate`` = n a device computes its images in n parts, one after another. The step is that of
    the whole, except that batch norm sees one part at a time (training/step/gradient.py).

    Args:
      steps_per_epoch: for schedules that depend on it.
      size_px: (height, width) that the images are brought to where they have another; None: as they come.
      devices: that share the batch; None: all there are.
    """

    def __init__(
        self,
        config: Config,
        tx: optax.GradientTransformationExtraArgs,
        *,
        steps_per_epoch: int = 0,
        size_px: tuple[int, int] | None = None,
        devices: Sequence[Any] | None = None,
    ) -> None:
        self._config, self._size_px, self._devices = config, size_px, devices
        self._rules = parameter_rules(config.model, config.optim)
        self._platform = (devices or jax.devices())[0].platform
        self._mean = functools.partial(jax.lax.pmean, axis_name=AXIS)
        self._gradient = make_gradient(config, AXIS, self._mean)
        self._update = make_update(config, tx, steps_per_epoch=steps_per_epoch)
        self._packing: Packing | None = None
        self._program: Any = None

    def __call__(self, state: State, batch: Batch) -> tuple[PackedState, StepMetrics]:
        """State and metrics after the step."""
        packed = self._packed(state)
        return _unwrapped(self._program(packed.arrays, batch), packed.packing)

    def lower(self, state: State, batch: Batch) -> LoweredStep:
        """For compiling ahead; arrays or their shapes."""
        packed = self._packed(state)
        with collection_paused():
            return LoweredStep(self._program.lower(packed.arrays, batch), self, packed.packing)

    def with_program(self, program: Any, state: State) -> CompiledStep:
        """The step with its program, which was compiled for such a state, by this process or another."""
        return CompiledStep(program, self, self._packed(state).packing)

    def _packed(self, state: State) -> PackedState:
        if isinstance(state, PackedState):
            packing = state.packing
        else:
            packing = self._packing or Packing(state, self._rules, size_limit(self._platform))
            state = PackedState(packing.pack(state, replicated), packing)
        if packing is not self._packing:
            step, self._packing = functools.partial(self._step, packing), packing
            self._program = jax.pmap(
                step, AXIS, in_axes=(None, 0), out_axes=(None, None), donate_argnums=(0,), devices=self._devices
            )
        return state

    def _step(self, packing: Packing, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), jax.lax.axis_index(AXIS))
        dtype = jax.tree.leaves(state.params)[0].dtype
        stacked = split_parts(batch, key, self._config, self._size_px, dtype)
        params, batch_stats = packing.params.unpack(state.params), packing.stats.unpack(state.batch_stats)
        with traced_for(self._platform):
            loss, terms, grads, batch_stats = self._gradient(params, batch_stats, stacked)
        loss, terms, grads = self._mean((loss, terms, zero_frozen(packing.params.pack(grads), self._rules)))
        state, norm, finite = self._update(state, loss, grads, packing.stats.pack(batch_stats))
        return state, StepMetrics(loss, terms, norm, finite)


@dataclasses.dataclass(frozen=True)
class LoweredStep:
    """A step before compilation."""

    lowered: Any
    step: TrainStep
    packing: Packing

    def compile(self, options: Any = None) -> CompiledStep:
        """Compile for the devices."""
        return CompiledStep(self.lowered.compile(options), self.step, self.packing)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A step that is called like ``TrainStep``, for arrays of the shapes it was compiled for."""

    program: Any
    step: TrainStep
    packing: Packing

    def __call__(self, state: State, batch: Batch) -> tuple[PackedState, StepMetrics]:
        """State and metrics after the step."""
        packed = state if isinstance(state, PackedState) else self.step._packed(state)
        return _unwrapped(self.program(packed.arrays, batch), packed.packing)

    def memory_analysis(self) -> Any:
        """Bytes of arguments, results and temporaries."""
        return self.program.memory_analysis()

    def as_text(self) -> str:
        """The optimised program."""
        return self.program.as_text()


def _unwrapped(result: tuple[TrainState, StepMetrics], packing: Packing) -> tuple[PackedState, StepMetrics]:
    return PackedState(result[0], packing), result[1]


make_train_step = TrainStep


def make_update(
    config: Config, tx: optax.GradientTransformationExtraArgs, *, steps_per_epoch: int = 0
) -> Callable[[TrainState, Array, PyTree, PyTree], tuple[TrainState, Float[Array, ""], Bool[Array, ""]]]:
    """Clipping, the optimiser at the schedule's rate and the averages of the weights.

    A function of state, loss, gradients and batch statistics, means over devices all; it returns the next state, the
    gradients' norm and whether all was finite. If not, only the step counter has changed.
    """
    schedule = make_schedule(config, steps_per_epoch)

    def update(state: TrainState, loss: Array, grads: PyTree, batch_stats: PyTree) -> tuple[TrainState, Array, Array]:
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        grads = jax.tree.map(lambda g: g * clip_coefficient(norm, config.optim.clip_norm).astype(g.dtype), grads)
        share = schedule(state.step)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, share=share)
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
        return dataclasses.replace(new, step=state.step + 1), norm, finite

    return update


def make_eval_step(
    config: Config, devices: Sequence[Any] | None = None, *, with_loss: bool = False
) -> Callable[[PyTree, Any], Any]:
    """What is found in images ``[d, b, h, w, 3]``, best first, all arrays [d, b, n, ...], computed in float32.

    Masks are float16: there are hundreds of them for each image, and they go to the host.

    Args:
      devices: None: those of this host.
      with_loss: a function of batches ``[d, b, ...]`` that returns what is found and a ``BatchLoss``, one program.
    """
    family, model = of(config.model), dataclasses.replace(config.model, precision="float32")
    apply: Callable[..., Any] = family.build(model, Build()).apply
    scale, num_top = family.preprocess(model, config.data).scale, family.answer_rules(model).num_top

    def eval_step(variables: PyTree, images: Array) -> Selected:
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        with exact_products():
            output: ModelOutput = apply(variables, unit_range(images, dtype, scale), train=False)
        found = select(output.answer, num_top)
        return found if found.masks_logit is None else found._replace(masks_logit=jnp.float16(found.masks_logit))

    loss = make_validation_loss(config, functools.partial(jax.lax.pmean, axis_name=AXIS)) if with_loss else None

    def step(variables: PyTree, given: Any) -> Any:
        with traced_for((devices or jax.local_devices())[0].platform):
            if loss is None:
                return eval_step(variables, given)
            return eval_step(variables, given.images), loss(variables, given)

    return jax.pmap(step, AXIS, in_axes=(None, 0), devices=devices or jax.local_devices())


def predict_function(eval_step: Callable[..., Selected], variables: PyTree) -> Predict:
    """An evaluation step as a function of this host's images [b, h, w, 3]; rows are added where b does not divide."""
    variables = _on_local_devices(variables)

    def predict(images: np.ndarray) -> Selected:
        devices, count = jax.local_device_count(), len(images)
        padding = np.zeros((-count % devices, *images.shape[1:]), images.dtype)
        split = np.concatenate([images, padding]).reshape(devices, -1, *images.shape[1:])
        found = eval_step(variables, split)
        return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[:count], found)

    return predict


def validate_function(eval_step: Callable[..., Any], variables: PyTree) -> Callable[[Batch], tuple[Selected, Any]]:
    """An evaluation step with its loss as a function of this host's batch, whose rows the devices divide."""
    variables = _on_local_devices(variables)

    def validate(batch: Batch) -> tuple[Selected, Any]:
        found, loss = eval_step(variables, split_over_devices(batch))
        return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), found), loss

    return validate


def _on_local_devices(variables: PyTree) -> PyTree:
    local = _sharding(jax.local_devices(), PartitionSpec())
    return jax.device_put(hosts.on_host(variables) if hosts.count() > 1 else variables, local)


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
    return batch.each(lambda array: array.reshape(devices, -1, *array.shape[1:]))


def spread(batch: Batch) -> Batch:
    """The hosts' batches [d, b, ...] as one over all devices, for a step that was compiled ahead."""
    if hosts.count() == 1:
        return batch
    sharding = _sharding(jax.devices(), PartitionSpec(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def _sharding(devices: Sequence[Any], spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), spec)
