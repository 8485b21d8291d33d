"""Exported graphs compute what the model computes, in few operations, and say what they are."""

from __future__ import annotations

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
from dfine_jax.families.family import Reduction
from dfine_jax.ops.postprocess import select, to_pixels
from dfine_jax.serving.artefact import KEY, from_json
from dfine_jax.serving.backends.base import in_view

LOGIT_LIMIT, BOX_LIMIT = 2e-5, 2e-6  # measured: 2.0e-6, 4.2e-7
PIXELS = np.random.default_rng(1).integers(0, 256, (3, *tiny.SIZE_HW, 3)).astype(np.uint8)
IMAGES = PIXELS / np.float32(255)
NCHW = np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model()


@pytest.fixture(scope="module")
def want(model):
    return tiny.answers(*model, IMAGES)


@pytest.fixture(scope="module")
def fixed(model):
    return export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW)


@pytest.fixture(scope="module")
def dynamic(model):
    return export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW, batch=None)


def check(got, want, count: int) -> None:
    assert got["logits"].dtype == got["boxes"].dtype == np.float32
    assert np.abs(got["logits"] - want[0][:count]).max() < LOGIT_LIMIT
    assert np.abs(got["boxes"] - want[1][:count]).max() < BOX_LIMIT


def test_fixed_batch(fixed, want, capfd):
    check(tiny.run(fixed, images=NCHW[:1]), want, 1)
    assert capfd.readouterr().err == ""  # ONNX Runtime has nothing to warn about


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_any_batch(dynamic, want, batch, capfd):
    check(tiny.run(dynamic, images=NCHW[:batch]), want, batch)
    assert capfd.readouterr().err == ""


def test_fixed_batch_above_one(model, want):
    proto = export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW, batch=2)
    check(tiny.run(proto, images=NCHW[:2]), want, 2)


def test_complete_graph_from_bytes(model, want, capfd):
    proto = export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW, batch=None, graph="complete", input_dtype="uint8")
    sizes = np.array([[640, 480], [97, 51], [7, 900]], np.float32)  # width, height
    got = tiny.run(proto, images=PIXELS, original_sizes_px=sizes)
    assert capfd.readouterr().err == ""
    scores, labels, boxes, _ = select(want, 300)
    assert got["labels"].dtype == np.int32
    np.testing.assert_array_equal(got["labels"], labels)
    np.testing.assert_allclose(got["scores"], scores, atol=1e-5)
    np.testing.assert_allclose(got["boxes"], to_pixels(boxes, sizes), atol=2e-3)


GREY = {"resize": "letterbox", "border": 114, "enlarge": False}


@pytest.mark.parametrize(
    ("source_hw", "resize"),
    [
        ((51, 97), {}),
        pytest.param((200, 96), {"resize": "letterbox"}, marks=pytest.mark.slow),
        pytest.param((64, 300), {"resize": "letterbox"}, marks=pytest.mark.slow),
        ((200, 96), GREY),
        ((33, 50), GREY | {"interpolation": "bilinear"}),  # as weights of dfine-seg have it
    ],
    ids=str,
)
def test_resizing_inside(model, source_hw, resize):
    pictures = np.random.default_rng(2).integers(0, 256, (2, *source_hw, 3)).astype(np.uint8)
    outside = Preprocess(*tiny.SIZE_HW, **resize)
    meta = {**tiny.META, "preprocess": outside}
    proto = export_onnx(*model, meta, size_hw=tiny.SIZE_HW, batch=None, source_hw=source_hw)
    got = tiny.run(proto, images=pictures)
    logits, boxes, _ = tiny.answers(*model, np.stack([outside(p) for p in pictures]) / np.float32(255))
    artefact = from_json({p.key: p.value for p in proto.metadata_props}[KEY], "the graph")
    size = source_hw[::-1]
    boxes_px, found_px = (
        in_view(b, np.array([p.view_px(size)] * 2)) for b, p in ((boxes, outside), (got["boxes"], artefact.preprocess))
    )
    assert np.abs(got["logits"] - logits).max() < LOGIT_LIMIT
    assert np.abs(found_px - boxes_px).max() < 2e-6 * max(source_hw) * 4
    assert artefact.resizes == outside
    np.testing.assert_array_equal(artefact.preprocess(pictures[0]), pictures[0])


def test_half_precision_keeps_coordinates_in_single(model, want, capfd):
    proto = export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW, batch=2, precision="fp16")
    got = tiny.run(proto, images=NCHW[:2])
    assert capfd.readouterr().err == ""
    assert got["logits"].dtype == got["boxes"].dtype == np.float32
    assert np.median(np.abs(got["logits"] - want[0][:2])) < 0.02
    assert np.median(np.abs(got["boxes"] - want[1][:2])) < 2e-3
    types = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph.value_info
    kind = {value.name: value.type.tensor_type.elem_type for value in types}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    used = {op: [kind[n.output[0]] for n in proto.graph.node if n.op_type == op] for op in ("Conv", "Floor", "TopK")}
    assert set(used["Conv"]) == {half}
    assert set(used["Floor"]) == set(used["TopK"]) == {single}
    weights = [i for i in proto.graph.initializer if i.data_type == half]
    assert sum(np.prod(i.dims) for i in weights) > 0.6 * sum(np.prod(i.dims) for i in proto.graph.initializer)


def test_the_graph_is_lean(fixed, dynamic):
    assert len(fixed.graph.node) <= 435
    assert len(dynamic.graph.node) <= len(fixed.graph.node) + 20
    for proto in (fixed, dynamic):
        operations = {node.op_type for node in proto.graph.node}
        assert not operations & {"BatchNormalization", "Einsum", "Identity", "Expand", "Erf", "Pow", "GridSample"}
        assert all(node.domain == "" for node in proto.graph.node)
        assert [(o.domain, o.version) for o in proto.opset_import] == [("", 20)]
        assert not proto.graph.value_info  # runtimes infer; stale ones make them refuse the file
        assert tiny.count(proto, "LayerNormalization") == 9
        assert tiny.count(proto, "Gelu") == 1
        assert tiny.count(proto, "Conv") == 43  # one for each pair of RepVGG branches
        # four for each attention, tokens in and out of the encoder layer, one for each level of the memory
        assert tiny.count(proto, "Transpose") == 3 * 4 + 2 + 2
        used = {name for node in proto.graph.node for name in node.input}
        assert {i.name for i in proto.graph.initializer} <= used
    assert not {"Shape", "Range"} & {node.op_type for node in fixed.graph.node}
    assert tiny.count(fixed, "Cast") == 3  # indices of the selection, table rows of two layers


def test_shapes_of_inputs_and_outputs(fixed, dynamic):
    def shape(value) -> list:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    for proto, batch in ((fixed, 1), (dynamic, "B")):
        assert [shape(v) for v in proto.graph.input] == [[batch, 3, *tiny.SIZE_HW]]
        assert [shape(v) for v in proto.graph.output] == [[batch, 10, 3], [batch, 10, 4]]


def test_the_file_describes_itself(model):
    meta = {**tiny.META, "source": {"file": "best", "sha256": "ab"}}
    given = {"batch": None, "input_dtype": "uint8", "reduction": Reduction(num_queries=8)}
    proto = export_onnx(*model, meta, size_hw=tiny.SIZE_HW, **given)
    (entry,) = (p.value for p in proto.metadata_props if p.key == KEY)
    artefact = from_json(entry, "file")
    assert artefact.class_names == META_NAMES and artefact.category_ids == (1, 2, 7)
    assert artefact.source == {"file": "best", "sha256": "ab"} and artefact.licence == "Apache-2.0"
    assert (artefact.input.dtype, artefact.input.layout, artefact.input.batch) == ("uint8", "NHWC", None)
    assert artefact.input.size_hw == tiny.SIZE_HW == (artefact.preprocess.height_px, artefact.preprocess.width_px)
    assert (artefact.num_queries, artefact.layers, artefact.graph, artefact.precision) == (8, 2, "raw", "fp32")


META_NAMES = tiny.META["class_names"]


@pytest.mark.parametrize("point", [{"prune": (10, 5)}, {"layers": 1, "num_queries": 8}], ids=str)
def test_operating_points(model, point):
    reduced = operating_point(*model, Reduction(**point))
    want = tiny.answers(reduced, model[1], IMAGES)
    assert want[0].shape[1] == (5 if "prune" in point else 8)
    proto = export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW, batch=None, reduction=Reduction(**point))
    check(tiny.run(proto, images=NCHW), want, 3)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"num_queries": 11}, "has 10"),
        ({"layers": 3}, "has 2"),
        ({"prune": (10, 12)}, "removes nothing"),
        ({"prune": (10, 0)}, "must fall"),
        ({"prune": (10, 8, 6)}, "at most 2"),
        ({"prune": (10, 5), "num_queries": 8}, "one of the two"),
    ],
)
def test_impossible_operating_points(model, point, message):
    with pytest.raises(UserError, match=message):
        operating_point(*model, Reduction(**point))


def test_inner_heads_may_be_missing(model):
    decoder = {k: v for k, v in model[1]["params"]["decoder"].items() if k != "dec_score_head_0"}
    deployed = {**model[1], "params": {**model[1]["params"], "decoder": decoder}}
    operating_point(model[0], deployed, Reduction(num_queries=5))
    with pytest.raises(UserError, match="no heads for decoder layer 1"):
        operating_point(model[0], deployed, Reduction(layers=1))


@pytest.mark.parametrize(("size_hw", "batch"), [((60, 64), 1), ((0, 64), 1), ((64, 64), 0)])
def test_impossible_sizes(model, size_hw, batch):
    with pytest.raises(UserError, match="multiples of 32|at least 1"):
        export_onnx(*model, tiny.META, size_hw=size_hw, batch=batch)
