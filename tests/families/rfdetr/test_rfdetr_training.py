"""Runs of a tiny RF-DETR: several input sizes, accumulation, masks, and a resumption in the same bits."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest
from tiny import tiny_rfdetr

from dfine_jax.cli import main
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.families.rfdetr.family import RFDETR
from dfine_jax.families.rfdetr.inputs import scales_px
from dfine_jax.training.report.log import read_metrics
from dfine_jax.training.run import checkpoint, loop
from dfine_jax.training.run.checkpoint import Metadata, load_metadata, save_weights
from dfine_jax.training.run.setup import make_loaders

pytestmark = pytest.mark.usefixtures("small_backbone")


class KilledError(Exception):
    """The process ends here."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=12, num_val=4, size_px=96, seed=0)


@pytest.fixture(scope="module")
def data(folder):
    return read_coco(*find_split(folder, "train")), read_coco(*find_split(folder, "val"))


def arrays(path):
    trees = {part.name: checkpoint._restore(part) for part in path.iterdir() if part.is_dir()}
    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree.leaves_with_path(trees)}


def test_batches_are_made_at_the_largest_size_and_trained_at_all(data):
    config: Any = tiny_rfdetr(model={"num_classes": len(data[0].names)})
    loader, evaluation = make_loaders(config, *data)
    assert evaluation is not None and next(iter(evaluation)).images.shape == (4, 64, 64, 3)
    batch = next(loader.batches())
    assert batch.images.shape == (4, 144, 144, 3)  # five cells of 16 pixels more
    sizes = {loader.size_px(step) for step in range(300)}
    assert sizes == set(loader.sizes_px(2)) == set(scales_px(config.model, config.data)) and len(sizes) == 8
    fixed = dataclasses.replace(config, data=dataclasses.replace(config.data, multi_scale_repeat=0))
    assert next(make_loaders(fixed, *data)[0].batches()).images.shape == (4, 64, 64, 3)


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_a_killed_run_resumes_in_the_same_bits(data, tmp_path, monkeypatch, masks):
    """Two input sizes, parts of batches, drop path: what is random follows from the step alone."""
    monkeypatch.setattr("dfine_jax.families.rfdetr.inputs._STEPS", 1)
    config: Any = tiny_rfdetr(
        masks=masks,
        model={"num_classes": len(data[0].names), "drop_path": 0.2},
        loss={"assignment": "device"},
        train={"accumulate": 2, "checkpoint_steps": 2, "log_every": 1},
    )
    assert loop.train(config, data[0], data[1], tmp_path / "whole").finished

    original, count = loop.split_over_devices, [0]

    def counted(batch):
        count[0] += 1
        if count[0] == 4:
            raise KilledError
        return original(batch)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(loop, "split_over_devices", counted)
        loop.train(config, data[0], data[1], tmp_path / "killed")
    assert loop.train(config, data[0], data[1], tmp_path / "killed", resume=True).finished
    ours, theirs = (arrays(tmp_path / name / "last") for name in ("killed", "whole"))
    assert ours.keys() == theirs.keys() and len(ours) > 100
    assert [path for path in theirs if not np.array_equal(ours[path], theirs[path])] == []
    rows = read_metrics(tmp_path / "whole")
    kinds = {"loss_iabce", "loss_bbox", "loss_giou"} | ({"loss_mask_ce", "loss_mask_dice"} if masks else set())
    assert len(rows) == 2 and kinds <= rows[0].keys() and all(np.isfinite(rows[1][kind]) for kind in kinds)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "masks"), [("rfdetr-nano", False), ("rfdetr-seg-nano", True)])
def test_the_command_from_weights_to_best(folder, data, tmp_path, capsys, recipe, masks):
    """The architecture is that of the weights, whose classes are matched by name; the size is theirs too."""
    config: Any = tiny_rfdetr(masks=masks, model={"head_rows": "coco", "num_classes": 80})
    variables = RFDETR.init(config.model, jax.random.key(0))
    names = ["person", data[0].names[1], *(f"c{i}" for i in range(78))]
    save_weights(tmp_path / "weights", variables, Metadata(config, tuple(names), tuple(range(80))))
    given = [recipe, "--data", folder, "--out", tmp_path / "run", "--weights", tmp_path / "weights", "--epochs", 1]
    given += ["--no-export", "data.workers=0", "train.eval_batch_size=4"]
    assert main(["train", *map(str, given)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"RF-DETR(-SEG)?-NANO, \d classes, 12 images: 1 epochs of 1 steps", told), told
    assert "classes taken over by name (1)" in told and "optim.layer_decay=0.8" in told
    best: Any = load_metadata(tmp_path / "run" / "best").config
    assert (best.model.head_rows, best.model.num_classes) == ("spare", len(data[0].names))
    assert (best.data.height_px, best.data.square_crop_prob, best.optim.schedule) == (64, 0.5, "drop")
    assert load_metadata(tmp_path / "run" / "best").preprocess.interpolation == "bilinear"
    assert best.model == dataclasses.replace(
        config.model, head_rows="spare", num_classes=len(data[0].names), precision="float32"
    )
