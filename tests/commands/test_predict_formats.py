"""``dfine predict --results``: read again, what was written is what was found."""

from __future__ import annotations

import csv
import json
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from rectangles import RectangleBackend, opened, scene

from dfine_jax import cli
from dfine_jax.commands import predict
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.prediction import detector

FOUND = {  # corners by picture and class
    "a.png": {("red", 20, 40, 120, 100), ("green", 200, 200, 260, 300)},
    "b.png": {("blue", 100, 75, 300, 225)},
}


@pytest.fixture(autouse=True)
def any_name_is_a_model(monkeypatch):
    monkeypatch.setattr(predict, "require_model", lambda *_, **__: None)


@pytest.fixture(params=[None, 4], ids=["boxes", "masks"])
def backend(request, monkeypatch):
    made = RectangleBackend(request.param)
    monkeypatch.setattr(detector, "open_model", lambda *_, **__: opened(made, (160, 160)))
    return made


@pytest.fixture
def boxes_only(monkeypatch):
    monkeypatch.setattr(detector, "open_model", lambda *_, **__: opened(RectangleBackend(None), (160, 160)))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for name, drawn in FOUND.items():
        Image.fromarray(scene(320, 320, *sorted(drawn))).save(root / name)
    return root


def run(*arguments):
    return cli.main(["predict", "model", *map(str, arguments)])


def read(data, split="train"):
    """What a reader finds: corners to the nearest 4 pixels, as the detector gives them."""
    dataset = read_dataset(data, split, whole=True)
    return {
        record.path.name: {
            (dataset.names[label], *box)
            for label, box in zip(record.labels, record.boxes_xyxy_px.tolist(), strict=True)
        }
        for record in dataset.records
    }


def assert_found(actual):
    assert set(actual) == set(FOUND)
    for name, expected in FOUND.items():
        ours = sorted(actual[name])
        assert [one[0] for one in ours] == [one[0] for one in sorted(expected)]
        for one, other in zip(ours, sorted(expected), strict=True):
            np.testing.assert_allclose(one[1:], other[1:], atol=5)


@pytest.mark.parametrize("form", ["coco", "yolo", "cvat", "voc", "labelme", "via"])
def test_annotation_tools_read_what_was_found(folder, tmp_path, backend, form, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))
    assert run(folder, "--results", tmp_path / "out", "--format", form) == 0
    assert_found(read(tmp_path / "out"))
    assert not (tmp_path / "predictions").exists()


def test_label_studio_gets_predictions_to_confirm(folder, tmp_path, backend, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))
    assert run(folder, "--results", tmp_path / "out", "--format", "labelstudio") == 0
    file = tmp_path / "out" / "labelstudio.json"
    tasks = json.loads(file.read_text())
    assert all(task["annotations"] == [] for task in tasks)
    assert all(0 < result["score"] <= 1 for task in tasks for result in task["predictions"][0]["result"])
    file.write_text(json.dumps([{**task, "annotations": task["predictions"]} for task in tasks]))  # as if confirmed
    assert_found(read(tmp_path / "out"))


@pytest.mark.parametrize("form", ["coco", "cvat", "via"])
def test_pictures_have_the_names_by_which_tools_know_them(tmp_path, boxes_only, form, monkeypatch):
    """Below the folder that was given: also where all lie in one folder of it, or differ in their ending alone."""
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))
    picture = Image.fromarray(scene(320, 320, ("red", 20, 40, 120, 100)))
    names = {"sub/1.png", "sub/1.bmp", "sub/deeper/1.png"}
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "images" / name)
    assert run(tmp_path / "images", "--results", tmp_path / "out", "--format", form) == 0
    if form == "cvat":
        found = {entry.get("name") for entry in ElementTree.parse(tmp_path / "out" / "annotations.xml").iter("image")}
    else:
        file = {"coco": "_annotations.coco.json", "via": "via_region_data.json"}[form]
        content = json.loads((tmp_path / "out" / file).read_text())
        entries = content["images"] if form == "coco" else content.values()
        found = {entry["file_name" if form == "coco" else "filename"] for entry in entries}
    assert found == names
    linked = [record.path for record in read_dataset(tmp_path / "out", "train", whole=True).records]
    assert {str(path.relative_to(tmp_path / "out")) for path in linked} == names


def test_label_studio_finds_pictures_and_classes(folder, tmp_path, backend, capsys):
    Image.fromarray(scene(320, 320)).save(folder / "no thing.png")
    assert run(folder, "--results", tmp_path / "out", "--format", "labelstudio") == 0
    tasks = json.loads((tmp_path / "out" / "labelstudio.json").read_text())
    addresses = {task["data"]["image"]: task for task in tasks}
    shown = "/data/local-files/?d=images/"
    assert set(addresses) == {f"{shown}a.png", f"{shown}b.png", f"{shown}no%20thing.png"}
    for address in addresses:  # from the new folder as document root
        assert (tmp_path / "out" / unquote(address.partition("?d=")[2])).resolve().parent == folder
    empty = addresses[f"{shown}no%20thing.png"]
    assert empty["annotations"] == [] and [one["result"] for one in empty["predictions"]] == [[]]
    view = ElementTree.parse(tmp_path / "out" / "label_config.xml").getroot()
    assert view.find("Image").attrib == {"name": "image", "value": "$image"}
    (control,) = (child for child in view if child.tag != "Image")
    assert [label.get("value") for label in control] == ["green", "red", "blue"]  # by their ids
    for result in (result for task in tasks for result in task["predictions"][0]["result"]):
        assert (result["from_name"], result["to_name"], result["type"]) == ("label", "image", control.tag.lower())
    assert control.attrib == {"name": "label", "toName": "image"}
    assert f"DOCUMENT_ROOT={tmp_path / 'out'}" in capsys.readouterr().err


def test_label_studio_is_told_that_nothing_was_found(tmp_path, boxes_only):
    Image.fromarray(scene(320, 320)).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "--results", tmp_path / "out", "--format", "labelstudio") == 0
    (task,) = json.loads((tmp_path / "out" / "labelstudio.json").read_text())
    assert task["annotations"] == [] and task["predictions"][0]["result"] == []
    assert "RectangleLabels" in (tmp_path / "out" / "label_config.xml").read_text()


def test_coco_keeps_scores_and_cvat_says_who_it_was(folder, tmp_path, backend):
    assert run(folder, "--results", tmp_path / "coco") == 0
    content = json.loads((tmp_path / "coco" / "_annotations.coco.json").read_text())
    assert all(0.5 <= annotation["score"] <= 1 for annotation in content["annotations"])
    if any(annotation.get("segmentation") for annotation in content["annotations"]):
        areas = [coco_mask.area(annotation["segmentation"]) for annotation in content["annotations"]]
        assert min(areas) > 1000 and areas == [annotation["area"] for annotation in content["annotations"]]
    else:
        assert all(one["area"] == one["bbox"][2] * one["bbox"][3] for one in content["annotations"])
    assert run(folder, "--results", tmp_path / "cvat", "--format", "cvat") == 0
    text = (tmp_path / "cvat" / "annotations.xml").read_text()
    assert text.count('source="auto"') == 3


@pytest.mark.parametrize("form", ["coco", "yolo", "cvat", "voc", "labelme", "via"])
def test_boxes_end_at_the_edges_of_pictures(tmp_path, form, monkeypatch, capsys):
    """A network may answer with more; as annotations they would be reported by ``dfine check``."""

    class Larger(RectangleBackend):
        def predict(self, images):
            answer = super().predict(images)
            return answer._replace(boxes_cxcywh=answer.boxes_cxcywh * [1, 1, 1.2, 1.2])

    monkeypatch.setattr(detector, "open_model", lambda *_, **__: opened(Larger(), (160, 160)))
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    Image.fromarray(scene(320, 320, ("red", 0, 0, 60, 40))).save(tmp_path / "images" / "a.png")
    assert run(tmp_path / "images", "--results", tmp_path / "out", "--format", form) == 0
    ((_, *box),) = read(tmp_path / "out")["a.png"]
    np.testing.assert_allclose(box, [0, 0, 66, 44], atol=1)
    assert cli.main(["check", "--data", str(tmp_path / "out"), "--out", str(tmp_path / "check")]) == 0
    assert "beyond" not in "".join(capsys.readouterr())


def test_tables(folder, tmp_path, boxes_only):
    assert run(folder, "--results", tmp_path / "r.csv", "--json", tmp_path / "r.json") == 0
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    entries = json.loads((tmp_path / "r.json").read_text())
    assert len(rows) == len(entries) == 3
    for row, entry in zip(rows, entries, strict=True):
        x0, y0, x1, y1 = (float(row[key]) for key in ("x0", "y0", "x1", "y1"))
        assert row["image"] == entry["image_id"] and float(row["score"]) == pytest.approx(entry["score"], abs=1e-4)
        np.testing.assert_allclose([x0, y0, x1 - x0, y1 - y0], entry["bbox"], atol=0.02)
    assert run(folder, "--results", tmp_path / "r.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [(line["image"], line["width"], len(line["objects"])) for line in lines] == [
        ("a.png", 320, 2),
        ("b.png", 320, 1),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "r.csv"], "or give --results for a table"),
        (["--format", "coco"], "is of --results"),
        (["--results", "x", "--format", "tfrecord"], "--format tfrecord: one of csv, jsonl, coco"),
        (["--results", ".", "--format", "coco"], "is not empty"),
        (["--results", ".", "--format", "csv"], "is a folder; csv is a file"),
        (["--results", "res.json"], "coco is a folder, res is a name for it; results in one file are --json res.json"),
        (["--results", "res.txt"], "res is a name for it; tables end with .csv or .jsonl"),
        (["--results", "res.xlsx"], "tables end with .csv or .jsonl"),
        (["--results", "x.csv", "--format", "labelstudio"], "labelstudio is a folder, x is a name for it"),
        (["--results", "x.csv", "--format", "jsonl"], "would hold jsonl; name it .jsonl"),
        (["--json", "r.xlsx"], "--json r.xlsx would hold JSON; name it .json"),
        (["--track", "--counts", "s.xlsx"], "--counts s.xlsx would hold JSON; name it .json, or .csv for a table"),
    ],
)
def test_mistakes_are_told_before_anything_runs(folder, boxes_only, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(folder, *arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


@pytest.mark.parametrize("broken", [1, 2])
@pytest.mark.parametrize("name", ["r.csv", "r.jsonl", "r.json"])
def test_files_stay_where_nothing_could_be_read(tmp_path, boxes_only, name, broken):
    for number in range(broken):
        (tmp_path / f"{number}.png").write_text("no picture")
    (tmp_path / name).write_text("precious")
    option = "--json" if name == "r.json" else "--results"
    assert run(*sorted(tmp_path.glob("*.png")), option, tmp_path / name) != 0
    assert (tmp_path / name).read_text() == "precious"
    Image.fromarray(scene(320, 320)).save(tmp_path / "good.png")  # in which nothing is found: a result
    assert run(*sorted(tmp_path.glob("*.png")), option, tmp_path / name) == 1
    assert "precious" not in (tmp_path / name).read_text()
    assert not list(tmp_path.glob(".part*"))
