"""``--dry-run``: what a run would refuse or say before it compiles."""

from __future__ import annotations

import functools
import json

import jax
import numpy as np
import pytest
from conftest import ROOT

from dfine_jax.cli import main
from dfine_jax.config import Config
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.model import DFine, init_variables
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.training.plan import on_card
from dfine_jax.training.plan.launches import Launches
from dfine_jax.training.plan.on_card import Answer
from dfine_jax.training.run import loop
from dfine_jax.training.run.checkpoint import Metadata
from dfine_jax.weights.load import LoadedModel


def zeros(make, *arguments):
    """What a function would make, with all leaves zero; nothing is compiled."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: make(*arguments)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=5, num_val=3, size_px=64, seed=0)


@pytest.fixture(scope="module")
def small_weights(data):
    """Weights of N for two classes of the data and one other."""
    model = model_config("n", num_classes=3)
    variables = zeros(init_variables, model, jax.random.key(0))
    metadata = Metadata(Config(model, LossConfig()), ("circle", "zebra", "Star"), (1, 2, 3), source_file="n.pth")
    return LoadedModel(DFine(model), variables, metadata)


@pytest.fixture
def dry(data, tmp_path, monkeypatch, capsys, small_weights):
    """A function that gives what is printed, or the error."""
    monkeypatch.setattr(loop, "train", None)
    monkeypatch.setattr("dfine_jax.commands.train_options.require_model", lambda *_, **__: None)  # there are no files
    monkeypatch.setattr("dfine_jax.weights.load.load_checkpoint", lambda source, activation=None: small_weights)

    def of(*arguments, out=tmp_path / "run"):
        existed = out.exists()
        status = main(["train", *arguments, "--data", str(data), "--out", str(out), "--dry-run"])
        assert out.exists() == existed
        printed = capsys.readouterr()
        assert (status, bool(printed.out)) == ((2, False) if printed.err else (0, True))
        return printed.err or printed.out

    return of


def test_it_says_what_the_log_of_the_run_will_say(dry):
    said = dry("n", "--weights", "n.pth", 'optim.freeze=["^backbone/"]', "--size", "64")
    assert said.startswith("D-FINE-N, 4 classes, 5 images: ")
    assert "weights from n.pth: 2 of 4 classes known by name\nclasses taken over by name (1): circle\n" in said
    assert "classes taken over (1): star <- Star\n" in said and "classes that start anew (2): " in said
    assert " slots for objects per image: the fullest image has " in said and "optim.freeze holds " in said
    assert "input sizes of this run" not in said
    assert "start from nothing" not in said
    said = dry("n", "data.multi_scale_repeat=2", "--size", "64", "--epochs", "20")
    assert "input sizes of this run: 32x32, 64x64; each is compiled once" in said
    assert "all weights start from nothing; with --weights dfine-n-coco or --backbone imagenet fewer epochs do" in said
    assert "warm-up: optim" not in said


def test_a_warm_up_longer_than_the_run_is_told(dry):
    recipe = f"{ROOT / 'experiments' / 'dfine_coco.py'}:s"
    assert "leave their warm-up: optim.warmup_steps=500 in a run of 132 steps" in dry(recipe)
    assert "leave their warm-up" not in dry(recipe, "--batch-size", "2")


def test_it_says_which_classes_have_no_object(dry, data):
    file = data / "annotations" / "instances_train.json"
    before = file.read_text()
    content = json.loads(before)
    for entry in content["annotations"]:
        entry["category_id"] = content["categories"][1]["id"]
    try:
        file.write_text(json.dumps(content))
        said = dry("n")
    finally:
        file.write_text(before)
    absent = ", ".join(entry["name"] for entry in content["categories"] if entry != content["categories"][1])
    assert f"3 of 4 classes have no object to train on: {absent}\n" in said
    assert "no object to train on" not in dry("n", "--size", "64")


WRONG = [
    (("s", "--weights", "n.pth"), "s is of variant s, the weights are of variant n; train n, or give weights of s"),
    (("n", 'optim.freeze=["^nothing"]'), "'^nothing' matches no parameter; they are named like backbone/"),
    (("n", "data.max_objects=1"), "error: data.max_objects=1, but an image of "),
    (("n", "--backbone", "absent.pth"), "absent.pth does not exist"),
    (
        (f"{ROOT / 'experiments' / 'dfine_coco.py'}:l",),
        "model.backbone_frozen_stem=true and model.backbone_frozen_bn=true: frozen parts need pretrained weights",
    ),
    (("n", "--size", "100x100"), "100x100"),
    (("n", "--epochs", "0"), "--epochs 0 must be at least 1"),
    (("n", "train.batch_size=3"), "rates and schedules follow this value"),
    (("n", "data.augment=strong"), "data.augment"),
    (("n", "optim.nothing=1"), "optim.nothing"),
    (("absent.json",), "absent.json"),
    (("n", "--backbone", "b.pth", "--weights", "n.pth"), "--weights has a backbone of its own"),
]


@pytest.fixture
def started(data, tmp_path, monkeypatch, capsys, small_weights):
    """A function that starts the same command with and without ``--dry-run``, as far as it gets without weights."""
    monkeypatch.setattr("dfine_jax.weights.load.load_checkpoint", lambda source, activation=None: small_weights)
    monkeypatch.setattr("dfine_jax.commands.train_options.require_model", lambda *_, **__: None)  # there are no files
    quick = functools.partial(zeros, init_variables)
    for module in ("dfine_jax.families.dfine.model", "dfine_jax.training.run.loop"):
        monkeypatch.setattr(f"{module}.init_variables", quick, raising=False)

    def of(*arguments, out=tmp_path / "run"):
        said = []
        for more in (["--dry-run"], []):
            status = main(["train", *arguments, "--data", str(data), "--out", str(out), *more])
            printed = capsys.readouterr()
            assert status == 2 and not printed.out
            said.append(printed.err)
        return said

    return of


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_it_refuses_what_the_run_refuses_in_the_same_words(started, tmp_path, arguments, message):
    rehearsed, real = started(*arguments)
    assert message in rehearsed
    assert real == rehearsed
    assert not (tmp_path / "run").exists()


def test_both_refuse_a_folder_that_holds_a_run(started, tmp_path):
    (tmp_path / "best").mkdir()
    rehearsed, real = started("n", out=tmp_path)
    assert "holds a run; it ended before its first checkpoint" in rehearsed
    assert real == rehearsed and [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_plan_is_saved_only_when_it_can_be_trained(dry, tmp_path):
    file = tmp_path / "plan.json"
    dry("n", "data.max_objects=1", "--save-plan", str(file))
    assert not file.exists()
    dry("n", "--save-plan", str(file))
    assert file.exists()


def test_it_says_what_a_card_that_is_not_there_would_need(dry, monkeypatch):
    asked = []

    def measured(question):
        asked.append(question)
        return Answer(3 << 30, 2 << 30, 15 << 30, Launches({"fusion": 7}, {}, 0, 0, {}, 0, 0), 5.0)

    monkeypatch.setattr(on_card, "measure", measured)
    said = dry("n", "--size", "64", "--for", "t4")
    assert "memory of a train step: 3.00 of 15.0 GiB" in said and "it fits" in said
    assert asked[0].config.model.precision == "bfloat16"  # the plan is that of a machine with a card
    assert asked[0].slots >= 4 and asked[0].batch == asked[0].config.train.batch_size
    assert "card 'voodoo' is not known" in dry("n", "--for", "voodoo")
