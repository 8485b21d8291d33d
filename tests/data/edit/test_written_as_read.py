"""What is written is read again as it was; what a format cannot hold is refused or told when it is written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dfine_jax.cli import main
from dfine_jax.data.edit.items import read_items
from dfine_jax.data.edit.repair import repair_dataset
from dfine_jax.data.formats.write import FORMATS, write
from dfine_jax.data.read.dataset import check_same_categories
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.errors import UserError

CLASSES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))


def thing(number=1, category=1, **fields):
    return {"id": number, "image_id": 1, "category_id": category, "bbox": [10 * number, 5, 20, 20], **fields}


def split(root, name, annotations, categories=CLASSES, picture="0.png"):
    folder = root / name
    (folder / picture).parent.mkdir(parents=True, exist_ok=True)
    with open(folder / picture, "wb") as stream:
        Image.new("RGB", (64, 48)).save(stream, "PNG")
    images = [{"id": 1, "file_name": picture, "width": 64, "height": 48}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def objects(data, name="train"):
    read = read_dataset(data, name)
    return {
        read.names[label]: box.tolist()
        for r in read.records
        for label, box in zip(r.labels, r.boxes_xyxy_px, strict=True)
    }


@pytest.mark.parametrize("form", ["cvat", "labelme"])
def test_a_mask_that_does_not_fit_its_box_is_not_written(tmp_path, form):
    corner, within = np.zeros((2, 48, 64), np.uint8)
    corner[:5, :5], within[5:25, 10:30] = 1, 1
    for mask, size, told in ((corner, None, "do not fit"), (within, [64, 48], "of another size"), (within, None, "")):
        encoded = coco_mask.encode(np.asfortranarray(mask))
        segmentation = {"size": size or encoded["size"], "counts": encoded["counts"].decode()}
        data = split(tmp_path / f"data{told}", "train", [thing(segmentation=segmentation)])
        notes = write(read_items(data), form, tmp_path / f"out{told}", None)
        assert any(told in kind for kind in notes.places) if told else "box" not in str(notes)
        assert objects(tmp_path / f"out{told}") == {"cat": [10, 5, 30, 25]}


@pytest.mark.parametrize("names", [("cat", "cat "), ("a b", "a\nb")])
def test_classes_that_differ_in_blanks_only_are_refused_and_joined_by_repair(tmp_path, names):
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    data = split(tmp_path / "data", "train", [thing(1, 1), thing(2, 2)], categories)
    with pytest.raises(UserError, match="two categories are called .*--repair OUT cures it"):
        read_items(data)
    repair_dataset(data, tmp_path / "out")
    assert read_dataset(tmp_path / "out", "train").names == (names[0],)
    assert len(read_dataset(tmp_path / "out", "train").records[0].labels) == 2


@pytest.mark.parametrize("form", FORMATS)
def test_names_are_read_again_as_they_were_read(tmp_path, form):
    categories = [{"id": 1, "name": " cat\n "}, {"id": 2, "name": "<dög>&'\" x"}]
    data = split(tmp_path / "data", "train", [thing(1, 1), thing(2, 2)], categories)
    assert list(objects(data)) == ["cat", "<dög>&'\" x"]
    write(read_items(data), form, tmp_path / "out", "copy")
    assert objects(tmp_path / "out") == objects(data)


def test_what_would_not_be_read_again_is_refused(tmp_path):
    data = split(tmp_path / "control", "train", [thing()], [{"id": 1, "name": "a\x01"}])
    with pytest.raises(UserError, match=r"class 'a\\x01' has control characters, which voc cannot hold"):
        write(read_items(data), "voc", tmp_path / "out", None)
    unfit = (("frame1", "does not end like a picture's"), (".2.png", "is hidden"), ("x/.y/2.png", ""))
    for count, (name, why) in enumerate(unfit):
        data = split(tmp_path / f"data{count}", "train", [thing()], picture=name)
        if why:
            with pytest.raises(UserError, match=why):
                write(read_items(data), "yolo", tmp_path / "out", None)
        write(read_items(data), "coco", tmp_path / f"coco{count}", "copy")
        assert len(objects(tmp_path / f"coco{count}")) == 1
    data = split(tmp_path / "empty", "train", [])
    with pytest.raises(UserError, match="no picture has an object"):
        write(read_items(data), "via", tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_a_split_without_pictures_does_not_spoil_the_others(tmp_path, form):
    data = split(split(tmp_path / "data", "train", [thing()]), "valid", [])
    file = data / "valid/_annotations.coco.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"images": []}))
    notes = write(read_items(data), form, tmp_path / "out", None)
    assert ("splits without pictures cannot be held" in notes.places) == (form != "coco")
    assert objects(tmp_path / "out") == {"cat": [10, 5, 30, 25]}


def test_repair_gives_the_splits_the_same_numbers_by_name(tmp_path):
    data = split(tmp_path / "data", "train", [thing(1, 1), thing(2, 2)])
    swapped = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "cow"}]
    split(data, "valid", [thing(1, 1), thing(2, 2), thing(3, 3)], swapped)
    repairs, _ = repair_dataset(data, tmp_path / "out")
    told = repairs["val"].changes.places["categories were numbered as in the other splits, by name"]
    assert told == ["dog: 1 is 2", "cat: 2 is 1"]
    assert repairs["train"].changes.places == {"categories of other splits were listed, too": ["cow"]}
    check_same_categories(read_dataset(tmp_path / "out", "train"), read_dataset(tmp_path / "out", "val"))
    assert objects(tmp_path / "out") == {"cat": [10, 5, 30, 25], "dog": [20, 5, 40, 25]}
    assert objects(tmp_path / "out", "val") == {"dog": [10, 5, 30, 25], "cat": [20, 5, 40, 25], "cow": [30, 5, 50, 25]}


def test_pictures_of_several_splits_are_divided_once(tmp_path, capsys):
    for number in range(6):
        (tmp_path / "data/images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/labels").mkdir(exist_ok=True)
        Image.new("RGB", (64, 48)).save(tmp_path / f"data/images/{number}.png")
        (tmp_path / f"data/labels/{number}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (tmp_path / "data/data.yaml").write_text("train: images\nval: images\nnames: [cat]\n")
    assert main(["data", "split", "--data", str(tmp_path / "data"), "--anew", "--out", str(tmp_path / "out")]) == 0
    assert "6 pictures are in several splits; they are taken once" in capsys.readouterr().out
    read = [read_dataset(tmp_path / "out", name) for name in ("train", "val")]
    assert sorted(r.path.name for data in read for r in data.records) == [f"{number}.png" for number in range(6)]
