"""A tiny detector with random weights, its answers, and how exported files are run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from PIL import Image
from tiny import tiny_config

from dfine_jax.families.dfine.family import DFINE
from dfine_jax.families.dfine.model import DFine
from dfine_jax.ops.postprocess import Answer

SIZE_HW = (64, 96)
META = {"class_names": ("red", "white", "platelet"), "category_ids": (1, 2, 7), "licence": "Apache-2.0"}


def noise_pictures(folder: Path) -> Path:
    """A new folder with six pictures of noise, to calibrate on."""
    folder.mkdir()
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(noise).resize(SIZE_HW[::-1]).save(folder / f"{i}.png")
    return folder


def tiny_model(task: str = "detect") -> tuple[DFine, dict[str, Any]]:
    """All leaves random, also those that start as zeros or ones; some affine scales are negative."""
    model = DFine(DFINE.tasks[task](tiny_config().model))
    images = jax.ShapeDtypeStruct((1, 128, 128, 3), np.float32)
    shapes = jax.eval_shape(lambda k, x: model.init(k, x, train=True), jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def fill(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape)
        match path[-1].key:
            case "kernel":
                noise *= np.sqrt(1.5 / np.prod(leaf.shape[:-1]))
            case "var":
                noise = 1 + 0.3 * np.abs(noise)
            case "scale":
                noise = (1 + 0.3 * noise) * (-1 if path[-2].key == "lab" and rng.random() < 0.3 else 1)
            case _:
                noise *= 0.3
        return noise.astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(fill, shapes)
    stem = variables["params"]["backbone"]["stem"]["stem1"]
    stem["lab"]["bias"][:] = -0.6  # most values before the pooling are negative, so that its padding shows
    stem["lab"]["scale"][:] = 0.5
    return model, variables


def answers(model: Any, variables: Any, images: np.ndarray) -> Answer:
    """Of the model itself."""
    out = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    return jax.tree.map(np.asarray, out.answer)


def run(proto: onnx.ModelProto, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by name in ONNX Runtime, warnings on standard error."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 2
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def count(proto: onnx.ModelProto, op: str) -> int:
    """Nodes of one type."""
    return sum(node.op_type == op for node in proto.graph.node)
