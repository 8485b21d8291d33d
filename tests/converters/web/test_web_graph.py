"""Pictures of any size are resized inside the graph as the host does it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from PIL import Image

from dfine_jax.converters.web.graph import with_pictures
from dfine_jax.data.picture.images import Preprocess

SIZES_HW = ((47, 61), (151, 263), (11, 13), (321, 37), (1, 1), (97, 163))


def seen(height: int, width: int) -> onnx.ModelProto:
    """A network whose scores are its input and whose one box is all of what it sees."""
    box = helper.make_tensor("corners", TensorProto.FLOAT, [1, 1, 4], [0, 0, 1, 1])
    nodes = [
        helper.make_node("Identity", ["images"], ["scores"]),
        helper.make_node("Concat", ["original_sizes_px", "original_sizes_px"], ["scale"], axis=1),
        helper.make_node("Mul", ["corners", "scale"], ["boxes"]),
    ]
    real = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)  # noqa: E731
    graph = helper.make_graph(
        nodes,
        "seen",
        [real("images", [1, 3, height, width]), real("original_sizes_px", [1, 2])],
        [real("boxes", [1, 1, 4]), real("scores", [1, 3, height, width])],
        [box],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def picture(height: int, width: int) -> np.ndarray:
    """Smooth shapes."""
    rng = np.random.default_rng(height * width)
    small = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(64, 96),
        Preprocess(64, 96, resize="letterbox", border=114),
        Preprocess(96, 64, resize="letterbox", border=0, enlarge=False),
        Preprocess(60, 84, interpolation="bilinear"),
        Preprocess(64, 96, "letterbox", "bilinear", border=114, enlarge=False),
    ],
)
def test_pixels_and_view_are_those_of_the_host(preprocess):
    proto = with_pictures(seen(preprocess.height_px, preprocess.width_px), preprocess)
    session = ort.InferenceSession(proto.SerializeToString())
    for height, width in SIZES_HW:
        pixels = picture(height, width)
        alpha = np.random.default_rng(0).integers(0, 256, (height, width, 1), np.uint8)
        given = {"images": np.concatenate([pixels, alpha], 2)[None]}
        boxes, scores, view = session.run(["boxes", "scores", "view_px"], given)
        expected = preprocess(pixels).transpose(2, 0, 1).astype(np.float32)
        difference = np.abs(scores[0] * 255 - expected)
        # Halves of a level, which simple ratios of sides give, fall either way.
        assert difference.max() < 1.01 and (difference > 0.01).mean() < 0.2, (height, width)
        left, top, across, down = preprocess.view_px((width, height))
        np.testing.assert_allclose(view, [left, top, across, down], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(boxes[0, 0], [left, top, left + across, top + down], rtol=1e-5, atol=1e-3)


def test_the_graph_holds_no_type_that_webgpu_lacks():
    """The build of ONNX Runtime Web for WebGPU loads no file with float64."""
    proto = with_pictures(seen(64, 96), Preprocess(64, 96, resize="letterbox"))
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    types = {value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    assert TensorProto.FLOAT in types and TensorProto.DOUBLE not in types


def test_a_wrong_weight_is_seen(monkeypatch):
    from dfine_jax.converters.web import graph

    monkeypatch.setattr(graph, "_FIXED_POINT", 16.0)
    session = ort.InferenceSession(with_pictures(seen(64, 96), Preprocess(64, 96)).SerializeToString())
    pixels = picture(151, 263)
    given = {"images": np.concatenate([pixels, pixels[..., :1]], 2)[None]}
    (scores,) = session.run(["scores"], given)
    expected = Preprocess(64, 96)(pixels).transpose(2, 0, 1)
    assert np.abs(scores[0] * 255 - expected).max() > 1.01
