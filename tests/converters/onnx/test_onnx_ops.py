"""What translators get wrong silently, one test each, and the passes over the graph."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from jax2onnx import to_onnx

from dfine_jax.converters.onnx import ops
from dfine_jax.converters.onnx.fold import FoldedConv, fold, scaled, standardised
from dfine_jax.converters.onnx.graph import channels_first, simplify
from dfine_jax.nn.layers import ConvNorm


def run(proto: onnx.ModelProto, *feeds: np.ndarray) -> list[np.ndarray]:
    import onnxruntime as ort

    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: x for i, x in zip(session.get_inputs(), feeds, strict=True)})


def export(function, *shapes) -> onnx.ModelProto:
    return to_onnx(function, [jax.ShapeDtypeStruct(s, np.float32) for s in shapes], opset=20)


SCALE = np.arange(5, dtype=np.float32)
CASES = {
    "pooling pads with nothing": (lambda x: ops.max_pool2x2_padded(x), (2, 3, 4, 5), "MaxPool"),
    "layer norm": (lambda x: ops.layer_norm(x, SCALE, SCALE + 1, 1e-5), (2, 3, 4, 5), "LayerNormalization"),
    "rectifier": (ops.relu, (3, 5), "Relu"),
    "gelu": (ops.gelu, (3, 5), "Gelu"),
    "product of three axes with a matrix": (lambda x: ops.matmul(x, np.stack([SCALE, SCALE], 1)), (2, 4, 5), "MatMul"),
    "enlargement": (ops.enlarge2x, (2, 3, 4, 5), "Resize"),
    "lower bound": (lambda x: ops.clip(x, -0.5, None), (3, 5), "Clip"),
    "upper bound": (lambda x: ops.clip(x, None, -0.5), (3, 5), "Clip"),
    "reshape": (lambda x: ops.reshape(x, 2, -1), (3, 4, 5), "Reshape"),
    "gather": (lambda x: ops.take(x, np.array([[3, 0, 3]]), 1), (2, 4, 5), "Gather"),
    "split": (lambda x: ops.split(x, 2)[1], (2, 6), "Split"),
    "split of an inner axis": (lambda x: ops.split(x, 2, 1)[1], (2, 6, 3), "Split"),
    "all but the first": (lambda x: ops.without_first(x, 1), (2, 4, 5), "Slice"),
    "zeros in front": (lambda x: ops.with_zeros_first(x, 2), (2, 3, 4, 5), "Pad"),
    "images to windows": (lambda x: ops.regroup(x, 2, 5), (3, 4, 5), "Reshape"),
    "windows to images": (lambda x: ops.regroup(x, 2, 2, 5), (4, 2, 5), "Reshape"),
    "sine": (ops.sine, (3, 5), "Sin"),
    "exponential": (ops.exponential, (3, 5), "Exp"),
    "uneven padding": (
        lambda x: ops.conv(x, np.full((2, 3, 2, 2), 0.5), np.ones(2), 1, (0, 1), 1), (2, 3, 4, 5), "Conv"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("batch", ["fixed", "any"])
def test_one_operation_that_computes_the_same(case, batch):
    function, shape, op = CASES[case]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    proto = export(function, shape if batch == "fixed" else ("B", *shape[1:]))
    assert [node.op_type for node in proto.graph.node] == [op]
    np.testing.assert_allclose(run(proto, x)[0], function(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [ops.relu, ops.gelu, lambda x: ops.clip(x, 0.0, None), lambda x: ops.max_pool2x2_padded(x), ops.enlarge2x],
)
def test_float16_stays(function):
    """jax2onnx replaces functions of jax.numpy by its own, with other rules for types, while it traces."""
    seen = []

    def call(x):
        y = function(x.astype(jnp.float16))
        seen.append(y.dtype)
        return y.astype(jnp.float32)

    export(call, (1, 2, 4, 4))
    assert set(seen) == {np.dtype("float16")}


def test_constants_alone_are_no_nodes():
    """What is computed of weights is a weight."""

    def function(x):
        halves = ops.split(np.arange(6, dtype=np.float32), 2)
        assert all(isinstance(half, np.ndarray) for half in halves)
        return ops.add(x, ops.exponential(halves[1]))

    proto = export(function, (2, 3))
    assert [node.op_type for node in proto.graph.node] == ["Add"]
    x = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(run(proto, x)[0], 1 + np.exp([[3, 4, 5]] * 2), rtol=1e-6)


def test_the_mean_goes_into_a_convolution_without_padding():
    stream = np.random.default_rng(0)
    conv = FoldedConv(stream.standard_normal((2, 2, 3, 4)), stream.standard_normal(4))
    mean, deviation, scale = stream.random(3), stream.random(3) + 0.5, 1 / 255
    pictures = stream.integers(0, 256, (1, 4, 6, 3)).astype(np.float32)
    inside = standardised(scaled(conv, scale), mean / scale, deviation)

    def patches(x, conv):
        return ops.conv(x.transpose(0, 3, 1, 2), conv.kernel.transpose(3, 2, 0, 1), conv.bias, 2, (0, 0), 1)

    want = patches(((pictures * scale - mean) / deviation).astype(np.float32), conv)
    np.testing.assert_allclose(patches(pictures, inside), want, atol=1e-5)


def test_rows_of_several_images(tmp_path):
    x = np.random.default_rng(0).standard_normal((3, 4, 2, 5)).astype(np.float32)
    index = np.array([[3, 0], [1, 1], [2, 3]], np.int32)
    want = np.take_along_axis(x, index[:, :, None, None], 1)
    np.testing.assert_array_equal(ops.gather_rows(jnp.asarray(x), jnp.asarray(index)), want)
    inputs = [jax.ShapeDtypeStruct(("B", 4, 2, 5), np.float32), jax.ShapeDtypeStruct(("B", 2), np.int32)]
    np.testing.assert_array_equal(run(to_onnx(ops.gather_rows, inputs, opset=20), x, index)[0], want)


def test_onnxruntime_folds_zeros_into_pooling():
    """Why the stem has no ``Pad`` before its pooling: the zeros would be lost, also in other people's sessions."""
    import onnxruntime as ort

    x = -np.ones((1, 1, 2, 2), np.float32)
    helper, info = onnx.helper, onnx.helper.make_tensor_value_info
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["padded"]),
        helper.make_node("MaxPool", ["padded"], ["y"], kernel_shape=[2, 2], strides=[1, 1]),
    ]
    pads = onnx.numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 0, 1, 1]), "pads")
    shapes = info("x", 1, x.shape), info("y", 1, x.shape)
    graph = helper.make_graph(nodes, "pool", shapes[:1], shapes[1:], [pads])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = ort.SessionOptions()
    folded = ort.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})[0]
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    correct = ort.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})[0]
    np.testing.assert_array_equal(correct[0, 0], [[-1, 0], [0, 0]])
    if np.array_equal(folded, correct):
        pytest.skip("this ONNX Runtime keeps the padding")


@pytest.mark.parametrize("scale", [0.7, -0.7, 0.0])
def test_affine_behind_an_activation_folds_into_the_convolution(scale):
    rng = np.random.default_rng(0)
    unit = ConvNorm(4, 3, activation="relu", lab=True)
    x = rng.standard_normal((2, 5, 6, 3)).astype(np.float32)
    variables = jax.tree.map(np.array, unit.init(jax.random.key(0), x, train=False))
    variables["params"]["lab"] = {"scale": np.float32([scale]), "bias": np.float32([-0.3])}
    variables["batch_stats"]["norm"] = {"mean": rng.standard_normal(4), "var": rng.random(4) + 0.5}
    (folded,) = fold({name: {"unit": tree} for name, tree in variables.items()}).values()
    y = ops.conv(x.transpose(0, 3, 1, 2), folded.kernel.transpose(3, 2, 0, 1), folded.bias, 1, (1, 1), 1)
    y = np.maximum(y, folded.bound) if folded.lower else np.minimum(y, folded.bound)
    np.testing.assert_allclose(y.transpose(0, 2, 3, 1), unit.apply(variables, x, train=False), atol=1e-6)


def test_maps_stay_channels_first():
    """Everything between two convolutions moves; a use as tokens keeps one transpose."""

    def function(x):
        first, last = (0, 3, 1, 2), (0, 2, 3, 1)
        kernel, bias = np.ones((4, 4, 1, 1)), np.zeros(4)
        y = jnp.transpose(ops.conv(jnp.transpose(x, first), kernel, bias, 1, (0, 0), 1), last)
        y = jnp.concatenate([y * jax.nn.sigmoid(y), y[..., 1:3]], -1)[..., 2:]
        z = jnp.transpose(ops.conv(jnp.transpose(y, first), kernel, bias, 1, (0, 0), 1), last)
        return z + y, ops.reshape(y, 6, 4)

    x = np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32)
    model = ir.from_proto(export(function, x.shape))
    before = sum(node.op_type == "Transpose" for node in model.graph)
    simplify(model)
    proto = ir.to_proto(model)
    assert before >= 4 and sum(node.op_type == "Transpose" for node in proto.graph.node) == 3
    for got, want in zip(run(proto, x), function(x), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_operations_along_other_axes_stay_where_they_are():
    def function(x):
        y = jnp.transpose(ops.relu(x), (0, 2, 3, 1))
        return jnp.transpose(y + np.arange(3, dtype=np.float32), (0, 3, 1, 2))

    x = np.random.default_rng(0).standard_normal((2, 3, 2, 3)).astype(np.float32)
    model = ir.from_proto(export(function, x.shape))
    channels_first(model.graph)
    np.testing.assert_allclose(run(ir.to_proto(model), x)[0], function(x), atol=1e-6)
