"""A validation split without objects: told at the start, and no reason to end a run."""

from __future__ import annotations

import json

import pytest

from dfine_jax.config import Config, DataConfig, TrainConfig
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.evaluation.score import score
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.training.run.setup import check, make_loaders
from dfine_jax.training.run.stages import Progress, judged


@pytest.fixture
def splits(tmp_path):
    root = make_shapes_dataset(tmp_path, num_train=4, num_val=2, size_px=64, seed=0)
    annotations, images = find_split(root, "val")
    content = json.loads(annotations.read_text())
    annotations.write_text(json.dumps(content | {"annotations": []}))
    return read_coco(*find_split(root, "train")), read_coco(annotations, images)


def test_it_is_told_and_judges_nothing(splits):
    train_data, val_data = splits
    config = Config(
        model_config("n", num_classes=len(train_data.names)),
        LossConfig(),
        data=DataConfig(height_px=64, width_px=64, workers=0),
        train=TrainConfig(epochs=9, batch_size=8, patience=2),
    )
    check(config, train_data, val_data)
    loader, eval_loader = make_loaders(config, train_data, val_data)
    told = [note for note in loader.notes if "annotates no object" in note]
    assert (
        eval_loader is not None
        and not eval_loader.has_objects
        and len(told) == 1
        and str(val_data.annotation_file) in told[0]
    )
    assert not [n for n in make_loaders(config, train_data, train_data)[0].notes if "annotates no object" in n]

    metrics = score(val_data, [], [record.image_id for record in val_data.records], val_data.classes)
    assert metrics.ap == -1.0
    progress = Progress()
    for epoch in range(1, 6):
        verdict = judged(progress, metrics.ap, epoch, config.train, kept=False)
        progress = verdict.progress
        assert not verdict.is_best and not progress.ended_early
    for epoch in range(1, 5):
        progress = judged(progress, 0.0, epoch, config.train, kept=False).progress
    assert progress.ended_early  # whereas one that finds nothing counts
