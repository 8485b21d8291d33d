"""The commands with a family that is not the first: train, resume, evaluate, export, convert, train further."""

from __future__ import annotations

import pytest

from dfine_jax.cli import main
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.training.report.run_files import read_metrics
from dfine_jax.weights.load import load_checkpoint

SMALL = ["model.num_queries=30", "loss.num_denoising=10", "model.decoder_layers=2", "model.eval_layer=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tour")
    make_shapes_dataset(folder / "data", num_train=8, num_val=4, size_px=96, seed=0)
    return folder


@pytest.mark.slow
def test_a_tour(folder, capsys):
    """Two minutes on two cores."""
    data, run = ["--data", str(folder / "data")], folder / "run"
    sized = ["--size", "96", "--epochs", "2", "--batch-size", "4"]
    train = ["train", "rtdetrv2-r18", *data, "--out", str(run)]
    assert main([*train, *sized, "data.workers=0", *SMALL, "--max-hours", "1e-9"]) == 0
    assert main([*train, "--resume", "--no-export"]) == 0
    rows = read_metrics(run)
    assert len(rows) == 2 and all(row["loss_vfl"] > 0 and row["loss_giou"] > 0 for row in rows)
    assert not any("fgl" in name for row in rows for name in row)
    assert main(["train", "n", *data, "--out", str(run), "--resume"]) == 2
    assert "is of variant rtdetrv2-r18, not n" in capsys.readouterr().err
    assert main(["evaluate", str(run / "last"), *data]) == 0
    pytest.importorskip("jax2onnx")
    assert main(["export", str(run / "last"), "--batch", "dynamic", "--out", str(folder / "r18.onnx")]) == 0
    assert "PASSED" in capsys.readouterr().out
    assert main(["evaluate", str(folder / "r18.onnx"), *data]) == 0
    assert main(["convert", str(run / "last"), str(folder / "r18.pth")]) == 0
    assert main(["convert", str(folder / "r18.pth"), str(folder / "back")]) == 0
    assert "RT-DETRv2-R18, 4 classes" in capsys.readouterr().out
    ours, back = (load_checkpoint(path).metadata.config.model for path in (run / "last", folder / "back"))
    assert (back.family, back.variant, back.decoder_layers) == (ours.family, ours.variant, 2)
    further = ["--out", str(folder / "further"), "--weights", str(folder / "back"), *sized, "--dry-run"]
    assert main(["train", "rtdetrv2-r18", *data, *further]) == 0
    assert main(["train", "s", *data, *further]) == 2
    assert "the weights are of variant rtdetrv2-r18; train rtdetrv2-r18" in capsys.readouterr().err
