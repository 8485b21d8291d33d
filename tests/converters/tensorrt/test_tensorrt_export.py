"""Engines built ahead of time by TensorRT-RTX, which needs no GPU for it. Numbers can only be checked on a GPU."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import onnx
import pytest
from conftest import ROOT

from dfine_jax.converters.gate.gate import check_artefact
from dfine_jax.converters.tensorrt.export import EngineBuilder
from dfine_jax.errors import UserError
from dfine_jax.system.files import sha256

sys.path.append(str(ROOT / "tests"))
import toy_artefact as toy  # noqa: E402


@pytest.fixture(scope="module")
def variables():
    return toy.toy_model()[1]


FORMS = [
    {},
    {"input": {"batch": 2}},
    {"input": {"dtype": "uint8", "layout": "NHWC"}},
    {"graph": "complete"},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_engines_are_built_with_their_description(tmp_path, variables, form):
    pytest.importorskip("tensorrt_rtx")
    source = toy.write_toy(tmp_path / "toy.onnx", variables, **copy.deepcopy(form))
    engine = EngineBuilder("tensorrt_rtx", batches=(1, 2, 8)).build(source, tmp_path / "toy.engine")
    description = json.loads((tmp_path / "toy.engine.json").read_text())
    built = description.pop("engine")
    outputs = ["labels", "boxes", "scores"] if form.get("graph") else ["logits", "boxes"]
    assert description == {**toy.description(**copy.deepcopy(form)), "outputs": outputs}
    assert built["sha256"] == sha256(engine) and built["onnx"]["sha256"] == sha256(source)
    assert built["strongly_typed"] and not built["tf32"] and built["layers"] >= 10
    if "batch" in form.get("input", {}):
        assert built["profile"] == {}
    else:
        shape = [48, 64, 3] if form.get("input", {}).get("layout") == "NHWC" else [3, 48, 64]
        assert built["profile"]["images"] == [[batch, *shape] for batch in (1, 2, 8)]
    assert engine.stat().st_size > 10_000


def has_gpu() -> bool:
    cuda = pytest.importorskip("cuda.bindings.runtime")
    status, count = cuda.cudaGetDeviceCount()
    return status == cuda.cudaError_t.cudaSuccess and count > 0


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_engines_compute_what_the_model_computes(tmp_path, form):
    """Runs on machines with a GPU only; elsewhere the engine must say what is missing."""
    pytest.importorskip("tensorrt_rtx")
    model = toy.toy_model()
    source = toy.write_toy(tmp_path / "toy.onnx", model[1], **copy.deepcopy(form))
    engine = EngineBuilder("tensorrt_rtx", batches=(1, 2, 8)).build(source, tmp_path / "toy.engine")
    if not has_gpu():
        with pytest.raises(UserError, match=r"^CUDA: .*dfine doctor"):
            check_artefact(engine, *model)
        return
    report = check_artefact(engine, *model)
    assert report.passed, report.table()
    assert report.ran_on["runtime"] == "tensorrt_rtx"


def test_a_timing_cache_is_written_and_used_again(tmp_path, variables, caplog):
    """TensorRT with a GPU only: TensorRT-RTX has no timing cache."""
    pytest.importorskip("tensorrt")
    if not has_gpu():
        pytest.skip("no GPU")
    source, cache = toy.write_toy(tmp_path / "toy.onnx", variables), tmp_path / "times"
    builder = EngineBuilder("tensorrt", timing_cache=cache)
    builder.build(source, tmp_path / "first.engine")
    written = cache.read_bytes()
    assert len(written) > 100
    builder.build(source, tmp_path / "second.engine")
    assert len(cache.read_bytes()) == len(written) and "starts anew" not in caplog.text


def test_the_kind_of_gpu_can_be_chosen(tmp_path, variables):
    pytest.importorskip("tensorrt_rtx")
    source = toy.write_toy(tmp_path / "toy.onnx", variables, input={"batch": 1})
    EngineBuilder("tensorrt_rtx", compute_capabilities=("SM86", "SM89")).build(source, tmp_path / "two.engine")
    assert json.loads((tmp_path / "two.engine.json").read_text())["engine"]["device"] == "SM86, SM89"
    with pytest.raises(UserError, match="compute capability 'SM10' is none of"):
        EngineBuilder("tensorrt_rtx", compute_capabilities=("SM10",)).build(source, tmp_path / "no.engine")


def test_graphs_that_tensorrt_cannot_read_are_errors_with_its_reason(tmp_path, variables):
    pytest.importorskip("tensorrt_rtx")
    source = toy.write_toy(tmp_path / "toy.onnx", variables)
    loaded = onnx.load(source)
    next(node for node in loaded.graph.node if node.op_type == "Relu").op_type = "Mystery"
    onnx.save(loaded, source)
    with pytest.raises(UserError, match=r"cannot read it \(.*Mystery"):
        EngineBuilder("tensorrt_rtx").build(source, tmp_path / "toy.engine")
    assert not (tmp_path / "toy.engine").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"package": "trt"}, "package 'trt' is none of tensorrt, tensorrt_rtx"),
        ({"batches": (2, 1, 8)}, "must rise from at least 1"),
        ({"optimization_level": 7}, "must lie between 0 and 5"),
        ({"package": "tensorrt_rtx", "timing_cache": Path("times")}, "it has no timing cache"),
        ({"timing_cache": Path("absent/times")}, "folder absent does not exist"),
    ],
)
def test_wrong_options_are_errors(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        EngineBuilder(**options).build(tmp_path / "absent.onnx", tmp_path / "toy.engine")


def test_files_without_description_and_int8_files_are_errors(tmp_path, variables):
    source = toy.write_toy(tmp_path / "toy.onnx", variables, precision="int8")
    with pytest.raises(UserError, match="is int8; TensorRT engines are built from fp32 and fp16 files"):
        EngineBuilder("tensorrt_rtx").build(source, tmp_path / "toy.engine")
    loaded = onnx.load(source)
    onnx.helper.set_model_props(loaded, {})
    onnx.save(loaded, source)
    with pytest.raises(UserError, match="carries no 'dfine_jax' metadata"):
        EngineBuilder("tensorrt_rtx").build(source, tmp_path / "toy.engine")
