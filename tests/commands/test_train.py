"""Planning a run from the command line, and the errors of doing it wrong; no step is taken here."""

from __future__ import annotations

import json

import pytest

from dfine_jax.cli import main
from dfine_jax.config import Config
from dfine_jax.data.synthetic import make_shapes_dataset
from dfine_jax.training import loop
from dfine_jax.training.checkpoint import Metadata, save_weights
from dfine_jax.variants import model_config

EXPERIMENT = """
from dfine_jax.config import Config, OptimConfig
from dfine_jax.variants import model_config

def get_config():
    return Config(model_config("s"), optim=OptimConfig(lr=0.5))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=5, num_val=3, size_px=64, seed=0)


@pytest.fixture
def planned(monkeypatch):
    """What the command asks the training loop for."""
    calls = []

    def train(config, train_data, val_data, out_dir, **options):
        calls.append((config, train_data, val_data, options))
        return loop.Result(True, 0.5, 3, None)

    monkeypatch.setattr(loop, "train", train)
    return calls


def test_a_variant_is_adapted_to_the_data(data, planned, tmp_path, capsys):
    arguments = ["--data", str(data), "--out", str(tmp_path / "run"), "--size", "64x96", "--epochs", "4"]
    assert main(["train", "n", "optim.lr=0.25", *arguments, "--batch-size", "2", "data.augment=none"]) == 0
    config, train_data, val_data, options = planned[0]
    assert config.model.num_classes == len(train_data.names) == 4 and len(val_data) == 3
    assert (config.data.height_px, config.data.width_px, config.data.augment) == (64, 96, "none")
    assert (config.train.epochs, config.train.batch_size, config.optim.lr) == (4, 2, 0.25)
    assert options["start"] is None and not options["resume"]
    assert options["notes"][0] == "N, 4 classes, 5 images: 4 epochs of 2 steps of 2 images"
    assert "AP 0.500 in epoch 3" in capsys.readouterr().out


def test_an_experiment_file_is_taken_as_it_is(data, planned, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(EXPERIMENT)
    assert main(["train", str(file), "--data", str(data), "--out", str(tmp_path / "run"), "--epochs", "7"]) == 0
    config = planned[0][0]
    assert config.model == model_config("s", num_classes=4)
    assert (config.optim.lr, config.train.epochs, config.train.batch_size) == (0.5, 7, 128)


def test_resuming_takes_the_stored_configuration(data, planned, tmp_path):
    config = Config(model_config("n", num_classes=4))
    save_weights(tmp_path / "last", {"params": {}}, Metadata(config, tuple("abcd"), (1, 2, 3, 4)))
    assert main(["train", "n", "--data", str(data), "--out", str(tmp_path), "--resume"]) == 0
    assert planned[0][0] == config and planned[0][3]["resume"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["q"], "unknown recipe 'q'; choose one of n, s, m, l, x"),
        (["missing.py"], "experiment file missing.py does not exist"),
        (["n", "optim.lrr=1"], "unknown configuration key 'optim.lrr'; did you mean optim.lr"),
        (["n", "optim.lr"], "is not an assignment"),
        (["n", "--size", "big"], "--size big: write height x width"),
        (["n", "--size", "100x100"], "must be multiples of 32"),
        (["n", "--epochs", "0"], "--epochs 0 must be at least 1"),
        (["n", "--weights", "absent.pth"], "absent.pth does not exist; expected"),
        (["n", "--resume"], "holds no run to resume"),
        (["n", "--resume", "--epochs", "3"], "leave out --epochs"),
        (["n", "model.num_classes=9"], "the data has 4 classes"),
        (["n", "--wieghts", "x"], "unknown option --wieghts; did you mean --weights"),
    ],
)
def test_errors_are_one_line_with_the_cure(data, tmp_path, capsys, planned, arguments, message):
    try:
        status = main(["train", *arguments, "--data", str(data), "--out", str(tmp_path / "run")])
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("dfine: error:")]
    assert status == 2 and len(lines) == 1 and message in lines[0]
    assert not planned and not (tmp_path / "run").exists()


def test_missing_data_is_named(tmp_path, capsys, planned):
    assert main(["train", "n", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_splits_must_agree(tmp_path, capsys, planned):
    root = make_shapes_dataset(tmp_path / "shapes", num_train=2, num_val=2, size_px=64, seed=0)
    file = root / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "blob"
    file.write_text(json.dumps(content))
    assert main(["train", "n", "--data", str(root), "--out", str(tmp_path / "run")]) == 2
    assert "categories differ" in capsys.readouterr().err
