"""The functions for programs: the same as the commands."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import jax
import pytest
from PIL import Image
from rectangles import CLASSES, opened, scene
from tiny import tiny_config

import dfine_jax
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.errors import UserError
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.model import init_variables
from dfine_jax.training.run.checkpoint import Metadata, save_weights

RECTANGLES = [("red", 8, 8, 24, 40), ("blue", 32, 16, 60, 30), ("green", 4, 48, 40, 60)]


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory):
    root = tmp_path_factory.mktemp("rectangles")
    (root / "val").mkdir()
    (root / "annotations").mkdir()
    Image.fromarray(scene(64, 64, *RECTANGLES)).save(root / "val" / "a.png")
    ids = dict(zip(CLASSES.names, CLASSES.ids, strict=True))
    boxes = [(ids[name], [x0, y0, x1 - x0, y1 - y0]) for name, x0, y0, x1, y1 in RECTANGLES]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, (category, box) in enumerate(boxes, 1)
        ],
        "categories": [{"id": i, "name": name} for name, i in ids.items()],
    }
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return root


def test_evaluate(rectangles):
    data = dfine_jax.read_dataset(rectangles, "val")
    metrics = dfine_jax.evaluate(opened(), data, workers=0)
    assert metrics.ap == pytest.approx(1.0) and set(metrics.per_class) == set(CLASSES.names)
    empty = dataclasses.replace(
        data, records=(dataclasses.replace(data.records[0], labels=data.records[0].labels[:0]),)
    )
    with pytest.raises(UserError, match="annotates no object"):
        dfine_jax.evaluate(opened(), empty)


def test_build_gives_what_load_gives(tmp_path):
    model, variables = dfine_jax.build("n", num_classes=3, seed=1)
    save_weights(
        tmp_path / "n", variables, Metadata(dfine_jax.Config(model.config, LossConfig()), tuple("abc"), (1, 2, 3))
    )
    loaded, same = dfine_jax.load(tmp_path / "n")
    assert loaded.config == model.config and model.config.num_classes == 3
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), variables, same))


def test_a_configuration_and_a_run_start_from_weights(tmp_path, monkeypatch):
    root = make_shapes_dataset(tmp_path / "shapes", num_train=8, num_val=1, size_px=64, seed=0)
    data = dfine_jax.read_dataset(root, "train")
    source = tiny_config(model={"num_classes": 2, "up": 0.25})
    variables = init_variables(source.model, jax.random.key(0))
    save_weights(tmp_path / "w", variables, Metadata(source, ("star", "blob"), (0, 1)))
    config, lines = dfine_jax.default_config("n", data, weights=tmp_path / "w", epochs=3, values=["optim.lr=0.25"])
    assert (config.model.up, config.model.num_classes, config.train.epochs, config.optim.lr) == (0.25, 4, 3, 0.25)
    assert any("optim.lr=0.25 (given)" in line for line in lines) and "D-FINE-N, 4 classes, 8 images" in lines[0]

    given = {}
    monkeypatch.setattr("dfine_jax.training.run.loop.train", lambda *_, **named: given.update(named))
    dfine_jax.train(config, data, None, tmp_path / "run", weights=tmp_path / "w")
    assert given["start"].source.class_names == ("star", "blob")
    assert "classes taken over by name (1): star" in given["notes"]
    with pytest.raises(UserError, match="leave out backbone"):
        dfine_jax.train(config, data, None, tmp_path / "run", weights=tmp_path / "w", backbone="imagenet")


def test_every_name_that_is_listed_is_there():
    program = "import dfine_jax, sys; assert 'jax' not in sys.modules; [getattr(dfine_jax, n) for n in dir(dfine_jax)]"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    program = "import dfine_jax; dfine_jax.losses.giou_loss; dfine_jax.lossses"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "AttributeError: module 'dfine_jax' has no attribute 'lossses'" in done.stderr
