"""``dfine export``: from a checkpoint to a checked file."""

from __future__ import annotations

import collections
import json
import sys

import numpy as np
import onnx
import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "tests"))
import onnx_models as tiny
from tiny import tiny_config
from toy_artefact import toy_dataset

from dfine_jax.cli import main
from dfine_jax.prediction.detector import Detector
from dfine_jax.serving.artefact import Artefact
from dfine_jax.serving.backends.registry import open_artefact
from dfine_jax.system.files import sha256
from dfine_jax.training.run.checkpoint import Metadata, save_weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "best"
    metadata = Metadata(
        tiny_config(),
        tiny.META["class_names"],
        tiny.META["category_ids"],
        source_file="official.pth",
        source_sha256="ab" * 32,
        licence="Apache-2.0",
    )
    save_weights(folder, tiny.tiny_model()[1], metadata)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shapes under the checkpoint's class names."""
    return toy_dataset(tmp_path_factory.mktemp("shapes"), num_val=4, num_train=6, names=tiny.META["class_names"])


def table_of(out):
    return out.with_name(f"{out.name}.report.txt").read_text()


def report_of(out):
    return json.loads(out.with_name(f"{out.name}.report.json").read_text())


def describe(path) -> Artefact:
    return open_artefact(path).artefact


def test_a_checked_file_with_its_report(checkpoint, data, tmp_path, capsys):
    out = tmp_path / "deep" / "cells.onnx"
    arguments = ["--batch", "dynamic", "--size", "64x96", "--graph", "complete", "--input", "uint8", "--prune", "10,6"]
    assert main(["export", str(checkpoint), "--out", str(out), *arguments, "--data", str(data)]) == 0
    printed = capsys.readouterr().out
    assert "PASSED" in printed and "operating point: prune (10, 6); AP cost " in printed
    artefact = describe(out)
    assert artefact.class_names == tiny.META["class_names"] and artefact.category_ids == (1, 2, 7)
    assert (artefact.input.size_hw, artefact.input.batch, artefact.graph) == ((64, 96), None, "complete")
    source = artefact.source
    assert source["file"] == str(checkpoint) and len(source["weights_sha256"]) == 64
    assert (source["source_file"], source["source_sha256"]) == ("official.pth", "ab" * 32)
    report = json.loads(out.with_name("cells.onnx.report.json").read_text())
    assert report["passed"] and report["operating_point"] == {"prune": [10, 6]}
    accuracy = report["accuracy"]
    assert accuracy["images"] == 4
    assert accuracy["cost"] == pytest.approx(accuracy["baseline"] - accuracy["artefact"])
    assert [c["batch"] for c in report["comparisons"]] == [1, 2, 8]
    assert not [p for p in out.parent.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(("suffix", "target"), [(".onnx", "onnx"), (".xml", "openvino")])
def test_resizing_inside(checkpoint, tmp_path, suffix, target):
    if target == "openvino":
        pytest.importorskip("openvino")
    out = tmp_path / f"camera{suffix}"
    arguments = ["--to", target, "--out", str(out), "--size", "64x96", "--source-size", "90x123", "--batch", "dynamic"]
    assert main(["export", str(checkpoint), *arguments, "--graph", "complete"]) == 0
    artefact = describe(out)
    assert (artefact.input.size_hw, artefact.input.dtype) == ((90, 123), "uint8")
    assert artefact.resizes is not None and (artefact.resizes.height_px, artefact.resizes.width_px) == (64, 96)
    picture = np.random.default_rng(0).integers(0, 256, (90, 123, 3)).astype(np.uint8)
    found = Detector(out, threshold=0.0)(picture)
    assert len(found.scores) and found.boxes_xyxy_px.max() <= 123


def elements(file):
    """Numbers stored in a file, by floating type: what it says of itself is one thing, what it holds another."""
    found = collections.Counter()
    if file.suffix == ".onnx":
        kinds = {onnx.TensorProto.FLOAT16: "half", onnx.TensorProto.FLOAT: "single"}
        for tensor in onnx.load(file).graph.initializer:
            found[kinds.get(tensor.data_type, "")] += int(np.prod(tensor.dims))
    else:
        kinds = {"f16": "half", "f32": "single"}
        for node in pytest.importorskip("openvino").Core().read_model(file).get_ordered_ops():
            if node.get_type_name() == "Constant":
                found[kinds.get(node.get_element_type().get_type_name(), "")] += int(np.prod(node.shape))
    found.pop("", None)
    return found


@pytest.mark.parametrize(
    ("suffix", "target"), [pytest.param(".onnx", "onnx", marks=pytest.mark.slow), (".xml", "openvino")]
)
def test_half_precision(checkpoint, tmp_path, suffix, target):
    if target == "openvino":
        pytest.importorskip("openvino")
    out = tmp_path / f"half{suffix}"
    assert main(["export", str(checkpoint), "--to", target, "--precision", "fp16", "--out", str(out)]) == 0
    report = report_of(out)
    assert report["passed"] and report["precision"] == describe(out).precision == "fp16"
    assert elements(out)["half"] > 0.7 * sum(elements(out).values())
    assert main(["export", str(checkpoint), "--to", target, "--out", str(tmp_path / f"single{suffix}")]) == 0
    assert "half" not in elements(tmp_path / f"single{suffix}")
    assert report["accuracy"] is None and report["no_accuracy"] == "no --data given"


def test_an_operating_point_that_costs_more_than_the_limit_is_refused(checkpoint, data, tmp_path, capsys):
    out = tmp_path / "small.onnx"
    out.write_text("an earlier one")
    given = ["--layers", "1", "--queries", "8", "--data", str(data), "--max-ap-drop", "-0.5"]
    assert main(["export", str(checkpoint), "--out", str(out), *given]) == 2
    error = capsys.readouterr().err
    assert "small.onnx was refused: AP 0." in error and "limit -0.5" in error
    assert not out.exists() and "REFUSED" in table_of(out)
    refused = report_of(out)
    assert refused["operating_point"] == {"num_queries": 8, "layers": 1} and refused["accuracy"]["cost"] > -0.5
    assert not refused["passed"] and any("of this operating point" in failure for failure in refused["failures"])


@pytest.mark.slow
def test_int8_is_calibrated_on_the_training_split_and_reported(checkpoint, data, tmp_path, capsys):
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    out = tmp_path / "eight.xml"
    given = ["export", str(checkpoint), "--to", "openvino", "--precision", "int8", "--data", str(data)]
    status = main([*given, "--max-ap-drop", "0.9", "--out", str(out)])
    report = report_of(out)
    assert report["precision"] == "int8" and report["quantization"]["quantizers"] > 40
    assert set(report["quantization"]) == {"float_ap", "int8_ap", "accuracy_control", "quantizers"}
    assert report["quantization"]["float_ap"] is not None and "quantization: float_ap 0." in table_of(out)
    assert (status, out.exists()) == ((0, True) if report["passed"] else (2, False))


def test_what_is_refused_before_the_gate_leaves_nothing(checkpoint, tmp_path, capsys):
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "tiny.engine"
    for name in ("tiny.engine", "tiny.engine.json", "tiny.engine.report.txt"):
        (tmp_path / name).write_text("an earlier one, PASSED")
    given = ["export", str(checkpoint), "--to", "tensorrt", "--package", "tensorrt_rtx", "--out", str(out)]
    assert main([*given, "--batch", "dynamic", "--profile", "2,2,2", "--build-only"]) == 2
    assert "a profile of one batch only" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.engine.report.json", "tiny.engine.report.txt"]
    assert "a profile of one batch only" in report_of(out)["failures"][0] and "REFUSED" in table_of(out)


def test_engines_built_ahead_of_time_say_that_they_have_not_run(checkpoint, tmp_path, capsys):
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "tiny.engine"
    given = ["export", str(checkpoint), "--to", "tensorrt", "--package", "tensorrt_rtx", "--out", str(out)]
    assert main([*given, "--batch", "dynamic", "--profile", "1,2,4", "--build-only"]) == 0
    assert "tiny.engine: NOT RUN" in capsys.readouterr().out
    report = report_of(out)
    assert report["verdict"] == "NOT RUN" and not report["passed"] and report["sha256"] == sha256(out)
    assert report["comparisons"] and report["ran_on"]["runtime"] == "onnxruntime"
    profile = json.loads((tmp_path / "tiny.engine.json").read_text())["engine"]["profile"]["images"]
    assert [shape[0] for shape in profile] == [1, 2, 4]


def test_without_a_gpu_engines_are_not_even_built(checkpoint, tmp_path, capsys):
    pytest.importorskip("tensorrt_rtx")
    cuda = pytest.importorskip("cuda.bindings.runtime")
    if cuda.cudaGetDeviceCount()[0] == cuda.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU")
    given = ["export", str(checkpoint), "--to", "tensorrt", "--package", "tensorrt_rtx"]
    assert main([*given, "--out", str(tmp_path / "tiny.engine")]) == 2
    error = capsys.readouterr().err
    assert "--build-only" in error and "benchmarks/tensorrt_check.py" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "many"], "number or 'dynamic'"),
        (["--batch", "0"], "at least 1"),
        (["--size", "60x64"], "multiples of 32"),
        (["--prune", "300>100"], "such as 300,100"),
        (["--queries", "400"], "has 10"),
        (["--layers", "0"], "0 decoder layers: the model has 2"),
        (["--precision", "int8"], "--to openvino"),
        (["--precision", "int8", "--to", "openvino"], "--data"),
        (["--out", "model.engine"], "end in .onnx"),
        (["--data", "nowhere"], "does not exist"),
        (["--max-ap-drop", "0.01"], "AP cannot be measured (no --data given)"),
        (["--precision", "int8", "--to", "openvino", "--calibration", "."], "holds no images"),
        (["--calibration", "."], "--calibration is for int8"),
        (["--profile", "1,2,4"], "--profile is for engines; add --to tensorrt"),
        (["--build-only"], "--build-only is for engines"),
        (["--to", "tensorrt", "--profile", "1,2,4"], "add --batch dynamic"),
        (["--to", "tensorrt", "--profile", "1,2", "--batch", "dynamic"], "smallest, best and largest batch"),
        (["--to", "tensorrt", "--profile", "4,2,1", "--batch", "dynamic"], "must rise from at least 1"),
        (["--to", "tensorrt", "--package", "tensorrt_rtx", "--timing-cache", "x"], "it has no timing cache"),
        (["--to", "tensorrt", "--timing-cache", "absent/x"], "folder absent does not exist"),
    ],
)
def test_mistakes_are_named_in_one_line(checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(checkpoint), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert not list(tmp_path.iterdir())
