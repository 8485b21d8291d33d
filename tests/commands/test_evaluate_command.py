"""``dfine evaluate`` from the command line, with a shrunken model."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

import jax
import pytest
from tiny import tiny_config

from dfine_jax.cli import main
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.families.dfine.model import init_variables
from dfine_jax.training.run.checkpoint import Metadata, save_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=2, num_val=3, size_px=64, seed=0)


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
    classes = read_coco(*find_split(data, "val"))
    config = tiny_config(model={"num_classes": len(classes.names)})
    path = tmp_path_factory.mktemp("model") / "best"
    variables = init_variables(config.model, jax.random.key(0))
    names = tuple(reversed(classes.names))  # matched by name, not by position
    save_weights(path, variables, Metadata(config, names, tuple(range(len(names)))))
    return path


def test_numbers_are_printed_and_written(data, model, tmp_path, capsys):
    file = tmp_path / "metrics.json"
    files = ["--json", str(file), "--out", str(tmp_path / "all")]
    assert main(["evaluate", str(model), "--data", str(data), *files, "--batch-size", "2"]) == 0
    out = capsys.readouterr().out
    assert "on 3 images" in out and "64x64" in out and "AP50" in out and "circle" in out
    numbers = json.loads(file.read_text())
    assert 0 <= numbers["ap"] < 0.2 and numbers["num_images"] == 3
    assert set(numbers["per_class"]) == {"circle", "rectangle", "triangle", "star"}
    assert json.loads((tmp_path / "all" / "metrics.json").read_text()) == numbers
    report = numbers["report"]
    best = f"threshold {report['best_threshold']:.2f} (best)"
    assert best in out or "no object is found at any threshold" in out  # by weights that are random
    assert sum(sum(row) for row in report["confusion"]["counts"]) > 0
    written = {"metrics.json", "confusion.png", "thresholds.png", "report.html"}
    assert {p.name for p in (tmp_path / "all").iterdir()} - {"pictures"} == written
    page = (tmp_path / "all" / "report.html").read_text()
    for heading in ("Result", "Thresholds", "Classes", "Confusions", "Missed objects", "False detections", "Go on"):
        assert f">{heading}</h2>" in page
    links = {unquote(link) for link in re.findall(r'(?:src|href)="([^"#]+)"', page)}
    values = json.loads((tmp_path / "all" / "metrics.json").read_text())
    speed = values["evaluation_images_per_s"]
    assert speed * values["evaluation_s"] == pytest.approx(values["num_images"], rel=0.05)
    assert f"{speed:.1f} images per second, from files to detections: {values['num_images']} in" in page
    assert links and all((tmp_path / "all" / link).is_file() for link in links)
    assert len(list((tmp_path / "all" / "pictures").glob("missed_*.jpg"))) == page.count('src="pictures/missed_') > 0
    assert f"dfine evaluate {model} --data {data}" in page and "http" not in page


def test_other_classes_are_an_error(data, model, tmp_path, capsys):
    other = make_shapes_dataset(tmp_path / "other", num_train=2, num_val=2, size_px=64, seed=0)
    file = other / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "blob"
    file.write_text(json.dumps(content))
    assert main(["evaluate", str(model), "--data", str(other)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "does not know all classes of" in error and "only in the data: blob" in error


def test_data_with_some_of_the_classes(data, model, tmp_path, capsys):
    fewer = make_shapes_dataset(tmp_path / "fewer", num_train=2, num_val=3, size_px=64, seed=0)
    file = fewer / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    kept = [c["id"] for c in content["categories"] if c["name"] != "star"]
    content["categories"] = [c for c in content["categories"] if c["id"] in kept]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in kept]
    file.write_text(json.dumps(content))
    out = tmp_path / "metrics.json"
    assert main(["evaluate", str(model), "--data", str(fewer), "--json", str(out)]) == 0
    note = "1 of the model's 4 classes are not in the data, detections of them do not count: star"
    assert note in capsys.readouterr().out.splitlines()
    numbers = json.loads(out.read_text())
    assert set(numbers["per_class"]) == {"circle", "rectangle", "triangle"}
    assert numbers["classes_not_in_the_data"] == ["star"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["--size", "50"], "sides must be multiples of 32"),
        (["--json", "no/such/folder/m.json"], "does not exist"),
        (["--out", __file__], "is a file; give a folder"),
    ],
)
def test_errors(data, model, capsys, arguments, message):
    assert main(["evaluate", str(model), "--data", str(data), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_pictures_of_an_annotation_tool_in_no_split(data, model, tmp_path, capsys, monkeypatch):
    from dfine_jax.data.edit.items import WHOLE, read_items
    from dfine_jax.data.formats.write import write

    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))
    items = read_items(data)
    items.splits = {WHOLE: items.splits["val"]}
    write(items, "labelme", tmp_path / "labelme", None)
    write(read_items(data), "coco", tmp_path / "coco", None)
    aps = []
    for folder in ("labelme", "coco"):
        file = tmp_path / f"{folder}.json"
        assert main(["evaluate", str(model), "--data", str(tmp_path / folder), "--json", str(file)]) == 0
        aps.append(json.loads(file.read_text())["ap"])
        assert "on 3 images" in capsys.readouterr().out
    assert abs(aps[0] - aps[1]) < 0.02  # boxes from outlines, not from whole pixels
