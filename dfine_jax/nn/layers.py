"""Building blocks shared by backbone, encoder and decoder.

``dtype`` is the compute type; None keeps the type of the inputs and parameters, so float64 variables compute in
float64. Parameters and running statistics are stored in float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import lift
from flax.linen.dtypes import promote_dtype
from flax.linen.transforms import lift_transform
from jax import lax
from jaxtyping import Array, Bool, Float

from dfine_jax.nn import initializers
from dfine_jax.nn.initializers import Initializer, fan_in_uniform, uniform_bias, xavier_uniform
from dfine_jax.ops.attention import attend, attend_in_training
from dfine_jax.ops.conv import conv2d, project
from dfine_jax.ops.precision import at_least_float32
from dfine_jax.ops.recompute import computed_again
from dfine_jax.ops.replace import replaceable

ActivationName = Literal["relu", "silu", "gelu"]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}

# PyTorch's epsilon; two-pass variance.
LayerNorm = functools.partial(
    nn.LayerNorm,
    epsilon=1e-5,
    use_fast_variance=False,
    scale_init=initializers.ones,
    bias_init=initializers.zeros,
)


@replaceable
def activation(name: ActivationName) -> Callable[[Array], Array]:
    """Activation function by name; GELU is the exact one."""
    return _ACTIVATIONS[name]


def called(module: nn.Module, *inputs: Any, train: bool, remat: bool) -> Any:
    """The module's output; with ``remat`` the backward pass computes what is inside again instead of keeping it."""

    def call(module: nn.Module, *inputs: Any) -> Any:
        return module(*inputs, train=train)  # type: ignore[operator]

    return lift_transform(_lifted_again, call)(module, *inputs) if remat else call(module, *inputs)


def without_gradient(kind: type[nn.Module], *, initializing: bool) -> Callable[..., Any]:
    """The same module, to whose parameters no gradient flows."""

    def stop(params: Any) -> Any:
        return jax.tree.map(lax.stop_gradient, params)

    return nn.map_variables(kind, "params", stop, init=initializing, mutable=initializing)


def _lifted_again(function: Callable[..., Any]) -> Callable[..., Any]:
    """``computed_again`` of a function whose first argument is a scope; ``nn.remat`` has no choice of the means."""

    def inner(scope_of: Callable, changed: Callable, variables: Any, keys: Any, *inputs: Any) -> Any:
        def pure(variables: Any, keys: Any, *inputs: Any) -> Any:
            scope = scope_of(variables, keys)
            return function(scope, *inputs), changed(scope)

        return computed_again(pure)(variables, keys, *inputs)

    return lift.pack(inner, (True,), (True,), (True,), name="again")


@replaceable
def upsample2x(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Nearest-neighbour enlargement: every cell becomes 2x2."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def _running(old: Array, new: Array) -> Array:
    return (0.9 * old + 0.1 * lax.stop_gradient(new)).astype(old.dtype)


class Linear(nn.Module):
    """Affine map of the last axis; the bias starts like PyTorch's unless given."""

    features: int
    kernel_init: Initializer = fan_in_uniform
    bias_init: Initializer | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init or uniform_bias(x.shape[-1]), (self.features,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return project(x, kernel) + bias


class MLP(nn.Module):
    """``num_layers`` linear layers (``layers_i``) with an activation between them."""

    hidden: int
    out: int
    num_layers: int
    activation: ActivationName = "relu"
    kernel_init: Initializer = fan_in_uniform
    zero_last: bool = False  # the last layer starts at zero
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        zeros = initializers.zeros
        for i in range(self.num_layers - 1):
            layer = Linear(self.hidden, kernel_init=self.kernel_init, dtype=self.dtype, name=f"layers_{i}")
            x = activation(self.activation)(layer(x))
        return Linear(
            self.out,
            kernel_init=zeros if self.zero_last else self.kernel_init,
            bias_init=zeros if self.zero_last else None,
            dtype=self.dtype,
            name=f"layers_{self.num_layers - 1}",
        )(x)


class Conv(nn.Module):
    """Convolution without bias; ``padding`` None means (kernel_size - 1) // 2 on every side."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    padding: int | None = None
    kernel_init: Initializer = fan_in_uniform
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b ho wo o"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        padding = (self.kernel_size - 1) // 2 if self.padding is None else self.padding
        return conv2d(x, kernel, stride=self.stride, padding=padding, groups=self.groups)


class BiasedConv(nn.Module):
    """Convolution of odd size with bias that keeps the map's size."""

    features: int
    kernel_size: int = 1
    groups: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", fan_in_uniform, shape, jnp.float32)
        bias = self.param("bias", uniform_bias(math.prod(shape[:-1])), (self.features,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return conv2d(x, kernel, padding=self.kernel_size // 2, groups=self.groups) + bias


class ConvLayerNorm(nn.Module):
    """Convolution, normalisation of every pixel's channels, SiLU."""

    features: int
    kernel_size: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"]) -> Float[Array, "b h w d"]:
        x = Conv(self.features, self.kernel_size, dtype=self.dtype, name="conv")(x)
        return activation("silu")(LayerNorm(epsilon=1e-6, dtype=self.dtype, name="bn")(x))


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's running statistics.

    ``mean`` and ``var`` in ``batch_stats`` follow 0.9 old + 0.1 batch, the variance unbiased; the batch is normalised
    by its biased variance. With ``axis_name`` statistics are those of all replicas (equal batch per replica).
    ``frozen`` uses the stored statistics in training too and passes no gradient to ``scale`` and ``bias``. Arithmetic
    is done in at least float32.
    """

    frozen: bool = False
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"], *, train: bool) -> Float[Array, "*b c"]:
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", initializers.zeros, None, shape, jnp.float32)
        var = self.variable("batch_stats", "var", initializers.ones, None, shape, jnp.float32)
        scale = self.param("scale", initializers.ones, shape, jnp.float32)
        bias = self.param("bias", initializers.zeros, shape, jnp.float32)
        out_dtype = self.dtype or jnp.promote_types(x.dtype, scale.dtype)
        x = at_least_float32(x)
        if self.frozen:
            scale, bias = lax.stop_gradient((scale, bias))
        if train and not self.frozen:
            batch_mean, batch_var, count = self._batch_statistics(x, mean.value)
            if not self.is_initializing():
                unbiased = batch_var * (count / max(count - 1, 1))
                mean.value = _running(mean.value, batch_mean)
                var.value = _running(var.value, unbiased)
        else:
            batch_mean, batch_var = mean.value, var.value
        factor = scale * lax.rsqrt(batch_var + 1e-5)
        return (x * factor + (bias - batch_mean * factor)).astype(out_dtype)

    def _batch_statistics(self, x: Array, running_mean: Array) -> tuple[Array, Array, int]:
        axes = tuple(range(x.ndim - 1))
        count = x.size // x.shape[-1]
        # One pass over x: squares are taken around the running mean, so nothing cancels once that has settled.
        shift = lax.stop_gradient(running_mean).astype(x.dtype)
        first, second = (x - shift).mean(axes), jnp.square(x - shift).mean(axes)
        if self.axis_name is not None and not self.is_initializing():
            first, second = lax.pmean((first, second), self.axis_name)
            count = count * lax.axis_size(self.axis_name)
        return first + shift, jnp.maximum(second - jnp.square(first), 0), count


class LearnableAffine(nn.Module):
    """a * x + b with one scalar each (PP-HGNetV2)."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        scale = self.param("scale", initializers.ones, (1,), jnp.float32)
        bias = self.param("bias", initializers.zeros, (1,), jnp.float32)
        x, scale, bias = promote_dtype(x, scale, bias, dtype=self.dtype)
        return x * scale + bias


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, optional activation, optional learnable affine."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    padding: int | None = None
    activation: ActivationName | None = None
    lab: bool = False  # learnable affine; only behind an activation
    norm_name: str = "norm"
    frozen_bn: bool = False
    bn_axis_name: str | None = None
    kernel_init: Initializer = fan_in_uniform
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b ho wo o"]:
        x = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.groups,
            self.padding,
            self.kernel_init,
            self.dtype,
            name="conv",
        )(x)
        x = BatchNorm(self.frozen_bn, self.bn_axis_name, self.dtype, name=self.norm_name)(x, train=train)
        if self.activation is None:
            return x
        x = activation(self.activation)(x)
        return LearnableAffine(self.dtype, name="lab")(x) if self.lab else x


Unit = Callable[..., ConvNorm]
"""Makes a convolution of a network from its features, with what all of that network have in common."""


def folded(unit: ConvNorm) -> tuple[Float[Array, "kh kw i o"], Float[Array, " o"]]:
    """Kernel and bias that compute convolution and batch norm with its stored statistics at once."""
    params, stats = unit.variables["params"], unit.variables["batch_stats"][unit.norm_name]
    norm = params[unit.norm_name]
    factor = norm["scale"] * lax.rsqrt(stats["var"] + 1e-5)
    return params["conv"]["kernel"] * factor, norm["bias"] - stats["mean"] * factor


class InProjection(nn.Module):
    """Queries, keys and values from one kernel [d, 3d] in that order."""

    dtype: Any = None

    @nn.compact
    def __call__(
        self, query_key: Float[Array, "b n d"], value: Float[Array, "b n d"]
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"], Float[Array, "b n d"]]:
        d = query_key.shape[-1]
        kernel = self.param("kernel", xavier_uniform, (d, 3 * d), jnp.float32)
        bias = self.param("bias", initializers.zeros, (3 * d,), jnp.float32)
        query_key, value, kernel, bias = promote_dtype(query_key, value, kernel, bias, dtype=self.dtype)
        both = project(query_key, kernel[:, : 2 * d]) + bias[: 2 * d]
        return both[..., :d], both[..., d:], project(value, kernel[:, 2 * d :]) + bias[2 * d :]


class MultiHeadAttention(nn.Module):
    """Self-attention whose queries and keys share one input; softmax in at least float32."""

    num_heads: int = 8
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        query_key: Float[Array, "b n d"],
        value: Float[Array, "b n d"],
        blocked: Bool[Array, "*#b u n"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b n d"]:
        """``blocked[..., i, j]``: token i does not see token j; a token that sees nothing gets a mean of all values.

        Tokens beyond the rows of ``blocked`` see each other and no others. With ``train`` the backward pass computes
        the weights again instead of keeping them.
        """
        b, n, d = query_key.shape
        projected = InProjection(self.dtype, name="in_proj")(query_key, value)
        q, k, v = (t.reshape(b, n, self.num_heads, d // self.num_heads) for t in projected)
        x = attend_in_training(q, k, v, blocked) if train or blocked is not None else attend(q, k, v)
        return Linear(d, bias_init=initializers.zeros, dtype=self.dtype, name="out_proj")(x.reshape(b, n, d))
