"""Labels stay on their objects, whatever the EXIF orientation: YOLO's upright, COCO's on the stored pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dfine_jax.config import DataConfig
from dfine_jax.data.edit.items import read_items
from dfine_jax.data.load.pipeline import EvalLoader, TrainLoader
from dfine_jax.data.picture.any_image import any_pixels
from dfine_jax.data.picture.images import Preprocess, image_size, read_image, upright_size
from dfine_jax.data.read import audit
from dfine_jax.data.read.dataset import open_record
from dfine_jax.data.read.sources import read_dataset

# EXIF: which side of the upright picture the first stored row and the first stored column are.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
# (width, height) of the upright picture and its one bright object (x0, y0, x1, y1): apart from its own image under
# every orientation but the first.
SCENES = {"square": ((48, 48), (24, 8, 40, 16)), "wide": ((64, 32), (40, 8, 56, 16))}
BRIGHT, DARK, INPUT_PX = 240, 20, 96


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))


def scene(name):
    (width, height), (x0, y0, x1, y1) = SCENES[name]
    picture = np.full((height, width, 3), DARK, np.uint8)
    picture[y0:y1, x0:x1] = BRIGHT
    return picture


def as_stored(upright, orientation):
    row, column = SIDES[orientation]
    stored = upright if row in ("top", "bottom") else upright.transpose(1, 0, 2)
    stored = stored[::-1] if row in ("bottom", "right") else stored
    return stored[:, ::-1] if column in ("bottom", "right") else stored


def save(path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif, quality=95)
    return path


def yolo(root, name, suffix="jpg", orientations=tuple(SIDES)):
    (width, height), (x0, y0, x1, y1) = SCENES[name]
    label = f"0 {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} {(x1 - x0) / width} {(y1 - y0) / height}\n"
    for orientation in orientations:
        save(root / "images" / "train" / f"{orientation}.{suffix}", as_stored(scene(name), orientation), orientation)
        labels = root / "labels" / "train" / f"{orientation}.txt"
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text(label)
    (root / "data.yaml").write_text("train: images/train\nnames: [thing]\n")
    return read_dataset(root, "train")


def coco(root, name, suffix="jpg"):
    """Boxes of the stored pixels, found by looking for the object there."""
    images, annotations = [], []
    for orientation in SIDES:
        stored = as_stored(scene(name), orientation)
        save(root / "train" / f"{orientation}.{suffix}", stored, orientation)
        rows, columns = (np.flatnonzero((stored[..., 0] == BRIGHT).any(axis)) for axis in (1, 0))
        box = [columns[0], rows[0], len(columns), len(rows)]
        size = {"width": stored.shape[1], "height": stored.shape[0]}
        images.append({"id": orientation, "file_name": f"{orientation}.{suffix}", **size})
        entry = {"id": orientation, "image_id": orientation, "category_id": 1, "bbox": [int(v) for v in box]}
        annotations.append(entry)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return read_dataset(root, "train")


def brightness(pixels, box_xyxy_px):
    x0, y0, x1, y1 = np.round(box_xyxy_px).astype(int)
    assert x1 > x0 and y1 > y0
    inside = np.zeros(pixels.shape[:2], bool)
    inside[y0:y1, x0:x1] = True
    return float(pixels[inside].mean()), float(pixels[~inside].mean())


def assert_on_the_object(pixels, box_xyxy_px, what):
    inside, outside = brightness(pixels, box_xyxy_px)
    assert inside > BRIGHT - 40 and outside < DARK + 20, f"{what}: {inside:.0f} inside, {outside:.0f} outside"


def check_loaders(data, workers):
    """Every box of training and evaluation batches lies on its object."""
    config = DataConfig(height_px=INPUT_PX, width_px=INPUT_PX, augment="none")
    train = TrainLoader(data, config, batch_size=len(SIDES), seed=0, workers=workers)
    stream = train.batches()
    batch = next(stream)
    stream.close()
    for row in range(len(SIDES)):
        (box,) = batch.boxes_cxcywh[row][batch.valid[row]] * INPUT_PX
        assert_on_the_object(
            batch.images[row], [*(box[:2] - box[2:] / 2), *(box[:2] + box[2:] / 2)], f"train row {row}"
        )
    by_id = {record.image_id: record for record in data.records}
    seen = []
    for evaluated in EvalLoader(data, Preprocess(INPUT_PX, INPUT_PX), batch_size=3, workers=workers):
        for row, image_id in enumerate(evaluated.image_id.tolist()):
            if image_id != -1:
                record = by_id[image_id]
                assert evaluated.size_px[row].tolist() == [record.width_px, record.height_px]
                box = record.boxes_xyxy_px[0] * (INPUT_PX / np.tile(evaluated.size_px[row], 2))
                assert_on_the_object(evaluated.images[row], box, f"evaluation of {record.path.name}")
                seen.append(image_id)
    assert sorted(seen) == sorted(by_id) and len(seen) == len(SIDES)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", SCENES)
def test_yolo_labels_lie_on_their_objects_in_training_and_evaluation(tmp_path, name, workers):
    check_loaders(yolo(tmp_path, name), workers)


@pytest.mark.parametrize("name", SCENES)
def test_prediction_sees_the_picture_of_the_yolo_labels(tmp_path, name):
    data = yolo(tmp_path, name)
    assert len(data) == len(SIDES)
    for record in data.records:
        assert (record.width_px, record.height_px) == SCENES[name][0]
        assert_on_the_object(read_image(record.path), record.boxes_xyxy_px[0], record.path.name)
        np.testing.assert_array_equal(np.asarray(open_record(record)), read_image(record.path))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("name", SCENES)
def test_coco_boxes_stay_on_the_stored_pixels(tmp_path, name, suffix):
    data = coco(tmp_path, name, suffix)
    check_loaders(data, 0)
    for record in data.records:
        np.testing.assert_array_equal(np.asarray(open_record(record)), read_image(record.path, apply_exif=False))
    assert sum(bool(check.doubt) for check in audit.inspect_images(data.records)) == len(SIDES) - 1
    for item in read_items(tmp_path).splits["train"]:
        x, y, width, height = item.annotations[0]["bbox"]
        assert item.size_px == SCENES[name][0] and (x, y, x + width, y + height) == SCENES[name][1]


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("mode", ["1", "L", "I;16", "P", "RGB", "RGBA", "CMYK"])
def test_tiff_files_of_any_kind_are_turned_once_and_their_pixels_in_order(tmp_path, mode, orientation):
    grey = np.add.outer(5 * np.arange(48), np.arange(64)).astype(np.uint8)
    plain = Image.fromarray(grey) if mode != "I;16" else Image.fromarray(grey.astype(np.uint16) << 8)
    plain = plain if mode == "I;16" else plain.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain.save(tmp_path / "a.tif", exif=exif)
    stored = np.asarray(Image.fromarray(grey).convert("RGB") if mode == "I;16" else plain.convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", apply_exif=False), stored)
    assert image_size(tmp_path / "a.tif") == (64, 48)
    wanted = as_stored(stored, {6: 8, 8: 6}.get(orientation, orientation))
    for source in (tmp_path / "a.tif", (tmp_path / "a.tif").read_bytes(), Image.open(tmp_path / "a.tif")):
        np.testing.assert_array_equal(any_pixels(source), wanted)
    assert upright_size(tmp_path / "a.tif") == wanted.shape[1::-1]


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_other_files_with_an_orientation(tmp_path, suffix):
    data = yolo(tmp_path, "wide", suffix, (3, 6))
    for record in data.records:
        assert upright_size(record.path) == (64, 32)
        assert_on_the_object(np.asarray(open_record(record)), record.boxes_xyxy_px[0], record.path.name)


def test_an_unreadable_picture_among_yolo_labels_is_left_to_the_check_of_pictures(tmp_path):
    root = tmp_path / "yolo"
    yolo(root, "wide", "png", (1, 3))
    broken = root / "images" / "train" / "3.png"
    Image.open(broken).convert("RGB").save(broken, exif=b"")  # without EXIF, Pillow looks for it behind the pixels
    broken.write_bytes(broken.read_bytes()[:-40])
    problems = [check.problem for check in audit.inspect_images(read_dataset(root, "train").records)]
    assert problems[0] == "" and "3.png" in problems[1] and "cannot be decoded" in problems[1]


def test_the_check_names_pictures_whose_boxes_may_be_of_the_turned_one(tmp_path):
    checks = list(audit.inspect_images(coco(tmp_path, "wide").records))
    (finding,) = audit.image_findings({"train": checks})
    assert (finding.level, finding.count) == ("note", 7)
    assert "stored pixels" in finding.text and finding.examples[0] == "2.jpg, EXIF orientation 2"
    of_yolo = list(audit.inspect_images(yolo(tmp_path / "yolo", "wide").records))
    assert not any(check.doubt for check in of_yolo)
