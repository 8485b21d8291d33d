"""``dfine data split`` and ``dfine data convert``: shares, classes, groups, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfine_jax import cli
from dfine_jax.data.edit.items import Item
from dfine_jax.data.edit.splitting import divide, parse_shares
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path_factory.mktemp("cache")))


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, standard output, standard error; argparse ends the process itself."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def flat(root: Path, count: int = 20, names=lambda i: f"cam{i % 4}_{i:03d}.png") -> Path:
    """A COCO JSON file beside its pictures, in no split; every fifth picture has a dog, too."""
    root.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(1, count + 1):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        (root / names(number)).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / names(number))
        images.append({"id": 10 * number, "file_name": names(number), "width": 64, "height": 48, "licence": number})
        for category in [5] * (number % 3) + [9] * (number % 5 == 0):
            box = [len(annotations) % 30, 8, 12, 10]
            entry = {"id": 100 + len(annotations), "image_id": 10 * number, "category_id": category, "bbox": box}
            annotations.append({**entry, "iscrowd": 0, "area": 77, "attributes": {"x": 1}})
    categories = [{"id": 5, "name": "cat", "supercategory": "pet"}, {"id": 9, "name": "dog"}]
    file = root / "labels.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def test_split(tmp_path, capsys):
    file = flat(tmp_path / "flat")
    before = sorted(tmp_path.rglob("*"))
    arguments = ("data", "split", "--data", file, "--shares", "0.6/0.2/0.2", "--seed", 3, "--out")
    status, out, _ = run(capsys, *arguments, tmp_path / "new")
    assert status == 0 and "pictures" in out and f"written: {tmp_path / 'new'}" in out
    parts = {split: read_dataset(tmp_path / "new", split) for split in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [12, 4, 4]
    dogs = [sum(1 in r.labels for r in part.records) for part in parts.values()]
    assert dogs == [2, 1, 1] and sum(dogs) == 4
    places = [record.path.resolve() for part in parts.values() for record in part.records]
    assert len(set(places)) == 20 and all(place.parent == tmp_path / "flat" for place in places)
    content = json.loads((tmp_path / "new" / "train" / "_annotations.coco.json").read_text())
    assert content["categories"][0] == {"id": 5, "name": "cat", "supercategory": "pet"}
    assert all(a["attributes"] == {"x": 1} and a["area"] == 77 for a in content["annotations"])
    assert all(image["licence"] for image in content["images"])
    assert [p for p in sorted(tmp_path.rglob("*")) if "new" not in p.parts] == before

    run(capsys, *arguments, tmp_path / "same")
    files = [tmp_path / name / "val" / "_annotations.coco.json" for name in ("new", "same")]
    assert files[0].read_bytes() == files[1].read_bytes()
    run(capsys, *arguments[:-2], 4, "--out", tmp_path / "other")
    assert (tmp_path / "other" / "val" / "_annotations.coco.json").read_bytes() != files[0].read_bytes()


@pytest.mark.parametrize("option", ["--copy", "--link"])
def test_split_with_pictures(tmp_path, capsys, option):
    file = flat(tmp_path / "flat", 6)
    assert run(capsys, "data", "split", "--data", file, "--out", tmp_path / "new", option)[0] == 0
    assert len(list((tmp_path / "new").rglob("*.png"))) == 6
    if option == "--copy":
        file.unlink()
        (tmp_path / "flat").rename(tmp_path / "gone")
    dataset = read_dataset(tmp_path / "new", "train")
    assert len(dataset) == 5 and all(record.path.parent == tmp_path / "new" / "train" for record in dataset.records)


def test_groups_stay_together(tmp_path, capsys):
    file = flat(tmp_path / "flat")
    arguments = ("data", "split", "--data", file, "--val", 0.25, "--out")
    status, out, _ = run(capsys, *arguments, tmp_path / "new", "--group", r"^(cam\d)_")
    assert status == 0 and "4 groups of pictures; 0 pictures in no group" in out
    cameras = [
        {record.path.name[:4] for record in read_dataset(tmp_path / "new", split).records} for split in ("train", "val")
    ]
    assert len(cameras[0]) == 3 and len(cameras[1]) == 1 and not cameras[0] & cameras[1]
    status, out, _ = run(capsys, *arguments, tmp_path / "folders", "--group", r"cam0_")
    assert status == 0 and "1 groups of pictures; 15 pictures in no group" in out
    for pattern, message in (("(", "is no regular expression"), ("patient", "finds nothing in names such as")):
        status, _, err = run(capsys, *arguments, tmp_path / "bad", "--group", pattern)
        assert status == 2 and message in err and not (tmp_path / "bad").exists()
    status, _, err = run(capsys, *arguments, tmp_path / "bad", "--group", "cam")
    assert status == 2 and "1 pictures or groups of pictures cannot be divided into 2 splits" in err


def test_splits_that_are_there(tmp_path, capsys):
    file = flat(tmp_path / "flat")
    run(capsys, "data", "split", "--data", file, "--out", tmp_path / "one", "--test", 0.2)
    assert [len(read_dataset(tmp_path / "one", split)) for split in ("train", "test")] == [16, 4]
    arguments = ("data", "split", "--data", tmp_path / "one", "--val", 0.25, "--out", tmp_path / "two")
    assert run(capsys, *arguments)[0] == 0  # the test split stays
    assert [len(read_dataset(tmp_path / "two", split)) for split in ("train", "val", "test")] == [12, 4, 4]
    names = [{r.path.name for r in read_dataset(tmp_path / name, "test").records} for name in ("one", "two")]
    assert names[0] == names[1]
    status, _, err = run(capsys, "data", "split", "--data", tmp_path / "two", "--out", tmp_path / "three")
    assert status == 2 and "has the splits train, val, test; --anew divides" in err
    assert run(capsys, "data", "split", "--data", tmp_path / "two", "--out", tmp_path / "three", "--anew")[0] == 0
    assert [len(read_dataset(tmp_path / "three", split)) for split in ("train", "val")] == [16, 4]
    arguments = ("data", "split", "--data", tmp_path / "one", "--shares", "8/1/1", "--out", tmp_path / "four")
    status, _, err = run(capsys, *arguments)
    assert status == 2 and "has a test split, which stays" in err


def test_convert(tmp_path, capsys):
    file = flat(tmp_path / "flat", 4, lambda i: f"{i % 2}/{i // 2}.png")
    arguments = ("data", "convert", "--data", file, "--to", "yolo", "--out", tmp_path / "yolo")
    status, out, _ = run(capsys, *arguments)
    assert status == 0 and f"written: {tmp_path / 'yolo'}" in out
    assert len(read_dataset(tmp_path / "yolo", "train")) == 4
    status, _, err = run(capsys, *arguments)
    assert status == 2 and "is not empty; choose another name" in err
    status, out, _ = run(
        capsys, "data", "convert", "--data", tmp_path / "yolo", "--to", "voc", "--out", tmp_path / "voc", "--copy"
    )
    assert status == 0 and "pictures were renamed" not in out
    assert sorted(p.name for p in (tmp_path / "voc" / "JPEGImages").iterdir()) == [
        "0_1.png", "0_2.png", "1_0.png", "1_1.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["split", "--shares", "0.8"], "--shares 0.8: write shares of train"),
        (["split", "--shares", "a/b"], "--shares a/b: write shares"),
        (["split", "--shares", "1/1", "--val", "0.1"], "give --shares, or --val and --test, not both"),
        (["split", "--val", "1.2"], "shares must be above 0 and below 1"),
        (["split", "--val", "0.6", "--test", "0.4"], "shares must be above 0"),
        (["split", "--val", "0"], "shares must be above 0"),
        (["convert", "--to", "pascal"], "invalid choice: 'pascal'"),
        (["convert"], "the following arguments are required: --to"),
        (["splt"], "invalid choice: 'splt'"),
        ([], "required: ACTION"),
    ],
)
def test_wrong_arguments(tmp_path, capsys, arguments, message):
    file = flat(tmp_path / "flat", 3)
    action, rest = arguments[:1], arguments[1:]
    more = ["--data", file, "--out", tmp_path / "new"] if action in (["split"], ["convert"]) else []
    status, out, err = run(capsys, "data", *action, *more, *rest)
    assert status == 2 and message in err and err.count("\n") == 1 and not (tmp_path / "new").exists()


def items(rows) -> list[Item]:
    """Pictures with objects of the classes of each row."""
    return [Item(Path(f"/{i}.png"), (9, 9), [{"category_id": c} for c in row], {}) for i, row in enumerate(rows)]


@pytest.mark.parametrize("seed", range(5))
def test_every_class_has_its_share(seed):
    rng = np.random.default_rng(seed)
    chances = np.array([0.6, 0.3, 0.1, 0.05, 0.02])
    rows = [np.flatnonzero(rng.random(5) < chances).tolist() for _ in range(1000)]
    pictures = items(rows)
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    parts = divide(pictures, shares, seed, [str(p.path) for p in pictures])
    assert sum(map(len, parts.values())) == 1000
    for name, share in shares.items():
        assert abs(len(parts[name]) - 1000 * share) <= 5
        for category in range(5):
            total = sum(category in row for row in rows)
            own = sum(any(a["category_id"] == category for a in p.annotations) for p in parts[name])
            assert abs(own - total * share) <= max(2, 0.1 * total * share), (name, category)
    assert parts == divide(pictures, shares, seed, [str(p.path) for p in pictures])


def test_small_sets():
    assert [len(part) for part in divide(items([[0]] * 2), {"train": 0.8, "val": 0.2}, 0, "ab").values()] == [1, 1]
    parts = divide(items([[0], [0], [1], []]), {"train": 0.5, "val": 0.25, "test": 0.25}, 0, "abcd")
    assert all(parts.values())
    with pytest.raises(UserError, match="1 pictures or groups"):
        divide(items([[0], [0]]), {"train": 0.8, "val": 0.2}, 0, "aa")
    assert parse_shares("80/20", None, None) == {"train": 0.8, "val": 0.2}
    assert parse_shares(None, None, None) == {"train": 0.8, "val": 0.2}
    assert parse_shares(None, None, 0.25) == {"train": 0.75, "test": 0.25}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seed", "-1"), "--seed -1 must be 0 or more"),
        (("--shares", "0.5/0.6"), "--shares 0.5/0.6: the shares sum to 1.1; they must sum to 1 (or to 100)"),
        (("--shares", "0.5/0.2/0.1"), "the shares sum to 0.8"),
    ],
)
def test_shares_and_seeds_that_cannot_be(tmp_path, capsys, arguments, message):
    file = flat(tmp_path / "flat", count=4)
    status, _, err = run(capsys, "data", "split", "--data", file, "--out", tmp_path / "new", *arguments)
    assert status == 2 and message in err and not (tmp_path / "new").exists()
