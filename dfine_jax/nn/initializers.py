"""Initial values of the reference (PyTorch defaults and the explicit ones of D-FINE).

An initializer says what a parameter starts as, and stands where the parameter is made. It is called as Flax calls one,
or draws the same distribution with NumPy (``draw_variables``): XLA takes the better part of a minute to compile a
program that draws all weights, and the host needs none.
"""

from __future__ import annotations

import abc
import contextvars
import hashlib
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.special import ndtri

PyTree = Any
Shape = tuple[int, ...]
_BITS = 24  # of a float32's mantissa, the implied one included
_declaring = contextvars.ContextVar("declaring", default=False)


class Initializer(abc.ABC):
    """Initial values of one parameter, drawn by ``jax.random`` or on the host."""

    def __call__(self, key: PRNGKeyArray | None, shape: Shape, dtype: Any = jnp.float32) -> Array:
        """Values as Flax asks for them; inside ``draw_variables`` a note of who would have made them."""
        if _declaring.get():
            return _Declared(jnp.zeros(shape, dtype), self)  # type: ignore[return-value]
        return self.on_device(key, shape, dtype)

    @abc.abstractmethod
    def on_device(self, key: PRNGKeyArray | None, shape: Shape, dtype: Any) -> Array:
        """Values drawn with ``jax.random``."""

    @abc.abstractmethod
    def on_host(self, stream: np.random.BitGenerator, shape: Shape) -> Float[np.ndarray, "..."]:
        """Values of the same distribution in float32, drawn from the bits of ``stream``."""


class Constant(Initializer):
    """One value everywhere, or given values in the parameter's order."""

    def __init__(self, values: float | np.ndarray) -> None:
        self.values = np.asarray(values)

    def on_device(self, key: PRNGKeyArray | None, shape: Shape, dtype: Any) -> Array:
        """The values; the key may be None."""
        del key
        return jnp.asarray(self._shaped(shape), dtype)

    def on_host(self, stream: np.random.BitGenerator, shape: Shape) -> Float[np.ndarray, "..."]:
        """The values; nothing is drawn."""
        del stream
        return np.array(self._shaped(shape), np.float32)

    def _shaped(self, shape: Shape) -> np.ndarray:
        return self.values.reshape(shape) if self.values.ndim else np.broadcast_to(self.values, shape)


class Uniform(Initializer):
    """U(-bound, bound) with a bound that may follow from the shape."""

    def __init__(self, bound: Callable[[Shape], float]) -> None:
        self.bound = bound

    def on_device(self, key: PRNGKeyArray | None, shape: Shape, dtype: Any) -> Array:
        """Values drawn with ``jax.random``."""
        assert key is not None
        return jax.random.uniform(key, shape, dtype, -self.bound(shape), self.bound(shape))

    def on_host(self, stream: np.random.BitGenerator, shape: Shape) -> Float[np.ndarray, "..."]:
        """Values in float32, drawn from the bits of ``stream``."""
        bound = np.float32(self.bound(shape))
        return (_unit_uniform(stream, shape) * np.float32(2) - np.float32(1)) * bound


class Normal(Initializer):
    """N(0, deviation ** 2) with a deviation that may follow from the shape."""

    def __init__(self, deviation: Callable[[Shape], float]) -> None:
        self.deviation = deviation

    def on_device(self, key: PRNGKeyArray | None, shape: Shape, dtype: Any) -> Array:
        """Values drawn with ``jax.random``."""
        assert key is not None
        return jax.random.normal(key, shape, dtype) * jnp.asarray(self.deviation(shape), dtype)

    def on_host(self, stream: np.random.BitGenerator, shape: Shape) -> Float[np.ndarray, "..."]:
        """Values in float32, drawn from the bits of ``stream``."""
        middle = _unit_uniform(stream, shape).astype(np.float64) + 2.0 ** -(_BITS + 1)  # never 0 or 1
        return ndtri(middle).astype(np.float32) * np.float32(self.deviation(shape))


class NormalRows(Normal):
    """N(0, 1) rows; the last row, which stands for padding, is zero."""

    def __init__(self) -> None:
        super().__init__(lambda shape: 1.0)

    def on_device(self, key: PRNGKeyArray | None, shape: Shape, dtype: Any) -> Array:
        """Values drawn with ``jax.random``."""
        return super().on_device(key, shape, dtype).at[-1].set(0)

    def on_host(self, stream: np.random.BitGenerator, shape: Shape) -> Float[np.ndarray, "..."]:
        """Values in float32, drawn from the bits of ``stream``."""
        values = super().on_host(stream, shape)
        values[-1] = 0
        return values


def _fan_in(shape: Shape) -> int:
    return math.prod(shape[:-1])


def _xavier_bound(shape: Shape) -> float:
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return math.sqrt(6 / (_fan_in(shape) + fan_out))


def uniform_bias(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for the bias of a layer with ``fan_in`` inputs."""
    return Uniform(lambda shape: 1 / math.sqrt(fan_in))


def prior_bias() -> Initializer:
    """Bias of class logits so that every class starts with a probability of 0.01."""
    return Constant(-math.log((1 - 0.01) / 0.01))


def sampling_offsets_bias(num_heads: int, num_points: tuple[int, ...]) -> Initializer:
    """Bias [heads * points * 2]: head k looks along angle 2 pi k / heads, its j-th point of a level at distance j.

    Directions are scaled to a maximum norm of 1 (reference: src/zoo/dfine/dfine_decoder.py, MSDeformableAttention).
    """
    theta = 2 * np.pi * np.arange(num_heads) / num_heads
    direction = np.stack([np.cos(theta), np.sin(theta)], axis=-1)
    direction = direction / np.abs(direction).max(axis=-1, keepdims=True)
    rank = np.concatenate([np.arange(1, n + 1) for n in num_points])
    return Constant((direction[:, None, :] * rank[None, :, None]).reshape(-1))  # [m * p * 2]


zeros = Constant(0.0)
ones = Constant(1.0)
xavier_uniform = Uniform(_xavier_bound)
fan_in_uniform = Uniform(lambda shape: 1 / math.sqrt(_fan_in(shape)))  # kernels [in, out] and [kh, kw, in, out]
fan_out_normal = Normal(lambda shape: math.sqrt(2 / (math.prod(shape[:-2]) * shape[-1])))  # of convolutions before ReLU
class_embedding = NormalRows()


@flax.struct.dataclass
class _Declared(nn.meta.AxisMetadata[Array]):
    """A parameter while only shapes are traced, with the initializer that makes its values."""

    value: Any
    initializer: Initializer = flax.struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> _Declared:
        return self.replace(value=val)  # type: ignore[attr-defined]

    def add_axis(self, index: int, params: dict[Any, Any]) -> _Declared:
        del index, params
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> _Declared:
        del index, params
        return self


def draw_variables(init: Callable[[PRNGKeyArray], PyTree], key: PRNGKeyArray) -> PyTree:
    """What ``init(key)`` returns, with values drawn on the host: nothing is compiled, ``init`` is traced for shapes.

    The values of a leaf depend on the key and the leaf's path alone: not on the device, nor on versions of JAX, nor on
    NumPy's distributions, whose streams may change (the bits of its Philox generator may not).

    Args:
      init: gives a tree of dicts whose leaves all come from an ``Initializer``, traceable.
      key: a key of ``jax.random``; its words are the seed.

    Returns:
      The tree with NumPy arrays in float32; inside a trace that knows no value of the key, traced arrays of the same
      values.

    Raises:
      TypeError: a leaf was made by another function, so that nothing says how to draw it.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(
        declare_variables(init), is_leaf=lambda x: isinstance(x, _Declared)
    )
    named = [("/".join(str(entry.key) for entry in path), leaf) for path, leaf in leaves]
    if others := [name for name, leaf in named if not isinstance(leaf, _Declared)]:
        raise TypeError(f"not made by initializers of dfine_jax.nn.initializers: {', '.join(others)}")

    def draw(words: Any) -> list[np.ndarray]:
        seed = np.asarray(words).astype("<u4").tobytes()
        return [leaf.initializer.on_host(_stream(seed, name), leaf.value.shape) for name, leaf in named]

    if isinstance(key, Tracer):
        shapes = [jax.ShapeDtypeStruct(leaf.value.shape, np.float32) for _, leaf in named]
        drawn = jax.pure_callback(draw, shapes, jax.random.key_data(key), vmap_method="sequential")
    else:
        with jax.ensure_compile_time_eval():
            drawn = draw(jax.random.key_data(key))
    return jax.tree.unflatten(tree, drawn)


def declare_variables(init: Callable[[PRNGKeyArray], PyTree]) -> PyTree:
    """Shapes of ``init(key)``, each leaf boxed with the initializer that makes it."""
    token = _declaring.set(True)
    try:
        return jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    finally:
        _declaring.reset(token)


def _stream(seed: bytes, name: str) -> np.random.BitGenerator:
    digest = hashlib.sha256(seed + name.encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], "<u8"))


def _unit_uniform(stream: np.random.BitGenerator, shape: Shape) -> Float[np.ndarray, "..."]:
    """Multiples of 2**-24 in [0, 1), two from each word of the stream."""
    count = math.prod(shape)
    words = stream.random_raw(-(-count // 2)).astype("<u8", copy=False).view("<u4")[:count]
    return ((words >> np.uint32(32 - _BITS)).astype(np.float32) * np.float32(2.0**-_BITS)).reshape(shape)
