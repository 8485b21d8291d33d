"""Exported graphs of a model that segments: masks are the model's, in few operations."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import onnx
import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "tests"))
import onnx_models as tiny

from dfine_jax.converters.onnx.export import export_onnx, operating_point
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.errors import UserError
from dfine_jax.families.dfine.family import DFINE
from dfine_jax.families.family import Reduction
from dfine_jax.ops.postprocess import AnswerRules, select
from dfine_jax.serving.artefact import KEY, Artefact, from_json

LIMIT = 1e-4  # of logits around 1; measured: 1.1e-5
STRIDE = 4
PIXELS = np.random.default_rng(1).integers(0, 256, (3, *tiny.SIZE_HW, 3)).astype(np.uint8)
IMAGES = PIXELS / np.float32(255)
NCHW = np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))
SIZES_PX = np.array([[640, 480], [97, 51], [7, 900]], np.float32)


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model("segment")


@pytest.fixture(scope="module")
def want(model):
    answer = tiny.answers(*model, IMAGES)
    assert answer.masks_logit.shape == (3, 10, 16, 24) and np.std(answer.masks_logit) > 0.3
    return answer


def description(proto: onnx.ModelProto) -> Artefact:
    return from_json({entry.key: entry.value for entry in proto.metadata_props}[KEY], "the graph")


@pytest.mark.parametrize("batch", [1, 2, None])
def test_raw_graphs(model, want, batch, capfd):
    proto = export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW, batch=batch)
    assert [output.name for output in proto.graph.output] == ["logits", "boxes", "masks"]
    for count in (batch,) if batch else (1, 3):
        got = tiny.run(proto, images=NCHW[:count])
        assert got["masks"].dtype == np.float32 and got["masks"].shape == (count, 10, 16, 24)
        assert np.abs(got["masks"] - want.masks_logit[:count]).max() < LIMIT
        assert np.abs(got["boxes"] - want.boxes_cxcywh[:count]).max() < 1e-5
    assert capfd.readouterr().err == ""  # ONNX Runtime has nothing to warn about


@pytest.mark.parametrize("prune", [(), (10, 8)], ids=["whole", "pruned"])
def test_complete_graphs_have_the_masks_of_their_detections(model, want, prune):
    """Thirty rows of ten queries: each query several times."""
    reduction = Reduction(prune=prune)
    given = {"batch": None, "graph": "complete", "input_dtype": "uint8", "reduction": reduction}
    proto = export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW, **given)
    assert [output.name for output in proto.graph.output] == ["labels", "boxes", "scores", "masks"]
    got = tiny.run(proto, images=PIXELS, original_sizes_px=SIZES_PX)
    if prune:
        want = tiny.answers(operating_point(*model, reduction), model[1], IMAGES)
    found = select(want, 300)
    np.testing.assert_array_equal(got["labels"], found.labels)
    assert np.abs(got["masks"] - found.masks_logit).max() < LIMIT


def test_fewer_detections_than_queries_are_chosen_before_the_product(model, want, monkeypatch):
    few = dataclasses.replace(DFINE, answer_rules=lambda model: AnswerRules(num_top=6))
    monkeypatch.setattr("dfine_jax.converters.onnx.export.of", lambda model: few)
    proto = export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW, batch=None, graph="complete")
    got = tiny.run(proto, images=NCHW, original_sizes_px=SIZES_PX)
    assert np.abs(got["masks"] - select(want, 6).masks_logit).max() < LIMIT
    shapes = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph.value_info
    sides = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in shapes}
    (last,) = (node for node in proto.graph.node if "masks" in node.output)
    (product,) = (node for node in proto.graph.node if last.input[0] in node.output)
    assert (last.op_type, product.op_type) == ("Reshape", "MatMul")
    assert sides[product.output[0]][1:] == [6, 16 * 24]


def test_half_precision(model, want):
    proto = export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW, batch=2, precision="fp16")
    got = tiny.run(proto, images=NCHW[:2])
    assert got["masks"].dtype == np.float16 and got["logits"].dtype == np.float32
    assert np.median(np.abs(got["masks"] - want.masks_logit[:2])) < 5e-3  # measured: 1.7e-3


@pytest.mark.parametrize("source_hw", [(128, 96), (64, 300), (200, 300)], ids=str)
def test_masks_of_letterboxed_pictures_show_the_picture_alone(model, source_hw):
    outside = Preprocess(*tiny.SIZE_HW, resize="letterbox")
    left, top, width, height = outside.view_px(source_hw[::-1])
    meta, given = {**tiny.META, "preprocess": outside}, {"size_hw": tiny.SIZE_HW, "batch": None, "source_hw": source_hw}
    if source_hw == (200, 300):  # scaled to 64 x 96: no border at all
        assert (left, top) == (0, 0)
    if source_hw == (64, 300):  # 20 x 96 pixels, 22 from the top
        with pytest.raises(UserError, match=r"64x300: letterboxed to 64x96, the picture is 20x96 at 22 from the top"):
            export_onnx(*model, meta, **given)
        return
    proto = export_onnx(*model, meta, **given)
    pictures = np.random.default_rng(2).integers(0, 256, (2, *source_hw, 3)).astype(np.uint8)
    got = tiny.run(proto, images=pictures)["masks"]
    whole = tiny.answers(*model, np.stack([outside(p) for p in pictures]) / np.float32(255)).masks_logit
    column = round(-left / width * 24)
    part = whole[:, :, :, column : column + got.shape[3]]
    assert got.shape == part.shape == (2, 10, *description(proto).mask_size_hw)
    assert np.abs(got - part).max() < 1e-3  # some pixels are one level off Pillow's


def test_the_file_describes_its_masks(model):
    proto = export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW)
    artefact = description(proto)
    assert (artefact.task, artefact.mask_stride, artefact.mask_size_hw) == ("segment", STRIDE, (16, 24))
    assert artefact.outputs == ("logits", "boxes", "masks")


def test_the_graph_is_lean(model):
    proto, detector = (export_onnx(*weights, tiny.META, size_hw=tiny.SIZE_HW) for weights in (model, tiny.tiny_model()))
    assert len(proto.graph.node) - len(detector.graph.node) <= 50
    more = {op: tiny.count(proto, op) - tiny.count(detector, op) for op in ("Conv", "Transpose", "Resize", "Add")}
    # Three levels, two convolutions of 3x3; channels first throughout; two levels and the sum enlarged; five biases,
    # two sums of levels and three biases of the embedding.
    assert more == {"Conv": 5, "Transpose": 0, "Resize": 3, "Add": 10}
    assert tiny.count(proto, "InstanceNormalization") == 5
    assert all(node.domain == "" for node in proto.graph.node)
