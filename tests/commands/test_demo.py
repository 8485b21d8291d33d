"""``dfine demo``: refusals at once; the whole tour is a slow test."""

from __future__ import annotations

import re

import pytest

from dfine_jax import cli
from dfine_jax.commands import demo
from dfine_jax.families.dfine.config import LossConfig


def test_an_occupied_folder_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path} exists and is not empty; choose another --out, or remove it" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_epochs_must_be_positive(tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "d"), "--epochs", "0"]) == 2
    assert "--epochs 0 must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("epochs", [1, demo.EPOCHS])
def test_schedule_fits_the_run(epochs):
    config = demo.demo_config(num_classes=4, epochs=epochs)
    steps = epochs * (demo.NUM_TRAIN // demo.BATCH_SIZE)
    assert 0 < config.optim.warmup_steps <= steps / 4
    assert config.train.eval_every <= epochs
    tokens = sum((demo.INPUT_PX // stride) ** 2 for stride in (16, 32))
    assert config.model.num_queries <= tokens  # queries are picked from the tokens
    assert config.loss.cost_class == LossConfig().cost_class


@pytest.mark.slow
def test_the_whole_tour(tmp_path, capsys):
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    before, after = map(float, re.search(r"after training: ([\d.]+), ([\d.]+)", printed).groups())
    assert before < 0.05
    assert after > 0.4
    page = (out / "report.html").read_text()
    assert (out / "model.onnx").is_file()
    assert "AP of the file" in page
    assert page.count("<img") == demo.NUM_SHOWN
    assert f"{after:.3f}" in page
    assert len(list((out / "pictures").glob("*.png"))) == demo.NUM_SHOWN
