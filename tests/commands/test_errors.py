"""``dfine errors`` on pictures of rectangles with planted faults, and a detector that finds every rectangle."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import re
from pathlib import Path
from urllib.parse import unquote

import jax
import numpy as np
import pytest
import rectangles
from PIL import Image
from tiny import tiny_config

from dfine_jax.cli import main
from dfine_jax.commands import errors
from dfine_jax.data.read.coco import read_coco, with_outlines
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.errors import UserError
from dfine_jax.evaluation import suspect_page
from dfine_jax.evaluation.suspect_files import Described, picture_files
from dfine_jax.families.dfine.model import init_variables
from dfine_jax.prediction import detector
from dfine_jax.training.run.checkpoint import Metadata, save_weights

WIDTH, HEIGHT = 128, 96
IDS = dict(zip(rectangles.CLASSES.names, rectangles.CLASSES.ids, strict=True))
# By picture: colour and corners of what is drawn.
DRAWN = {
    "a.png": [("red", 8, 8, 40, 40), ("green", 60, 20, 92, 60)],
    "b ü.png": [("blue", 20, 28, 60, 68), ("red", 80, 8, 112, 40)],
    "sub/c.png": [("green", 8, 16, 56, 80), ("blue", 80, 48, 120, 88)],
}


def annotation(number, image, colour, x0, y0, x1, y1, **more):
    box = [x0, y0, x1 - x0, y1 - y0]
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
    common = {"id": number, "image_id": image, "category_id": IDS[colour], "bbox": box, "area": box[2] * box[3]}
    return {**common, "iscrowd": 0, "segmentation": [polygon], **more}


def correct():
    drawn = [(image, *one) for image, own in enumerate(DRAWN.values(), 11) for one in own]
    return [annotation(100 + i, image, *one) for i, (image, *one) in enumerate(drawn)]


@pytest.fixture
def dataset(tmp_path):
    """Writes the pictures with these annotations; the folder."""

    def write(annotations):
        root = tmp_path / "data"
        for name, drawn in DRAWN.items():
            (root / "val" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rectangles.scene(WIDTH, HEIGHT, *drawn)).save(root / "val" / name)
        images = [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(DRAWN, 11)]
        categories = [{"id": number, "name": name} for name, number in IDS.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
        return root

    return write


@pytest.fixture
def model(monkeypatch):
    """The detector in place of whatever is named; with a stride it makes masks."""

    def use(mask_stride=None):
        opened = rectangles.opened(rectangles.RectangleBackend(mask_stride), (HEIGHT, WIDTH))
        monkeypatch.setattr(detector, "open_model", lambda *_, **__: opened)
        monkeypatch.setattr("dfine_jax.commands.errors.require_model", lambda model: None)  # there is no file

    use()
    return use


def planted():
    """A missing annotation, a wrong class, a shifted box and one of nothing."""
    right = correct()
    del right[0]  # red in a.png
    right[0] = annotation(101, 11, "blue", 60, 20, 92, 60)
    right[1] = annotation(102, 12, "blue", 28, 28, 68, 68)  # IoU 2/3
    return [*right, annotation(200, 13, "red", 60, 4, 76, 20)]


def run(root, out, *options):
    return main(["errors", "model.onnx", "--data", str(root), "--out", str(out), *options])


def table(out):
    return list(csv.DictReader(io.StringIO((out / "suspects.csv").read_text())))


def test_right_annotations_are_no_suspects(dataset, model, tmp_path, capsys):
    assert run(dataset(correct()), tmp_path / "out") == 0
    assert table(tmp_path / "out") == []
    assert "       6  found as they are annotated" in capsys.readouterr().out
    assert not (tmp_path / "out" / "pictures").exists()
    assert (tmp_path / "out" / "index.html").read_text().count("<p>None.</p>") == 4


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_exactly_the_planted_faults_are_found(dataset, model, tmp_path, capsys, kind):
    model(mask_stride=4 if kind == "masks" else None)
    root, out = dataset(planted()), tmp_path / "out"
    assert run(root, out) == 0
    said = capsys.readouterr().out
    assert f"{kind.capitalize()} are compared" in said and "where F1 is best" in said
    rows = {row["fault"]: row for row in table(out)}
    assert len(rows) == len(table(out)) == 4
    known = "image_id", "annotation_id", "annotated_class", "detected_class"
    assert {fault: tuple(row[name] for name in known) for fault, row in rows.items()} == {
        "false_positive": ("11", "", "", "red"),
        "wrong_class": ("11", "101", "blue", "green"),
        "poor_fit": ("12", "102", "blue", "blue"),
        "missed": ("13", "200", "red", ""),
    }
    assert float(rows["poor_fit"]["iou"]) == pytest.approx(2 / 3, abs=0.03)
    assert float(rows["false_positive"]["score"]) == pytest.approx(0.982, abs=1e-3)
    box = [float(rows["false_positive"][f"detected_{side}_px"]) for side in ("x", "y", "width", "height")]
    assert box == pytest.approx([8, 8, 32, 32], abs=0.01)
    assert float(rows["missed"]["annotated_x_px"]) == 60 and rows["missed"]["detected_x_px"] == ""
    for row in rows.values():
        assert (out / row["file"]).samefile(root / "val" / list(DRAWN)[int(row["image_id"]) - 11])


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_the_coco_file_is_a_dataset_of_the_suspects(dataset, model, tmp_path, kind):
    model(mask_stride=4 if kind == "masks" else None)
    out = tmp_path / "out"
    assert run(dataset(planted()), out) == 0
    content = json.loads((out / "suspects.json").read_text())
    faults = {one["attributes"]["fault"]: one for one in content["annotations"]}
    assert {fault: one["category_id"] for fault, one in faults.items()} == {
        "false_positive": IDS["red"],
        "wrong_class": IDS["green"],
        "poor_fit": IDS["blue"],
        "missed": IDS["red"],
    }
    assert faults["wrong_class"]["attributes"]["annotation_id"] == 101
    assert faults["wrong_class"]["attributes"]["annotated_class"] == "blue"
    for data in (read_coco(out / "suspects.json", out), read_dataset(out / "suspects.json", "val", whole=True)):
        assert dict(zip(data.classes.names, data.classes.ids, strict=True)) == IDS
        boxes = {tuple(box) for record in data.records for box in record.boxes_xyxy_px.round().tolist()}
        assert boxes == {(8, 8, 40, 40), (60, 20, 92, 60), (20, 28, 60, 68), (60, 4, 76, 20)}
        outlined = [outline for record in with_outlines(data).records for outline in record.outlines]
        assert all((outline is not None) == (kind == "masks") for outline in outlined) and len(outlined) == 4


def test_the_page_is_whole_and_leads_to_files_that_are_there(dataset, model, tmp_path):
    out = tmp_path / "out"
    root = dataset(planted())
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert run(root, out) == 0
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    text = (out / "index.html").read_text()
    assert "http" not in text and "<script" not in text
    targets = set(re.findall(r'(?:href|src)="([^"#][^"]*)"', text))
    assert {Path(t).name for t in targets if "pictures/" in t} == {path.name for path in (out / "pictures").iterdir()}
    assert len([t for t in targets if "pictures/" in t]) == 4
    assert all((out / unquote(target)).is_file() for target in targets)
    assert "green, detected with score 0.98" in text and "blue, annotated as number 101" in text
    assert {path.name for path in out.iterdir()} == {"index.html", "pictures", "suspects.csv", "suspects.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out"}


def test_the_page_shows_the_first_ones_and_the_files_hold_all(dataset, model, tmp_path):
    out = tmp_path / "out"
    assert run(dataset(correct()[:1]), out, "--limit", "2", "--threshold", "0.5") == 0
    assert len(table(out)) == len(json.loads((out / "suspects.json").read_text())["annotations"]) == 5
    assert sorted(path.name for path in (out / "pictures").iterdir()) == [
        "false_positive_0001.jpg",
        "false_positive_0002.jpg",
    ]
    assert '<td class="n">5</td><td class="n">2</td>' in (out / "index.html").read_text()


def test_masks_show_what_boxes_do_not(dataset, model, tmp_path):
    model(mask_stride=4)
    half = correct()
    x, y, width, height = half[4]["bbox"]
    half[4]["segmentation"] = [[x, y, x + width, y, x, y + height]]  # a triangle in the right box
    root = dataset(half)
    assert run(root, tmp_path / "masks") == 0
    assert run(root, tmp_path / "boxes", "--by", "boxes") == 0
    (row,) = table(tmp_path / "masks")
    assert (row["fault"], row["annotation_id"]) == ("poor_fit", "104")
    assert float(row["iou"]) == pytest.approx(0.5, abs=0.03)
    assert table(tmp_path / "boxes") == []


def test_objects_without_a_mask_count_for_nothing_beside_masks(dataset, model, tmp_path):
    model(mask_stride=4)
    some = correct()
    some[0]["segmentation"] = []
    root = dataset(some)
    assert run(root, tmp_path / "out") == 0
    assert table(tmp_path / "out") == []


def test_a_mask_that_cannot_be_drawn_is_told_before_anything_is_detected(dataset, model, tmp_path, capsys, monkeypatch):
    """By the commands that compare masks; boxes do not need it."""
    monkeypatch.setattr("dfine_jax.commands.evaluate.require_model", lambda model: None)
    model(mask_stride=4)
    broken = correct()
    broken[0]["segmentation"] = {"size": [10, 10], "counts": [100]}
    root, out = dataset(broken), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(rectangles.RectangleBackend, "predict", lambda *_: pytest.fail("the network ran"))
        for command in (["errors", "--out", str(out)], ["evaluate"]):
            assert main([command[0], "model.onnx", "--data", str(root), *command[1:]]) == 2
            assert "annotation 100" in capsys.readouterr().err
    assert run(root, out, "--by", "boxes") == 0 and table(out) == []


@pytest.mark.parametrize("annotated", [True, False])
def test_an_evaluation_says_that_masks_were_not_judged(dataset, model, tmp_path, capsys, monkeypatch, annotated):
    monkeypatch.setattr("dfine_jax.commands.evaluate.require_model", lambda model: None)
    model(mask_stride=4)
    root = dataset([one if annotated else {**one, "segmentation": []} for one in correct()])
    assert main(["evaluate", "model.onnx", "--data", str(root), "--out", str(tmp_path / "out")]) == 0
    told = f"masks were not judged: {root / 'annotations' / 'instances_val.json'} annotates none"
    assert (told in capsys.readouterr().out) != annotated
    assert ("not judged: the data annotates none" in (tmp_path / "out" / "report.html").read_text()) != annotated
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["masks_not_judged"] != annotated


def test_crowd_regions_count_for_nothing(dataset, model, tmp_path):
    some = correct()
    some[0] = annotation(100, 11, "red", 0, 0, 50, 50, iscrowd=1)
    assert run(dataset(some), tmp_path / "out") == 0
    assert table(tmp_path / "out") == []


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_boxes_of_turned_pictures_are_those_of_the_stored_pixels(model, tmp_path, monkeypatch, orientation):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "yolo"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    scene = rectangles.scene(WIDTH, HEIGHT, ("red", 8, 12, 40, 60), ("blue", 80, 20, 112, 60))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(scene).save(root / "images" / "a.png", exif=exif)
    upright = scene if orientation == 1 else np.rot90(scene, 2 if orientation == 3 else -1)
    ys, xs = np.nonzero(upright[..., 2] > 200)  # the blue one is annotated, the red one is missing
    height, width = upright.shape[:2]
    x0, x1, y0, y1 = xs.min() / width, (xs.max() + 1) / width, ys.min() / height, (ys.max() + 1) / height
    label = f"2 {(x0 + x1) / 2} {(y0 + y1) / 2} {x1 - x0} {y1 - y0}\n"
    (root / "labels" / "a.txt").write_text(label)
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [red, green, blue]\n")
    out = tmp_path / "out"
    assert run(root, out) == 0
    (record,) = read_coco(out / "suspects.json", out).records
    found = {row["fault"] for row in table(out)}
    assert found == {"false_positive"}
    assert (record.width_px, record.height_px) == (WIDTH, HEIGHT)
    np.testing.assert_allclose(record.boxes_xyxy_px, [[8, 12, 40, 60]], atol=2)


def test_pictures_that_are_no_files_are_written_beside_the_page(dataset, tmp_path):
    class Kept:
        def read(self):
            return b"picture"

    root = dataset(correct())
    record = read_dataset(root, "val").records[0]
    suspect = Described(None, 1, dataclasses.replace(record, stored=Kept()), *[None] * 5)  # type: ignore[arg-type]
    assert picture_files([suspect], tmp_path / "out") == {11: "images/11_a.png"}
    assert (tmp_path / "out" / "images" / "11_a.png").read_bytes() == b"picture"


def test_a_page_that_fails_leaves_nothing(dataset, model, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise UserError("no space left")

    monkeypatch.setattr(suspect_page, "save_picture", full)
    assert run(dataset(planted()), tmp_path / "out") == 2
    assert "no space left" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "0"], "--threshold 0 must lie above 0"),
        (["--fit-iou", "0.4"], "--fit-iou 0.4 must lie between 0.5 and 1"),
        (["--limit", "0"], "--limit 0 must be at least 1"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["--by", "masks"], "--by masks: model.onnx makes none"),
    ],
)
def test_errors(dataset, model, tmp_path, capsys, options, message):
    assert run(dataset(correct()), tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused_before_anything_is_detected(dataset, model, tmp_path, capsys, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    monkeypatch.setattr(detector, "open_model", lambda *_, **__: pytest.fail("opened"))
    assert run(dataset(correct()), tmp_path / "out") == 2
    assert "is not empty" in capsys.readouterr().err


def test_where_nothing_is_found_the_usual_threshold_is_used():
    told = errors._threshold(argparse.Namespace(threshold=None), [], 3)
    assert told == (0.5, ", as no object is found at any")


def test_a_checkpoint_that_has_learnt_nothing(dataset, tmp_path, capsys):
    config = tiny_config(model={"num_classes": 3})
    save_weights(
        tmp_path / "best",
        init_variables(config.model, jax.random.key(0)),
        Metadata(config, rectangles.CLASSES.names, rectangles.CLASSES.ids),
    )
    out = tmp_path / "out"
    options = ["--data", str(dataset(correct())), "--out", str(out), "--threshold", "0.9"]
    assert main(["errors", str(tmp_path / "best"), *options]) == 0
    rows = table(out)
    assert [row["fault"] for row in rows] == ["missed"] * 6
    areas = [float(row["annotated_width_px"]) * float(row["annotated_height_px"]) for row in rows]
    assert areas == sorted(areas, reverse=True)
    assert "detections count from score 0.9 on" in capsys.readouterr().out
