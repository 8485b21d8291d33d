"""A run of a model that segments: evaluated by boxes and masks, and judged by its masks unless told otherwise."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from tiny import tiny_config

from dfine_jax import families
from dfine_jax.config import LogConfig
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.errors import UserError
from dfine_jax.evaluation.score import MASK_METRIC_NAMES
from dfine_jax.training.report.run_files import read_metrics
from dfine_jax.training.run import checkpoint, loop, validation


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=4, size_px=96, seed=0)
    return read_coco(*find_split(root, "train")), read_coco(*find_split(root, "val"))


@pytest.fixture(scope="module")
def config(data):
    base = tiny_config(
        model={"num_classes": len(data[0].names)},
        loss={"assignment": "device", "num_denoising": 4},
        train={"epochs": 2, "eval_every": 2},
    )
    model = families.of(base.model).tasks["segment"](base.model)
    return dataclasses.replace(base, model=model, log=LogConfig(pictures=1, tensorboard=False))


@pytest.fixture(scope="module")
def run(data, config, tmp_path_factory):
    """Two epochs and one evaluation, whose masks come out worse than its boxes (nothing is learnt so fast)."""
    out = tmp_path_factory.mktemp("run")
    evaluate = validation.evaluate

    def improved(*args, **rules):
        metrics = evaluate(*args, **rules)
        return dataclasses.replace(metrics, ap=0.5, masks=dataclasses.replace(metrics.masks, ap=0.25))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "evaluate", improved)
        return loop.train(config, *data, out), out


def test_masks_are_evaluated_and_decide(run):
    result, out = run
    assert result.metrics.masks is not None and result.metrics.num_images == 4
    assert result.best_ap == 0.25 and checkpoint.load_weights(out / "best")[1].ap == 0.25
    first, second = read_metrics(out)
    assert not set(MASK_METRIC_NAMES) & set(first) and set(MASK_METRIC_NAMES) <= set(second)
    assert (second["ap"], second["mask_ap"]) == (0.5, 0.25)
    assert second["loss_mask_bce"] > 0 and second["loss_mask_dice"] > 0 and 0 < second["mask_best_threshold"] < 1
    stored = json.loads((out / "best_evaluation" / "metrics.json").read_text())
    assert stored["mask_ap"] == 0.25 and stored["objects_without_mask"] == 0
    pictures = {path.stem for path in (out / "best_evaluation").glob("*.png")}
    assert pictures == {"confusion", "thresholds", "mask_confusion", "mask_thresholds"}


def test_the_log_shows_both(run):
    _, out = run
    lines = [line[21:] for line in (out / "log.txt").read_text().splitlines()]
    header = next(line for line in lines if line.startswith("epoch"))
    rows = [line for line in lines if line.strip()[:3] in ("1  ", "2  ")]
    assert "mask_bce" in header and header.split()[-6:] == ["mask", "AP", "mask", "AP50", "mask", "F1"]
    assert all(len(row.removesuffix("  best")) == len(header) for row in rows) and rows[1].endswith("best")
    assert sum("AP by class" in line for line in lines) == 2


def test_boxes_decide_where_that_is_asked_for(run):
    metrics = run[0].metrics
    assert metrics.deciding_ap("masks") == 0.25 and metrics.deciding_ap("boxes") == 0.5
    without = dataclasses.replace(metrics, masks=None)
    assert without.deciding_ap("masks") == 0.5


def test_a_mask_that_cannot_be_drawn_ends_the_run_before_it_begins(data, config, tmp_path):
    content = json.loads(data[1].annotation_file.read_text())
    content["annotations"][0]["segmentation"] = {"size": [96, 96], "counts": "11"}
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(content))
    val = dataclasses.replace(data[1], annotation_file=broken)
    with pytest.raises(UserError, match="the mask of annotation 1 in 000001.jpg cannot be used"):
        loop.train(config, data[0], val, tmp_path / "run")
    assert not np.any([path.name == "last" for path in (tmp_path / "run").glob("*")])
