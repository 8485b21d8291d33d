"""The pictures beside each other: which images, and which boxes on which side."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dfine_jax.data.load.batch import Batch
from dfine_jax.data.picture.captions import strip_height_px
from dfine_jax.data.picture.draw import class_colour
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.evaluation.truth import annotated
from dfine_jax.training.report.examples import HEADING_PX, Examples, save_batch

ABOVE_PX = strip_height_px(HEADING_PX)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=2, num_val=9, size_px=400, seed=0)
    return read_coco(*find_split(root, "val"))


def has_colour(picture, colour):
    return bool(np.all(np.asarray(picture) == colour, -1).any())


def test_images_are_spread_and_never_more_than_there_are(data):
    annotated = [record.path.stem for record in data.records if len(record.labels)]
    shown = list(Examples(data, 3).draw(0.5))
    assert shown[0] == annotated[0] and shown[-1] == annotated[-1] and len(shown) == 3
    assert list(Examples(data, 99).draw(0.5)) == annotated
    assert Examples(data, 0).draw(0.5) == {}


def test_images_of_one_name_in_several_folders_are_all_drawn(data, tmp_path):
    first, second = [record for record in data.records if len(record.labels)][:2]
    for folder, record in (("a", first), ("b", second)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.jpg").write_bytes(record.path.read_bytes())
    records = tuple(
        dataclasses.replace(record, path=tmp_path / folder / "0.jpg")
        for folder, record in (("a", first), ("b", second))
    )
    drawn = Examples(dataclasses.replace(data, records=records), 2).draw(0.5)
    assert list(drawn) == [f"0_{first.image_id}", f"0_{second.image_id}"]


def test_annotations_left_and_good_detections_right(data):
    examples = Examples(data, 1)
    record = next(record for record in data.records if len(record.labels))
    absent = next(label for label in range(len(data.names)) if label not in record.labels)
    result = {"image_id": record.image_id, "category_id": data.classes.ids[absent], "bbox": [100, 100, 80, 60]}
    elsewhere = {**result, "image_id": -5, "score": 0.9}
    examples.observe([{**result, "score": 0.6}, elsewhere])
    (picture,) = (example.side_by_side() for example in examples.draw(0.5).values())
    assert picture.size == (808, ABOVE_PX + 400)
    headings = np.asarray(picture.crop((0, 0, 808, ABOVE_PX)))
    assert all((headings[:, of : of + 400] < 90).all(-1).sum() > 100 for of in (0, 408))  # letters
    bottom = ABOVE_PX + 400
    left, right = picture.crop((0, ABOVE_PX, 400, bottom)), picture.crop((408, ABOVE_PX, 808, bottom))
    assert has_colour(left, class_colour(int(record.labels[0])))
    assert not has_colour(left, class_colour(absent)) and has_colour(right, class_colour(absent))
    edge = np.asarray(right)[100:160, 100:104]  # the left edge of the box
    assert np.all(edge == class_colour(absent), -1).any(1).all()
    ((_, without),) = examples.draw(0.7).values()
    assert not has_colour(without, class_colour(absent))


def test_the_first_rows_of_a_batch_with_their_boxes(tmp_path):
    rows = 20
    images = np.full((rows, 320, 320, 3), 128, np.uint8)
    boxes = np.zeros((rows, 2, 4), np.float32)
    boxes[:, 0] = [0.5, 0.5, 0.25, 0.5]
    valid = np.zeros((rows, 2), bool)
    valid[3, 0] = True
    save_batch(Batch(images, np.ones((rows, 2), np.int32), boxes, valid), ("cat", "dog"), tmp_path / "batch.png")
    picture = Image.open(tmp_path / "batch.png")
    assert picture.size == (4 * 326 + 6, 4 * 326 + 6)  # sixteen of them
    drawn = np.argwhere(np.all(np.asarray(picture) == class_colour(1), -1))
    column = 6 + 3 * 326
    np.testing.assert_allclose(drawn.max(0), (6 + 240, column + 200), atol=3)
    assert drawn[:, 1].min() == pytest.approx(column + 120, abs=3)


def test_large_pictures_are_reduced(data, tmp_path):
    root = make_shapes_dataset(tmp_path, num_train=1, num_val=1, size_px=300, seed=1)
    large = read_coco(*find_split(root, "val"))
    path = large.records[0].path
    Image.open(path).resize((1600, 1200)).save(path)
    file = large.annotation_file
    file.write_text(
        file.read_text().replace('"width": 300', '"width": 1600').replace('"height": 300', '"height": 1200')
    )
    ((picture, _),) = Examples(read_coco(*find_split(root, "val")), 1).draw(0.5).values()
    assert picture.size == (800, 600)


def test_masks_are_drawn_on_both_sides(data):
    truth = annotated(data, masks=True)
    assert truth.masks is not None
    examples = Examples(data, 1, truth)
    record = next(record for record in data.records if len(record.labels))
    absent = next(label for label in range(len(data.names)) if label not in record.labels)
    bitmap = np.zeros((400, 400), np.uint8)
    bitmap[150:250, 120:200] = 1
    mask = coco_mask.encode(np.asfortranarray(bitmap))
    found = {"image_id": record.image_id, "category_id": data.classes.ids[absent], "bbox": [100, 100, 200, 200]}
    found |= {"score": 0.9, "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()}}
    examples.observe([found])
    plain = Examples(data, 1)
    plain.observe([{key: value for key, value in found.items() if key != "segmentation"}])
    with_masks, without = (next(iter(drawn.draw(0.5).values())).side_by_side() for drawn in (examples, plain))
    changed = (np.asarray(with_masks).astype(int) != np.asarray(without)).any(-1)[ABOVE_PX:]
    inside = changed[155:245, 408 + 125 : 408 + 195]
    assert inside.mean() > 0.95 and changed[110:140, 408 + 220 : 408 + 290].mean() == 0
    rows = (truth.image_id == record.image_id) & truth.masks.exist
    objects = coco_mask.decode(truth.masks.coco(rows)).any(-1)
    assert changed[:, :400][objects].mean() > 0.5 and not changed[:, :400][~objects].any()
