"""What is written in a format is read from it again: the same pictures, boxes, classes and outlines."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from outlines import outlines_of
from PIL import Image

from dfine_jax.data.edit.items import read_items
from dfine_jax.data.formats.write import FORMATS, write
from dfine_jax.data.read.dataset import open_record
from dfine_jax.data.read.outlines import Polygons, RunLengths
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Polygons, masks of covered shapes, and a crowd."""
    root = make_shapes_dataset(tmp_path_factory.mktemp("coco"), num_train=8, num_val=3, size_px=64, seed=0)
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"].append(
        {"id": 999, "image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 20], "iscrowd": 1, "area": 600}
    )
    file.write_text(json.dumps(content))
    return root


def objects(record, names):
    """(class, box) of a record."""
    return [(names[label], *box) for label, box in zip(record.labels, record.boxes_xyxy_px.tolist(), strict=True)]


def assert_same(ours, theirs, atol_px):
    # Pascal VOC has one folder for all splits, so that the names of a second split may get its name in front.
    assert [r.path.stem.split("_")[-1] for r in ours.records] == [r.path.stem.split("_")[-1] for r in theirs.records]
    for a, b in zip(ours.records, theirs.records, strict=True):
        first, second = objects(a, ours.names), objects(b, theirs.names)
        assert [row[0] for row in first] == [row[0] for row in second]
        if first:
            np.testing.assert_allclose(np.array([r[1:] for r in first]), [r[1:] for r in second], atol=atol_px)
        np.testing.assert_array_equal(np.asarray(open_record(a)), np.asarray(open_record(b)))


# Boxes of outlines are read as the extent of the outline; the annotated ones are of whole pixels.
ATOL_PX = {"coco": 0, "voc": 1e-3}


@pytest.mark.parametrize("mode", [None, "copy"])
@pytest.mark.parametrize("form", FORMATS)
def test_there_and_back(coco, tmp_path, form, mode):
    notes = write(read_items(coco), form, tmp_path / "out", mode)
    for split in ("train", "val"):
        ours, theirs = read_dataset(tmp_path / "out", split), read_dataset(coco, split)
        assert_same(ours, theirs, ATOL_PX.get(form, 1.0))
        assert set(ours.names) == set(theirs.names)
        crowd_kept = form in ("coco", "voc")
        assert ("pictures were renamed" in str(notes)) == (form == "voc")
        assert ours.changes.crowd == (1 if split == "train" and crowd_kept else 0)
        assert ("crowd regions cannot be held" in str(notes)) != crowd_kept
    copied = [p for p in (tmp_path / "out").rglob("*.jpg") if not p.is_symlink()]
    assert len(copied) == (11 if mode == "copy" else 0)
    # And from there back to COCO: the second way loses nothing more.
    write(read_items(tmp_path / "out"), "coco", tmp_path / "back", None)
    assert_same(read_dataset(tmp_path / "back", "train"), read_dataset(tmp_path / "out", "train"), 1e-3)


def test_pictures_are_copied_where_there_are_no_links(coco, tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(1314, "a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refused)
    write(read_items(coco), "yolo", tmp_path / "out", None)
    copied = [p for p in (tmp_path / "out").rglob("*.jpg") if p.is_file() and not p.is_symlink()]
    assert len(copied) == 11
    assert_same(read_dataset(tmp_path / "out", "train"), read_dataset(coco, "train"), 1.0)


@pytest.mark.parametrize("form", ["coco", "labelme", "cvat", "yolo", "via", "labelstudio"])
def test_outlines_survive_where_the_format_holds_them(coco, tmp_path, form):
    notes = write(read_items(coco), form, tmp_path / "out", None)
    ours, theirs = (read_dataset(root, "train") for root in (tmp_path / "out", coco))

    def kinds(dataset, kind):
        return sum(isinstance(outline, kind) for outline in outlines_of(dataset))

    assert kinds(ours, Polygons) == kinds(theirs, Polygons) > 0
    holds_masks = form in ("coco", "labelme", "cvat")
    assert kinds(theirs, RunLengths) > 0
    assert kinds(ours, RunLengths) == (kinds(theirs, RunLengths) if holds_masks else 0)
    assert ("masks cannot be held" in str(notes)) != holds_masks
    areas = [np.sort(np.concatenate([r.areas_px for r in dataset.records])) for dataset in (ours, theirs)]
    if holds_masks:
        np.testing.assert_allclose(*areas, rtol=0.1, atol=4)


def test_a_set_without_splits(coco, tmp_path):
    content = json.loads((coco / "annotations" / "instances_val.json").read_text())
    for image in content["images"]:
        image["file_name"] = str(coco / "val" / image["file_name"])
    (tmp_path / "mine.json").write_text(json.dumps(content))
    whole = read_dataset(tmp_path / "mine.json", "val", whole=True)
    for form in FORMATS:
        write(read_items(tmp_path / "mine.json"), form, tmp_path / form, None)
        assert_same(read_dataset(tmp_path / form, "train"), whole, 1.0)
        with pytest.raises(UserError, match="split"):
            read_dataset(tmp_path / form, "val")
        if form != "yolo":  # whose description names the only split train
            assert_same(read_dataset(tmp_path / form, "val", whole=True), whole, 1.0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["coco", "yolo", "voc", "labelme"])
def test_pictures_that_exif_turns(tmp_path, form, orientation):
    """The marked pixels stay in the box, whichever way the format looks at the picture."""
    root = tmp_path / "coco"
    (root / "train").mkdir(parents=True)
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[5:15, 10:40] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(root / "train" / "a.png", exif=exif)
    (root / "annotations").mkdir()
    content = {"images": [{"id": 7, "file_name": "a.png", "width": 60, "height": 40}]}
    content["annotations"] = [{"id": 1, "image_id": 7, "category_id": 5, "bbox": [10, 5, 30, 10], "iscrowd": 0}]
    content["annotations"][0]["segmentation"] = [[10, 5, 40, 5, 40, 15, 10, 15]]
    content["categories"] = [{"id": 5, "name": "bar"}]
    (root / "annotations" / "train.json").write_text(json.dumps(content))
    write(read_items(root), form, tmp_path / "out", "copy")
    for data in (tmp_path / "out", root):
        (record,) = read_dataset(data, "train").records
        shown = np.asarray(open_record(record))[..., 0]
        (box,) = record.boxes_xyxy_px.round().astype(int)
        assert (shown[box[1] : box[3], box[0] : box[2]] == 255).all() and (shown == 255).sum() == 300
    write(read_items(tmp_path / "out"), "coco", tmp_path / "back", None)
    (record,) = read_dataset(tmp_path / "back", "train").records
    np.testing.assert_allclose(record.boxes_xyxy_px, [[10, 5, 40, 15]], atol=1e-3)


def test_masks_turn_with_their_picture():
    from dfine_jax.data.formats.turning import backwards, decode_mask, encode_mask, turned

    bitmap = np.random.default_rng(0).integers(0, 2, (4, 7)).astype(np.uint8)
    image = Image.fromarray(bitmap)
    operations = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Pillow's transpositions
    for orientation, operation in operations.items():
        entry = {"bbox": [1, 1, 2, 1], "segmentation": encode_mask(bitmap)}
        out = turned(entry, (7, 4), orientation)
        expected = np.asarray(image.transpose(Image.Transpose(operation)))
        np.testing.assert_array_equal(decode_mask(out["segmentation"]), expected)
        size = (4, 7) if orientation > 4 else (7, 4)
        back = turned(out, size, backwards(orientation))
        np.testing.assert_array_equal(decode_mask(back["segmentation"]), bitmap)
        assert back["bbox"] == [1, 1, 2, 1]


def test_equal_names_in_several_folders(tmp_path):
    root = tmp_path / "set"
    lines = {"a/0": "0 0.5 0.5 0.5 0.5", "b/0": "1 0.5 0.5 0.25 0.25", "b/1": ""}
    for stem, line in lines.items():
        for folder, ending in (("images", ".png"), ("labels", ".txt")):
            (root / folder / "train" / stem).parent.mkdir(parents=True, exist_ok=True)
            file = (root / folder / "train" / stem).with_suffix(ending)
            Image.new("RGB", (64, 48)).save(file) if ending == ".png" else file.write_text(line)
    (root / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    for form in FORMATS:
        for mode in (None, "copy"):
            out = tmp_path / f"{form}-{mode}"
            write(read_items(root), form, out, mode)
            records = read_dataset(out, "train").records
            assert [r.labels.tolist() for r in records] == [[0], [1], []], form
            assert len({r.image_id for r in records}) == 3


def test_pictures_that_differ_in_their_ending_only(tmp_path):
    (tmp_path / "pictures").mkdir()
    images = []
    for number, name in enumerate(("a.png", "a.jpg"), 1):
        Image.new("RGB", (64, 48)).save(tmp_path / "pictures" / name)
        images.append({"id": number, "file_name": f"pictures/{name}", "width": 64, "height": 48})
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [i, i, 9, 9]} for i in (1, 2)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    for form in FORMATS:
        notes = write(read_items(tmp_path / "mine.json"), form, tmp_path / form, None)
        found = sorted(r.boxes_xyxy_px[0, 0] for r in read_dataset(tmp_path / form, "train").records)
        np.testing.assert_allclose(found, [1, 2], atol=1e-4)
        assert ("pictures were renamed" in str(notes)) == (form in ("yolo", "voc"))


def test_nothing_is_overwritten_or_left_half_written(coco, tmp_path, monkeypatch):
    items = read_items(coco)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").write_text("")
    with pytest.raises(UserError, match="there is not empty"):
        write(items, "yolo", tmp_path / "there", None)
    with pytest.raises(UserError, match="a exists; choose another name"):
        write(items, "yolo", tmp_path / "there" / "a", None)
    with pytest.raises(UserError, match="yolo needs its pictures in its own folders"):
        write(items, "yolo", tmp_path / "new", "refer")
    import shutil

    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        write(items, "yolo", tmp_path / "new", "copy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there"]


def test_names_that_yaml_would_change_survive(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    names = ["no", "010", "1e3", "null", "Größe", "a: b", "2024-01-01", "~"]
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "pictures" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "pictures/a.png", "width": 64, "height": 48}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": i, "bbox": [i, i, 9, 9]} for i in range(1, len(names) + 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
    }
    (tmp_path / "mine.json").write_text(json.dumps(content))
    for form in FORMATS:
        write(read_items(tmp_path / "mine.json"), form, tmp_path / form, None)
        dataset = read_dataset(tmp_path / form, "train")
        (record,) = dataset.records
        by_x = {round(x): name for name, x, *_ in objects(record, dataset.names)}
        assert [by_x[i] for i in range(1, len(names) + 1)] == names, form
