"""A dataset with one of each fault, and the picture grids."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from dfine_jax.data.augment.masks import drawn, make_masks
from dfine_jax.data.load.batch import Batch
from dfine_jax.data.load.grid import annotated_grid, batch_grid
from dfine_jax.data.picture.captions import strip_height_px
from dfine_jax.data.picture.draw import class_colour
from dfine_jax.data.read import audit
from dfine_jax.data.read.coco import with_outlines
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.data.read.synthetic import make_shapes_dataset


def entry(number, image, category, bbox, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0, **more}


@pytest.fixture
def faulty(tmp_path):
    """Images: 1 and 3 have the same pixels (3 in val), 2 is truncated, 4 has another size than annotated."""
    rng = np.random.default_rng(0)
    pictures = {i: Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)) for i in (1, 2, 3, 4, 5)}
    (tmp_path / "annotations").mkdir()
    categories = [{"id": i, "name": name} for i, name in ((1, "cat"), (2, "dog"), (3, "cow"))]
    numbers = {"train": (1, 2, 4, 5), "val": (3,)}
    annotations = [
        entry(1, 1, 1, [5, 5, 10, 10]),
        entry(2, 1, 1, [5, 5, 10, 10]),
        entry(3, 1, 2, [5, 5, 10, 10]),
        entry(4, 1, 1, [50, 30, 20, 20]),
        entry(5, 1, 1, [8, 8, 0, 5]),
        entry(6, 1, 9, [8, 8, 5, 5]),
        entry(7, 1, 1, [8, 8, 5, 5]) | {"iscrowd": 1},
        entry(8, 2, 2, [0, 0, 0.5, 30]),
        entry(9, 2, 2, [0, 0, 60.3, 30]),
    ]
    for split, images in numbers.items():
        (tmp_path / split).mkdir()
        for i in images:
            pictures[1 if i == 3 else i].save(tmp_path / split / f"{i}.png")
        listed = [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 40 + (i == 4)} for i in images]
        own = [a for a in annotations if a["image_id"] in images]
        content = {"images": listed, "categories": categories, "annotations": own}
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    damaged = tmp_path / "train" / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:900])
    return tmp_path


def opened(data, split):
    return read_dataset(data, split, drop_unlisted=True)


def found(findings):
    return {(f.level, f.text.split(";")[0].split(":")[0]): f.count for f in findings}


def test_annotations_are_inspected_as_they_stand_in_the_file(faulty):
    findings = audit.inspect_annotations(opened(faulty, "train"))
    assert found(findings) == {
        ("error", "annotations of categories that the file does not list"): 1,
        ("warning", "boxes without area inside the image"): 1,
        ("warning", "boxes reach beyond the image"): 1,
        ("warning", "boxes repeat another one of the same class"): 1,
        ("warning", "boxes repeat another one with a different class"): 1,
        ("note", "crowd regions"): 1,
    }
    ambiguous = next(f for f in findings if "different class" in f.text)
    assert str(ambiguous).endswith("(for example 1.png, annotation 3, cat and dog)")


def test_what_is_left_is_inspected(faulty):
    train, val = opened(faulty, "train"), opened(faulty, "val")
    assert found(audit.inspect_content(train, (32, 32))) == {
        ("warning", "classes without objects"): 1,
        ("warning", "classes with fewer than 10 objects"): 2,
        ("note", "images without objects"): 2,
        ("warning", "objects thinner than a pixel at 32x32"): 1,
    }
    assert ("error", "objects to train on") in found(audit.inspect_content(val, (64, 64)))
    assert str(audit.inspect_content(val, (64, 64), for_training=False)[-1]) == (
        "warning: no objects to evaluate on, so there is no AP and no best: the file annotates no object: its list "
        "'annotations' is empty"
    )
    assert str(audit.inspect_content(val, (64, 64))[-1]) == (
        "error: no objects to train on: the file annotates no object: its list 'annotations' is empty"
    )


def test_pictures_are_decoded_and_compared(faulty):
    splits = {name: opened(faulty, name) for name in ("train", "val")}
    checks = {name: list(audit.inspect_images(data.records)) for name, data in splits.items()}
    assert [bool(check.problem) for check in checks["train"]] == [False, True, True, False]
    findings = audit.image_findings(checks)
    assert found(findings) == {("error", "images cannot be used"): 2, ("warning", "pictures are in several splits"): 1}
    assert "2.png cannot be decoded" in str(findings[0]) and "60x40 pixels, its annotations say 60x41" in str(
        findings[0]
    )
    assert "train/1.png = val/3.png" in str(findings[1])


def test_the_summary_counts(faulty):
    lines = audit.summary(opened(faulty, "train"))
    assert lines[0] == "images   4, 2 without objects" and lines[1].startswith("objects  6; per image 0 to 4")
    assert lines[3] == "pictures 60x40 (3), 60x41 (1)"
    rows = [line.split()[:4] for line in lines[5:]]
    assert rows == [["cat", "3", "in", "1"], ["dog", "3", "in", "2"], ["cow", "0", "in", "0"]]


def test_a_healthy_dataset_has_no_findings(tmp_path):
    data = read_dataset(make_shapes_dataset(tmp_path, 40, 1, 64, seed=0), "train")
    assert audit.inspect_annotations(data) == []
    assert not [f for f in audit.inspect_content(data, (64, 64)) if f.level != "note"]
    assert audit.image_findings({"train": list(audit.inspect_images(data.records))}) == []


# --- grids -----------------------------------------------------------------------------------------------------------


def test_the_batch_grid_draws_boxes_and_masks_where_they_are():
    images = np.zeros((3, 320, 320, 3), np.uint8)
    labels, valid = np.zeros((3, 2), np.int32), np.array([[True, False]] * 3)
    boxes = np.array([[[0.5, 0.5, 0.25, 0.5], [0, 0, 0, 0]]] * 3, np.float32)
    masks = np.zeros((3, 2, 80, 80), np.uint8)
    masks[:, 0, 30:50, 35:45] = 4
    plain = np.asarray(batch_grid([Batch(images, labels, boxes, valid)], ["cat"], 3))
    tinted = np.asarray(batch_grid([Batch(images, labels, boxes, valid, masks, valid)], ["cat"], 3))
    assert plain.shape == (2 * 326 + 6, 2 * 326 + 6, 3)
    first = plain[6:326, 6:326]
    assert first[160, 120].any() and first[160, 200].any() and not first[160, 160].any()  # frame at 120 and 200
    inside = tinted[6:326, 6:326]  # the mask goes from 120 to 200 down and from 140 to 180 across
    assert inside[160, 160].any() and not inside[100, 160].any() and not inside[160, 130].any()
    assert (inside[130:190, [140, 179]] == class_colour(0)).all() and (inside[160, 160] != class_colour(0)).any()
    assert (plain[-20:, -20:] == 255).all()  # three pictures: the fourth cell stays white
    named = np.asarray(batch_grid([Batch(images, labels, boxes, valid)], ["cat"], 3, ["a.jpg", "", "c.jpg"], "title"))
    top, below = strip_height_px(20), strip_height_px(14)
    assert named.shape == (top + 2 * (326 + below) + 6, 2 * 326 + 6, 3) and (named[:top] < 90).any()
    assert (named[top + 6 : top + 326, 6:326] == first).all()
    under = named[top + 326 : top + 326 + below]
    assert (under[:, 6:326] < 90).any() and (under[:, 332:] == 255).all()  # the second has no name


def test_the_annotated_grid_shrinks_pictures_with_their_boxes(faulty):
    records = [r for r in opened(faulty, "train").records if r.path.name in ("1.png", "5.png")]
    sheet = annotated_grid(records, ("cat", "dog", "cow"), cell_px=400)
    assert sheet.width > 320 and sheet.mode == "RGB"


def test_the_annotated_grid_shows_masks_in_their_places(tmp_path):
    data = with_outlines(read_dataset(make_shapes_dataset(tmp_path, 3, 1, 400, seed=1), "train"))
    record, below_px = next(r for r in data.records if len(r.labels)), strip_height_px(14)
    plain, shown = (
        np.asarray(annotated_grid([r], data.names, cell_px=400)).astype(int)[-below_px - 406 : -below_px - 6, 6:-6]
        for r in (dataclasses.replace(record, outlines=()), record)
    )
    masks = drawn(make_masks(record.outlines, (400, 400)), 400, 400, 1).astype(bool)
    boxes = np.zeros((400, 400), bool)
    for x0, y0, x1, y1 in record.boxes_xyxy_px.round().astype(int):
        boxes[max(0, y0 - 30) : y1 + 8, max(0, x0 - 8) : x1 + 120] = True  # with their labels
    differs = (plain != shown).any(-1)
    assert differs[masks.any(0)].mean() > 0.8 and not differs[~boxes].any()
