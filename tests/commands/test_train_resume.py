"""Continuing runs from the command line. They are stopped before their first step, so that nothing is compiled."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import tiny_config

from dfine_jax.cli import main
from dfine_jax.config import Config
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.model import init_variables
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.training.run import loop
from dfine_jax.training.run.checkpoint import Metadata, load_metadata, save_training, save_weights
from dfine_jax.training.run.setup import describe
from dfine_jax.training.run.stages import Progress
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.state import create_state


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=2, size_px=64, seed=0)


@pytest.fixture(scope="module")
def new_run(data, tmp_path_factory):
    """Folder of a run of a tiny model that has taken no step; its weights are zeros, which costs no compilation."""
    config = tiny_config(train={"batch_size": 4}, model={"num_classes": 4})
    shapes = jax.eval_shape(lambda: init_variables(config.model, jax.random.key(0)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = create_state(zeros, make_optimizer(config.model, config.optim), jax.random.key(0))
    folder = tmp_path_factory.mktemp("runs") / "new"
    save_training(folder / "last", state, describe(config, read_dataset(data, "train"), None), Progress())
    return folder


@pytest.fixture
def started(new_run, data, tmp_path):
    """Folder of a run with ``last``, and the command that continues it."""
    out = Path(shutil.copytree(new_run, tmp_path / "my run"))
    return out, ["train", "n", "--data", str(data), "--out", str(out), "--resume", "--max-hours", "1e-9"]


def test_what_changes_no_result_can_be_given(started, capsys):
    out, command = started
    before = load_metadata(out / "last").config
    changes = [
        "train.accumulate=2",
        'train.remat=["decoder"]',
        "data.workers=1",
        "train.log_every=3",
        "train.patience=0",
    ]
    assert main([*command[:2], *changes, *command[2:]]) == 0
    train = dataclasses.replace(before.train, accumulate=2, remat=("decoder",), log_every=3)
    expected = dataclasses.replace(before, train=train, data=dataclasses.replace(before.data, workers=1))
    assert load_metadata(out / "last").config == expected  # and the next --resume continues with it
    log = (out / "log.txt").read_text()
    assert "from here on train.accumulate=2 (was 1); batch norm now sees 2 images at a time" in log
    assert "from here on train.remat=('decoder',) (was ())" in log and "data.workers=1 (was 0)" in log
    assert "train.patience" not in log and "train.checkpoint_every" not in log
    said = capsys.readouterr().out
    assert f"stopped; to continue: dfine train n --data {command[3]} --out '{out}' --resume\n" in said
    assert main(command) == 0 and load_metadata(out / "last").config == expected


def test_the_cure_for_a_missing_package_is_accepted(started, monkeypatch, capsys):
    out, command = started
    metadata = load_metadata(out / "last")
    log = dataclasses.replace(metadata.config.log, tensorboard=True)
    file = out / "last" / "metadata.json"
    file.write_text(file.read_text().replace('"tensorboard": null', '"tensorboard": true'))
    assert load_metadata(out / "last").config.log == log
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if "tensor" in name else found(name, *rest)
    )
    assert main(command) == 2
    assert "or set log.tensorboard=false" in capsys.readouterr().err
    assert main([*command[:2], "log.tensorboard=false", *command[2:]]) == 0
    assert not load_metadata(out / "last").config.log.tensorboard


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["optim.lr=1", "--epochs", "3"], "leave out --epochs, optim.lr=1 (a run can take other values of log.tensorb"),
        (["train.epochs=3"], "leave out train.epochs=3 (a run"),
        (["--augment", "none"], "leave out --augment (a run"),
        (["train.eval_every=2"], "train.checkpoint_steps, train.max_skipped_steps, train.patience, train.target_ap)"),
        (["data.wrokers=2"], "unknown configuration key 'data.wrokers'; did you mean data.workers"),
        (["train.accumulate=many"], "train.accumulate='many' must be of type int"),
        (["train.log_every=0"], "train.log_every=0 must be at least 1"),
        (["train.accumulate=3"], "train.batch_size=128 must be a multiple of the"),
    ],
)
def test_what_a_run_cannot_take_is_refused_in_a_line(data, tmp_path, capsys, monkeypatch, given, message):
    monkeypatch.setattr(loop, "train", None)
    config = Config(model_config("n", num_classes=4), LossConfig())
    save_weights(tmp_path / "last", {"params": {}}, Metadata(config, tuple("abcd"), (1, 2, 3, 4)))
    assert main(["train", "n", *given, "--data", str(data), "--out", str(tmp_path), "--resume"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dfine: error:")]
    assert len(lines) == 1 and message in lines[0]


def test_a_dry_run_reads_the_run_and_leaves_it(started, data, tmp_path, capsys):
    out, command = started
    files = sorted(path.name for path in out.rglob("*"))
    assert main([*command, "--dry-run", "train.log_every=7"]) == 0
    said = capsys.readouterr().out
    assert "from here on train.log_every=7 (was 10)" in said and "slots for objects per image" in said
    other = make_shapes_dataset(tmp_path / "other", num_train=5, num_val=1, size_px=64, seed=0)
    assert main([*command, "--dry-run", "--data", str(other)]) == 2
    assert f"the data has 5 training images, the run in {out} had 8" in capsys.readouterr().err
    shutil.rmtree(out / "last" / "training")
    assert main([*command, "--dry-run"]) == 2
    assert "holds weights only" in capsys.readouterr().err
    assert (
        set(files) >= {path.name for path in out.rglob("*")}
        and load_metadata(out / "last").config.train.log_every == 10
    )


def test_without_last_the_advice_is_that_of_the_folder(data, tmp_path, capsys):
    command = ["train", "n", "--data", str(data), "--out", str(tmp_path / "run")]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("epoch\n")
    assert main([*command, "--resume"]) == 2
    error = capsys.readouterr().err
    assert (
        "no checkpoint 'last' to continue from; remove it, or choose another folder, and start without --resume"
        in error
    )
    assert main([*command, "--size", "64", "--batch-size", "2"]) == 2
    assert "it ended before its first checkpoint: remove it or choose another folder" in capsys.readouterr().err
