"""Errors of reading end with the command that cures the matter, with the dataset's own name, and only where it does."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfine_jax import cli
from dfine_jax.data.edit.items import read_items
from dfine_jax.data.edit.repair import repair_dataset
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.errors import RepairableError, UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))


def picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(file))).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(file)


def coco(root: Path, change=lambda content: None) -> Path:
    images, annotations = [], []
    for number in (1, 2, 3):
        picture(root / "train" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
        entry = {"id": number, "image_id": number, "category_id": 1, "bbox": [5, 5, 20, 10], "area": 200}
        annotations.append({**entry, "iscrowd": 0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    change(content)
    (root / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    return root


CURED = {
    "annotation id twice": lambda c: c["annotations"][0].update(id=2),
    "annotation id as text": lambda c: c["annotations"][0].update(id="one"),
    "annotation of no image": lambda c: c["annotations"][0].update(image_id=77),
    "annotation without image": lambda c: c["annotations"][0].pop("image_id"),
    "annotation of a list": lambda c: c["annotations"][0].update(image_id=[1]),
    "box as texts": lambda c: c["annotations"][0].update(bbox=["5", "5", "20", "10"]),
    "box of three": lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
    "no box": lambda c: c["annotations"][0].pop("bbox"),
    "class as text": lambda c: c["annotations"][0].update(category_id="1"),
    "image id twice": lambda c: c["images"][1].update(id=1),
    "image id as text": lambda c: c["images"][0].update(id="1"),
    "picture twice": lambda c: c["images"].append({**c["images"][0], "id": 9}),
    "picture missing": lambda c: c["images"][0].update(file_name="gone.png"),
    "picture without name": lambda c: c["images"][0].pop("file_name"),
    "class id as text": lambda c: c["categories"][0].update(id="1"),
    "class without name": lambda c: c["categories"][0].pop("name"),
    "class twice": lambda c: c["categories"].append(dict(c["categories"][0])),
    "class name twice": lambda c: c["categories"].append({"id": 5, "name": "cat"}),
}
NOT_CURED = {
    "unlisted class": lambda c: c["annotations"][0].update(category_id=7),
    "no class": lambda c: c["annotations"][0].pop("category_id"),
    "flag that means nothing": lambda c: c["annotations"][0].update(iscrowd=2),
    "class without id": lambda c: (
        c["categories"].append(c["categories"][0].copy())
        or c["categories"][0].pop("id")
        and c["categories"][1].update(id=2, name="dog")
    ),
    "class id of two": lambda c: c["categories"].append({"id": 1, "name": "dog"}),
}


@pytest.mark.parametrize("change", CURED.values(), ids=CURED)
def test_what_repair_cures_names_it(tmp_path, change):
    root = coco(tmp_path / "cells", change)
    with pytest.raises(RepairableError) as caught:
        read_dataset(root, "train")
    assert str(caught.value).endswith(f"; dfine check --data {root} --repair OUT cures it")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    repairs, _ = repair_dataset(root, tmp_path / "new")
    assert not repairs["train"].left.places and repairs["train"].changes.places
    assert len(read_dataset(tmp_path / "new", "train").records) >= 1


@pytest.mark.parametrize("change", NOT_CURED.values(), ids=NOT_CURED)
def test_what_repair_leaves_does_not(tmp_path, change):
    root = coco(tmp_path / "cells", change)
    with pytest.raises(UserError) as caught:
        read_dataset(root, "train")
    assert "--repair" not in str(caught.value)
    repairs, _ = repair_dataset(root, tmp_path / "new")
    assert repairs["train"].left.places


@pytest.mark.parametrize("command", ["train", "evaluate", "check", "split"])
def test_commands_name_the_cure(tmp_path, capsys, command):
    root = coco(tmp_path / "cells", CURED["picture missing"])
    (tmp_path / "model.pth").touch()
    arguments = {
        "train": ["train", "n", "--data", root, "--out", tmp_path / "run", "--dry-run"],
        "evaluate": ["evaluate", tmp_path / "model.pth", "--data", root, "--split", "train"],
        "check": ["check", "--data", root],
        "split": ["data", "split", "--data", root, "--out", tmp_path / "divided"],
    }[command]
    assert cli.main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith(f"(first: gone.png); copy them there or remove them from the file; dfine check --data {root} "
                         "--repair OUT cures it") and "\n" not in said  # fmt: skip


def yolo(root: Path, *lines: str, pictures: str = "images") -> Path:
    for number in (1, 2):
        picture(root / "images" / f"{number}.png")
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{number}.txt").write_text("".join(f"{line}\n" for line in lines))
    (root / "data.yaml").write_text(f"train: {pictures}\nval: {pictures}\nnames: [cat]\n")
    return root


def test_yolo_lines_are_not_cured_but_lists_are(tmp_path):
    with pytest.raises(UserError) as caught:
        read_dataset(yolo(tmp_path / "a", "0 0.5 0.5 0.4 0.4 0.9"), "train")
    assert "--repair" not in str(caught.value)
    root = yolo(tmp_path / "b", "0 0.5 0.5 0.4 0.4", pictures="list.txt")
    (root / "list.txt").write_text("images/1.png\nimages/gone.png\n")
    with pytest.raises(RepairableError, match=f"line 2: images/gone.png.*check --data {root} --repair OUT cures it"):
        read_items(root)


def test_repair_is_not_named_where_it_would_leave_no_picture(tmp_path):
    root = coco(tmp_path / "cells")
    for file in (root / "train").glob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match="3 of 3 images of") as caught:
        read_dataset(root, "train")
    assert "--repair" not in str(caught.value)
    root = yolo(tmp_path / "b", "0 0.5 0.5 0.4 0.4", pictures="list.txt")
    (root / "list.txt").write_text("images/gone.png\n")
    with pytest.raises(UserError, match="1 of 1 listed pictures") as caught:
        read_dataset(root, "train")
    assert "--repair" not in str(caught.value)


def test_outlines_are_counted(tmp_path, caplog):
    read_dataset(yolo(tmp_path / "a", "0 0.5 0.5 0.4 0.4 0.9 0.7", "0 0.5 0.5 0.4 0.4"), "train")
    assert "2 lines with more columns than a box are outlines, for masks; boxes are those around" in caplog.text
    assert f"(first: {tmp_path}/a/labels/1.txt, line 1)" in caplog.text


def test_annotations_that_are_not_utf8_name_the_line(tmp_path):
    root = coco(tmp_path / "cells")
    file = root / "train" / "_annotations.coco.json"
    text = json.dumps(json.loads(file.read_text()), indent=1).replace('"cat"', '"caté"')
    file.write_bytes(text.encode("latin-1"))
    line = text[: text.index("é")].count("\n") + 1
    with pytest.raises(UserError, match=f"json, line {line}: byte 0xe9 is not UTF-8 text; save the file as UTF-8"):
        read_dataset(root, "train")
