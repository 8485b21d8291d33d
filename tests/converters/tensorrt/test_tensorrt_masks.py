"""Files with masks go the way of TensorRT: the engine, its description and its outputs, built without a GPU."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "tests"))
import onnx_models as tiny

from dfine_jax.converters.onnx.export import export_onnx, save
from dfine_jax.converters.tensorrt.export import EngineBuilder
from dfine_jax.serving.artefact import from_json

FORMS = {
    "raw": {},
    "complete": {"graph": "complete", "input_dtype": "uint8"},
    "half": {"precision": "fp16"},
    "resizing": {"source_hw": (51, 97)},
}


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model("segment")


def outputs_of(trt: Any, content: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What TensorRT's parser makes of a file: type and shape of each output."""
    log = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse(content), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return {output.name: (output.dtype.name, tuple(output.shape)) for output in outputs}


@pytest.mark.parametrize("form", FORMS)
def test_masks_are_outputs_of_the_parsed_network(model, form):
    trt = pytest.importorskip("tensorrt_rtx")
    proto = export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW, batch=2, **FORMS[form])
    found = outputs_of(trt, proto.SerializeToString())
    rows = 30 if form == "complete" else 10
    names = {"labels", "boxes", "scores", "masks"} if form == "complete" else {"logits", "boxes", "masks"}
    assert set(found) == names and found["boxes"] == ("FLOAT", (2, rows, 4))
    assert found["masks"] == ("HALF" if form == "half" else "FLOAT", (2, rows, 16, 24))


def test_an_engine_with_masks_is_built_with_its_description(model, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    proto = export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW, batch=None)
    save(proto, tmp_path / "segment.onnx")
    builder = EngineBuilder("tensorrt_rtx", batches=(1, 2, 4), optimization_level=0)
    engine = builder.build(tmp_path / "segment.onnx", tmp_path / "segment.engine")
    text = (tmp_path / "segment.engine.json").read_text()
    artefact = from_json(text, "segment.engine.json")
    assert (artefact.task, artefact.mask_stride, artefact.mask_size_hw) == ("segment", 4, (16, 24))
    assert artefact.outputs == ("logits", "boxes", "masks") and engine.stat().st_size > 10_000
    assert json.loads(text)["engine"]["profile"]["images"] == [[batch, 3, *tiny.SIZE_HW] for batch in (1, 2, 4)]
