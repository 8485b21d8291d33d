"""dfine_jax -> ONNX: the pure function is traced, translated by jax2onnx, simplified and described.

Two graphs:

* ``raw``: ``images`` -> ``logits`` [b, q, k] before the sigmoid, ``boxes`` [b, q, 4] as (cx, cy, w, h) in [0, 1]; of
  models that segment also ``masks`` [b, q, h, w], logits too.
* ``complete``: ``images``, ``original_sizes_px`` float32 [b, 2] (width, height) -> ``labels`` int32 [b, n], ``boxes``
  float32 [b, n, 4] as corners in pixels of the original images, ``scores`` float32 [b, n], best first, and ``masks``
  [b, n, h, w] of these detections.

``images`` are float32 [b, 3, h, w], RGB in [0, 1], or with ``input_dtype="uint8"`` bytes [b, h, w, 3]. With
``source_hw`` they are bytes of that size and the graph resizes (resize.py). Outputs are float32 always, except masks:
those of a float16 graph are float16, because they are most of what leaves the device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnx_ir as ir
from jax2onnx import to_onnx
from jaxtyping import Array, Float

from dfine_jax import __version__
from dfine_jax.config import ModelSection
from dfine_jax.converters.onnx import ops
from dfine_jax.converters.onnx.graph import simplify
from dfine_jax.converters.onnx.model import Forward, forward
from dfine_jax.converters.onnx.resize import resizing
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.errors import UserError
from dfine_jax.families import of, recipe_name, task
from dfine_jax.families.family import Reduction, Variables
from dfine_jax.ops.grid import on_grid
from dfine_jax.serving.artefact import KEY, SIZES_INPUT, Artefact, InputSpec, outputs

GraphPrecision = Literal["fp32", "fp16"]
Graph = Literal["raw", "complete"]
InputType = Literal["float32", "uint8"]

OPSET = 20  # the first with Gelu
IR_VERSION = 9  # of opset 20


def export_onnx(
    model: Any,
    variables: Variables,
    meta: Mapping[str, Any],
    *,
    size_hw: tuple[int, int],
    batch: int | None = 1,
    precision: GraphPrecision = "fp32",
    graph: Graph = "raw",
    input_dtype: InputType = "float32",
    source_hw: tuple[int, int] | None = None,
    reduction: Reduction = Reduction(),  # noqa: B008
) -> onnx.ModelProto:
    """The model as an ONNX file that describes itself.

    Args:
      meta: ``class_names``, ``category_ids``; optionally ``preprocess`` (whose size is replaced), ``source``
        {file, sha256}, ``licence`` and ``best_threshold``.
      size_hw: height and width of the network's input in pixels.
      batch: fixed, or None for any.
      source_hw: height and width of the pictures, which the graph resizes; it takes bytes then.
      reduction: see ``operating_point``.

    Raises:
      UserError: size, batch or operating point do not fit the model.
    """
    check(model.config, size_hw, batch)
    if source_hw and min(source_hw) < 1:
        raise UserError(f"source size {source_hw[0]}x{source_hw[1]}: sides must be at least 1")
    variables = jax.tree.map(np.asarray, variables)  # of jax arrays the cast to float16 would stay in the graph
    model = operating_point(model, variables, reduction)
    if precision == "fp16":
        model = model.clone(compute_dtype=jnp.float16)
    preprocess = meta.get("preprocess") or Preprocess(*size_hw)
    preprocess = dataclasses.replace(preprocess, height_px=size_hw[0], width_px=size_hw[1])
    input_dtype = "uint8" if source_hw else input_dtype
    network = forward(model, variables, preprocess.scale if input_dtype == "uint8" else None)
    family, inside = of(model.config), None
    rules = family.answer_rules(model.config)
    mask_stride = (own := family.mask_stride(model.config)) and (family.answer_stride or own)
    if source_hw:
        network, inside = resizing(network, source_hw, preprocess, mask_stride), preprocess
        # What is left for the host.
        size_hw, plain = source_hw, {"resize": "stretch", "border": 0, "enlarge": True}
        preprocess = dataclasses.replace(inside, height_px=source_hw[0], width_px=source_hw[1], **plain)
    names = outputs(graph, task(model.config))
    function = raw(network) if graph == "raw" else complete(network, rules.num_top)
    proto = _translate(function, size_hw, batch, graph, input_dtype, names)
    pruned = getattr(model, "keep_queries", ())
    artefact = Artefact(
        variant=recipe_name(model.config),
        task=task(model.config),
        graph=graph,
        precision=precision,
        class_names=tuple(meta["class_names"]),
        category_ids=tuple(meta["category_ids"]),
        preprocess=preprocess,
        input=InputSpec("images", input_dtype, "NCHW" if input_dtype == "float32" else "NHWC", size_hw, batch),
        outputs=names,
        num_queries=getattr(model, "queries", None) or model.config.num_queries,
        layers=getattr(model, "layers", None) or model.config.decoder_layers,
        source=dict(meta.get("source", {})),
        best_threshold=meta.get("best_threshold"),
        mask_stride=mask_stride,
        rules=rules,
        resizes=inside,
        dfine_jax_version=__version__,
        licence=meta.get("licence", ""),
        extra={"keep_queries": list(pruned)} if pruned else {},
    )
    onnx.helper.set_model_props(proto, {KEY: json.dumps(artefact.to_dict())})
    onnx.checker.check_model(proto, full_check=True)
    return proto


def save(proto: onnx.ModelProto, path: Path) -> None:
    """Write one file, weights inside.

    Raises:
      UserError: more than the 2 GB that one file can hold.
    """
    if proto.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise UserError(f"{path}: the model is larger than the 2 GB of one ONNX file; export it in fp16")
    onnx.save(proto, path)


def check(model: ModelSection, size_hw: tuple[int, int], batch: int | None) -> None:
    """UserError unless the sides are multiples of the model's grid and the batch is positive."""
    grid_px = of(model).grid_px(model)
    if any(side <= 0 or side % grid_px for side in size_hw):
        near = "x".join(str(on_grid(side, grid_px)) for side in size_hw)
        raise UserError(f"input size {size_hw[0]}x{size_hw[1]}: sides must be multiples of {grid_px}, such as {near}")
    if batch is not None and batch < 1:
        raise UserError(f"batch {batch} must be at least 1, or dynamic")


def operating_point(model: Any, variables: Variables, reduction: Reduction) -> Any:
    """The network with less work, by the same weights.

    Queries of the first decoder layer, of the second and so on are pruned to those with the highest class logits of the
    layer before. With fewer layers the heads of the last one answer.

    Raises:
      UserError: more than the model has, or the weights lack the heads of an inner layer, or nothing of the model can
        be left out.
    """
    if reduction == Reduction():
        return model
    reduce = of(model.config).reduced
    if reduce is None:
        raise UserError(f"{of(model.config).title} has no other operating points; leave queries and layers as they are")
    return reduce(model, variables, reduction)


def raw(network: Forward) -> Callable[[Array], tuple[Array, ...]]:
    """All queries as they are."""

    def call(images: Array) -> tuple[Array, ...]:
        logits, boxes_cxcywh, masks = network(images)
        return (logits, boxes_cxcywh, *((masks.logits(),) if masks else ()))

    return call


def complete(network: Forward, num_top: int) -> Callable[[Array, Array], tuple[Array, ...]]:
    """Selection and scaling behind the network, as ``postprocess.select`` and ``to_pixels``."""

    def call(images: Array, sizes_px: Float[Array, "b 2"]) -> tuple[Array, ...]:
        logits, boxes_cxcywh, masks = network(images)
        queries, classes = logits.shape[1:]
        scores = jax.nn.sigmoid(ops.reshape(logits, queries * classes))
        scores, best = jax.lax.top_k(scores, min(num_top, queries * classes))
        query = ops.divide_integers(best, classes)
        labels = ops.add(best, ops.multiply(query, jnp.int32(-classes)))
        centre, size = ops.split(ops.gather_rows(boxes_cxcywh, query), 2)
        corners = ops.concatenate([centre - 0.5 * size, centre + 0.5 * size], 2)
        scale = ops.reshape(ops.concatenate([sizes_px, sizes_px], 1), 1, 4)
        boxes_px = ops.multiply(corners, scale)
        return (labels, boxes_px, scores, *((masks.logits_of(query),) if masks else ()))

    return call


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of jax2onnx's own parts: 64-bit types that JAX does not give, constants without a type."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def _translate(
    function: Callable[..., Any],
    size_hw: tuple[int, int],
    batch: int | None,
    graph: Graph,
    input_dtype: InputType,
    output_names: Sequence[str],
) -> onnx.ModelProto:
    side: Any = "B" if batch is None else batch
    inputs = [jax.ShapeDtypeStruct((side, *size_hw, 3), np.dtype(input_dtype))]
    names = ["images"]
    if graph == "complete":
        inputs.append(jax.ShapeDtypeStruct((side, 2), np.dtype("float32")))
        names.append(SIZES_INPUT)
    with _quiet():
        traced = to_onnx(
            function,
            inputs,
            model_name="detector",
            opset=OPSET,
            inputs_as_nchw=[0] if input_dtype == "float32" else None,
            input_names=names,
            output_names=list(output_names),
        )
    model = ir.from_proto(traced)
    simplify(model)
    with _quiet():
        proto = ir.to_proto(model)
    proto.graph.ClearField("value_info")  # runtimes infer; jax2onnx's are wrong behind a moved transpose
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version = "dfine_jax", __version__
    return proto
