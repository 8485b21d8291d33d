"""``dfine export``: from a checkpoint to a checked file."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "tests"))
sys.path.append(str(ROOT / "tests" / "converters"))
import onnx_models as tiny  # noqa: E402
from training.tiny import tiny_config  # noqa: E402

from dfine_jax.artefact import Artefact  # noqa: E402
from dfine_jax.backends.registry import open_artefact  # noqa: E402
from dfine_jax.cli import main  # noqa: E402
from dfine_jax.training.checkpoint import Metadata, save_weights  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "best"
    metadata = Metadata(tiny_config(), tiny.META["class_names"], tiny.META["category_ids"], licence="Apache-2.0")
    save_weights(folder, tiny.tiny_model()[1], metadata)
    return folder


def describe(path) -> Artefact:
    return open_artefact(path).artefact


def test_a_checked_file_with_its_report(checkpoint, tmp_path, capsys):
    out = tmp_path / "deep" / "cells.onnx"
    arguments = ["--batch", "dynamic", "--size", "64x96", "--graph", "complete", "--input", "uint8", "--prune", "10,6"]
    assert main(["export", str(checkpoint), "--out", str(out), *arguments]) == 0
    assert "PASSED" in capsys.readouterr().out
    artefact = describe(out)
    assert artefact.class_names == tiny.META["class_names"] and artefact.category_ids == (1, 2, 7)
    assert (artefact.input.size_hw, artefact.input.batch, artefact.graph) == ((64, 96), None, "complete")
    assert artefact.source["file"] == str(checkpoint) and len(artefact.source["sha256"]) == 64
    report = json.loads(out.with_name("cells.onnx.report.json").read_text())
    assert report["passed"] and report["operating_point"] == {"prune": [10, 6]}
    assert [c["batch"] for c in report["comparisons"]] == [1, 2, 8]
    assert not [p for p in out.parent.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "many"], "number or 'dynamic'"),
        (["--batch", "0"], "at least 1"),
        (["--size", "60x64"], "multiples of 32"),
        (["--prune", "300>100"], "such as 300,100"),
        (["--queries", "400"], "has 10"),
        (["--precision", "int8"], "--to openvino"),
        (["--precision", "int8", "--to", "openvino"], "--data"),
        (["--out", "model.engine"], "end in .onnx"),
        (["--data", "nowhere"], "does not exist"),
    ],
)
def test_mistakes_are_named_in_one_line(checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(checkpoint), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert not list(tmp_path.iterdir())
