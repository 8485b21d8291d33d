"""RF-DETR as an exported graph: the same answers, few nodes, scales and normalisation inside weights, gate, int8."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
import rfdetr_golden

from dfine_jax.families.backbones import dinov2
from dfine_jax.families.rfdetr.family import RFDETR
from dfine_jax.families.rfdetr.model import RFDetr
from dfine_jax.families.rfdetr.variants import VARIANTS
from dfine_jax.families.rfdetr.weights import read_official
from dfine_jax.ops.postprocess import select, to_pixels

pytest.importorskip("onnx")
pytest.importorskip("jax2onnx")
import onnx_models

from dfine_jax.converters.gate.gate import check_artefact
from dfine_jax.converters.onnx.export import export_onnx, operating_point, save
from dfine_jax.families.family import Reduction
from dfine_jax.serving.artefact import KEY, from_json

SIZE_HW = (64, 96)
TINY = dataclasses.replace(
    VARIANTS["nano"],
    backbone="tiny",  # pyright: ignore[reportArgumentType]
    table=3,
    taps=(1, 2),
    width=32,
    self_heads=4,
    cross_heads=4,
    num_queries=10,
    groups=2,
    decoder_ffn=32,
    num_classes=3,
)
SEGMENTING = dataclasses.replace(TINY, mask_width=16)
CONFIGS = {
    "windows": TINY,
    "one window": dataclasses.replace(TINY, windows=1),
    "fewer tokens than queries": dataclasses.replace(TINY, num_queries=40),
    "masks": SEGMENTING,
}


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
    monkeypatch.setitem(dinov2.BACKBONES, "tiny", dinov2.Size(32, 2, 2))


def lively(config):
    """Variables whose leaves are all random."""
    stream = np.random.default_rng(0)

    def fill(path, leaf):
        noise, name = stream.standard_normal(leaf.shape), path[-1].key
        if name == "kernel":
            noise *= np.sqrt(1.0 / np.prod(leaf.shape[:-1]))
        elif name == "scale" or name.startswith("layer_scale"):
            noise = 1 + 0.3 * np.abs(noise)
        else:
            noise *= 0.3
        return noise.astype(np.float32)

    images = jax.ShapeDtypeStruct((1, 128, 128, 3), np.float32)
    shapes = jax.eval_shape(lambda x: RFDetr(config).init(jax.random.key(0), x, train=True), images)
    return {"params": jax.tree_util.tree_map_with_path(fill, shapes["params"]), "batch_stats": {}}


def nchw(images):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def errors_of(got, want):
    """Largest errors of logits, boxes and masks."""
    found = [np.abs(got["logits"] - want.logits).max(), np.abs(got["boxes"] - want.boxes_cxcywh).max()]
    return found + ([np.abs(got["masks"] - want.masks_logit).max()] if want.masks_logit is not None else [])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_answers_of_tiny_networks(name, batch, capfd):
    model, variables = RFDetr(CONFIGS[name]), lively(CONFIGS[name])
    proto = export_onnx(model, variables, onnx_models.META, size_hw=SIZE_HW, batch=batch)
    images = np.random.default_rng(1).random((batch or 3, *SIZE_HW, 3), np.float32)
    want = onnx_models.answers(model, variables, images)
    capfd.readouterr()
    errors = errors_of(onnx_models.run(proto, images=nchw(images)), want)
    assert capfd.readouterr().err == ""  # ONNX Runtime has nothing to warn about
    print(name, batch, [f"{error:.1e}" for error in errors])
    assert want.logits.shape[2] == 3  # without the row of no class
    assert max(errors) < 1e-4


def test_the_complete_graph_takes_bytes_and_normalises_them():
    """Of eight bits, scaled, with mean and deviation of ImageNet inside the patches' convolution."""
    model, variables = RFDetr(SEGMENTING), lively(SEGMENTING)
    given = {"batch": None, "graph": "complete", "input_dtype": "uint8"}
    proto = export_onnx(model, variables, onnx_models.META, size_hw=SIZE_HW, **given)
    pictures = np.random.default_rng(1).integers(0, 256, (2, *SIZE_HW, 3), np.uint8)
    sizes_px = np.array([[640, 480], [97, 51]], np.float32)
    got = onnx_models.run(proto, images=pictures, original_sizes_px=sizes_px)
    want = select(onnx_models.answers(model, variables, pictures / np.float32(255)), 10)  # of 30 pairs, as queries
    np.testing.assert_array_equal(got["labels"], want.labels)
    np.testing.assert_allclose(got["scores"], want.scores, atol=1e-5)
    np.testing.assert_allclose(got["boxes"], to_pixels(want.boxes_cxcywh, sizes_px), atol=0.05)
    assert np.abs(got["masks"] - want.masks_logit).max() < 1e-4


def test_one_operation_for_each_operation():
    proto = export_onnx(RFDetr(TINY), lively(TINY), onnx_models.META, size_hw=SIZE_HW)
    blocks, taps, layers = 2, 2, 2
    assert len(proto.graph.node) <= 340
    assert onnx_models.count(proto, "Gelu") == blocks
    assert onnx_models.count(proto, "Conv") == 1 + 6  # patches and the projector's of 3x3
    # Of the projector nine, of the proposals one, and one behind the last layer.
    assert onnx_models.count(proto, "LayerNormalization") == 2 * blocks + taps + 9 + 1 + 3 * layers + 1
    # Of each block one product for queries, keys and values, two of attention, output, two of the feed-forward layer.
    projector, proposals, position, heads = 2, 1 + 1 + 3, 1 + 2, 1 + 3
    attention, sampling, feed_forward = 2 + 2 + 1, 3 + 1 + 1, 2
    decoder = layers * (attention + sampling + feed_forward) - 1  # values of the first layer are constant
    assert onnx_models.count(proto, "MatMul") == 6 * blocks + projector + proposals + position + heads + decoder
    operations = {node.op_type for node in proto.graph.node}
    assert not operations & {"Erf", "Einsum", "Identity", "Expand", "Where", "Pow", "Sqrt", "GridSample", "Cos", "Div"}


def description(proto):
    return from_json({entry.key: entry.value for entry in proto.metadata_props}[KEY], "the graph")


def test_the_file_says_how_its_answers_become_detections():
    variables = lively(SEGMENTING)
    proto = export_onnx(RFDetr(SEGMENTING), variables, onnx_models.META, size_hw=SIZE_HW)
    artefact = description(proto)
    assert artefact.task == "segment" and artefact.rules == RFDETR.answer_rules(SEGMENTING)
    stored = json.loads(json.dumps(artefact.to_dict()))
    assert (stored["cut_to_boxes"], stored["clip_boxes"], stored["interpolated"]) == (False, True, "logit")
    assert stored["num_top"] == SEGMENTING.num_queries == 10
    assert (artefact.mask_stride, artefact.mask_size_hw) == (4, (16, 24))


def test_fewer_queries_and_layers():
    reduction = Reduction(num_queries=6, layers=1)
    model, variables = RFDetr(SEGMENTING), lively(SEGMENTING)
    proto = export_onnx(model, variables, onnx_models.META, size_hw=SIZE_HW, reduction=reduction)
    images = np.random.default_rng(1).random((1, *SIZE_HW, 3), np.float32)
    want = onnx_models.answers(operating_point(model, variables, reduction), variables, images)
    assert want.logits.shape[1] == 6
    assert max(errors_of(onnx_models.run(proto, images=nchw(images)), want)) < 1e-4
    assert (description(proto).num_queries, description(proto).layers) == (6, 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small files for any batch."""
    folder = tmp_path_factory.mktemp("graphs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dinov2.BACKBONES, "tiny", dinov2.Size(32, 2, 2))
        for precision in ("fp32", "fp16"):
            given = {"size_hw": SIZE_HW, "batch": None, "precision": precision}
            save(
                export_onnx(RFDetr(SEGMENTING), lively(SEGMENTING), onnx_models.META, **given),
                folder / f"{precision}.onnx",
            )
    return folder


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_gate_passes_tiny_files(files, runtime, precision):
    pytest.importorskip(runtime)
    report = check_artefact(files / f"{precision}.onnx", RFDetr(SEGMENTING), lively(SEGMENTING), runtime=runtime)
    assert report.passed, report.table()


def test_int8_of_blocks_alone(files, tmp_path):
    """The decoder stays in floating point."""
    ov = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    from dfine_jax.converters.openvino.export import Quantization, decoder_operations, export_int8

    pictures = onnx_models.noise_pictures(tmp_path / "pictures")
    decoder = set(decoder_operations(ov.Core().read_model(files / "fp32.onnx")))
    result = export_int8(files / "fp32.onnx", tmp_path / "int8.xml", Quantization(pictures))
    int8 = ov.Core().read_model(tmp_path / "int8.xml").get_ops()
    quantizers = [op for op in int8 if op.get_type_name() == "FakeQuantize"]
    fed = {port.get_node().get_friendly_name() for op in quantizers for port in op.output(0).get_target_inputs()}
    assert len(quantizers) == result.quantizers > 10 and not decoder & fed


def test_engines_are_built(files, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from dfine_jax.converters.tensorrt.export import EngineBuilder

    for precision in ("fp32", "fp16"):
        engine = EngineBuilder("tensorrt_rtx", (1, 2, 8)).build(files / f"{precision}.onnx", tmp_path / "tiny.engine")
        assert engine.stat().st_size > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["rfdetr_nano_384x384", "rfdetr_nano_320x448", "rfdetr_seg_nano_312x312"])
def test_whole_networks(golden, tmp_path, name, runtime):
    """Against the reference itself, and against ours."""
    pytest.importorskip(runtime)
    from dfine_jax.serving.backends.registry import open_artefact

    variant = "seg-nano" if "seg" in name else "nano"
    config = dataclasses.replace(VARIANTS[variant], head_rows="coco", groups=1)
    state = rfdetr_golden.state_dict(golden(f"families/manifest_rfdetr_{variant.replace('-', '_')}.json"))
    variables = read_official(state, config)[1]
    with np.load(golden(f"families/eval_{name}.npz")) as file:
        want = {key: file[key] for key in file.files}
    height, width, batch = (int(n) for n in want["image_hwb"])
    meta = {"class_names": [f"class {i}" for i in range(80)], "category_ids": range(80)}
    proto = export_onnx(RFDetr(config), variables, meta, size_hw=(height, width), batch=None)
    save(proto, tmp_path / "whole.onnx")
    images = rfdetr_golden.images(height, width, batch)
    session = open_artefact(tmp_path / "whole.onnx", runtime=runtime).session
    got = session.run({"images": nchw(images)})
    ours = errors_of(got, onnx_models.answers(RFDetr(config), variables, images))
    theirs = [
        np.abs(got["logits"] - want["pred_logits"][..., rfdetr_golden.USED]).max(),
        np.abs(got["boxes"] - want["pred_boxes"]).max(),
    ]
    if "masks" in got:
        theirs.append(np.abs(got["masks"][:, :8] - want["pred_masks_first8"]).max())
    print(name, runtime, len(proto.graph.node), [f"{x:.1e}" for x in ours], [f"{x:.1e}" for x in theirs])
    for errors in (ours, theirs):
        assert all(error < limit for error, limit in zip(errors, (1e-4, 1e-5, 2e-3), strict=False))
