"""Saved plans: taken as they are, and derived anew for another length or batch size."""

from __future__ import annotations

import dataclasses
import json

import pytest
from conftest import ROOT

from dfine_jax.cli import main
from dfine_jax.config import Config, to_json
from dfine_jax.data.synthetic import make_shapes_dataset
from dfine_jax.models.dfine import DFine
from dfine_jax.training import loop
from dfine_jax.training.checkpoint import Metadata
from dfine_jax.variants import model_config
from dfine_jax.weights import LoadedModel

OVERRIDES = ("optim.weight_decay=0.5", "train.patience=7")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=40, num_val=1, size_px=32, seed=0)


@pytest.fixture
def configured(data, tmp_path, monkeypatch):
    """A function that gives configuration and log lines of a command line; weights are those of a DEIM model."""
    calls = []

    def train(config, train_data, val_data, out_dir, **options):
        calls.append((config, "\n".join(options["notes"])))
        return loop.Result(True, 0.5, 3, None)

    model = model_config("s", num_classes=4, decoder_activation="silu", mlp_activation="silu")
    config = Config(model)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, method="deim"))
    stored = LoadedModel(DFine(model), {}, Metadata(config, tuple("abcd"), (1, 2, 3, 4)))
    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr("dfine_jax.weights.load_checkpoint", lambda source, activation=None: stored)
    monkeypatch.setattr("dfine_jax.commands.train.start_weights", lambda *rest: None)

    def of(*arguments, save=()):
        saved = ["--save-plan", str(save)] if save else []
        assert main(["train", *arguments, "--data", str(data), "--out", str(tmp_path / "run"), *saved]) == 0
        return calls.pop()

    return of


@pytest.mark.parametrize(
    "start", [(), ("--backbone", "b.pth"), ("--weights", "own"), ("--weights", "own", "--method=dfine")]
)
@pytest.mark.parametrize("variant", ["n", "s", "l", "x"])
@pytest.mark.parametrize("method", ["dfine", "deim"])
def test_a_plan_with_epochs_is_what_its_recipe_with_epochs_is(configured, tmp_path, variant, method, start):
    asked = [variant, *start, *OVERRIDES]
    if not any(option.startswith("--weights") for option in start):
        asked += ["--method", method]
    file = tmp_path / "plan.json"
    short = configured(*asked, "--epochs", "5", "--size", "64x96", save=file)[0]
    assert configured(str(file))[0] == short
    for flags in (["--epochs", "100"], ["--batch-size", "4"], ["--epochs", "300", "--batch-size", "16"]):
        direct = configured(*asked, "--epochs", "5", "--size", "64x96", *flags)[0]
        anew, notes = configured(str(file), *flags)
        assert anew == direct != short
        assert f"{file} is derived anew from {variant} for {flags[0]}" in notes
        assert (anew.optim.weight_decay, anew.train.patience, anew.data.height_px) == (0.5, 7, 64)
    assert "optim.weight_decay=0.5 (given)" in notes and "train.epochs=300 (given)" in notes


def test_a_short_plan_grows_back(configured, tmp_path):
    file = tmp_path / "plan.json"
    configured("s", "--epochs", "5", "--batch-size", "8", save=file)
    long = configured(str(file), "--epochs", "300")[0]
    assert long.train.stage2_epoch < 300 and long.optim.ema_decay > 0.99 and long.optim.warmup_steps == 150
    configured("s", "--method", "deim", "--epochs", "5", "--batch-size", "8", save=file)
    long = configured(str(file), "--epochs", "132")[0]
    assert (long.optim.final_epochs, long.data.start_augment_epoch, long.train.stage2_epoch) == (12, 4, 120)


def test_a_plan_of_a_plan_keeps_all_that_was_given(configured, tmp_path):
    first, second, third = (tmp_path / f"{i}.json" for i in range(3))
    configured("s", "optim.lr=0.25", "--epochs", "5", save=first)
    configured(str(first), "--augment", "deim", "--size", "64", save=second)
    configured(str(second), "--batch-size", "4", "train.seed=3", save=third)
    found = configured(str(third), "--epochs", "40")[0]
    asked = [
        "optim.lr=0.25",
        "data.augment=deim",
        "train.seed=3",
        "--size",
        "64",
        "--epochs",
        "40",
        "--batch-size",
        "4",
    ]
    assert found == configured("s", *asked)[0]
    assert (found.data.start_augment_epoch, found.data.stop_mosaic_epoch) == (4, 20)


def test_a_plan_of_an_experiment_file(configured, tmp_path, capsys, data):
    recipe, file = f"{ROOT / 'experiments' / 'deim_coco.py'}:s", tmp_path / "plan.json"
    configured(recipe, "--epochs", "5", *OVERRIDES, save=file)
    assert configured(str(file), "--epochs", "70")[0] == configured(recipe, "--epochs", "70", *OVERRIDES)[0]
    file.write_text(file.read_text().replace("deim_coco.py:s", "gone.py:s"))
    assert main(["train", str(file), "--epochs", "9", "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    assert "gone.py:s, which is not here; give --epochs to: dfine train" in capsys.readouterr().err


def test_a_plan_without_origin_is_taken_as_it_is_only(configured, data, tmp_path, capsys):
    file, config = tmp_path / "plan.json", Config(model_config("n", num_classes=9))
    file.write_text(to_json(config))
    found, notes = configured(str(file), "optim.lr=0.125", "--size", "64")
    assert (found.optim.lr, found.data.width_px, found.model.num_classes) == (0.125, 64, 4)
    assert found.train == config.train and f"(file {file})" in notes
    for flag in ("--epochs", "--batch-size"):
        assert main(["train", str(file), flag, "3", "--data", str(data), "--out", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert f"does not say what it was derived from, so {flag} cannot derive it anew; give {flag} with" in error
    for text in ("[1, 2]", "{", '{"origin": {"recipes": "s"}}'):
        file.write_text(text)
        assert main(["train", str(file), "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    assert "configuration key 'model' is missing" in capsys.readouterr().err


def test_a_plan_changed_by_hand_is_not_derived_anew(configured, data, tmp_path, capsys):
    file = tmp_path / "plan.json"
    configured("s", "--epochs", "5", save=file)
    plan = json.loads(file.read_text())
    plan["optim"]["lr"] = 0.375
    file.write_text(json.dumps(plan))
    assert configured(str(file))[0].optim.lr == 0.375
    assert main(["train", str(file), "--epochs", "9", "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    assert "is not what s gives (optim.lr): changed by hand, or derived by another version" in capsys.readouterr().err


def test_a_plan_for_other_data_says_so(configured, tmp_path):
    file = tmp_path / "plan.json"
    configured("n", "--epochs", "5", save=file)
    plan = json.loads(file.read_text())
    file.write_text(json.dumps(plan | {"origin": plan["origin"] | {"num_images": 7}}))
    assert "was derived for 7 images; --epochs or --batch-size derives it anew" in configured(str(file))[1]
