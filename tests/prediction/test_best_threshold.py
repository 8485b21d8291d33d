"""The threshold of the best F1 travels with weights and exported files, and prediction starts from it."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image
from rectangles import opened, scene
from tiny import tiny_config
from toy_artefact import description, toy_model, write_toy

from dfine_jax.cli import main
from dfine_jax.commands.export import description as described_for_export
from dfine_jax.converters.onnx.export import Artefact
from dfine_jax.errors import UserError
from dfine_jax.evaluation.metrics import DetectionReport
from dfine_jax.families.dfine.model import init_variables
from dfine_jax.prediction.detector import Detector, open_model
from dfine_jax.serving.artefact import from_json
from dfine_jax.training.run.checkpoint import Metadata, load_weights, save_weights
from dfine_jax.weights.load import load_checkpoint


def test_the_default_is_what_the_weights_know():
    picture = scene(64, 64, ("red", 8, 8, 40, 40))
    known = opened()._replace(best_threshold=0.999)
    assert (Detector(known).threshold, Detector(opened()).threshold) == (0.999, 0.5)
    assert (len(Detector(known)(picture)), len(Detector(opened())(picture))) == (0, 1)
    assert Detector(known, threshold=0.2).threshold == 0.2
    assert len(Detector(known)(picture, threshold=0.2)) == 1
    assert "threshold 0.999 (best F1), " in repr(Detector(known))
    assert "threshold 0.2, " in repr(Detector(known, threshold=0.2)) and "threshold 0.5, " in repr(Detector(opened()))


def test_a_description_holds_it_and_one_without_is_read():
    values = description(best_threshold=0.43)
    artefact = from_json(json.dumps(values), "x")
    assert artefact.best_threshold == 0.43 and artefact.to_dict()["best_threshold"] == 0.43
    without = from_json(json.dumps(description()), "x")
    assert without.best_threshold is None and "best_threshold" not in without.to_dict()
    with pytest.raises(UserError, match="best threshold 43"):
        from_json(json.dumps(description(best_threshold=43)), "x")
    assert isinstance(artefact, Artefact)


def test_an_exported_file_brings_it_and_the_command_says_it(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    file = write_toy(tmp_path / "toy.onnx", toy_model()[1], best_threshold=0.43)
    assert open_model(file).best_threshold == 0.43
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    command = ["predict", str(file), str(tmp_path / "a.png"), "--json", str(tmp_path / "r.json")]
    assert main(command) == 0
    assert "dfine: threshold 0.43, that of the best F1 when the weights were evaluated" in capsys.readouterr().err
    assert main([*command, "--threshold", "0.3"]) == 0
    assert "threshold" not in capsys.readouterr().err


def test_a_checkpoint_keeps_it_and_hands_it_to_the_export(tmp_path, caplog):
    config = tiny_config()
    names = tuple(f"c{i}" for i in range(config.model.num_classes))
    metadata = Metadata(config, names, tuple(range(len(names))), best_threshold=0.37)
    save_weights(tmp_path / "best", init_variables(config.model, jax.random.key(0)), metadata)
    assert load_weights(tmp_path / "best")[1].best_threshold == 0.37
    loaded = load_checkpoint(tmp_path / "best")
    assert Detector(loaded).threshold == 0.37
    assert described_for_export("best", loaded)["best_threshold"] == 0.37
    for out, told in (("again", 0), ("w.pth", 1), ("w.safetensors", 1)):
        caplog.clear()
        assert main(["convert", str(tmp_path / "best"), str(tmp_path / out)]) == 0
        lines = [line for line in caplog.messages if "threshold" in line]
        told_all = "the best threshold, 0.37, stands in the description that dfine_jax reads; tell it to other programs"
        assert lines == [f"{tmp_path / out}: {told_all}"] * told
        assert load_checkpoint(tmp_path / out).metadata.best_threshold == 0.37
    stored = json.loads((tmp_path / "best" / "metadata.json").read_text())
    del stored["best_threshold"]  # as it was written before
    (tmp_path / "best" / "metadata.json").write_text(json.dumps(stored))
    assert load_weights(tmp_path / "best")[1] == dataclasses.replace(metadata, best_threshold=None)


def test_where_nothing_is_found_no_threshold_is_best():
    from dfine_jax.data.read.dataset import Classes
    from dfine_jax.evaluation.metrics import detection_report

    truth = {
        "images": [{"id": 1, "width": 10, "height": 10}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0},
        ],
    }
    report = detection_report(truth, [], [1], Classes(("a",), (1,)))
    assert isinstance(report, DetectionReport) and not report.found_any
    assert "no object is found at any threshold, so none is better than another" in report.table()
    assert "(best)" not in report.table()
