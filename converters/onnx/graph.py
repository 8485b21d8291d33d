"""Simplification of the traced graph: channels first throughout, nothing left that does nothing.

Most of it is done by the passes of onnx-ir; ours are these. The network is written with channels last: jax2onnx puts a
transpose before and behind every convolution; ``channels_first`` moves the operations between convolutions to the
layout of ONNX, which leaves the transposes where maps become tokens. (ONNX Runtime's optimiser does the same, but saves
a float16 graph with the casts of the machine it ran on.) ``flatten_first`` writes those as OpenVINO handles them best.
``fix_reshapes`` states shapes that hold for every batch where jax2onnx computes them from the input.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_ELEMENTWISE = frozenset(("Add", "Cast", "Clip", "Div", "Max", "Min", "Mul", "Relu", "Sigmoid", "Sub", "Tanh"))


def simplify(model: ir.Model) -> None:
    """Make the graph lean, in place; results stay the same."""
    graph = model.graph
    fix_reshapes(graph)
    share_batch(graph)
    channels_first(graph)
    flatten_first(graph)
    for simplification in (
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.DeduplicateInitializersPass(size_limit=1 << 30),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        simplification(model)


def fix_reshapes(graph: ir.Graph) -> None:
    """Constant target shapes for reshapes with at most one unknown side; no expansion to the shape that is there."""
    for node in list(graph):
        if node.op_type not in ("Reshape", "Expand"):
            continue
        target, (x, *_) = node.outputs[0], node.inputs
        sides = _sides(target)
        if sides is None or x is None:
            continue
        if node.op_type == "Expand":
            if sides == _sides(x) and sides.count(-1) <= 1:
                target.replace_all_uses_with(x, replace_graph_outputs=True)
        elif _constant(node.inputs[1]) is None and sides.count(-1) <= 1:
            node.replace_input_with(1, _initializer(graph, f"{target.name}_shape", np.array(sides, np.int64)))


def share_batch(graph: ir.Graph) -> None:
    """Read the batch off the first input, wherever it is read off an intermediate value: equal nodes then merge."""
    batch = graph.inputs[0].shape[0] if graph.inputs[0].shape else None
    for node in graph:
        x = node.inputs[0] if node.op_type == "Shape" else None
        if x is None or x.shape is None or isinstance(batch, int) or x.shape[0] != batch:
            continue
        uses = [use.node for use in node.outputs[0].uses()]
        if all(n.op_type == "Gather" and np.all(_constant(n.inputs[1]) == 0) for n in uses):
            node.replace_input_with(0, graph.inputs[0])


def channels_first(graph: ir.Graph) -> None:
    """Move operations between a transpose to channels last and one back to the other side of both."""
    first: dict[ir.Value, ir.Value] = {}  # channels last -> the same value channels first
    last: dict[ir.Value, ir.Value] = {}  # the same value as the output of one transpose
    for node in list(graph):
        x = node.inputs[0] if node.inputs else None
        if _permutation(node) == _TO_LAST and x is not None:
            first[node.outputs[0]] = x
            last.setdefault(node.outputs[0], node.outputs[0])
        elif _permutation(node) == _TO_FIRST and x in first:
            node.outputs[0].replace_all_uses_with(first[x], replace_graph_outputs=True)
        elif any(v in first for v in node.inputs) and (moved := _moved(graph, node, first)) is not None:
            first.update(zip(node.outputs, moved.outputs, strict=True))
        else:
            for i, value in enumerate(node.inputs):
                if value in first:
                    node.replace_input_with(i, _channels_last(graph, node, value, first, last))


def flatten_first(graph: ir.Graph) -> None:
    """Maps become tokens by a reshape and a transpose of two axes, instead of the other way round.

    The convolution before may leave its result channels last. OpenVINO then has nothing left to do for the transpose of
    two axes, but copies the map behind one of three.
    """
    for node in list(graph):
        x, sides = node.inputs[0] if node.inputs else None, _sides(node.outputs[0])
        if _permutation(node) != _TO_LAST or x is None or sides is None or -1 in sides[1:]:
            continue
        _, height, width, channels = sides
        flat = [height * width, channels]
        uses = [use.node for use in node.outputs[0].uses()]
        flattened = [n for n in uses if n.op_type == "Reshape" and (_sides(n.outputs[0]) or [])[1:] == flat]
        if not flattened:
            continue
        rows = _inserted(graph, node, "Reshape", [x], [sides[0], channels, height * width])
        tokens = _inserted(graph, node, "Transpose", [rows], [sides[0], *flat], ir.AttrInt64s("perm", (0, 2, 1)))
        for reshape in flattened:
            reshape.outputs[0].replace_all_uses_with(tokens, replace_graph_outputs=True)
            graph.remove(reshape, safe=True)
        if len(flattened) < len(uses):
            node.outputs[0].replace_all_uses_with(
                _inserted(graph, node, "Reshape", [tokens], sides), replace_graph_outputs=True
            )


def _inserted(
    graph: ir.Graph, before: ir.Node, op_type: str, inputs: list[ir.Value], sides: list[int], *attributes: ir.Attr
) -> ir.Value:
    """Output of a new node; a reshape gets its target shape from ``sides``, the batch as it is."""
    base = f"{before.outputs[0].name}_{'_'.join(map(str, sides[1:]))}"
    if op_type == "Reshape":
        inputs = [*inputs, _initializer(graph, f"{base}_shape", np.array([0, *sides[1:]], np.int64))]
    node = ir.Node("", op_type, inputs, attributes)
    value = node.outputs[0]
    value.name, value.type = base, before.outputs[0].type
    batch = before.outputs[0].shape
    value.shape = ir.Shape([batch[0] if batch is not None else None, *sides[1:]])
    graph.insert_before(before, node)
    return value


def _moved(graph: ir.Graph, node: ir.Node, first: dict[ir.Value, ir.Value]) -> ir.Node | None:
    """The node on channels-first inputs, inserted before it; None when it cannot be moved."""
    if any(value.is_graph_output() for value in node.outputs):
        return None
    attributes = dict(node.attributes)
    inputs = list(node.inputs)
    if node.op_type in _ELEMENTWISE:
        if not all(v is None or v in first or _is_scalar(v) for v in inputs):
            return None
    elif node.op_type == "Concat":
        if not all(v in first for v in inputs):
            return None
        attributes["axis"] = ir.AttrInt64("axis", _TO_LAST[attributes["axis"].as_int() % 4])
    elif node.op_type == "Slice":
        axes = _constant(inputs[3]) if len(inputs) > 3 else None
        if inputs[0] not in first or axes is None:
            return None
        moved_axes = np.array([_TO_LAST[int(axis) % 4] for axis in axes], np.int64)
        inputs[3] = _initializer(graph, f"{node.outputs[0].name}_axes", moved_axes)
    else:
        return None
    inputs = [first.get(v, v) if v is not None else None for v in inputs]
    moved = ir.Node(node.domain, node.op_type, inputs, list(attributes.values()), num_outputs=len(node.outputs))
    for new, old in zip(moved.outputs, node.outputs, strict=True):
        new.name, new.type = f"{old.name}_nchw", old.type
    graph.insert_before(node, moved)
    return moved


def _channels_last(
    graph: ir.Graph, node: ir.Node, value: ir.Value, first: dict[ir.Value, ir.Value], last: dict[ir.Value, ir.Value]
) -> ir.Value:
    if value not in last:
        transpose = ir.Node("", "Transpose", [first[value]], [ir.AttrInt64s("perm", _TO_LAST)])
        transpose.outputs[0].name, transpose.outputs[0].type = f"{value.name}_nhwc", value.type
        graph.insert_before(node, transpose)
        last[value] = transpose.outputs[0]
    return last[value]


def _permutation(node: ir.Node) -> tuple[int, ...] | None:
    return tuple(node.attributes["perm"].as_ints()) if node.op_type == "Transpose" else None


def _constant(value: ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _is_scalar(value: ir.Value) -> bool:
    array = _constant(value)
    return array is not None and array.size == 1


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def _sides(value: ir.Value) -> list[int] | None:
    """Shape with -1 for the unknown; None without a shape."""
    if value.shape is None:
        return None
    return [side if isinstance(side, int) else -1 for side in value.shape]
