"""Which layer of an exported file diverges first from the model.

Exporters fold, fuse and rename, so layers are found by value: every module output of the model is looked for among all
tensors of the file, in any layout and, behind the query selection, in any order of queries. What is not found is at
fault only if nothing that was computed from it was found; the first such module whose own inputs were found is named.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from dfine_jax.errors import UserError
from dfine_jax.ops.precision import exact_products
from dfine_jax.serving.artefact import Artefact

_TOLERANCE = {"fp32": 1e-3, "fp16": 0.1, "int8": 1.0}  # largest difference, in root mean squares of the tensor
_SMALLEST = 16  # elements; smaller tensors are equal by chance
_OUTPUT = "output "
_ROW_SHARE = 0.95  # of the queries that must agree: near-ties of the selection may fall either way


class Module(NamedTuple):
    """Output of a module of the model."""

    name: str
    order: int  # position of the operation that made it
    depends_on: int  # bit set over modules
    value: np.ndarray

    @property
    def depth(self) -> int:
        """Modules around it; of several with one output the innermost is named."""
        return 0 if self.name.startswith(_OUTPUT) else 1 + self.name.count("/")


def first_divergence(
    path: Path | str, model: Any, variables: Any, image: UInt8[np.ndarray, "h w 3"], artefact: Artefact
) -> str:
    """The first module whose output the file does not reproduce, in words.

    Args:
      path: ``.onnx`` or ``.xml``; engines have no tensors to look at.
      model, variables: a Flax module and what it is applied to.
      image: preprocessed; one with large errors.

    Raises:
      UserError: it cannot be told, and why.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".onnx", ".xml"):
        raise UserError("engines have no tensors to look at")
    seen = artefact.resizes(image) if artefact.resizes else image
    modules = _modules(model, variables, artefact.preprocess.to_float(seen[None]))
    batch = artefact.input.batch or 1
    given = artefact.preprocess.to_float(image) if artefact.input.dtype != "uint8" else image
    given = np.repeat(given[None], batch, 0).astype(artefact.input.dtype)
    given = np.ascontiguousarray(given.transpose(0, 3, 1, 2) if artefact.input.layout == "NCHW" else given)
    tensors = _onnx_tensors if suffix == ".onnx" else _openvino_tensors
    sizes_px = np.tile([[image.shape[1], image.shape[0]]], (batch, 1))
    try:
        values = list(tensors(path, given, sizes_px))
    except _failures(suffix) as error:
        raise UserError(f"its tensors cannot be computed: {' '.join(str(error).split())[-200:]}") from error
    found = [tensor[:1] for tensor in values if tensor.ndim and len(tensor) in (1, batch)]
    queries = {artefact.num_queries, *artefact.extra.get("keep_queries", ())}
    return locate(modules, found, queries, _TOLERANCE[artefact.precision])


def locate(modules: list[Module], tensors: list[np.ndarray], queries: Collection[int], tolerance: float) -> str:
    """The verdict from module outputs and the tensors of the file.

    Args:
      queries: numbers of queries; there are several where some are dropped between layers.
      tolerance: largest difference, in root mean squares of the tensor.
    """
    by_size: dict[int, list[np.ndarray]] = {}
    for tensor in tensors:
        by_size.setdefault(tensor.size, []).append(np.asarray(tensor, np.float32))
    distance = [_nearest(m.value, by_size.get(m.value.size, []), queries) for m in modules]
    for limit in (tolerance, tolerance / 10, tolerance / 100):  # small faults hide below the first
        good = 0
        for i, module in enumerate(modules):
            if distance[i] <= limit:
                good |= module.depends_on | 1 << i
        bad = [i for i in range(len(modules)) if not good >> i & 1]
        if bad:
            first = min(bad, key=lambda i: (modules[i].order, -modules[i].depth))
            matched = sum(value <= limit for value in distance)
            away = f"; the nearest tensor there differs by {distance[first]:.2g} of its magnitude"
            found = f"{matched} of {len(modules)} layers found in the file"
            return f"{modules[first].name} ({found}{away if np.isfinite(distance[first]) else ''})"
    return "every layer agrees; the outputs are selected, decoded or ordered differently"


def _modules(model: Any, variables: Any, images: np.ndarray) -> list[Module]:
    """All module outputs for one image, and which of them each one was computed from."""
    import jax
    from jax.extend.core import Literal

    def outputs(variables: Any, images: Any) -> Any:
        _, state = model.apply(variables, images, train=False, capture_intermediates=True, mutable=["intermediates"])
        return state["intermediates"]

    closed, shapes = jax.make_jaxpr(outputs, return_shape=True)(variables, images)
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    with exact_products():
        values = jax.tree.leaves(jax.jit(outputs)(variables, images))
    wanted: dict[Any, int] = {}
    for i, var in enumerate(closed.jaxpr.outvars):
        if not isinstance(var, Literal):
            wanted[var] = wanted.get(var, 0) | 1 << i
    reach: dict[Any, int] = {}
    order: dict[Any, int] = {}
    for position, equation in enumerate(closed.jaxpr.eqns):
        origin = 0
        for var in equation.invars:
            if not isinstance(var, Literal):
                origin |= reach.get(var, 0)
        for var in equation.outvars:
            reach[var], order[var] = origin | wanted.get(var, 0), position
    out = []
    for i, var in enumerate(closed.jaxpr.outvars):
        value = np.asarray(values[i], np.float32)
        if value.size >= _SMALLEST and not isinstance(var, Literal) and var in order and np.std(value) > 0:
            out.append((names[i], order[var], reach[var], value, i))
    position = {entry[-1]: new for new, entry in enumerate(out)}
    return [Module(name, at, _renumbered(origin, position), value) for name, at, origin, value, _ in out]


def _renumbered(bits: int, position: dict[int, int]) -> int:
    return sum(1 << new for old, new in position.items() if bits >> old & 1)


def _name(path: Any) -> str:
    parts = [str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path]
    inner = "/".join(part for part in parts if part != "__call__" and not part.isdigit())
    return _OUTPUT + inner if parts[0] == "__call__" else inner


def _nearest(value: np.ndarray, tensors: list[np.ndarray], queries: Collection[int]) -> float:
    """Smallest distance of the tensors to the value, in root mean squares of the value."""
    squeezed = np.squeeze(value)
    scale = float(np.sqrt(np.mean(np.square(squeezed)))) or 1.0
    best = float("inf")
    for tensor in tensors:
        other = np.squeeze(tensor)
        if sorted(other.shape) != sorted(squeezed.shape):
            other = other.reshape(squeezed.shape) if other.ndim == 1 else other
            if other.shape != squeezed.shape:
                continue
        for axes in itertools.permutations(range(other.ndim)):
            if tuple(other.shape[axis] for axis in axes) == squeezed.shape:
                best = min(best, _distance(squeezed, other.transpose(axes), queries) / scale)
    return best


def _distance(a: np.ndarray, b: np.ndarray, queries: Collection[int]) -> float:
    """Largest difference, or that of nearly all rows along an axis of queries, whose order is free."""
    by_order = [_unordered_distance(a, b, axis) for axis in range(a.ndim) if a.ndim > 1 and a.shape[axis] in queries]
    return min((x for x in (float(np.abs(a - b).max()), *by_order) if np.isfinite(x)), default=float("inf"))


def _unordered_distance(a: np.ndarray, b: np.ndarray, axis: int) -> float:
    rows_a, rows_b = (np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) for x in (a, b))
    direction = np.random.default_rng(0).standard_normal(rows_a.shape[1])
    sorted_a, sorted_b = (rows[np.argsort(rows @ direction)] for rows in (rows_a, rows_b))
    return float(np.quantile(np.abs(sorted_a - sorted_b).max(1), _ROW_SHARE))


def _failures(suffix: str) -> tuple[type[Exception], ...]:
    """What runtimes raise."""
    if suffix == ".xml":
        return RuntimeError, ValueError
    from dfine_jax.serving.backends.onnxruntime import failures

    return *failures("load"), *failures("run"), RuntimeError, ValueError


def _onnx_tensors(path: Path | str, images: np.ndarray, sizes_px: np.ndarray) -> Iterator[np.ndarray]:
    """Values of all tensors of a graph, computed without the runtime's rewriting."""
    import onnx
    import onnxruntime as ort

    model = onnx.load(str(path))
    present = {output.name for output in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in present]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {entry.name: images for entry in session.get_inputs()[:1]}
    for entry in session.get_inputs()[1:]:
        feeds[entry.name] = sizes_px.astype(np.int64 if "int64" in entry.type else np.float32)
    for value in session.run(None, feeds):
        if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating):
            yield value


def _openvino_tensors(path: Path | str, images: np.ndarray, sizes_px: np.ndarray) -> Iterator[np.ndarray]:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(str(path))
    kept = ("Constant", "Result", "Parameter")
    ports = [port for op in model.get_ordered_ops() if op.get_type_name() not in kept for port in op.outputs()]
    model.add_outputs([port for port in ports if port.get_element_type().is_real()])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    feeds = [images, *(sizes_px.astype(port.get_element_type().to_dtype()) for port in compiled.inputs[1:])]
    yield from (np.array(value) for value in compiled(feeds).values())
