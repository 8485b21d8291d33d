"""Single ONNX operations as JAX functions.

jax2onnx spells several things out that ONNX has as one operation (LayerNormalization, MatMul with a matrix, Resize),
inserts shape arithmetic where the batch is symbolic, and drops the padding of pooling. Each function here is one
operation in the exported graph, registered with jax2onnx's plugin mechanism, and computes the same in JAX.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax2onnx.plugins.plugin_system import PrimitiveLeafPlugin, register_primitive
from jaxtyping import Array

from dfine_jax.ops.boxes import AnyArray
from dfine_jax.ops.precision import at_least_float32

_NAME = "dfine_jax.onnx"
_operation = Primitive(_NAME)
_operation.multiple_results = True


@_operation.def_impl
def _evaluate(*inputs: Any, reference: Callable[..., Any], **_: Any) -> list[Array]:
    return jax.tree.leaves(reference(*inputs))


@_operation.def_abstract_eval
def _shapes(*inputs: Any, reference: Callable[..., Any], **_: Any) -> list[Any]:
    structs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs]
    return [ShapedArray(x.shape, x.dtype) for x in jax.tree.leaves(jax.eval_shape(reference, *structs))]


mlir.register_lowering(_operation, mlir.lower_fun(_evaluate, multiple_results=True))


@register_primitive(jaxpr_primitive=_NAME)
class _Operation(PrimitiveLeafPlugin):
    """Emits the node that the parameters describe."""

    def lower(self, ctx: Any, eqn: Any) -> None:
        """Add one node with its constant inputs to the graph."""
        inputs: list[Any] = [ctx.get_value_for_var(var) for var in eqn.invars]
        for constant in eqn.params["constants"]:
            # Not as a named initializer, which jax2onnx would turn to float32.
            inputs.append(None if constant is None else _constant(ctx, np.array(constant[1], constant[0])))
        op, names = eqn.params["op"], [ctx.fresh_name(eqn.params["op"].lower()) for _ in eqn.outvars]
        outputs = getattr(ctx.builder, op)(*inputs, _outputs=names, **dict(eqn.params["attributes"]))
        for var, value in zip(eqn.outvars, [outputs] if isinstance(outputs, ir.Value) else outputs, strict=True):
            value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(var.aval.dtype)))
            value.shape = ir.Shape([d if isinstance(d, int) else str(d) for d in var.aval.shape])
            ctx.bind_value_for_var(var, value)


def _constant(ctx: Any, array: np.ndarray) -> ir.Value:
    value = ctx.bind_const_for_var(object(), array)
    value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    return value


def _emit(
    op: str,
    reference: Callable[..., Any],
    *inputs: Array | np.ndarray,
    constants: Sequence[Any] = (),
    **attributes: Any,
) -> list[Array]:
    """Outputs of one node; ``constants`` are inputs behind the others: None (absent) or (type, nested tuple).

    Of NumPy arrays alone there is no node: the outputs are computed here and now.
    """
    if all(isinstance(x, np.ndarray) for x in inputs):
        with jax.ensure_compile_time_eval():
            return [np.asarray(x) for x in jax.tree.leaves(reference(*(jnp.asarray(x) for x in inputs)))]  # type: ignore[misc]
    frozen = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in attributes.items())
    return _operation.bind(
        *(jnp.asarray(x) for x in inputs),
        op=op,
        reference=reference,
        constants=tuple(constants),
        attributes=frozen,
    )


def conv(
    x: Array, kernel: np.ndarray, bias: np.ndarray | None, stride: int, pads: tuple[int, int], groups: int
) -> Array:
    """Cross-correlation of [b, c, h, w] with an OIHW kernel.

    Args:
      pads: zeros before and after, the same for both axes.
    """
    reference = functools.partial(_conv_reference, stride=stride, pads=pads, groups=groups)
    arrays = [x, *(jnp.asarray(weights, x.dtype) for weights in (kernel, bias) if weights is not None)]
    attributes: dict[str, Any] = {"strides": [stride] * 2, "pads": [pads[0]] * 2 + [pads[1]] * 2, "group": groups}
    return _emit("Conv", reference, *arrays, kernel_shape=list(kernel.shape[2:]), **attributes)[0]


def _conv_reference(
    x: Array, kernel: Array, bias: Array | None = None, *, stride: int, pads: tuple[int, int], groups: int
) -> Array:
    y = lax.conv_general_dilated(x, kernel, (stride, stride), (pads, pads), feature_group_count=groups)
    return y if bias is None else y + bias[:, None, None]


def max_pool2x2_padded(x: Array) -> Array:
    """Maximum of every value of [b, c, h, w] and its neighbours to the right, below and both, where they exist."""

    def reference(x: Array) -> Array:
        rows = jnp.maximum(x, jnp.concatenate([x[:, :, 1:], x[:, :, -1:]], 2))
        return jnp.maximum(rows, jnp.concatenate([rows[..., 1:], rows[..., -1:]], 3))

    return _emit("MaxPool", reference, x, kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1])[0]


def max_pool3x3(x: Array) -> Array:
    """Maximum of each 3x3 window around every second value of [b, c, h, w]; outside there is nothing."""

    def reference(x: Array) -> Array:
        pads = ((0, 0), (0, 0), (1, 1), (1, 1))
        return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, (1, 1, 3, 3), (1, 1, 2, 2), pads)

    return _emit("MaxPool", reference, x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])[0]


def average_pool2x2(x: Array) -> Array:
    """Mean of each 2x2 block of [b, c, h, w], whose sides are even."""

    def reference(x: Array) -> Array:
        return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5))

    return _emit("AveragePool", reference, x, kernel_shape=[2, 2], strides=[2, 2])[0]


def enlarge2x(x: Array) -> Array:
    """Nearest neighbour: every cell of [b, c, h, w] becomes 2x2."""
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    scales = ("float32", (1.0, 1.0, 2.0, 2.0))
    return _emit("Resize", lambda x: x.repeat(2, 2).repeat(2, 3), x, constants=(None, scales), **attributes)[0]


def enlarge_linear(x: Array, times: int) -> Array:
    """Bilinear, half-pixel centres: every cell of [b, c, h, w] becomes ``times`` x ``times``."""
    attributes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    scales = ("float32", (1.0, 1.0, float(times), float(times)))

    def reference(x: Array) -> Array:
        down, across = (jnp.asarray(_between_cells(side, times), x.dtype) for side in x.shape[2:])
        return jnp.matmul(jnp.matmul(down, x), across.T)

    return _emit("Resize", reference, x, constants=(None, scales), **attributes)[0]


def _between_cells(cells: int, times: int) -> np.ndarray:
    """Weights [times * cells, cells] of the two nearest cells; those at the edge repeat."""
    place = np.clip((np.arange(times * cells) + 0.5) / times - 0.5, 0, cells - 1)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(cells)), 0)


def matmul(a: AnyArray, b: AnyArray) -> Array:
    """NumPy's matrix product."""
    return _emit("MatMul", jnp.matmul, a, b)[0]


def add(a: AnyArray, b: AnyArray) -> Array:
    """Sum with broadcasting; as ``multiply`` and ``minimum``, one node where jax2onnx adds one that expands."""
    return _emit("Add", jnp.add, a, b)[0]


def multiply(a: AnyArray, b: AnyArray) -> Array:
    """Product with broadcasting."""
    return _emit("Mul", jnp.multiply, a, b)[0]


def minimum(a: Array, b: Array | np.ndarray) -> Array:
    """Smaller value with broadcasting."""
    return _emit("Min", jnp.minimum, a, b)[0]


def maximum(*xs: Array) -> Array:
    """Largest value with broadcasting."""
    return _emit("Max", lambda *xs: functools.reduce(jnp.maximum, xs), *xs)[0]


def clip(x: Array, low: float | None, high: float | None) -> Array:
    """Values limited to [low, high]; None is no limit."""
    limits = [None if v is None else (x.dtype.name, v) for v in (low, high)]
    constants = limits if high is not None else limits[:1]
    return _emit("Clip", functools.partial(jnp.clip, min=low, max=high), x, constants=constants)[0]


def relu(x: Array) -> Array:
    """max(x, 0)."""
    # Not jnp.maximum: while jax2onnx traces, it gives float32 for a float16 array and a number.
    return _emit("Relu", lambda x: lax.max(x, lax.full_like(x, 0)), x)[0]


def sine(x: Array) -> Array:
    """Sine."""
    return _emit("Sin", jnp.sin, x)[0]


def exponential(x: Array) -> Array:
    """Power of e."""
    return _emit("Exp", jnp.exp, x)[0]


def softmax(x: Array) -> Array:
    """Softmax over the last axis."""
    return _emit("Softmax", functools.partial(jax.nn.softmax, axis=-1), x, axis=-1)[0]


def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """Normalised last axis, statistics in at least float32."""

    def reference(x: Array, scale: Array, bias: Array) -> Array:
        wide = at_least_float32(x)
        centred = wide - wide.mean(-1, keepdims=True)
        normal = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
        return normal.astype(x.dtype) * scale + bias

    return _emit("LayerNormalization", reference, x, scale, bias, axis=-1, epsilon=epsilon)[0]


def instance_norm(x: Array, epsilon: float) -> Array:
    """Normalised rows of [b, c, n], statistics in at least float32."""

    def reference(x: Array, *_: Array) -> Array:
        wide = at_least_float32(x)
        centred = wide - wide.mean(-1, keepdims=True)
        return (centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)).astype(x.dtype)

    scale, bias = np.ones(x.shape[1], x.dtype), np.zeros(x.shape[1], x.dtype)
    return _emit("InstanceNormalization", reference, x, scale, bias, epsilon=epsilon)[0]


def gelu(x: Array) -> Array:
    """Exact GELU."""
    return _emit("Gelu", functools.partial(jax.nn.gelu, approximate=False), x)[0]


def reshape(x: AnyArray, *rest: int) -> Array:
    """``[b, *rest]``, or with a leading 0 ``[*rest]`` whose -1 is inferred; the batch may be symbolic."""
    return _emit(
        "Reshape",
        lambda x: x.reshape(x.shape[0], *_inferred(x, rest)),
        x,
        constants=[("int64", (0, *rest))],
    )[0]


def _inferred(x: AnyArray, rest: Sequence[int]) -> tuple[int, ...]:
    known = int(np.prod([n for n in rest if n != -1]))
    total = int(np.prod(x.shape[1:]))
    return tuple(total // known if n == -1 else n for n in rest)


def regroup(x: AnyArray, *rest: int) -> Array:
    """``[n, *rest]`` with as many rows as there are values for; the batch, which may be symbolic, times a number."""
    count, wanted = (int(np.prod(sides)) for sides in (x.shape[1:], rest))

    def reference(x: Array) -> Array:
        return x.reshape(x.shape[0] * count // wanted, *rest)

    return _emit("Reshape", reference, x, constants=[("int64", (-1, *rest))])[0]


def flatten_rows(x: AnyArray, columns: int) -> Array:
    """All values as rows [n, columns]."""
    count = int(np.prod(x.shape[1:])) // columns
    return _emit("Reshape", lambda x: x.reshape(x.shape[0] * count, columns), x, constants=[("int64", (-1, columns))])[
        0
    ]


def take(x: Array, index: Array | np.ndarray, axis: int) -> Array:
    """Slices of ``x`` by indices in range, of any shape, in place of ``axis``."""
    reference = functools.partial(jnp.take, axis=axis, mode="clip")
    return _emit("Gather", reference, x, jnp.asarray(index, jnp.int32), axis=axis)[0]


def split(x: AnyArray, parts: int, axis: int = -1) -> list[Array]:
    """Equal parts of an axis."""
    sizes = ("int64", (x.shape[axis] // parts,) * parts)
    return _emit("Split", lambda x: jnp.split(x, parts, axis), x, constants=[sizes], axis=axis)


def without_first(x: AnyArray, axis: int) -> Array:
    """All but the first slice of an axis."""
    bounds = [("int64", (1,)), ("int64", (x.shape[axis],)), ("int64", (axis,))]
    return _emit(
        "Slice", functools.partial(lax.slice_in_dim, start_index=1, limit_index=None, axis=axis), x, constants=bounds
    )[0]


def with_zeros_first(x: Array, axis: int) -> Array:
    """One slice of zeros more, in front of an axis."""
    pads = [(int(i == axis), 0) for i in range(x.ndim)]
    constants = [("int64", tuple(before for before, _ in pads) + (0,) * x.ndim)]
    return _emit("Pad", lambda x: jnp.pad(x, pads), x, constants=constants)[0]


def concatenate(xs: Sequence[Array], axis: int) -> Array:
    """Arrays joined along an axis."""
    return _emit("Concat", lambda *xs: jnp.concatenate(xs, axis), *xs, axis=axis)[0]


def divide_integers(a: Array, b: int) -> Array:
    """Quotient of non-negative int32 values, rounded down."""
    return _emit("Div", lambda a: a // b, a, constants=[("int32", b)])[0]


def first_rows(x: AnyArray, rows: int) -> Array | None:
    """First row of every image, int32 [b], when the images' rows lie one after another; None for a batch of one."""
    if isinstance(x.shape[0], int) and x.shape[0] == 1:
        return None
    return multiply(lax.iota(jnp.int32, x.shape[0]), jnp.int32(rows))


def gather_rows(x: AnyArray, index: Array) -> Array:
    """Rows [b, q, ...] of ``x`` [b, n, ...] by index [b, q], which must be in range."""
    first, columns = first_rows(x, x.shape[1]), int(np.prod(x.shape[2:]))
    if first is not None:
        index = add(index, reshape(first, 1))
    rows = take(flatten_rows(x, columns), index, 0)
    return rows if x.ndim == 3 else reshape(rows, index.shape[1], *x.shape[2:])
