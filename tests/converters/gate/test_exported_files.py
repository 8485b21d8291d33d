"""Exported graphs of a small D-FINE through everything behind the exporter: gate, runtimes, OpenVINO, engines."""

from __future__ import annotations

import copy
import json
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "tests"))
import onnx_models as tiny

from dfine_jax.converters.gate.gate import check_artefact
from dfine_jax.converters.onnx.export import export_onnx, operating_point, save
from dfine_jax.converters.openvino.export import Quantization, export_int8, export_openvino, stem_operations
from dfine_jax.converters.tensorrt.export import EngineBuilder
from dfine_jax.data.read.dataset import Classes
from dfine_jax.families.dfine.model import DFine
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.families.family import Reduction
from dfine_jax.serving.backends.jax_model import JaxBackend

CLASSES = Classes(tiny.META["class_names"], tiny.META["category_ids"])
GRAPHS = {
    "raw": {},
    "half": {"precision": "fp16"},
    "complete": {"graph": "complete", "input_dtype": "uint8"},
}


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model()


@pytest.fixture(scope="module")
def reference(model):
    return JaxBackend(*model).predict


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """The three graphs, for any batch."""
    folder = tmp_path_factory.mktemp("graphs")
    for name, options in GRAPHS.items():
        save(export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW, batch=None, **options), folder / f"{name}.onnx")
    return folder


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        ("raw", "onnxruntime"),
        ("raw", "openvino"),
        ("half", "onnxruntime"),
        ("half", "openvino"),
        ("complete", "openvino"),
    ],
)
def test_exported_graphs_pass_the_gate(files, model, reference, name, runtime):
    pytest.importorskip(runtime)
    report = check_artefact(files / f"{name}.onnx", *model, classes=CLASSES, reference=reference, runtime=runtime)
    assert report.passed, report.table()
    assert [c.batch for c in report.comparisons] == [1, 2, 8]


@pytest.fixture
def wrong(tmp_path, model):
    """A graph with one number of one weight of the last decoder layer changed."""
    network, variables = model
    changed = copy.deepcopy(jax.tree.map(np.array, variables))
    changed["params"]["decoder"]["layers_1"]["linear1"]["kernel"][3, 5] += 0.5
    save(export_onnx(network, changed, tiny.META, size_hw=tiny.SIZE_HW), tmp_path / "wrong.onnx")
    return tmp_path / "wrong.onnx"


def test_one_changed_weight_in_the_decoder_is_refused(wrong, reference):
    report = check_artefact(wrong, None, None, reference=reference)
    assert not report.passed and "score error, 95 % of rows" in " ".join(report.failures)


@pytest.mark.slow
def test_the_changed_layer_is_named(wrong, model, reference):
    report = check_artefact(wrong, *model, reference=reference)
    assert str(report.first_divergence).startswith("decoder/layers_1/linear"), report.first_divergence


def test_a_reduced_operating_point_is_compared_with_the_model_reduced_alike(tmp_path, model):
    (network, variables), reduction = model, Reduction(num_queries=8, layers=1)
    path = tmp_path / "reduced.onnx"
    save(export_onnx(network, variables, tiny.META, size_hw=tiny.SIZE_HW, reduction=reduction), path)
    reduced = operating_point(network, variables, reduction)
    report = check_artefact(path, reduced, variables, operating_point={"num_queries": 8, "layers": 1})
    assert report.passed, report.table()
    assert "operating point: num_queries 8" in report.table()


def test_openvino_files_of_an_exported_graph(files, model, reference, tmp_path):
    pytest.importorskip("openvino")
    export_openvino(files / "raw.onnx", tmp_path / "half.xml", "fp16")
    report = check_artefact(tmp_path / "half.xml", *model, classes=CLASSES, reference=reference)
    assert report.passed and report.precision == "fp16", report.table()
    pytest.importorskip("nncf")
    pictures = tiny.noise_pictures(tmp_path / "pictures")
    result = export_int8(files / "raw.onnx", tmp_path / "int8.xml", Quantization(pictures))
    assert result.quantizers > 40
    import openvino as ov

    stem = set(stem_operations(ov.Core().read_model(files / "raw.onnx")))
    int8 = ov.Core().read_model(tmp_path / "int8.xml").get_ops()
    kinds = [op.get_type_name() for op in int8 if op.get_friendly_name() in stem]
    assert kinds.count("Convolution") == 3 and "MaxPool" in kinds
    fed = [
        port.get_node()
        for op in int8
        if op.get_type_name() == "FakeQuantize"
        for port in op.output(0).get_target_inputs()
    ]
    assert fed and not stem & {node.get_friendly_name() for node in fed}


@pytest.mark.parametrize(
    "name", ["complete", *(pytest.param(n, marks=pytest.mark.slow) for n in GRAPHS if n != "complete")]
)
def test_tensorrt_builds_engines_of_exported_graphs(files, tmp_path, name):
    pytest.importorskip("tensorrt_rtx")
    engine = EngineBuilder("tensorrt_rtx", (1, 2, 8)).build(files / f"{name}.onnx", tmp_path / f"{name}.engine")
    built = json.loads((tmp_path / f"{name}.engine.json").read_text())["engine"]
    assert built["layers"] > 300 and [shape[0] for shape in built["profile"]["images"]] == [1, 2, 8]
    assert engine.stat().st_size > 100_000


@pytest.mark.parametrize("name", ["raw", *(pytest.param(n, marks=pytest.mark.slow) for n in GRAPHS if n != "raw")])
def test_tensorrt_builds_engines_with_masks(tmp_path, name):
    pytest.importorskip("tensorrt_rtx")
    proto = export_onnx(*tiny.tiny_model("segment"), tiny.META, size_hw=tiny.SIZE_HW, batch=None, **GRAPHS[name])
    save(proto, tmp_path / "masks.onnx")
    EngineBuilder("tensorrt_rtx", (1, 2, 8)).build(tmp_path / "masks.onnx", tmp_path / "masks.engine")
    described = json.loads((tmp_path / "masks.engine.json").read_text())
    assert described["task"] == "segment" and described["mask_stride"] == 4 and described["outputs"][-1] == "masks"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("variant", ["n", "s", "m", "l", "x"])
def test_tensorrt_builds_every_variant(tmp_path, variant, precision):
    pytest.importorskip("tensorrt_rtx")
    model = DFine(model_config(variant))
    images = jax.ShapeDtypeStruct((1, 128, 128, 3), np.float32)
    shapes = jax.eval_shape(lambda k, x: model.init(k, x, train=True), jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.01, np.float32), shapes)
    names = tuple(f"class {i}" for i in range(80))
    meta = {"class_names": names, "category_ids": tuple(range(80))}
    path = tmp_path / "model.onnx"
    save(export_onnx(model, variables, meta, size_hw=(640, 640), batch=None, precision=precision), path)
    engine = EngineBuilder("tensorrt_rtx").build(path, tmp_path / "model.engine")
    assert engine.stat().st_size > 0.4 * path.stat().st_size
