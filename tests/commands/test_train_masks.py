"""From detectors to masks and back, from the command line to the first step."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import ROOT
from flax import traverse_util
from tiny_weights import tiny_weights

from dfine_jax.cli import main
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.families import task
from dfine_jax.training.report.log import read_metrics
from dfine_jax.training.run import loop
from dfine_jax.training.run.checkpoint import load_metadata

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


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--method", "dfine-seg"], [f"optim.freeze={json.dumps(HEAD_ALONE)}"]])
def test_a_run_from_a_detector_and_its_resumption(data, tmp_path, more):
    import jax
    from tiny import tiny_config

    from dfine_jax.families.dfine.model import init_variables
    from dfine_jax.training.run.checkpoint import Metadata, save_weights

    config = tiny_config(model={"num_classes": 2})
    save_weights(
        tmp_path / "w", init_variables(config.model, jax.random.key(0)), Metadata(config, ("circle", "dog"), (1, 2))
    )
    out = tmp_path / "run"
    where = ["--data", str(data), "--out", str(out), "--no-export"]
    small = ["--epochs", "2", "--batch-size", "4", "data.workers=0", "log.pictures=0", "model.mask_width=32"]
    start = ["--weights", str(tmp_path / "w"), "--task", "segment", "loss.assignment=device"]
    assert main(["train", "n", *where, *start, *small, *more, "--max-hours", "1e-6"]) == 0
    assert main(["train", "n", *where, "--resume"]) == 0
    metadata = load_metadata(out / "last")
    assert task(metadata.config.model) == "segment"
    rows = read_metrics(out)
    assert [row["epoch"] for row in rows] == [1, 2] and all(row["loss_mask_bce"] > 0 for row in rows)
    assert ("muon_lr" in rows[0]) == ("--method" in more)
