"""From detectors to masks and back, from the command line to the first step."""

from __future__ import annotations

import json
import os
import signal

import jax
import numpy as np
import pytest
from conftest import ROOT
from flax import traverse_util
from tiny import tiny_config
from tiny_weights import tiny_weights

from dfine_jax.cli import main
from dfine_jax.converters.torch import torch_pickle
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.families import task
from dfine_jax.families.dfine.family import DFINE
from dfine_jax.families.dfine.model import init_variables
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.families.dfine.weights import write_official
from dfine_jax.families.state_dict import leaf_shapes
from dfine_jax.training.report.run_files import read_metrics
from dfine_jax.training.run import loop
from dfine_jax.training.run.checkpoint import Metadata, load_metadata, load_training, load_weights, save_weights
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.state import create_state

MASKS = ("decoder/mask_decoder", "decoder/mask_head")
HEAD_ALONE = ["^(backbone|encoder)/", "^decoder/(?!mask_)"]
SMALL_HEAD = {"mask_width": 32, "mask_stages": ()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=2, size_px=64, seed=0)


@pytest.fixture
def planned(monkeypatch):
    """What the command asks the training loop for."""
    calls = []

    def train(config, train_data, val_data, out_dir, **options):
        calls.append((config, options))
        return loop.Result(True, 0.5, 3, None)

    monkeypatch.setattr(loop, "train", train)
    return calls


@pytest.fixture
def trained(data, planned, tmp_path):
    """A function: configuration, notes and starting parameters by path of ``dfine train n`` with more words."""

    def train(*words):
        assert main(["train", "n", "--data", str(data), "--out", str(tmp_path / "run"), *map(str, words)]) == 0
        config, options = planned.pop()
        start = options["start"]
        return config, options["notes"], traverse_util.flatten_dict(start.variables["params"], sep="/")

    return train


def is_mask(path):
    return path.startswith(MASKS)


def test_masks_are_added_to_a_detector(trained, tmp_path):
    weights = tiny_weights(tmp_path / "w")
    for method in ("dfine", "deim", "dfine-seg"):
        config, notes, params = trained("--task", "segment", "--weights", weights, "--method", method)
        assert (config.model.mask_width, config.model.mask_stages) == (128, (1,)) and config.train.method == method
        assert config.model.position_order == "transposed"  # as in the weights
        assert config.data.interpolation == ("bilinear" if method == "dfine-seg" else None)
        assert notes[0].startswith("D-FINE-seg-N, 4 classes") and notes[1] == "task:         segment"
        told = [line for line in notes if "start anew, because this run builds them otherwise" in line]
        assert len(told) == 1 and told[0].endswith(", ".join(MASKS))
        new = {path for path in params if is_mask(path)}
        assert {path.rsplit("/", 2)[0] for path in new} >= {MASKS[0], MASKS[1]} and len(new) == 21
        kept = [leaf for path, leaf in params.items() if not is_mask(path) and path.startswith("encoder/")]
        assert all(np.unique(leaf).size == 1 for leaf in kept)  # each leaf of the weights has one value
        assert np.unique(params["decoder/mask_decoder/fusion_conv/kernel"]).size > 1000


@pytest.mark.parametrize("asked", [(), ("--task", "segment")])
def test_masks_go_on_as_in_the_weights(trained, tmp_path, asked):
    weights = tiny_weights(tmp_path / "w", method="dfine-seg", **SMALL_HEAD)
    config, notes, params = trained("--weights", weights, *asked)
    assert (config.model.mask_width, config.model.mask_stages) == (32, ()) and config.train.method == "dfine-seg"
    assert "model.mask_width=32 (derived: as in the weights; table: 128)" in "\n".join(notes)
    assert not any("start anew, because" in line for line in notes)
    assert all(np.unique(leaf).size == 1 for path, leaf in params.items() if is_mask(path))


def test_masks_can_be_left_out_and_built_otherwise(trained, tmp_path):
    weights = tiny_weights(tmp_path / "w", **SMALL_HEAD)
    config, notes, params = trained("--weights", weights, "--task", "detect")
    assert task(config.model) == "detect" and notes[1] == "task:         detect"
    assert not any(map(is_mask, params))
    config, notes, params = trained("--weights", weights, "model.mask_width=64")
    assert config.model.mask_width == 64 and params["decoder/mask_decoder/fusion_conv/kernel"].shape[-1] == 64
    assert any("start anew, because" in line for line in notes)


@pytest.mark.parametrize(("asked", "method"), [((), "dfine-seg"), (("--task", "detect"), "dfine-seg")])
def test_files_with_masks_are_trained_further_as_they_were_trained(trained, tmp_path, asked, method):
    config, notes, params = trained("--weights", official(tmp_path / "dfine_seg_n_coco.pt", segments=True), *asked)
    assert config.train.method == method and task(config.model) == (asked or ("", "segment"))[1]
    assert (config.model.position_order, config.data.interpolation) == ("row_major", "bilinear")
    assert any(map(is_mask, params)) == (not asked)
    assert not any("start anew, because" in line for line in notes)


def test_an_official_detector_gets_masks(trained, tmp_path):
    weights = official(tmp_path / "dfine_n_coco.pth", segments=False)
    config, notes, params = trained("--weights", weights, "--task", "segment")
    assert config.train.method == "dfine" and config.model.mask_width == 128
    assert sum("start anew, because" in line for line in notes) == 1
    assert np.all(params["encoder/input_proj_0/conv/kernel"] == 0.25)
    assert np.unique(params["decoder/mask_head/layers_0/kernel"]).size > 1000


def official(file, segments):
    """N's official file, all tensors the same number."""
    model = model_config("n", num_classes=3)
    model = DFINE.tasks["segment" if segments else "detect"](model)
    leaves = {path: np.full(shape, 0.25, np.float32) for path, shape in leaf_shapes(model).items()}
    torch_pickle.save(file, {"model": write_official(model, traverse_util.unflatten_dict(leaves, sep="/"))})
    return file


def test_what_a_run_of_the_mask_head_alone_holds(data, tmp_path, capsys):
    """The line of docs/training.md."""
    freeze = f"optim.freeze={json.dumps(HEAD_ALONE)}"
    assert freeze.replace("=", "='", 1) + "'" in (ROOT / "docs/training.md").read_text()
    weights = tiny_weights(tmp_path / "w", **SMALL_HEAD)
    where = ["--data", str(data), "--out", str(tmp_path / "run"), "--weights", str(weights), "--dry-run"]
    assert main(["train", "n", *where, freeze]) == 0
    told = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("optim.freeze holds"))
    held, whole = (int(word.replace(",", "")) for word in told.split() if word[0].isdigit())
    embedding = 3 * 32 * 32 + 3 * 32
    pixels = 2 * 32 * 32 + 2 * 9 * 32 * 32 + 4 * 2 * 32
    assert whole - held == embedding + pixels


def test_what_cannot_be(data, tmp_path, capsys):
    where = ["--data", str(data), "--out", str(tmp_path / "run"), "--dry-run"]
    assert main(["train", f"{ROOT / 'experiments' / 'deim_coco.py'}:s", *where, "--task", "segment"]) == 2
    assert "says itself what its model does; leave out --task" in capsys.readouterr().err
    assert main(["train", "rtdetrv2-r18", *where, "--task", "segment"]) == 2
    assert "RT-DETRv2 does not segment" in capsys.readouterr().err
    boxes = make_shapes_dataset(tmp_path / "boxes", num_train=3, num_val=1, size_px=64, seed=0)
    file = boxes / "annotations" / "instances_train.json"
    found = json.loads(file.read_text())

    def rewritten(masks):
        for i, annotation in enumerate(found["annotations"]):
            annotation["segmentation"] = annotation["segmentation"] if i < masks else []
        file.write_text(json.dumps(found))
        return main(["train", "n", "--data", str(boxes), *where[2:], "--task", "segment"])

    assert rewritten(2) == 0
    assert (
        f"2 of {len(found['annotations'])} objects have masks; the others train boxes alone" in capsys.readouterr().out
    )
    assert rewritten(0) == 2
    assert "no object has a mask" in capsys.readouterr().err


def whole_state(folder):
    """All arrays of a checkpoint of a run, by path."""
    config = load_metadata(folder).config
    variables, _ = load_weights(folder)
    tx = make_optimizer(config.model, config.optim)
    template = jax.eval_shape(lambda: create_state(variables, tx, jax.random.key(0)))
    state, *_ = load_training(folder, template)
    state = state.replace(key=jax.random.key_data(state.key))
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(state)}


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--method", "dfine-seg"], [f"optim.freeze={json.dumps(HEAD_ALONE)}"]])
def test_a_run_from_a_detector_and_its_resumption(data, tmp_path, monkeypatch, more):
    config = tiny_config(model={"num_classes": 2})
    weights = init_variables(config.model, jax.random.key(0))
    save_weights(tmp_path / "w", weights, Metadata(config, ("circle", "dog"), (1, 2)))
    small = ["--epochs", "2", "--batch-size", "4", "data.workers=0", "log.pictures=0", "model.mask_width=32"]
    start = ["--weights", str(tmp_path / "w"), "--task", "segment", "loss.assignment=device"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def train(out, *words):
        return main(["train", "n", "--data", str(data), "--out", str(out), "--no-export", *words])

    assert train(whole, *start, *small, *more) == 0
    with monkeypatch.context() as patch:
        split, steps = loop.split_over_devices, iter(range(9))

        def stopped_at_the_third(batch):
            if next(steps) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return split(batch)

        patch.setattr(loop, "split_over_devices", stopped_at_the_third)
        assert train(parts, *start, *small, *more) == 0
    assert whole_state(parts / "last")[".step"] == 3
    assert train(parts, "--resume") == 0
    ours, theirs = whole_state(parts / "last"), whole_state(whole / "last")
    assert ours.keys() == theirs.keys() and ours[".step"] == 4
    assert not [path for path in ours if not np.array_equal(ours[path], theirs[path])]
    rows = read_metrics(whole)
    assert [row["epoch"] for row in rows] == [1, 2] and all(row["loss_mask_bce"] > 0 for row in rows)
    assert ("muon_lr" in rows[0]) == ("--method" in more)
    assert any("momentum" in path for path in ours) == ("--method" in more)
