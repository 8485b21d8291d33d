"""OpenVINO files: float16 weights, int8 whose decoder stays in floating point and whose AP may not fall too far."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

ov = pytest.importorskip("openvino")
pytest.importorskip("onnx")
sys.path.append(str(ROOT / "tests"))
import onnx_models as tiny  # noqa: E402
import tfds_toy  # noqa: E402
import toy_artefact as toy  # noqa: E402

from dfine_jax.converters.gate.accuracy import MeasuredAP  # noqa: E402
from dfine_jax.converters.gate.data import calibration_sources, read_source  # noqa: E402
from dfine_jax.converters.gate.gate import check_artefact  # noqa: E402
from dfine_jax.converters.onnx.export import export_onnx, save  # noqa: E402
from dfine_jax.converters.openvino.export import (  # noqa: E402
    Quantization,
    count_quantizers,
    decoder_operations,
    export_int8,
    export_openvino,
    largest_drop,
)
from dfine_jax.data.read.dataset import Record  # noqa: E402
from dfine_jax.data.read.sources import read_dataset  # noqa: E402
from dfine_jax.errors import UserError  # noqa: E402
from dfine_jax.serving.backends.jax_model import JaxBackend  # noqa: E402
from dfine_jax.serving.backends.registry import open_artefact  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return toy.toy_model()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shapes under the toy's class names."""
    return toy.toy_dataset(tmp_path_factory.mktemp("shapes"), num_val=4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_files_are_complete_and_pass_the_gate(tmp_path, model, precision):
    source = toy.write_toy(tmp_path / "toy.onnx", model[1])
    path = export_openvino(source, tmp_path / "toy.xml", precision)
    artefact = open_artefact(path).artefact
    assert (artefact.precision, artefact.class_names) == (precision, toy.NAMES)
    assert check_artefact(path, *model).passed
    stored = {
        op.get_element_type().get_type_name()
        for op in ov.Core().read_model(path).get_ops()
        if op.type_info.name == "Constant"
    }
    assert ("f16" in stored) == (precision == "fp16")


def test_the_decoder_is_everything_behind_the_query_selection(tmp_path, model):
    source = toy.write_toy(tmp_path / "toy.onnx", model[1], graph="complete")
    loaded = ov.Core().read_model(source)
    kinds = {op.get_friendly_name(): op.get_type_name() for op in loaded.get_ops()}
    decoder = {kinds[name] for name in decoder_operations(loaded)}
    assert "TopK" in decoder and "GatherElements" in decoder
    assert not {"Convolution", "MatMul", "Relu", "Parameter"} & decoder
    raw = toy.write_toy(tmp_path / "raw.onnx", model[1])
    assert decoder_operations(ov.Core().read_model(raw)) == []


def test_int8_keeps_the_decoder_in_floating_point(tmp_path, model, images):
    pytest.importorskip("nncf")
    source = toy.write_toy(tmp_path / "toy.onnx", model[1], graph="complete")
    result = export_int8(source, tmp_path / "toy.xml", Quantization(images, calibration_images=6))
    assert result.quantizers >= 2 and result.int8_ap is None and not result.accuracy_control
    loaded = ov.Core().read_model(tmp_path / "toy.xml")
    assert count_quantizers(loaded) == result.quantizers
    behind = set(decoder_operations(loaded))
    quantizers = {op.get_friendly_name() for op in loaded.get_ops() if op.get_type_name() == "FakeQuantize"}
    assert quantizers and not behind & quantizers
    backend = open_artefact(tmp_path / "toy.xml")
    assert backend.artefact.precision == "int8"
    assert check_artefact(tmp_path / "toy.xml", *model).passed


def test_int8_may_not_lose_the_confident_detections(tmp_path, model, images):
    """A file whose medians are right: most rows of an image are background."""
    sure = {"params": {**model[1]["params"], "score_head": dict(model[1]["params"]["score_head"])}}
    sure["params"]["score_head"]["bias"] = np.array([-4, -4, -4], np.float32)
    source = toy.write_toy(tmp_path / "toy.onnx", sure, precision="int8")
    answer = JaxBackend(model[0], sure).predict

    def reference(pictures):
        found = answer(pictures)
        logits = found.logits.copy()
        logits[:, :5, 0] = 3.0  # five confident rows that the file does not have
        return found._replace(logits=logits)

    assert check_artefact(source, model[0], sure, reference=answer).passed
    report = check_artefact(source, model[0], sure, reference=reference)
    assert len(report.failures) == 3, report.table()  # in each batch size, and for no other reason
    for failure in report.failures:
        assert re.search(r"\d+% of \d+ confident detections have no partner on the other side, limit 5%", failure)


def test_int8_that_loses_too_much_is_refused_after_accuracy_control(tmp_path, model, images, data):
    pytest.importorskip("nncf")
    source = toy.write_toy(tmp_path / "toy.onnx", model[1])
    val = read_dataset(data, "val")
    kept = Quantization(images, val, max_drop=0.5, calibration_images=6)
    result = export_int8(source, tmp_path / "kept.xml", kept)
    assert result.float_ap is not None and result.int8_ap is not None and not result.accuracy_control
    impossible = Quantization(images, val, max_drop=-0.5, calibration_images=6, max_iterations=1)
    with pytest.raises(UserError, match=r"int8 loses -?0.0\d+ AP, limit -0.5"):
        export_int8(source, tmp_path / "refused.xml", impossible)
    assert not (tmp_path / "refused.xml").exists()


def test_int8_is_limited_by_boxes_and_by_masks(tmp_path):
    assert largest_drop(MeasuredAP(0.5, 0.4), MeasuredAP(0.49, 0.3)) == pytest.approx(0.1)
    assert largest_drop(MeasuredAP(0.5, 0.3), MeasuredAP(0.3, 0.4)) == pytest.approx(0.2)
    assert largest_drop(MeasuredAP(0.5, None), MeasuredAP(0.6, None)) == pytest.approx(-0.1)
    pytest.importorskip("nncf")
    proto = export_onnx(*tiny.tiny_model("segment"), tiny.META, size_hw=tiny.SIZE_HW)
    save(proto, tmp_path / "tiny.onnx")
    data = toy.toy_dataset(tmp_path / "shapes", num_val=3, names=tiny.META["class_names"])
    pictures = tiny.noise_pictures(tmp_path / "pictures")
    kept = Quantization(pictures, read_dataset(data, "val"), max_drop=0.5)
    result = export_int8(tmp_path / "tiny.onnx", tmp_path / "tiny.xml", kept)
    assert result.float_mask_ap is not None and result.int8_mask_ap is not None
    artefact = open_artefact(tmp_path / "tiny.xml").artefact
    assert (artefact.task, artefact.precision, artefact.mask_size_hw) == ("segment", "int8", (16, 24))
    quantized = ov.Core().read_model(tmp_path / "tiny.xml")
    embedding = [op for op in quantized.get_ops() if op.get_type_name() == "Convolution" and op.shape[1] == 128]
    fed = {
        port.get_node().get_friendly_name()
        for op in quantized.get_ops()
        if op.get_type_name() == "FakeQuantize"
        for port in op.output(0).get_target_inputs()
    }
    assert {op.get_friendly_name() for op in embedding} <= fed  # most of the work of masks


def folder_of(source):
    assert isinstance(source, Record)
    return source.path.parent.name


def test_calibration_takes_the_training_split_of_a_dataset(data, images, tmp_path):
    assert [folder_of(source) for source in calibration_sources(data)] == ["train"]
    assert len(calibration_sources(images)) == 12
    for split, count in (("train", 2), ("val", 3)):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (30 + i, 20), (9 * i, 0, 0)).save(tmp_path / "images" / split / f"{i}.png")
            (tmp_path / "labels" / split / f"{i}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    description = tmp_path / "data.yaml"
    description.write_text("train: images/train\nval: images/val\nnames: [ant, bee, cat]\n")
    for given in (tmp_path, description):
        sources = calibration_sources(given)
        assert [folder_of(source) for source in sources] == ["train", "train"]
        assert [read_source(source).shape for source in sources] == [(20, 30, 3), (20, 31, 3)]


def test_calibration_reads_pictures_out_of_records(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    tfds_toy.prepare(tmp_path)
    sources = calibration_sources(tfds_toy.use(tmp_path, monkeypatch))
    assert sorted(read_source(source).shape for source in sources) == [(40, 50 + i, 3) for i in range(3)]


def test_errors(tmp_path, model):
    pytest.importorskip("nncf")
    source = toy.write_toy(tmp_path / "toy.onnx", model[1])
    with pytest.raises(UserError, match="holds no images"):
        export_int8(source, tmp_path / "toy.xml", Quantization(tmp_path))
    half = toy.write_toy(tmp_path / "half.onnx", model[1], precision="fp16")
    with pytest.raises(UserError, match="is fp16; OpenVINO files are made from an fp32 export"):
        export_openvino(half, tmp_path / "toy.xml")
    with pytest.raises(UserError, match="does not exist"):
        export_openvino(tmp_path / "absent.onnx", tmp_path / "toy.xml")
