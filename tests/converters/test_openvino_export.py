"""OpenVINO files: float16 weights, int8 whose decoder stays in floating point and whose AP may not fall too far."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

ov = pytest.importorskip("openvino")
pytest.importorskip("onnx")
sys.path.append(str(ROOT / "tests"))
import toy_artefact as toy  # noqa: E402

from converters.gate import check_artefact  # noqa: E402
from converters.openvino_export import (  # noqa: E402
    Quantization,
    count_quantizers,
    decoder_operations,
    export_int8,
    export_openvino,
)
from dfine_jax.backends.registry import open_artefact  # noqa: E402
from dfine_jax.data.synthetic import make_shapes_dataset  # noqa: E402
from dfine_jax.errors import UserError  # noqa: E402


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
    root = make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=1, num_val=4, size_px=64, seed=3)
    file = root / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    ids = [category["id"] for category in content["categories"]][:3]
    content["categories"] = [{"id": i, "name": name} for i, name in zip(ids, toy.NAMES, strict=True)]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in ids]
    file.write_text(json.dumps(content))
    return root


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


def test_int8_that_loses_too_much_is_refused_after_accuracy_control(tmp_path, model, images, data):
    pytest.importorskip("nncf")
    source = toy.write_toy(tmp_path / "toy.onnx", model[1])
    kept = Quantization(images, data, max_drop=0.5, calibration_images=6)
    result = export_int8(source, tmp_path / "kept.xml", kept)
    assert result.float_ap is not None and result.int8_ap is not None and not result.accuracy_control
    impossible = Quantization(images, data, max_drop=-0.5, calibration_images=6, max_iterations=1)
    with pytest.raises(UserError, match=r"int8 loses -?0.0\d+ AP, limit -0.5"):
        export_int8(source, tmp_path / "refused.xml", impossible)
    assert not (tmp_path / "refused.xml").exists()


def test_calibration_takes_the_training_split_of_a_dataset(data, images):
    from converters.openvino_export import _calibration_files

    assert [file.parent.name for file in _calibration_files(data)] == ["train"]
    assert len(_calibration_files(images)) == 12


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
