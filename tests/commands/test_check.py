"""``dfine check``: reports, exit statuses, pictures, and the overfitting test."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from dfine_jax.cli import main
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.training.run import loop


@pytest.fixture
def data(tmp_path):
    return make_shapes_dataset(tmp_path / "data", num_train=12, num_val=3, size_px=64, seed=0)


def check(data, tmp_path, *more):
    return main(["check", "--data", str(data), "--out", str(tmp_path / "out"), "--size", "64x96", *more])


def test_a_good_dataset(data, tmp_path, capsys):
    assert check(data, tmp_path, "data.augment=dense") == 0
    out = capsys.readouterr().out
    assert "images   12" in out and "all 15 pictures were decoded" in out and "circle" in out
    assert Image.open(tmp_path / "out" / "annotated.jpg").width > 64
    assert Image.open(tmp_path / "out" / "augmented.jpg").height > 4 * 64


def test_a_damaged_picture_is_an_error(data, tmp_path, capsys):
    picture = data / "val" / "000002.jpg"
    picture.write_bytes(picture.read_bytes()[:400])
    assert check(data, tmp_path) == 1
    out = capsys.readouterr().out
    assert "error: 1 images cannot be used" in out and "000002.jpg" in out and "there are errors" in out


def test_unlisted_classes_are_reported_with_the_rest_and_refused_elsewhere(data, tmp_path, capsys):
    file = data / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 77
    content["annotations"][-1]["bbox"][2] = 0
    file.write_text(json.dumps(content))
    assert check(data, tmp_path) == 1
    out = capsys.readouterr().out
    assert "error: 1 annotations of categories that the file does not list" in out and ", category 77)" in out
    assert "warning: 1 boxes without area" in out and "all 15 pictures were decoded" in out
    where = ["--data", str(data), "--out", str(tmp_path / "run")]
    assert main(["train", "n", *where, "--dry-run"]) == 2
    (tmp_path / "model.pth").touch()
    assert main(["evaluate", str(tmp_path / "model.pth"), *where]) == 2
    train, evaluate = capsys.readouterr().err.splitlines()
    assert train == evaluate and f"{file}: 1 of " in train and "have a category_id that 'categories'" in train


def test_without_validation_split(data, tmp_path, capsys):
    (data / "annotations" / "instances_val.json").unlink()
    assert check(data, tmp_path) == 0
    assert "no validation split" in capsys.readouterr().out


def test_a_broken_validation_split_is_not_taken_for_a_missing_one(data, tmp_path, capsys):
    (data / "annotations" / "instances_val.json").write_text("{")
    assert check(data, tmp_path) == 2
    assert "instances_val.json is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--overfit", "0"], "--overfit 0"),
        (["--size", "x"], "--size x"),
        (["data.augmentation=none"], "did you mean data.augment"),
    ],
)
def test_mistakes(data, tmp_path, capsys, arguments, message):
    assert check(data, tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("ap", "status"), [(0.95, 0), (0.5, 1)])
def test_overfitting_trains_on_few_images_and_judges_the_result(data, tmp_path, monkeypatch, capsys, ap, status):
    calls = []

    def train(config, train_data, val_data, out_dir, **options):
        calls.append((config, train_data, val_data))
        return loop.Result(True, ap, 1, None)

    monkeypatch.setattr(loop, "train", train)
    assert check(data, tmp_path, "--overfit", "3", "data.augment=dense", "optim.lr=0.5") == status
    config, train_data, val_data = calls[0]
    assert len(val_data) == 3 and all(len(r.labels) for r in val_data.records)
    assert train_data.records == val_data.records * 25
    assert (config.train.batch_size, config.train.target_ap, config.data.augment) == (3, 0.9, "none")
    assert (config.data.height_px, config.data.width_px, config.optim.lr) == (64, 96, 0.5)
    assert f"AP {ap:.3f} on the 3 images" in capsys.readouterr().out


@pytest.mark.slow
def test_shapes_can_be_learnt_by_heart_and_scrambled_boxes_cannot(tmp_path):
    data = make_shapes_dataset(tmp_path / "data", num_train=4, num_val=1, size_px=96, seed=0)
    options = ["--size", "96x96", "--overfit", "4", "model.num_queries=50", "loss.num_denoising=20"]
    assert check(data, tmp_path, *options) == 0
    file = data / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    for image in content["images"]:  # all pictures are one picture: boxes cannot be told from pixels
        first = (data / "train" / content["images"][0]["file_name"]).read_bytes()
        (data / "train" / image["file_name"]).write_bytes(first)
    assert check(data, tmp_path, *options) == 1
