"""Planning a run from the command line, and the errors of doing it wrong; no step is taken here."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from conftest import ROOT
from flax import traverse_util
from tiny_weights import tiny_weights

from dfine_jax.cli import main
from dfine_jax.commands.train_plan import read_plan
from dfine_jax.config import Config
from dfine_jax.converters.torch import torch_pickle
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.tables import published
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.families.dfine.weights import write_official
from dfine_jax.families.state_dict import leaf_shapes
from dfine_jax.training.run import loop
from dfine_jax.training.run.checkpoint import Metadata, save_weights
from dfine_jax.weights.load import bound_fields, load_checkpoint

EXPERIMENT = """
from dfine_jax.config import Config, OptimConfig
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.tables import published
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.weights.load import LoadedModel

def get_config():
    return Config(model_config("s"), LossConfig(), optim=OptimConfig(lr=0.5))
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
    assert main(["train", "n", "optim.lr=0.25", *arguments, "--batch-size", "2", "--augment", "none"]) == 0
    config, train_data, val_data, options = planned[0]
    assert config.model.num_classes == len(train_data.names) == 4 and len(val_data) == 3
    assert (config.data.height_px, config.data.width_px, config.data.augment) == (64, 96, "none")
    assert (config.train.epochs, config.train.batch_size, config.optim.lr) == (4, 2, 0.25)
    assert options["start"] is None and not options["resume"]
    notes = "\n".join(options["notes"])
    shape = "4 epochs of 2 steps of 2 images"
    assert notes.startswith(
        f"D-FINE-N, 4 classes, 5 images: {shape} (table dfine_custom)\ntask:         detect\noptimiser: "
    )
    for text in ("optim.lr=0.25 (given)", "data.augment=none (given)", "train.epochs=4 (given)", "size: "):
        assert text in notes
    assert "optim.weight_decay=0.0001," in notes and "data.width_px=96 (given)" in notes
    assert "AP 0.500 in epoch 3" in capsys.readouterr().out


def test_an_experiment_file_is_taken_as_it_is(data, planned, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(EXPERIMENT)
    assert main(["train", str(file), "--data", str(data), "--out", str(tmp_path / "run"), "--epochs", "7"]) == 0
    config = planned[0][0]
    assert config.model == model_config("s", num_classes=4)
    assert (config.optim.lr, config.train.epochs, config.train.batch_size) == (0.5, 7, 128)


def test_a_file_is_scaled_to_the_epochs_and_the_batch_that_are_given(data, planned, tmp_path):
    recipe = f"{ROOT / 'experiments' / 'deim_coco.py'}:s"
    where = ["--data", str(data), "--out", str(tmp_path / "run")]
    assert main(["train", recipe, *where, "--epochs", "22", "--batch-size", "8"]) == 0
    config, notes = planned[0][0], "\n".join(planned[0][3]["notes"])
    assert (config.optim.lr, config.optim.backbone_lr) == (pytest.approx(2e-4), pytest.approx(1e-4))
    assert (config.optim.flat_epochs, config.optim.final_epochs, config.train.stage2_epoch) == (11, 2, 20)
    assert (config.data.stop_mosaic_epoch, config.data.stop_augment_epoch) == (11, 20)
    assert "optim.lr=0.0002 (derived; file: 0.0004)" in notes and "train.batch_size=8 (given)" in notes
    assert main(["train", recipe, *where, "--size", "64x96"]) == 0
    config = planned[1][0]
    assert (config.optim.lr, config.optim.flat_epochs, config.train.stage2_epoch) == (4e-4, 64, 120)
    assert (config.data.height_px, config.data.width_px) == (64, 96)


def test_a_dry_run_finds_what_cannot_be_trained(data, planned, tmp_path, capsys):
    where = ["--data", str(data), "--out", str(tmp_path / "run"), "--dry-run"]
    recipe = f"{ROOT / 'experiments' / 'deim_coco.py'}:s"
    assert main(["train", recipe, *where, "--epochs", "10"]) == 0
    assert main(["train", recipe, *where, "optim.final_epochs=200"]) == 2
    assert main(["train", "n", *where, "loss.weight_giou=-2"]) == 2
    assert main(["train", recipe, *where, "train.epochs=9"]) == 2
    errors = capsys.readouterr().err
    assert "optim.final_epochs=200 must be at most train.epochs=132" in errors
    assert "loss.weight_giou=-2.0 must be not negative" in errors
    assert f"give it as --epochs N, or change it alone in {recipe}" in errors and not planned


def test_mosaic_is_given_its_epochs(data, planned, tmp_path):
    where = ["--data", str(data), "--out", str(tmp_path / "run"), "--epochs", "40"]
    assert main(["train", "s", *where, "--augment", "dense"]) == 0
    assert main(["train", "s", *where, "--augment", "dense", "data.stop_mosaic_epoch=7"]) == 0
    assert main(["train", "s", *where, "--augment", "dense", "--method", "deim"]) == 0
    windows = [(c.data.start_augment_epoch, c.data.stop_mosaic_epoch) for c, *_ in planned]
    assert windows == [(4, 20), (4, 7), (1, 19)]
    assert "data.stop_mosaic_epoch=20 (derived: for data.augment=dense" in "\n".join(planned[0][3]["notes"])


def test_without_validation_images_there_is_no_evaluation(data, planned, tmp_path, capsys):
    root = make_shapes_dataset(tmp_path / "shapes", num_train=2, num_val=1, size_px=64, seed=0)
    (root / "annotations" / "instances_val.json").unlink()
    assert main(["train", "n", "--data", str(root), "--out", str(tmp_path / "run")]) == 0
    _, train_data, val_data, options = planned[0]
    assert len(train_data) == 2 and val_data is None
    said = [note for note in options["notes"] if "training goes without evaluation" in note]
    assert len(said) == 1 and "no val annotations" in said[0]


def test_a_file_of_variants_and_the_published_recipes(data, planned, tmp_path):
    recipe = f"{ROOT / 'experiments' / 'deim_coco.py'}:m"
    assert main(["train", recipe, "--data", str(data), "--out", str(tmp_path / "run")]) == 0
    expected = published("deim_coco", "m")
    assert planned[0][0] == dataclasses.replace(expected, model=dataclasses.replace(expected.model, num_classes=4))


def test_the_method_chooses_the_recipe(data, planned, tmp_path):
    where = ["--data", str(data), "--out", str(tmp_path / "run"), "--batch-size", "2"]
    assert main(["train", "s", "--method", "deim", *where, "--max-hours", "2"]) == 0
    config, options = planned[0][0], planned[0][3]
    assert (config.train.method, config.loss.class_loss, config.data.augment) == ("deim", "mal", "dense")
    assert config.model.decoder_activation == config.model.mlp_activation == "silu" and options["max_hours"] == 2


def test_a_run_starts_from_a_checkpoint(data, planned, tmp_path):
    """The whole way, with a real checkpoint: its architecture, its method, its input, its values, its class rows."""
    size = {"height_px": 96, "width_px": 64, "resize": "letterbox"}
    source = tiny_weights(tmp_path / "own", ("cat", "Circle"), data=size, method="deim", reg_scale=6.0, up=0.25)
    stored = load_checkpoint(source)
    where = ["--weights", str(source), "--data", str(data), "--out", str(tmp_path / "run"), "--batch-size", "2"]
    assert main(["train", "n", *where]) == 0
    config, train_data, _, options = planned[0]
    assert bound_fields(config.model) == bound_fields(stored.metadata.config.model) and config.model.reg_scale == 6.0
    assert (config.train.method, config.data.height_px, config.data.resize) == ("deim", 96, "letterbox")
    start, notes = options["start"], "\n".join(options["notes"])
    assert "model.reg_scale=6 (derived: as in the weights; table: 4)" in notes
    assert "data.height_px=96 (derived: as in the weights; table: 640)" in notes
    new = traverse_util.flatten_dict(start.variables, sep="/")
    old = traverse_util.flatten_dict(stored.variables, sep="/")
    assert set(new) == set(old) and start.source == stored.metadata
    classes = [path for path in new if new[path].shape != old[path].shape]
    assert classes and all("score_head" in path or "class_embed" in path for path in classes)
    assert all(np.array_equal(new[path], old[path]) for path in set(new) - set(classes))
    to = train_data.names.index("circle")
    bias = "params/decoder/enc_score_head/bias"
    assert new[bias][to] == old[bias][1] and "circle <- Circle" in notes


def test_a_value_against_the_weights_starts_nothing(data, planned, tmp_path, capsys):
    source = tiny_weights(tmp_path / "own", reg_scale=6.0)
    where = ["--weights", str(source), "--data", str(data), "--out", str(tmp_path / "run")]
    for command in (["n", "model.reg_scale=4"], ["n", "model.reg_scale=4", "--dry-run"]):
        assert main(["train", *command, *where]) == 2
        assert "model.reg_scale is 4.0 in the command line, but 6.0 in the weights" in capsys.readouterr().err
    assert main(["train", "s", *where]) == 2
    assert "s is of variant s, the weights are of variant n; train n" in capsys.readouterr().err
    assert main(["train", "n", "model.reg_scale=6", *where, "--dry-run"]) == 0
    assert not planned and not (tmp_path / "run").exists()


def test_weights_of_deim_stay_so(data, planned, tmp_path):
    silu = {"decoder_activation": "silu", "mlp_activation": "silu"}
    source = tiny_weights(tmp_path / "own", method="deim", **silu)
    where = ["--weights", str(source), "--data", str(data), "--out", str(tmp_path / "run")]
    assert (
        main(["train", "n", "--method", "dfine", *where, "--dry-run", "--save-plan", str(tmp_path / "plan.json")]) == 0
    )
    config = read_plan(str(tmp_path / "plan.json"))
    assert config.train.method == "dfine" and config.model.decoder_activation == config.model.mlp_activation == "silu"
    assert main(["train", "n", *where, "--dry-run", "--save-plan", str(tmp_path / "plan.json")]) == 0
    assert read_plan(str(tmp_path / "plan.json")).train.method == "deim"


def test_a_file_of_deim_continues_as_deim(data, tmp_path, capsys):
    config = model_config("n", num_classes=3)
    rng = np.random.default_rng(0)
    leaves = {path: rng.standard_normal(shape, np.float32) for path, shape in leaf_shapes(config).items()}
    state = write_official(config, traverse_util.unflatten_dict(leaves, sep="/"))
    torch_pickle.save(tmp_path / "deim_n.pth", {"model": state})
    torch_pickle.save(tmp_path / "n.pth", {"model": state})
    file = tmp_path / "plan.json"
    where = ["--data", str(data), "--out", str(tmp_path / "run"), "--dry-run", "--save-plan", str(file)]
    commands = (["deim_n.pth"], ["n.pth", "--activation", "silu"], ["deim_n.pth", "--activation", "relu"])
    configs = []
    for name, *options in commands:
        assert main(["train", "n", "--weights", str(tmp_path / name), *options, *where]) == 0
        configs.append(read_plan(str(file)))
    methods = [(c.train.method, c.loss.class_loss, c.model.decoder_activation) for c in configs]
    assert methods == [("deim", "mal", "silu")] * 2 + [("dfine", "vfl", "relu")]
    assert configs[0].optim.warmup_steps == 0
    assert main(["train", "n", "--weights", str(tmp_path / "n.pth"), *where]) == 2
    assert "n.pth does not say which activation its decoder has" in capsys.readouterr().err


def test_a_plan_is_printed_saved_and_taken_up_again(data, planned, tmp_path, capsys):
    plan = tmp_path / "plans" / "cells.json"
    where = ["--data", str(data), "--out", str(tmp_path / "run")]
    command = ["train", "n", "optim.lr=0.25", "--epochs", "4", *where, "--save-plan", str(plan), "--dry-run"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "D-FINE-N, 4 classes, 5 images" in printed and "train.stage2_epoch=4 (derived; table: 200)" in printed
    assert "optim.lr=0.25 (given)" in printed and not planned and not (tmp_path / "run").exists()
    assert main(["train", str(plan), *where]) == 0
    config = planned[0][0]
    assert (config.optim.lr, config.train.epochs, config.train.stage2_epoch) == (0.25, 4, 4)


def test_yolo_folders_are_trained_on(data, planned, tmp_path, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "yolo"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for picture in sorted((data / split).iterdir()):
            (root / "images" / split / picture.name).write_bytes(picture.read_bytes())
            (root / "labels" / split / f"{picture.stem}.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n")
    assert main(["train", "n", "--data", str(root), "--out", str(tmp_path / "run")]) == 0
    assert planned[0][1].names == ("cat", "dog") and len(planned[0][1]) == 5


def test_the_backbone_of_a_file(data, planned, tmp_path, monkeypatch):
    backbone = {"params": {"stem": 1}, "batch_stats": {"stem": 2}}
    monkeypatch.setattr(
        "dfine_jax.families.dfine.model.init_variables",
        lambda *rest: {"params": {"backbone": {"stem": 0}, "decoder": 0}, "batch_stats": {"backbone": {"stem": 0}}},
    )
    monkeypatch.setattr("dfine_jax.weights.load.with_backbone", lambda fresh, new: {"fresh": fresh, "new": new})
    monkeypatch.setattr("dfine_jax.converters.torch.backbone.import_backbone", lambda file, config: backbone)
    where = ["--data", str(data), "--out", str(tmp_path / "run")]
    assert main(["train", "l", "--backbone", "B4.pth", *where]) == 0
    config, _, _, options = planned[0]
    assert options["start"].variables["new"] is backbone and "backbone from B4.pth" in options["notes"]
    assert config.model.backbone_frozen_bn and config.optim.backbone_lr == pytest.approx(1.25e-5 * (5 / 32) ** 0.5)


def test_resuming_takes_the_stored_configuration(data, planned, tmp_path):
    config = Config(model_config("n", num_classes=4), LossConfig())
    save_weights(tmp_path / "last", {"params": {}}, Metadata(config, tuple("abcd"), (1, 2, 3, 4)))
    assert main(["train", "n", "--data", str(data), "--out", str(tmp_path), "--resume"]) == 0
    assert planned[0][0] == config and planned[0][3]["resume"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["q"], "unknown recipe 'q'; choose one of n, s, m, l, x"),
        (["missing.py"], "missing.py does not exist; give a variant such as n, or an experiment file"),
        (["n", "optim.lrr=1"], "unknown configuration key 'optim.lrr'; did you mean optim.lr"),
        (["n", "optim.lr"], "is not an assignment"),
        (["n", "--size", "big"], "--size big: write height x width"),
        (["n", "--size", "100x100"], "must be multiples of 32"),
        (["n", "--epochs", "0"], "--epochs 0 must be at least 1"),
        (["n", "--weights", "absent.pth"], "absent.pth does not exist; expected"),
        (["n", "--resume"], "run does not exist, so there is no run to continue"),
        (["n", "--resume", "--epochs", "3"], "leave out --epochs"),
        (["n", "model.num_classes=9"], "the data has 4 classes"),
        (["n", "--backbone", "absent.pth"], "absent.pth does not exist; give a backbone file"),
        (["n", "--backbone", "a", "--weights", "dfine-n-coco"], "leave out --backbone"),
        ([f"{ROOT}/experiments/dfine_coco.py:s", "--method", "deim"], ":s says itself whose recipe it is"),
        (["n", "--activation", "silu"], "--activation is for the file given with --weights"),
        (["n", "--max-hours", "0"], "--max-hours 0 must be above 0"),
        (["n", "--processes", "2"], "are given together or not at all"),
        (["n", "--coordinator", "localhost:1", "--processes", "2", "--process", "2"], "give 0 to 1, each once"),
        (["n", "optim.freeze=[1]"], "optim.freeze=1 must be of type str"),
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
