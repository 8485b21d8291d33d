"""Whole runs of a shrunken model on the synthetic dataset: stopped, crashed and resumed, they end in the same bits."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from event_files import events
from PIL import Image
from tiny import tiny_config

from dfine_jax.config import LogConfig
from dfine_jax.data.load.plan import epoch_order
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.errors import UserError
from dfine_jax.training.report import run_page
from dfine_jax.training.report.run_files import ERRORS, read_metrics, read_steps
from dfine_jax.training.run import checkpoint, loop, skipped, validation
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.state import create_state

STEPS = 6  # two epochs of three


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=12, num_val=6, size_px=96, seed=0)
    return read_coco(*find_split(root, "train")), read_coco(*find_split(root, "val"))


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """All runs here share compiled programs; programs that call the host (SciPy matching) cannot be stored."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(autouse=True)
def programs_are_freed():
    """Each compiled step holds thousands of memory maps; a process that keeps all of a dozen runs dies of it."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def config(data):
    return tiny_config(
        model={"num_classes": len(data[0].names)},
        loss={"assignment": "device", "num_denoising": 4},
        train={"epochs": 2, "checkpoint_steps": 2, "log_every": 1},
    )


@pytest.fixture(scope="module")
def uninterrupted(data, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    talkative = dataclasses.replace(
        config,
        log=LogConfig(tensorboard=True, pictures=1),
        train=dataclasses.replace(config.train, val_loss=True),
    )
    result = loop.train(talkative, *data, out)
    assert result.finished and result.metrics is not None
    return out


def interrupt(monkeypatch, step, action):
    """Call ``action`` when the batch of the 1-based ``step`` of this process is about to be used."""
    original, count = loop.split_over_devices, [0]

    def counted(batch):
        count[0] += 1
        if count[0] == step:
            action()
        return original(batch)

    monkeypatch.setattr(loop, "split_over_devices", counted)


def leaves(path, config):
    tx = make_optimizer(config.model, config.optim)
    variables, _ = checkpoint.load_weights(path)
    template = jax.eval_shape(lambda: create_state(variables, tx, jax.random.key(0)))
    state, _, progress = checkpoint.load_training(path, template)
    state = state.replace(key=jax.random.key_data(state.key))
    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree.leaves_with_path(state)}, progress


def assert_same_end(out, reference, config):
    (ours, our_progress), (theirs, their_progress) = leaves(out / "last", config), leaves(reference / "last", config)
    different = [path for path in theirs if not np.array_equal(ours[path], theirs[path])]
    assert not different
    assert our_progress == their_progress
    other = ("images_per_s", "data_wait", "val_")  # of the clock, and what only the reference was asked for
    paths = out, reference
    rows = [[{k: v for k, v in row.items() if not k.startswith(other)} for row in read_metrics(p)] for p in paths]
    assert rows[0] == rows[1] and len(rows[0]) == 2 and "loss_ddf" in rows[0][1]


def test_a_run_leaves_what_it_promises(uninterrupted, config, data):
    state, progress = leaves(uninterrupted / "last", config)
    assert state[".step"] == STEPS
    assert progress.epoch == 2 and progress.skipped == 0
    rows = read_metrics(uninterrupted)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["loss"]) and row["images_per_s"] > 0 for row in rows)
    total = sum(rows[0][f"loss_{kind}"] for kind in ("vfl", "bbox", "giou", "fgl", "ddf"))
    assert rows[0]["loss"] == pytest.approx(total, rel=1e-4)
    metadata = checkpoint.load_metadata(uninterrupted / "last")
    assert metadata.class_names == data[0].names and metadata.category_ids == data[0].classes.ids
    assert dataclasses.replace(metadata.config, log=config.log, train=config.train) == config
    assert checkpoint.load_metadata(uninterrupted / "best").ap == progress.best_ap
    log = (uninterrupted / "log.txt").read_text()
    assert "compiled the train step in" in log and "GiB per device" in log


def test_a_run_shows_what_happened(uninterrupted):
    rows = read_metrics(uninterrupted)
    assert all(0 <= row["f1"] <= 1 and row["best_threshold"] > 0 and 0 <= row["data_wait"] <= 1 for row in rows)
    assert [row["backbone_lr"] for row in rows] == [row["lr"] for row in rows] == [pytest.approx(1e-3)] * 2
    headings = [line for line in (uninterrupted / "log.txt").read_text().splitlines() if "AP50" in line]
    assert len(headings) == 1 and headings[0].split()[2:4] == ["epoch", "loss"]
    report = json.loads((uninterrupted / "best_evaluation" / "metrics.json").read_text())
    assert report["ap"] == pytest.approx(max(row["ap"] for row in rows), rel=1e-4)
    pictures = ["curves.png", "best_evaluation/confusion.png", "best_evaluation/thresholds.png"]
    pictures += ["last_evaluation/metrics.json", "steps.csv", ERRORS]
    assert all((uninterrupted / name).is_file() for name in pictures)
    assert len(list((uninterrupted / "examples").glob("*_annotated.jpg"))) == 1
    assert len(list((uninterrupted / "examples").glob("*_detected.jpg"))) == 1
    batch = np.asarray(Image.open(uninterrupted / "augmented.jpg"), int)
    assert batch.shape[1:] == (2 * 320 + 3 * 6, 3)  # four pictures, enlarged for the labels, and the gaps
    assert batch.shape[0] > 2 * 320 + 3 * 6  # names of the files below them
    assert batch[:3].mean() > 240 and (np.ptp(batch, -1) > 100).any()  # white around, pictures in colour
    page = (uninterrupted / "report.html").read_text()
    assert "The run is finished." in page and "validation" in page and page.count("<svg") > 8
    assert json.loads((uninterrupted / "plan.json").read_text())["train"]["epochs"] == 2
    assert all(row["val_loss"] > 0 and row["val_loss_vfl"] > 0 and row["val_loss_fgl"] > 0 for row in rows)
    assert all(
        row["val_loss"] == pytest.approx(sum(v for k, v in row.items() if k.startswith("val_loss_")), rel=1e-4)
        for row in rows
    )
    scalars, shown, _ = events(uninterrupted / "tensorboard")
    assert [value for _, value in scalars["validation_loss/loss"]] == pytest.approx([r["val_loss"] for r in rows], 1e-4)
    for name in ("vfl/last", "vfl/aux_0", "fgl/dn_1", "ddf/aux_0", "optim/lr", "optim/grad_norm", "loss/loss"):
        assert [step for step, _ in scalars[name]] == list(range(1, STEPS + 1))
    mean = np.mean([value for _, value in scalars["loss/loss"][:3]])
    assert mean == pytest.approx(rows[0]["loss"], rel=1e-4)
    assert [value for _, value in scalars["validation/ap"]] == pytest.approx([row["ap"] for row in rows], abs=1e-5)
    assert sorted(name.split("/")[0] for name in shown) == ["evaluation", "evaluation", "examples"]
    assert "AP by class: " in (uninterrupted / "log.txt").read_text()


def test_stopped_by_a_signal_in_mid_epoch_and_resumed(uninterrupted, data, config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        origin = run_page.Origin(resume="dfine train n --out runs/n --resume")
        assert not loop.train(config, *data, tmp_path, origin=origin).finished
    assert f"stopped at step 2 of {STEPS}" in (tmp_path / "report.html").read_text()
    assert "; continue with dfine train n --out runs/n --resume\n" in (tmp_path / "log.txt").read_text()
    assert leaves(tmp_path / "last", config)[0][".step"] == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert loop.train(config, *data, tmp_path, resume=True).finished
    assert_same_end(tmp_path, uninterrupted, config)


class Told:
    """A callback that fails in a step."""

    def __init__(self, fails_in):
        self.steps, self.epochs, self.ends, self.fails_in = [], [], [], fails_in

    def on_step(self, step, values):
        self.steps.append(step)
        assert values["loss"] > 0 and "vfl/last" in values
        if step == self.fails_in:
            raise ZeroDivisionError("in a callback")

    def on_epoch(self, epoch, row):
        self.epochs.append((epoch, row["ap"] is not None))

    def on_end(self, result):
        self.ends.append(result.finished)


def test_an_error_in_a_callback_leaves_a_checkpoint_to_go_on_from(uninterrupted, data, config, tmp_path):
    told = Told(4)
    with pytest.raises(ZeroDivisionError, match="in a callback"):
        loop.train(config, *data, tmp_path, callbacks=[told])
    assert told.steps == [1, 2, 3, 4] and told.epochs == [(1, True)] and told.ends == [False]
    assert "ZeroDivisionError in on_step of a callback" in (tmp_path / "log.txt").read_text()
    assert 4 <= leaves(tmp_path / "last", config)[0][".step"] <= 5  # the next one was under way
    told = Told(None)
    assert loop.train(config, *data, tmp_path, resume=True, callbacks=[told]).finished
    assert told.steps[-1] == STEPS and told.epochs == [(2, True)] and told.ends == [True]
    assert_same_end(tmp_path, uninterrupted, config)


@pytest.mark.parametrize(("killed_in", "kept"), [pytest.param(1, 0, marks=pytest.mark.slow), (6, 4)])
def test_killed_and_resumed_from_an_earlier_step(uninterrupted, data, config, tmp_path, monkeypatch, killed_in, kept):
    def crash(*args):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(run_page, "_EVERY_S", 0.0)
        if killed_in == 1:  # all compiled, nothing trained
            patch.setattr(loop.TrainPrograms, "__call__", crash)
        else:
            interrupt(patch, killed_in, crash)
        with pytest.raises(RuntimeError, match="killed"):
            loop.train(config, *data, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "RuntimeError: killed" in page and "with --resume" in page
    if killed_in == 6:  # the fifth is at work
        assert f"step 4 of {STEPS} (" in page and [step for step, _ in read_steps(tmp_path)] == [1, 2, 3, 4]
    assert leaves(tmp_path / "last", config)[0][".step"] == kept
    assert loop.train(config, *data, tmp_path, resume=True).finished
    assert_same_end(tmp_path, uninterrupted, config)
    assert read_steps(tmp_path) == read_steps(uninterrupted) and len(read_steps(tmp_path)) == STEPS


@pytest.mark.parametrize("epoch", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_stopped_during_evaluation(uninterrupted, data, config, tmp_path, monkeypatch, epoch):
    original, count = validation.evaluate, [0]

    def stopped(predict, batches, *rest, **rules):
        count[0] += 1
        if count[0] < epoch:
            return original(predict, batches, *rest, **rules)
        os.kill(os.getpid(), signal.SIGINT)
        for _ in batches:
            pytest.fail("evaluation went on")

    with monkeypatch.context() as patch:
        patch.setattr(validation, "evaluate", stopped)
        result = loop.train(config, *data, tmp_path)
    assert not result.finished
    state, progress = leaves(tmp_path / "last", config)
    assert state[".step"] == 3 * epoch and progress.epoch == epoch - 1
    assert loop.train(config, *data, tmp_path, resume=True).finished
    assert_same_end(tmp_path, uninterrupted, config)


@pytest.mark.slow
def test_stopped_in_the_last_step(uninterrupted, data, config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, STEPS, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert not loop.train(config, *data, tmp_path).finished
    state, progress = leaves(tmp_path / "last", config)
    assert state[".step"] == STEPS and progress.epoch == 1
    assert loop.train(config, *data, tmp_path, resume=True).finished
    assert_same_end(tmp_path, uninterrupted, config)


@pytest.mark.parametrize("split", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_image_that_cannot_be_read_ends_the_run_without_loss(uninterrupted, data, config, tmp_path, split):
    first = epoch_order(12, 12, config.train.seed, 0)
    bad = data[split].records[first[4] if split == 0 else 0].path  # of the second batch
    whole = bad.read_bytes()
    bad.write_bytes(whole[:300])
    try:
        with pytest.raises(UserError, match=bad.name):
            loop.train(config, *data, tmp_path)
    finally:
        bad.write_bytes(whole)
    assert leaves(tmp_path / "last", config)[0][".step"] == (1 if split == 0 else 3)
    assert loop.train(config, *data, tmp_path, resume=True).finished
    assert_same_end(tmp_path, uninterrupted, config)


def test_a_finished_run_resumes_to_nothing(uninterrupted, data, config):
    before, _ = leaves(uninterrupted / "last", config)
    assert loop.train(config, *data, uninterrupted, resume=True).finished
    after, _ = leaves(uninterrupted / "last", config)
    assert all(np.array_equal(before[path], after[path]) for path in before)


def poisoned(monkeypatch, steps):
    """Boxes of these 1-based steps become NaN."""
    original, count = loop.split_over_devices, [0]

    def split(batch):
        count[0] += 1
        if count[0] in steps:
            batch = batch._replace(boxes_cxcywh=np.full_like(batch.boxes_cxcywh, np.nan))
        return original(batch)

    monkeypatch.setattr(loop, "split_over_devices", split)


def test_a_non_finite_step_changes_nothing_but_the_step(data, config, tmp_path, monkeypatch):
    patient = dataclasses.replace(config, train=dataclasses.replace(config.train, eval_every=2, checkpoint_steps=0))
    with monkeypatch.context() as patch:
        poisoned(patch, range(3, 7))
        interrupt(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        loop.train(patient, *data, tmp_path / "whole")
    after, progress = leaves(tmp_path / "whole" / "last", config)
    with monkeypatch.context() as patch:
        interrupt(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        loop.train(patient, *data, tmp_path / "before")
    before, _ = leaves(tmp_path / "before" / "last", config)
    assert (after[".step"], before[".step"], progress.skipped) == (5, 2, 3)
    assert not [p for p in after if p != ".step" and not np.array_equal(after[p], before[p])]


def test_repeated_non_finite_steps_end_the_run(data, config, tmp_path, monkeypatch):
    poisoned(monkeypatch, range(1, 7))
    (tmp_path / "skipped").mkdir()
    for step in (70, 80, 90):  # of an earlier run in this folder
        (tmp_path / "skipped" / f"step_{step:08d}.npz").write_bytes(b"old")
    strict = dataclasses.replace(config, train=dataclasses.replace(config.train, max_skipped_steps=2))
    with pytest.raises(UserError, match="2 steps in a row had a non-finite loss or gradient; lower optim.lr"):
        loop.train(strict, *data, tmp_path)
    assert (tmp_path / "log.txt").read_text().count("was skipped: loss") == 2
    state, progress = leaves(tmp_path / "last", strict)
    assert state[".step"] in (2, 3) and state[".ema_updates"] == 0 and progress.skipped == 2
    files = sorted((tmp_path / "skipped").iterdir())
    assert [file.name for file in files] == ["step_00000000", "step_00000000.npz", "step_00000001.npz"]
    metrics = skipped.replay(tmp_path, files[1])
    assert not metrics.finite and np.isnan(metrics.terms["bbox/last"])


@pytest.mark.slow
def test_the_batch_of_a_skipped_step_can_be_computed_again(data, config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        poisoned(patch, [2])
        interrupt(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        loop.train(config, *data, tmp_path)
    state, file = sorted((tmp_path / "skipped").iterdir())
    batch, step, size_px = skipped.load_batch(file)
    assert step == 1 and size_px == (64, 64) and batch.images.shape == (4, 64, 64, 3)
    assert np.isnan(batch.boxes_cxcywh).all() and f"its batch is in {file}" in (tmp_path / "log.txt").read_text()
    shutil.rmtree(tmp_path / "last")  # the weights are those beside the batch
    metrics = skipped.replay(tmp_path, file)
    assert not metrics.finite and np.isnan(metrics.terms["bbox/last"])
    assert leaves(state, config)[0][".ema_updates"] in (1, 2)
    with pytest.raises(UserError, match="is not a batch kept by a run"):
        skipped.load_batch(tmp_path / "log.txt")


def scored(monkeypatch, aps):
    """Evaluations after the 1-based epochs have these results."""
    original = loop.stages.judge
    monkeypatch.setattr(loop.stages, "judge", lambda p, ap, epoch, **rest: original(p, aps[epoch - 1], epoch, **rest))


@pytest.mark.slow
@pytest.mark.parametrize("stop_step", [8, *(pytest.param(step, marks=pytest.mark.slow) for step in (4, 11, 14))])
def test_the_second_stage_survives_a_stop(data, config, tmp_path, monkeypatch, stop_step):
    """Epochs 3 to 5 are stage 2: the first improves, the second does not and is undone, so the third repeats it."""
    staged = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, epochs=5, stage2_epoch=2, checkpoint_steps=0),
        optim=dataclasses.replace(config.optim, ema_restart_decay=0.8, ema_restart_step=0.1),
        data=dataclasses.replace(config.data, augment="none"),
    )
    scored(monkeypatch, [0.3, 0.2, 0.4, 0.1, 0.05])
    assert loop.train(staged, *data, tmp_path / "whole").finished
    log = (tmp_path / "whole" / "log.txt").read_text()
    assert "stage 2 begins with epoch 3" in log
    assert log.count("back to the weights of epoch 1; decay of the average 0.8") == 1
    assert log.count("back to the weights of epoch 1; decay of the average 0.7") == 1
    state, progress = leaves(tmp_path / "whole" / "last", staged)
    assert (progress.stage, progress.returns, progress.best_ap, progress.best_epoch) == (2, 1, 0.4, 3)
    assert progress.stage_best_ap == 0.05  # epoch 5 is the first after a return
    assert state[".ema_updates"] == 6 and state[".step"] == 15  # one epoch to the kept weights, one after the return
    assert not (tmp_path / "whole" / "stage1").exists()
    with monkeypatch.context() as patch:
        interrupt(patch, stop_step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert not loop.train(staged, *data, tmp_path / "stopped").finished
    assert loop.train(staged, *data, tmp_path / "stopped", resume=True).finished
    found, found_progress = leaves(tmp_path / "stopped" / "last", staged)
    assert not [path for path in state if not np.array_equal(found[path], state[path])]
    assert found_progress == progress


def test_patience_ends_the_run_for_good(data, config, tmp_path, monkeypatch):
    patient = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=9, patience=2))
    scored(monkeypatch, [0.3, 0.2, 0.3, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])
    result = loop.train(patient, *data, tmp_path)
    assert result.finished and result.best_epoch == 1
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert "no new best in 2 evaluations: training ends" in (tmp_path / "log.txt").read_text()
    assert loop.train(patient, *data, tmp_path, resume=True).finished
    assert leaves(tmp_path / "last", patient)[0][".step"] == 9


def test_the_clock_stops_a_run_as_a_signal_does(uninterrupted, data, config, tmp_path):
    result = loop.train(config, *data, tmp_path, max_hours=0.0)
    assert not result.finished and "--max-hours is up" in (tmp_path / "log.txt").read_text()
    assert loop.train(config, *data, tmp_path, resume=True).finished
    assert_same_end(tmp_path, uninterrupted, config)


def test_errors_come_before_any_work(data, config, uninterrupted, tmp_path):
    with pytest.raises(UserError, match="holds a run; continue it with --resume"):
        loop.train(config, *data, uninterrupted)
    with pytest.raises(UserError, match="holds no checkpoint 'last' to continue from; start without --resume"):
        loop.train(config, *data, tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "metrics.csv").touch()
    with pytest.raises(UserError, match="ended before its first checkpoint: remove it or choose another folder"):
        loop.train(config, *data, tmp_path / "early")
    with pytest.raises(UserError, match="holds no checkpoint 'last' to continue from; remove it, or choose another"):
        loop.train(config, *data, tmp_path / "early", resume=True)
    wrong = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=9))
    with pytest.raises(UserError, match="model.num_classes=9, but .* has 4 classes"):
        loop.train(wrong, *data, tmp_path / "new")
    parts = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=3))
    with pytest.raises(UserError, match="must be a multiple of the 1 devices .* times train.accumulate=3"):
        loop.train(parts, *data, tmp_path / "new")
    late = dataclasses.replace(config, optim=dataclasses.replace(config.optim, schedule="flat_cosine", final_epochs=3))
    with pytest.raises(UserError, match="optim.final_epochs=3 must be at most train.epochs=2"):
        loop.train(late, *data, tmp_path / "new")
    assert not (tmp_path / "new").exists()
