"""Means, speeds and files of a run."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import time

import numpy as np
import pytest
from event_files import events
from PIL import Image
from tiny import tiny_config

from dfine_jax.config import LogConfig
from dfine_jax.data.read.dataset import Classes
from dfine_jax.errors import UserError
from dfine_jax.evaluation.score import score
from dfine_jax.system.config_values import from_dict
from dfine_jax.training.report.examples import Example
from dfine_jax.training.report.log import RunLog, by_class, epoch_tag, table_header, table_line, tag
from dfine_jax.training.report.meter import Meter, by_kind
from dfine_jax.training.report.run_files import read_metrics
from dfine_jax.training.report.sinks import check_installed, open_sinks, with_methods
from dfine_jax.training.run.stages import Progress


def test_terms_are_summed_by_kind():
    terms = {"vfl/last": 1.0, "vfl/aux_0": 2.0, "vfl/dn_pre": 4.0, "ddf/dn_1": 8.0, "grad_norm": 3.0}
    assert by_kind(terms) == {"loss_vfl": 7.0, "loss_ddf": 8.0, "grad_norm": 3.0}


def test_skipped_steps_do_not_enter_the_means():
    meter = Meter()
    meter.add(4, {"loss": 1.0})
    meter.add(4, None)
    meter.add(4, {"loss": 3.0})
    assert meter.means() == {"loss": 2.0}


def test_time_stops(monkeypatch):
    now = [10.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter = Meter()
    meter.add(8, {})
    now[0] = 12.0
    meter.stop()
    now[0] = 100.0
    assert meter.images_per_second() == pytest.approx(4.0)
    meter.restart()
    assert meter.images_per_second() is None
    meter.add(3, {})
    now[0] = 101.0
    assert meter.images_per_second() == pytest.approx(3.0)


def test_a_resumed_run_drops_rows_that_it_repeats(tmp_path):
    log = RunLog(tmp_path, 0)
    for epoch in (1, 2, 3):
        log.row({"epoch": epoch, "ap": None if epoch == 1 else 0.1 * epoch})
    log = RunLog(tmp_path, 2)
    log.row({"epoch": 3, "ap": 0.7})
    assert read_metrics(tmp_path) == [{"epoch": 1}, {"epoch": 2, "ap": 0.2}, {"epoch": 3, "ap": 0.7}]


def test_lines_are_kept_with_their_time(tmp_path):
    RunLog(tmp_path, 0).line("first")
    RunLog(tmp_path, 0).line("second")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(None, 2)[2] for line in lines] == ["first", "second"]


class Kept:
    """A sink that remembers."""

    def __init__(self):
        self.numbers, self.shown, self.closed = [], [], False

    def scalars(self, step, values):
        self.numbers.append((step, dict(values)))

    def pictures(self, step, values):
        self.shown.append((step, dict(values)))

    def close(self):
        self.closed = True


def test_the_table_is_aligned_and_shows_what_there_is(tmp_path):
    row = {
        "epoch": 7,
        "loss": 31.234,
        "loss_mal": 2.0,
        "loss_bbox": None,
        "lr": 8e-4,
        "data_wait": 0.034,
        "ap": None,
        "images_per_s": 9.87,
    }
    header, line = table_header(row), table_line(row)
    assert len(header) == len(line)
    cells = dict(zip(header.split(), line.split(), strict=True))
    assert (cells["epoch"], cells["loss"], cells["mal"], cells["lr"]) == ("7", "31.23", "2.00", "8.0e-04")
    assert (cells["wait"], cells["img/s"], cells["AP"], cells["bbox"]) == ("3%", "9.9", "-", "-")


def test_headings_come_back_and_the_best_is_marked_also_after_resuming(tmp_path, capsys):
    log = RunLog(tmp_path, 0)
    for epoch in range(1, 23):
        log.row({"epoch": epoch, "step": epoch, "ap": 0.3 if epoch == 2 else None if epoch == 3 else 0.1})
    lines = capsys.readouterr().out.splitlines()
    assert [i for i, line in enumerate(lines) if "epoch" in line] == [0, 21]
    assert [line.split()[0] for line in lines if line.endswith("best")] == ["1", "2"]
    log = RunLog(tmp_path, 22)
    log.row({"epoch": 23, "step": 23, "ap": 0.2})
    log.row({"epoch": 24, "step": 24, "ap": 0.4})
    assert [line.endswith("best") for line in capsys.readouterr().out.splitlines()] == [False, False, True]


def test_names_of_curves():
    assert (tag("vfl/last"), tag("vfl/aux_0"), tag("backbone_lr")) == ("vfl/last", "vfl/aux_0", "optim/backbone_lr")
    assert (tag("loss"), tag("lr"), tag("grad_norm")) == ("loss/loss", "optim/lr", "optim/grad_norm")
    assert (epoch_tag("loss"), epoch_tag("loss_giou"), epoch_tag("ap50")) == (
        "epoch_loss/loss", "epoch_loss/giou", "validation/ap50",
    )  # fmt: skip
    assert epoch_tag("data_wait") == "epoch_speed/data_wait"


def test_steps_are_averaged_and_epochs_passed_on(tmp_path):
    sink = Kept()
    log = RunLog(tmp_path, 0, [sink], every=3, rates=lambda step: {"lr": 10.0 * step})
    for step in range(1, 8):
        log.step(step, {"loss": float(step), **({"grad_norm": 0.5} if step > 3 else {})})
    first, second = sink.numbers
    assert first == (3, {"loss/loss": 2.0, "optim/lr": 20.0})
    assert second == (6, {"loss/loss": 5.0, "optim/grad_norm": 0.5, "optim/lr": 50.0})
    log.row({"epoch": 1, "step": 7, "ap": 0.25, "ap50": None, "skipped": 0})
    assert sink.numbers[-1] == (7, {"validation/ap": 0.25})
    log.close()
    assert sink.closed


def test_without_pictures_there_are_numbers(tmp_path):
    _, metrics = evaluated_run(tmp_path)
    log = RunLog(tmp_path, 1)
    log.best(metrics)
    log.draw(1, metrics, best=True)
    for kind in ("best", "last"):
        assert [p.name for p in (tmp_path / f"{kind}_evaluation").iterdir()] == ["metrics.json"]
    assert not (tmp_path / "curves.png").exists() and not (tmp_path / "examples").exists()


class RedPicture:
    """One picture in place of a dataset's examples."""

    def observe(self, results):
        self.results = list(results)

    def draw(self, threshold):
        red = Image.new("RGB", (20, 10), (200, 0, 0))
        return {"first": Example(red, red)} if threshold == 0.8 else {}


def evaluated_run(folder, sinks=()):
    truth = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 99, "height": 99}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50]}],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 48], "score": 0.8}]
    metrics = score(truth, found, [1], Classes(("cat",), (1,)))
    log = RunLog(
        folder, 0, sinks, every=1, rates=lambda step: {"lr": 1e-4 + step}, examples=RedPicture(), pictures=True
    )
    log.observe(found)
    log.step(1, {"loss": 3.0, "vfl/aux_0": 0.5})
    log.row({"epoch": 1, "step": 1, "loss": 3.0, "ap": metrics.ap})
    return log, metrics


def test_an_evaluation_leaves_curves_examples_and_the_whole_of_the_best(tmp_path):
    log, metrics = evaluated_run(tmp_path)
    log.draw(1, metrics, best=False)
    assert Image.open(tmp_path / "curves.png").size[0] > 400
    for what in ("annotated", "detected"):
        assert Image.open(tmp_path / "examples" / f"first_{what}.jpg").size == (20, 10)
    assert not (tmp_path / "best_evaluation").exists()
    log.best(metrics)
    assert (tmp_path / "log.txt").read_text().splitlines()[-1].endswith("AP by class: cat 1.000")
    log.draw(1, metrics, best=True)
    values = json.loads((tmp_path / "best_evaluation" / "metrics.json").read_text())
    assert values["ap"] == pytest.approx(metrics.ap) and values["report"]["best_threshold"] == 0.8
    assert values["report"]["iou"] == pytest.approx(0.96)
    assert sorted(p.name for p in (tmp_path / "best_evaluation").iterdir()) == [
        "confusion.png", "metrics.json", "thresholds.png",
    ]  # fmt: skip
    assert [p.name for p in (tmp_path / "last_evaluation").iterdir()] == ["metrics.json"]


def test_without_evaluations_there_are_curves(tmp_path):
    log = RunLog(tmp_path, 0, pictures=True)
    log.row({"epoch": 1, "step": 1, "loss": 3.0})
    log.draw(1, None, best=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "log.txt", "metrics.csv"]


class Full:
    """A sink whose disk is full."""

    failures = (OSError,)

    def scalars(self, step, values):
        raise OSError("No space left on device\nmore")

    def close(self):
        raise AssertionError("it was given up")


def test_a_sink_that_fails_does_not_end_the_run(tmp_path, capsys):
    log, metrics = evaluated_run(tmp_path, [Full()])
    log.best(metrics)
    log.draw(1, metrics, best=True)
    log.close()
    text = (tmp_path / "log.txt").read_text()
    assert text.count("Full failed (No space left on device): nothing more is sent there") == 1
    assert len(read_metrics(tmp_path)) == 1 and (tmp_path / "curves.png").exists()


def test_many_classes_fit_into_a_line():
    line = by_class({f"c{i}": i / 100 for i in range(40)} | {"none": -1.0})
    assert line.startswith("AP by class: c0 0.000, c1 0.010,") and line.endswith("c38 0.380, c39 0.390")
    assert line.count("c") < 20 and ", ..., " in line and "none" not in line


def test_the_means_of_an_epoch_survive_a_stop():
    first = Meter()
    for value in (0.1, 0.7, 1e-9):
        first.add(4, {"loss": value, "grad_norm": 2 * value})
    first.add(4, None)
    second = Meter(from_dict(Progress, json.loads(json.dumps(dataclasses.asdict(first.noted(Progress(epoch=3)))))))
    for meter in (first, second):
        meter.add(4, {"loss": 0.3, "grad_norm": 1.0})
    assert second.means() == first.means() and first.noted(Progress()) == second.noted(Progress())


def logged_to(**where):
    return dataclasses.replace(tiny_config(), log=LogConfig(**{"tensorboard": False, **where}))


def test_tensorboard_files(tmp_path):
    pytest.importorskip("tensorboardX")
    (sink,) = open_sinks(logged_to(tensorboard=True), tmp_path, 0)
    log, metrics = evaluated_run(tmp_path, [sink])
    log.draw(1, metrics, best=False)
    log.close()
    scalars, pictures, starts = events(tmp_path / "tensorboard")
    assert scalars["loss/loss"] == [(1, 3.0)] and scalars["vfl/aux_0"] == [(1, 0.5)]
    assert scalars["optim/lr"] == [(1, pytest.approx(1e-4))]
    assert scalars["validation/ap"] == scalars["ap_by_class/cat"] == [(1, pytest.approx(metrics.ap))]
    assert sorted(pictures) == ["evaluation/confusion", "evaluation/thresholds", "examples/first"]
    (tmp_path / "first.png").write_bytes(pictures["examples/first"])
    assert np.asarray(Image.open(tmp_path / "first.png"))[-5, 5].tolist() == [200, 0, 0]
    assert starts == []
    (again,) = open_sinks(logged_to(tensorboard=True), tmp_path, 4)
    again.scalars(5, {"a/b": 1.0})
    again.close()
    assert events(tmp_path / "tensorboard")[2] == [5]  # TensorBoard drops what the lost steps wrote


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for _ in range(2):  # the second time as a resumed run
        (sink,) = open_sinks(logged_to(wandb="cells"), tmp_path, 0)
        log, metrics = evaluated_run(tmp_path, [sink])
        log.draw(1, metrics, best=False)
        ids.append((wandb.run.project, wandb.run.id))
        assert wandb.run.summary["validation/ap"] == pytest.approx(metrics.ap)
        assert wandb.run.config["model"]["variant"] == "n"
        log.close()
    wandb.teardown()  # the process remembers the mode
    assert ids[0] == ids[1] and ids[0][0] == "cells"
    files = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    deadline = time.monotonic() + 30  # a process of its own writes them
    while not all(b"vfl/aux_0" in file.read_bytes() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_wandb_without_a_key_is_one_line_with_the_cure(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / name))
    with pytest.raises(UserError, match="log.wandb=cells: no run .*; set WANDB_API_KEY, or WANDB_MODE=offline") as told:
        open_sinks(logged_to(wandb="cells"), tmp_path, 0)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("where", "module"),
    [({"tensorboard": True}, "tensorboardX"), ({"wandb": "p"}, "wandb"), ({"mlflow": "p"}, "mlflow")],
)
def test_missing_packages_are_named(monkeypatch, where, module):
    monkeypatch.setitem(sys.modules, module, None)
    extra = next(iter(where))
    with pytest.raises(UserError, match=f"log.{extra} needs a package .* pip install .*\\[{extra}\\]"):
        check_installed(logged_to(**where))
    check_installed(tiny_config())


def test_nothing_is_opened_that_was_not_asked_for(tmp_path):
    assert open_sinks(logged_to(), tmp_path, 0) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("installed", [True, False])
def test_event_files_are_written_where_they_can_be(tmp_path, monkeypatch, installed):
    if installed:
        pytest.importorskip("tensorboardX")
    else:
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda n, *rest: None if "tensor" in n else found(n, *rest))
    config = tiny_config()
    check_installed(config)
    assert [type(sink).__name__ for sink in open_sinks(config, tmp_path, 0)] == ["TensorBoard"] * installed


def test_masks_decide_which_epoch_is_the_best_unless_boxes_do(tmp_path):
    rows = [(0.3, 0.1), (0.2, 0.2), (0.4, None)]
    for best_by, expected in (("masks", [True, True, True]), ("boxes", [True, False, True])):
        (tmp_path / best_by).mkdir()
        log = RunLog(tmp_path / best_by, 0, best_by=best_by)
        for epoch, (ap, mask_ap) in enumerate(rows, 1):
            log.row({"epoch": epoch, "step": epoch, "ap": ap, "mask_ap": mask_ap})
        lines = (tmp_path / best_by / "log.txt").read_text().splitlines()[1:]
        assert [line.endswith("best") for line in lines] == expected
        again = RunLog(tmp_path / best_by, 2, best_by=best_by)
        again.row({"epoch": 3, "step": 3, "ap": 0.25, "mask_ap": 0.15})
        assert not (tmp_path / best_by / "log.txt").read_text().splitlines()[-1].endswith("best")


def test_the_loss_of_validation_is_in_the_table_and_has_curves_of_its_own():
    row = {"epoch": 1, "loss": 3.0, "loss_vfl": 1.0, "val_loss": 4.25, "val_loss_vfl": 2.0, "ap": 0.5}
    header, line = table_header(row), table_line(row)
    assert dict(zip(header.split(), line.split(), strict=True))["val"] == "4.25" and len(header) == len(line)
    assert header.split().index("val") == header.split().index("AP") - 1
    assert (epoch_tag("val_loss"), epoch_tag("val_loss_vfl")) == ("validation_loss/loss", "validation_loss/vfl")


def test_a_logger_needs_no_failures(tmp_path):
    sink = Kept()
    log = RunLog(tmp_path, 0, [sink], every=1)
    log.step(1, {"loss": 1.0})
    log.close()
    assert sink.numbers == [(1, {"loss/loss": 1.0})] and sink.closed


def test_a_logger_that_fails_does_not_end_the_run(tmp_path):
    """Of a program's own nobody knows by which errors it fails."""

    class Mine(Kept):
        def scalars(self, step, values):
            raise RuntimeError("no route to my server")

    kept = Kept()
    log = RunLog(tmp_path, 0, [Mine(), kept], every=1)
    for step in (1, 2):
        log.step(step, {"loss": 1.0})
    assert (tmp_path / "log.txt").read_text().count("Mine failed (no route to my server)") == 1
    assert [step for step, _ in kept.numbers] == [1, 2]


def test_loggers_have_all_that_a_run_calls():
    class Half:
        def scalars(self, step, values):
            pass

    assert with_methods([Kept()])
    with pytest.raises(UserError, match="Half object .* has no pictures, close; a logger has scalars"):
        with_methods([Kept(), Half()])


def test_mlflow_in_a_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "tracked").as_uri())
    ids = []
    for _ in range(2):  # the second time as a resumed run
        (sink,) = open_sinks(logged_to(mlflow="cells"), tmp_path, 0)
        log, metrics = evaluated_run(tmp_path, [sink])
        log.draw(1, metrics, best=False)
        log.close()
        ids.append((tmp_path / "mlflow_run.txt").read_text().strip())
    client = mlflow.MlflowClient()
    run = client.get_run(ids[0])
    assert ids[0] == ids[1] and run.info.status == "FINISHED"
    assert run.data.metrics["validation/ap"] == pytest.approx(metrics.ap) and run.data.metrics["vfl/aux_0"] == 0.5
    assert run.data.params["model.variant"] == "n" and run.data.params["train.batch_size"] == "4"
    assert [file.path for file in client.list_artifacts(ids[0], "examples")] == ["examples/first_1.png"]
