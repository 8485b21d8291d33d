"""``dfine demo``: refusals, the schedule and the page at once; the whole tour is a slow test."""

from __future__ import annotations

import argparse
import re
import shlex
from types import SimpleNamespace

import pytest

from dfine_jax import cli
from dfine_jax.commands import demo, demo_page, evaluate, predict, train
from dfine_jax.evaluation.score import Metrics
from dfine_jax.families import TASKS, task
from dfine_jax.families.dfine.config import LossConfig


def test_an_occupied_folder_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path} exists and is not empty; choose another --out, or remove it" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_epochs_must_be_positive(tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "d"), "--epochs", "0"]) == 2
    assert "--epochs 0 must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("epochs", [1, demo.EPOCHS])
def test_schedule_fits_the_run(epochs, name):
    config = demo.demo_config(num_classes=4, epochs=epochs, task=name)
    steps = epochs * (demo.NUM_TRAIN // demo.BATCH_SIZE)
    assert 0 < config.optim.warmup_steps <= steps / 4
    assert config.train.eval_every <= epochs
    tokens = sum((demo.INPUT_PX // stride) ** 2 for stride in (16, 32))
    assert config.model.num_queries <= tokens  # queries are picked from the tokens
    assert config.loss.cost_class == LossConfig().cost_class
    assert task(config.model) == name


@pytest.mark.parametrize("name", TASKS)
def test_commands_to_go_on_with_exist(tmp_path, name):
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(dest="command")
    for command in (evaluate, predict, train):
        command.add_parser(subparsers)
    found = [parser.parse_args(shlex.split(line)[1:]) for _, line in demo.going_on(tmp_path / "my demo", name)]
    assert [options.command for options in found] == ["predict", "evaluate", "train"]
    assert found[0].model == str(tmp_path / "my demo" / "run" / "best")
    assert found[2].task == ("segment" if name == "segment" else None)


def metrics(ap, masks=None, threshold=0.4):
    return Metrics(*[ap] * 12, {"star": ap}, 3, SimpleNamespace(best_threshold=threshold), masks)  # type: ignore[arg-type]


def tour(before, after, export=None):
    config = demo.demo_config(num_classes=1, epochs=2, task="segment" if after.masks else "detect")
    return demo_page.Tour(config, 10, 1.5, before, after, export, [], [("more", "dfine predict a 'b c'")])


def test_the_page_has_masks_beside_boxes(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text(
        "epoch,loss,ap,ap50,mask_ap,mask_ap50\n1,9.0,,,,\n2,5.0,0.61,0.8,0.51,0.7\n"
    )
    comparison = SimpleNamespace(box_most_px=0.001, score_most=2e-6, mask_p95=0.0031)
    export = SimpleNamespace(
        file="model.onnx",
        ran_on={"runtime": "here"},
        comparisons=[comparison, comparison],
        accuracy=SimpleNamespace(model=0.612, artefact=0.613),
        mask_accuracy=SimpleNamespace(model=0.514, artefact=0.515),
    )
    before, after = metrics(0.012, metrics(0.011)), metrics(0.61, metrics(0.51, threshold=0.35))
    demo_page.write_page(tmp_path, tour(before, after, export))
    page = (tmp_path / "report.html").read_text()
    for shown in ("0.612", "0.613", "0.514", "0.515", "0.0031", "masks before", "AP, masks", "on, 0.35"):
        assert shown in page
    rows = re.findall(r"<tr><td>star</td>(.*?)</tr>", page)
    assert [re.findall(r">([\d.]+)<", row) for row in rows] == [["0.012", "0.610", "0.011", "0.510"]]
    assert page.count("<polyline") == 4 and "<code>dfine predict a &#x27;b c&#x27;</code>" in page


def test_the_page_without_masks_does_not_mention_them(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("epoch,loss,ap,ap50\n1,9.0,,\n2,5.0,0.61,0.8\n")
    demo_page.write_page(tmp_path, tour(metrics(0.012), metrics(0.61)))
    page = (tmp_path / "report.html").read_text()
    assert "mask" not in page and "pixels are theirs" not in page and page.count("<polyline") == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_the_whole_tour(tmp_path, capsys, name):
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out), "--task", name]) == 0
    printed = capsys.readouterr().out
    before, after = map(float, re.search(r"after training: ([\d.]+), ([\d.]+)", printed).groups())
    assert before < 0.05
    assert after > 0.4
    page = (out / "report.html").read_text()
    assert (out / "model.onnx").is_file()
    assert "AP of the file" in page
    assert page.count("<img") == 2 * demo_page.NUM_SHOWN
    assert f"{after:.3f}" in page
    assert len(list((out / "pictures").glob("*.png"))) == 2 * demo_page.NUM_SHOWN
    if name == "segment":
        before, after = map(float, re.search(r"of masks: ([\d.]+), ([\d.]+)", printed).groups())
        assert before < 0.05 and after > 0.3 and f"{after:.3f}" in page and "AP of masks, of the file" in page
