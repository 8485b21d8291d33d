"""``dfine check --repair`` and ``dfine data`` on annotations that are broken in many ways."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfine_jax import cli
from dfine_jax.data.edit import repair
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def healthy(root: Path, count: int = 6) -> dict:
    """A set with ``train`` and ``val``; returns the content of train."""
    contents = {}
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            pixels = np.random.default_rng((number, len(split))).integers(0, 256, (48, 64, 3), np.uint8)
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
            for position in range(3):
                box = [5 + 10 * position, 8 + position, 12, 10]
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + position % 2, "bbox": box}
                annotations.append({**entry, "iscrowd": 0, "area": 120})
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        contents[split] = {"info": {"year": 2024}, "images": images, "annotations": annotations}
        contents[split]["categories"] = categories
        write(root, contents[split], split)
    return contents["train"]


def write(root: Path, content: dict, split: str = "train", encoding: str = "utf-8") -> Path:
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content), encoding=encoding)
    return file


def broken(root: Path) -> dict:
    """The set with more than twelve faults in its training split."""
    content = healthy(root)
    annotations, images = content["annotations"], content["images"]
    annotations[17]["id"] = 17  # 1: two annotations of one number
    annotations[0]["bbox"] = [-6, -4, 20, 20]  # 2: beyond the picture
    annotations[1]["bbox"] = [10, 10, 0, 8]  # 3: no area
    annotations[2]["bbox"] = [70, 10, 9, 9]  # 3: outside
    annotations[3]["iscrowd"] = "0"  # 4: a flag in words
    annotations[4]["iscrowd"] = True
    annotations[5]["area"] = -1  # 5: areas that cannot be
    annotations[6]["area"] = "many"
    annotations.append({**annotations[7], "id": 90})  # 6: an exact repeat
    images.append({"id": 40, "file_name": "lost.png", "width": 64, "height": 48})  # 7: a picture that is not there
    annotations.append({"id": 91, "image_id": 40, "category_id": 1, "bbox": [1, 1, 9, 9]})
    annotations.append({"id": 92, "image_id": 777, "category_id": 1, "bbox": [1, 1, 9, 9]})  # 8: of no picture
    content["categories"][0]["name"] = " cat "  # 9: blanks around a name
    (root / "train" / "cut.png").write_bytes((root / "train" / "1.png").read_bytes()[:500])  # 10: a damaged picture
    images.append({"id": 41, "file_name": "cut.png", "width": 64, "height": 48})
    annotations.append({"id": 93, "image_id": 41, "category_id": 1, "bbox": [1, 1, 9, 9]})
    annotations[8]["image_id"] = "3"  # 11: numbers in quotes
    images[4]["id"] = "5"
    annotations[9]["bbox"] = ["5", "8.0", 12, 10]
    annotations[10]["bbox"] = []  # 12: no box
    annotations[11] |= {"bbox": None, "segmentation": [[10, 10, 30, 10, 30, 20, 10, 20]]}
    annotations[12]["segmentation"] = [[1, 2, 3]]  # 13: an outline of no area
    del images[1]["width"]  # 14: no size
    images.append({**images[0], "id": 42})  # 15: a picture listed twice
    annotations.append({"id": 94, "image_id": 42, "category_id": 2, "bbox": [30, 30, 9, 9], "score": 1})
    annotations[13]["bbox"] = [1, 2, float("nan"), 4]  # 16: not a number
    return content


CURED = (
    "1 files in another encoding, or with a byte order mark, were written as UTF-8",
    "annotations were numbered anew",
    "1 boxes were cut at the border of the picture",
    "2 boxes without area in the picture were left out",
    "2 flags iscrowd were made 0 or 1",
    "2 areas that cannot be were computed",
    "1 annotations that repeat another exactly were left out",
    "1 images that do not exist were left out",
    "2 annotations of images that were left out went with them",
    "1 annotations of images that are not listed were left out",
    "1 names of categories were trimmed or made text",
    "1 pictures that cannot be used were left out",
    "1 references of annotations were made whole numbers",
    "images were numbered anew",
    "1 coordinates were made numbers",
    "2 annotations without a box were left out",
    "1 boxes were made from outlines",
    "1 masks that are none, or parts of them, were removed",
    "1 sizes of images were taken from the files",
    "1 pictures listed more than once were joined",
)


def test_a_set_broken_in_many_ways(tmp_path, capsys):
    root = tmp_path / "cells"
    content = broken(root)
    file = write(root, content, encoding="utf-8-sig")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(UserError):
        read_dataset(root, "train")
    status, out, err = run(capsys, "check", "--data", root)
    assert status == 2 and f"dfine check --data {root} --repair OUT" in err and "\n" not in err.strip()

    status, out, _ = run(capsys, "check", "--data", root, "--repair", tmp_path / "new")
    assert status == 0, out
    for line in CURED:
        assert line in out
    assert "val: 6 images, 18 annotations" in out and "nothing was wrong" in out and "NOT CURED" not in out
    assert "read again without complaint" in out
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before and file.exists()
    changes = (tmp_path / "new" / "changes.txt").read_text()
    assert "lost.png" in changes and "cut.png" in changes and "[-6, -4, 20, 20]" in changes

    repaired = json.loads((tmp_path / "new" / "train" / "_annotations.coco.json").read_text())
    assert repaired["info"] == {"year": 2024}
    assert [c["name"] for c in repaired["categories"]] == ["cat", "dog"]
    ids = [a["id"] for a in repaired["annotations"]]
    assert len(set(ids)) == len(ids) == 15 and len(repaired["images"]) == 6
    assert all(type(a["iscrowd"]) is int for a in repaired["annotations"] if "iscrowd" in a)
    dataset = read_dataset(tmp_path / "new", "train")
    assert str(dataset.changes) == "1 crowd regions dropped"
    first = next(r for r in dataset.records if r.path.name == "1.png")
    np.testing.assert_array_equal(first.boxes_xyxy_px, [[0, 0, 14, 16], [30, 30, 39, 39]])
    fourth = next(r for r in dataset.records if r.path.name == "4.png")
    assert [10, 10, 30, 20] in fourth.boxes_xyxy_px.tolist()

    status, out, err = run(capsys, "check", "--data", tmp_path / "new", "--out", tmp_path / "pictures")
    assert status == 0 and "error:" not in out
    status, out, _ = run(capsys, "check", "--data", tmp_path / "new", "--repair", tmp_path / "again")
    assert out.count("nothing was wrong") == 2, out


def test_the_tools_take_what_was_repaired(tmp_path, capsys):
    root = tmp_path / "cells"
    write(root, broken(root))
    assert run(capsys, "data", "convert", "--data", root, "--to", "yolo", "--out", tmp_path / "yolo")[0] == 2
    assert not (tmp_path / "yolo").exists()
    assert run(capsys, "check", "--data", root, "--repair", tmp_path / "new")[0] == 0
    status, out, _ = run(
        capsys, "data", "convert", "--data", tmp_path / "new", "--to", "yolo", "--out", tmp_path / "yolo"
    )
    assert status == 0 and "1 crowd regions cannot be held; they are left out" in out
    assert len(read_dataset(tmp_path / "yolo", "train")) == 6
    status, out, _ = run(
        capsys, "data", "split", "--data", tmp_path / "new", "--out", tmp_path / "split", "--val", 0.25, "--anew"
    )
    assert status == 0
    sizes = [len(read_dataset(tmp_path / "split", split)) for split in ("train", "val")]
    assert sizes == [9, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["annotations"][0].update(category_id=9),
            "annotations are of categories that the file does not list",
        ),
        (lambda c: c["annotations"][0].update(iscrowd="perhaps"), "flags iscrowd mean nothing"),
        (lambda c: c["categories"].append({"id": 2, "name": "cow"}), "categories share an id with another"),
    ],
)
def test_what_only_a_person_knows_is_left_and_told(tmp_path, capsys, change, message):
    content = healthy(tmp_path / "cells")
    change(content)
    content["annotations"][5]["area"] = -3
    write(tmp_path / "cells", content)
    status, out, _ = run(capsys, "check", "--data", tmp_path / "cells", "--repair", tmp_path / "new")
    assert status == 1 and f"NOT CURED: 1 {message}" in out and "cured: 1 areas that cannot be were computed" in out
    assert "what is not cured needs a decision of yours" in out


@pytest.mark.parametrize(
    ("change", "message", "images", "annotations"),
    [
        (lambda c: c["images"][1].update(id=1), "2 images share an id with another", 4, 12),
        (lambda c: c["categories"][1].update(name="cat "), "1 categories of the same name were joined", 6, 18),
        (lambda c: c["categories"][1].update(id="2"), "1 ids of categories were made whole numbers", 6, 18),
        (lambda c: c["categories"][1].update(name=8), "1 names of categories were trimmed or made text", 6, 18),
        (lambda c: c["images"][1].update(width=99), "1 pictures that cannot be used were left out", 5, 15),
        (lambda c: c["images"].append("x"), "1 images without id or file_name were left out", 6, 18),
        (lambda c: c["annotations"].append(None), "1 annotations that are no objects were left out", 6, 18),
        (lambda c: c["annotations"][3].update(id="4"), "1 annotations were numbered anew", 6, 18),
        (lambda c: c["images"][3].update(id=4.0), "1 images were numbered anew", 6, 18),
        (lambda c: [a.pop("id") for a in c["annotations"]], "18 annotations were numbered anew", 6, 18),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 10**400, 4]), "1 annotations without a box", 6, 17),
        (lambda c: c["annotations"][0].update(area=10**400), "1 areas that cannot be were computed", 6, 18),
        (lambda c: c["annotations"][0].update(area=float("nan")), "1 areas that cannot be were computed", 6, 18),
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [9, 9], "counts": "x"}),
            "1 masks that are none, or parts of them, were removed",
            6,
            18,
        ),
        (
            lambda c: c["images"][0].update(file_name="a/2.png"),
            "2 images of different folders led to one file and were left out",
            4,
            12,
        ),
    ],
)
def test_other_faults(tmp_path, capsys, change, message, images, annotations):
    content = healthy(tmp_path / "cells")
    if "different folders" in message:
        content["images"][1]["file_name"] = "b/2.png"
    change(content)
    write(tmp_path / "cells", content)
    status, out, _ = run(capsys, "check", "--data", tmp_path / "cells", "--repair", tmp_path / "new")
    assert status == 0 and f"cured: {message}" in out, out
    dataset = read_dataset(tmp_path / "new", "train")
    assert len(dataset) == images and sum(len(r.labels) for r in dataset.records) == annotations


def test_a_single_file(tmp_path, capsys):
    content = healthy(tmp_path / "cells")
    content["annotations"][0]["area"] = "x"
    for image in content["images"]:
        image["file_name"] = f"cells/train/{image['file_name']}"
    (tmp_path / "mine.json").write_text(json.dumps(content))
    arguments = ("check", "--data", tmp_path / "mine.json", "--repair")
    status, out, _ = run(capsys, *arguments, tmp_path / "sub" / "fixed.json")
    assert status == 0 and "cured: 1 areas" in out
    assert sorted(p.name for p in (tmp_path / "sub").iterdir()) == ["fixed.changes.txt", "fixed.json"]
    assert len(read_dataset(tmp_path / "sub" / "fixed.json", "train")) == 6
    for out_path in (tmp_path / "sub" / "fixed.json", tmp_path / "mine.json", tmp_path / "cells"):
        before = copy.deepcopy(sorted(tmp_path.rglob("*")))
        status, _, err = run(capsys, *arguments, out_path)
        assert status == 2 and "nothing is overwritten" in err
        assert sorted(tmp_path.rglob("*")) == before
    status, _, err = run(capsys, "check", "--data", tmp_path / "cells", "--repair", tmp_path / "two.json")
    assert status == 2 and "has the splits train, val; name a folder" in err
    status, _, err = run(capsys, *arguments, tmp_path / "x", "data.augment=dense")
    assert status == 2 and "--repair only writes annotations" in err


def test_labels_of_yolo(tmp_path, capsys):
    root = tmp_path / "set"
    lines = {"a": "0 0.5 0.5 0.4 0.4\n0 0.5 0.5 0.4 0.4\n", "b": "1 0.9 0.5 0.4 0.4", "c": "0 nan 0.5 0.4 0.4"}
    for stem, text in lines.items():
        for folder in ("images", "labels"):
            (root / folder / "train").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (len(stem), 9, 9)).save(root / "images" / "train" / f"{stem}.png")
        (root / "labels" / "train" / f"{stem}.txt").write_text(text)
    (root / "data.yaml").write_text("train: images/train\nnames: [cat, ' dog ']\n")
    status, out, _ = run(capsys, "check", "--data", root, "--repair", tmp_path / "new")
    assert status == 1, out  # the line that is no number is for a person
    for line in (
        "cured: 1 class names had blanks around them",
        "cured: 1 annotations that repeat another exactly",
        "cured: 1 boxes were cut",
        "NOT CURED: 1 entries that reading refuses were left out",
    ):
        assert line in out
    (root / "labels" / "train" / "c.txt").write_text("")
    assert run(capsys, "check", "--data", root, "--repair", tmp_path / "newer")[0] == 0
    dataset = read_dataset(tmp_path / "newer", "train")
    assert dataset.names == ("cat", "dog") and [len(r.labels) for r in dataset.records] == [1, 1, 0]


def test_what_cannot_be_repaired_is_said(tmp_path, capsys):
    healthy(tmp_path / "cells")
    file = write(tmp_path / "cells", {"images": [], "annotations": []})
    status, _, err = run(capsys, "check", "--data", tmp_path / "cells", "--repair", tmp_path / "new")
    assert status == 2 and "no list 'categories'; this cannot be repaired" in err and not (tmp_path / "new").exists()
    file.write_text("{")
    status, _, err = run(capsys, "check", "--data", tmp_path / "cells", "--repair", tmp_path / "new")
    assert status == 2 and "is not JSON" in err
    status, _, err = run(capsys, "check", "--data", tmp_path / "nothing", "--repair", tmp_path / "new")
    assert status == 2 and "nothing does not exist" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells"]


@pytest.mark.parametrize("form", ["yolo", "voc", "labelme", "via", "cvat", "labelstudio"])
def test_every_format_becomes_coco_json(tmp_path, capsys, form):
    healthy(tmp_path / "cells")
    arguments = ("data", "convert", "--data", tmp_path / "cells", "--to", form, "--out", tmp_path / form, "--copy")
    assert run(capsys, *arguments)[0] == 0
    pictures = sorted((tmp_path / form).rglob("*.png"))
    damaged, lost = pictures[0], pictures[1]
    damaged.write_bytes(damaged.read_bytes()[:500])
    lost.unlink()
    status, out, _ = run(capsys, "check", "--data", tmp_path / form, "--repair", tmp_path / "new")
    assert status == 0 and "cured: 1 pictures that cannot be used were left out" in out, out
    kind = "label files have no picture" if form == "yolo" else "annotated pictures that do not exist were left out"
    assert f"cured: 1 {kind}" in out
    datasets = [read_dataset(tmp_path / "new", split) for split in ("train", "val")]
    assert sum(map(len, datasets)) == 10 and all(len(r.labels) == 3 for d in datasets for r in d.records)
    theirs = {r.path.name: r.boxes_xyxy_px.tolist() for r in read_dataset(tmp_path / "cells", "train").records}
    for record in datasets[0].records:
        np.testing.assert_allclose(record.boxes_xyxy_px, theirs[record.path.name], atol=1e-3)


def test_fractions_are_not_called_cured(tmp_path, capsys):
    content = healthy(tmp_path / "cells")
    for entry in content["annotations"]:
        entry["bbox"] = [0.1, 0.2, 0.3, 0.4]
    write(tmp_path / "cells", content)
    status, out, _ = run(capsys, "check", "--data", tmp_path / "cells", "--repair", tmp_path / "new")
    assert status == 1 and "NOT CURED: 1 splits have boxes that are fractions of the picture; multiply x" in out


def test_blanks_around_picture_names_are_counted(tmp_path, capsys):
    content = healthy(tmp_path / "cells")
    content["images"][0]["file_name"] = " 1.png "
    write(tmp_path / "cells", content)
    status, out, _ = run(capsys, "check", "--data", tmp_path / "cells", "--repair", tmp_path / "new")
    assert status == 0 and "cured: 1 names of pictures had blanks around them, which were removed" in out


def test_no_picture_left_is_not_called_cured(tmp_path, capsys):
    healthy(tmp_path / "cells")
    for file in (tmp_path / "cells" / "train").glob("*.png"):
        file.unlink()
    status, out, _ = run(capsys, "check", "--data", tmp_path / "cells", "--repair", tmp_path / "new")
    assert status == 1 and "NOT CURED: 1 splits have no picture left" in out


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, capsys, monkeypatch):
    healthy(tmp_path / "cells")
    write_whole = repair.write_whole

    def full(path, text):
        if path.suffix == ".json":
            raise UserError(f"{path}: No space left on device")
        write_whole(path, text)

    monkeypatch.setattr(repair, "write_whole", full)
    file = tmp_path / "cells" / "annotations" / "instances_train.json"
    file = file.rename(tmp_path / "cells" / "train" / "mine.json")
    status, _, err = run(capsys, "check", "--data", file, "--repair", tmp_path / "out" / "new.json")
    assert status == 2 and "No space left" in err and not list((tmp_path / "out").iterdir())


def test_corners_are_found_and_not_cut(tmp_path, capsys):
    content = healthy(tmp_path / "cells")
    for entry in content["annotations"]:
        entry["bbox"] = [20 + entry["id"], 20, 25 + 2 * entry["id"], 40]
    write(tmp_path / "cells", content)
    status, out, _ = run(capsys, "check", "--data", tmp_path / "cells", "--out", tmp_path / "pictures")
    assert status == 1 and "error: 18 boxes look like corners x1 y1 x2 y2; COCO's are x y width height" in out
    status, out, _ = run(capsys, "check", "--data", tmp_path / "cells", "--repair", tmp_path / "new")
    assert status == 1 and "NOT CURED: 1 splits have boxes that look like corners" in out
