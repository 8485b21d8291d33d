"""A detector small enough to write its ONNX graph by hand: one convolution, one token per cell, two linear heads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx import helper as h

from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.ops.postprocess import Answer
from dfine_jax.serving.artefact import KEY

HEIGHT, WIDTH, STRIDE, CHANNELS = 48, 64, 8, 8
QUERIES = HEIGHT * WIDTH // STRIDE**2
NAMES, IDS = ("ant", "bee", "cat"), (7, 3, 90)
TOP = 20


class Output(NamedTuple):
    answer: Answer


class Toy(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(CHANNELS, (3, 3), strides=STRIDE, padding=((0, 0), (0, 0)), name="stem")(images)
        tokens = nn.relu(x).reshape(x.shape[0], -1, CHANNELS)
        logits = nn.Dense(len(NAMES), name="score_head")(tokens)
        boxes = nn.sigmoid(nn.Dense(4, name="box_head")(tokens))
        return Output(Answer(logits, boxes))


def toy_model() -> tuple[Toy, dict[str, Any]]:
    model = Toy()
    variables = model.init(jax.random.key(0), np.zeros((1, HEIGHT, WIDTH, 3), np.float32), train=False)
    rng = np.random.default_rng(1)
    return model, jax.tree.map(
        lambda x: (np.asarray(x) * 3 + rng.normal(0, 0.1, x.shape)).astype(np.float32), variables
    )


def description(**changes: Any) -> dict[str, Any]:
    """The metadata of a float32 NCHW raw graph; ``input`` entries are changed one by one."""
    spec = {"name": "images", "dtype": "float32", "layout": "NCHW", "size_hw": [HEIGHT, WIDTH], "batch": None}
    values: dict[str, Any] = {
        "format_version": 1,
        "variant": "toy",
        "task": "detect",
        "graph": "raw",
        "precision": "fp32",
        "class_names": list(NAMES),
        "category_ids": list(IDS),
        "preprocess": Preprocess(HEIGHT, WIDTH).to_dict(),
        "input": {**spec, **changes.pop("input", {})},
        "outputs": ["logits", "boxes"],
        "num_queries": QUERIES,
        "layers": 1,
        "source": {"file": "toy", "sha256": "00"},
        "dfine_jax_version": "0",
        "licence": "",
    }
    return {**values, **changes}


def write_toy(path: Path, variables: Any, **changes: Any) -> Path:
    """The graph of ``variables`` as its description says (see ``description``); the number of queries is h * w / 64."""
    meta = description(**changes)
    if meta["graph"] == "complete":
        meta["outputs"] = ["labels", "boxes", "scores"]
    spec = meta["input"]
    batch = spec["batch"] or "B"
    height, width = spec["size_hw"]
    shape = [batch, 3, height, width] if spec["layout"] == "NCHW" else [batch, height, width, 3]
    kinds = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "float16": TensorProto.FLOAT16}
    inputs = [h.make_tensor_value_info("images", kinds[spec["dtype"]], shape)]
    nodes, weights = _body(variables["params"], spec)
    if meta["graph"] == "raw":
        outputs = [
            h.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, None, len(NAMES)]),
            h.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, None, 4]),
        ]
    else:
        inputs.append(h.make_tensor_value_info("original_sizes_px", TensorProto.INT64, [batch, 2]))
        more_nodes, more_weights = _selection()
        nodes, weights = [_renamed(n) for n in nodes] + more_nodes, weights + more_weights
        outputs = [
            h.make_tensor_value_info("labels", TensorProto.INT64, [batch, TOP]),
            h.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, TOP, 4]),
            h.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, TOP]),
        ]
    graph = h.make_graph(nodes, "toy", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in weights])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    h.set_model_props(model, {KEY: json.dumps(meta)})
    path.write_bytes(model.SerializeToString())
    return path


def toy_dataset(folder: Path, num_val: int, num_train: int = 1, names: Sequence[str] = NAMES) -> Path:
    """Shapes of three kinds under other class names."""
    root = make_shapes_dataset(folder, num_train=num_train, num_val=num_val, size_px=64, seed=3)
    for file in (root / "annotations").glob("instances_*.json"):
        content = json.loads(file.read_text())
        ids = [category["id"] for category in content["categories"]][: len(names)]
        content["categories"] = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] in ids]
        file.write_text(json.dumps(content))
    return root


def bake_batch(path: Path) -> Path:
    """The file declares any batch still, but a Reshape inside holds batch 1."""
    loaded = onnx.load(path)
    shape = next(entry for entry in loaded.graph.initializer if entry.name == "tokens_shape")
    shape.CopyFrom(numpy_helper.from_array(np.array([1, CHANNELS, QUERIES], np.int64), "tokens_shape"))
    onnx.save(loaded, path)
    return path


def _body(params: Any, spec: dict[str, Any]) -> tuple[list[Any], list[tuple[str, np.ndarray]]]:
    weights = [
        ("kernel", np.ascontiguousarray(params["stem"]["kernel"].transpose(3, 2, 0, 1))),
        ("bias", params["stem"]["bias"]),
        ("score_w", params["score_head"]["kernel"]),
        ("score_b", params["score_head"]["bias"]),
        ("box_w", params["box_head"]["kernel"]),
        ("box_b", params["box_head"]["bias"]),
        ("tokens_shape", np.array([0, CHANNELS, -1], np.int64)),
        ("byte", np.array(255, np.float32)),
    ]
    nodes, image = [], "images"
    if spec["dtype"] != "float32":
        nodes.append(h.make_node("Cast", [image], ["real"], to=TensorProto.FLOAT))
        image = "real"
    if spec["dtype"] == "uint8":
        nodes.append(h.make_node("Div", [image, "byte"], ["unit"]))
        image = "unit"
    if spec["layout"] == "NHWC":
        nodes.append(h.make_node("Transpose", [image], ["planes"], perm=[0, 3, 1, 2]))
        image = "planes"
    nodes += [
        h.make_node("Conv", [image, "kernel", "bias"], ["map"], kernel_shape=[3, 3], strides=[STRIDE, STRIDE]),
        h.make_node("Relu", ["map"], ["active"]),
        h.make_node("Reshape", ["active", "tokens_shape"], ["flat"]),
        h.make_node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
        h.make_node("MatMul", ["tokens", "score_w"], ["score_product"]),
        h.make_node("Add", ["score_product", "score_b"], ["logits"]),
        h.make_node("MatMul", ["tokens", "box_w"], ["box_product"]),
        h.make_node("Add", ["box_product", "box_b"], ["box_logit"]),
        h.make_node("Sigmoid", ["box_logit"], ["boxes"]),
    ]
    return nodes, weights


def _renamed(node: Any) -> Any:
    for i, name in enumerate(node.output):
        if name == "boxes":
            node.output[i] = "all_boxes"
    return node


def _selection() -> tuple[list[Any], list[tuple[str, np.ndarray]]]:
    weights = [
        ("row", np.array([0, -1], np.int64)),
        ("top", np.array([TOP], np.int64)),
        ("classes", np.array(len(NAMES), np.int64)),
        ("last", np.array([2], np.int64)),
        ("four", np.array([1, 1, 4], np.int64)),
        ("half", np.array(0.5, np.float32)),
        ("one", np.array([1], np.int64)),
    ]
    nodes = [
        h.make_node("Sigmoid", ["logits"], ["probability"]),
        h.make_node("Reshape", ["probability", "row"], ["pairs"]),
        h.make_node("TopK", ["pairs", "top"], ["scores", "index"]),
        h.make_node("Mod", ["index", "classes"], ["labels"]),
        h.make_node("Div", ["index", "classes"], ["query"]),
        h.make_node("Unsqueeze", ["query", "last"], ["query_column"]),
        h.make_node("Tile", ["query_column", "four"], ["query_rows"]),
        h.make_node("GatherElements", ["all_boxes", "query_rows"], ["chosen"], axis=1),
        h.make_node("Split", ["chosen"], ["centre", "extent"], axis=2, num_outputs=2),
        h.make_node("Mul", ["extent", "half"], ["half_extent"]),
        h.make_node("Sub", ["centre", "half_extent"], ["low"]),
        h.make_node("Add", ["centre", "half_extent"], ["high"]),
        h.make_node("Concat", ["low", "high"], ["corners"], axis=2),
        h.make_node("Cast", ["original_sizes_px"], ["sizes"], to=TensorProto.FLOAT),
        h.make_node("Concat", ["sizes", "sizes"], ["four_sizes"], axis=1),
        h.make_node("Unsqueeze", ["four_sizes", "one"], ["scale"]),
        h.make_node("Mul", ["corners", "scale"], ["boxes"]),
    ]
    return nodes, weights
