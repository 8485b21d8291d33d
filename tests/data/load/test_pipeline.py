from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from dfine_jax.config import DataConfig
from dfine_jax.data.load.pipeline import EvalLoader, TrainLoader
from dfine_jax.data.load.plan import epoch_order, num_slots
from dfine_jax.data.picture.images import Preprocess, read_image
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.errors import UserError


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=7, num_val=5, size_px=64, seed=1)


@pytest.fixture(scope="module")
def train(shapes):
    return read_coco(*find_split(shapes, "train"))


def loader(dataset, batch_size=2, seed=0, workers=0, max_objects=0, **data):
    config = DataConfig(height_px=32, width_px=48, max_objects=max_objects, **data)
    return TrainLoader(dataset, config, batch_size=batch_size, seed=seed, workers=workers)


def take(stream, count):
    out = [next(stream) for _ in range(count)]
    stream.close()
    return out


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a, b, strict=True):
            assert np.asarray(x).dtype == np.asarray(y).dtype  # both may be None
            np.testing.assert_array_equal(x, y)


def test_batches_hold_what_the_contract_says(train):
    source = loader(train)
    (batch,) = take(source.batches(), 1)
    g = source.slots
    assert batch.images.shape == (2, 32, 48, 3) and batch.images.dtype == np.uint8
    assert batch.labels.shape == (2, g) and batch.labels.dtype == np.int32
    assert batch.boxes_cxcywh.shape == (2, g, 4) and batch.boxes_cxcywh.dtype == np.float32
    assert batch.valid.shape == (2, g) and batch.valid.dtype == np.bool_
    assert not batch.labels[~batch.valid].any() and not batch.boxes_cxcywh[~batch.valid].any()
    centre, size = batch.boxes_cxcywh[batch.valid][:, :2], batch.boxes_cxcywh[batch.valid][:, 2:]
    assert (centre - size / 2 >= -1e-6).all() and (centre + size / 2 <= 1 + 1e-6).all() and (size > 0).all()


def test_without_augmentation_pixels_and_boxes_are_the_resized_ones(train):
    source = loader(train, augment="none", seed=3)
    (batch,) = take(source.batches(), 1)
    for row, index in enumerate(epoch_order(7, 6, 3, 0)[:2]):
        record = train.records[index]
        np.testing.assert_array_equal(batch.images[row], Preprocess(32, 48)(read_image(record.path)))
        x0, y0, x1, y1 = (record.boxes_xyxy_px / 64).T
        expected = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1)
        np.testing.assert_allclose(batch.boxes_cxcywh[row][batch.valid[row]], expected, atol=1e-6)
        np.testing.assert_array_equal(batch.labels[row][batch.valid[row]], record.labels)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_worker_count_changes_nothing(train, workers):
    assert_same(take(loader(train).batches(), 8), take(loader(train, workers=workers).batches(), 8))


def test_training_resumes_at_any_step(train):
    whole = take(loader(train).batches(), 9)
    for start, workers in ((1, 0), (3, 2), (7, 0)):
        assert_same(whole[start:], take(loader(train, workers=workers).batches(start), 9 - start))


def test_seed_and_epoch_change_the_pictures(train):
    first = take(loader(train).batches(), 6)
    other = take(loader(train, seed=1).batches(), 1)
    assert not np.array_equal(first[0].images, other[0].images)
    assert not np.array_equal(first[0].images, first[3].images)


def test_stop_epoch_counts_in_epochs(train):
    changing, plain = loader(train, stop_augment_epoch=1), loader(train, stop_augment_epoch=0)
    ours, still = take(changing.batches(), 6), take(plain.batches(), 6)
    assert changing.steps_per_epoch == 3
    assert_same(ours[3:], still[3:])
    assert not np.array_equal(ours[0].images, still[0].images)


def test_every_epoch_is_a_new_permutation_with_the_rest_dropped(train):
    assert loader(train, batch_size=3).steps_per_epoch == 2
    orders = [epoch_order(7, 6, 0, epoch) for epoch in range(4)]
    assert all(len(set(order.tolist())) == 6 for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_small_datasets_repeat_within_the_batch_and_say_so(train):
    source = loader(train, batch_size=16)
    batch = take(source.batches(), 3)[0]
    assert source.steps_per_epoch == 1 and len(batch.images) == 16
    assert source.notes[-1] == "7 images fill a batch of 16: images repeat within a batch"
    counts = np.bincount(epoch_order(7, 16, 0, 0), minlength=7)
    assert counts.min() == 2 and counts.max() == 3


def test_slots_come_from_the_data_and_never_overflow(train):
    largest = train.max_objects
    assert num_slots(largest, 0) % 4 == 0 and largest <= num_slots(largest, 0) < largest + 4
    assert loader(train).slots == num_slots(largest, 0) and loader(train, max_objects=largest).slots == largest
    with pytest.raises(UserError, match=f"max_objects={largest - 1}.*can have {largest} objects"):
        loader(train, max_objects=largest - 1)
    assert num_slots(0, 0) == 4


def test_wrong_values_are_named(train):
    for change, message in (
        ({"batch_size": 0}, "batch_size=0"),
        ({"workers": -1}, "workers=-1"),
        ({"seed": -1}, "seed=-1"),
    ):
        with pytest.raises(UserError, match=message):
            loader(train, **change)
    with pytest.raises(UserError, match="lists no images"):
        loader(dataclasses.replace(train, records=()))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_shows_every_image_once(shapes, workers):
    dataset = read_coco(*find_split(shapes, "val"))
    batches = EvalLoader(dataset, Preprocess(16, 24), batch_size=2, workers=workers)
    seen = list(batches)
    assert len(batches) == len(seen) == 3
    assert np.concatenate([b.image_id for b in seen]).tolist() == [r.image_id for r in dataset.records] + [-1]
    assert seen[0].image_id.dtype == np.int64
    np.testing.assert_array_equal(seen[0].size_px, np.array([[64, 64], [64, 64]], np.float32))
    np.testing.assert_array_equal(seen[1].images[0], Preprocess(16, 24)(read_image(dataset.records[2].path)))
    assert not seen[2].images[1].any() and (seen[2].size_px > 0).all()
    assert_same(seen, list(batches))  # a second pass


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(shapes, tmp_path, workers):
    annotations, images = find_split(shapes, "train")
    (tmp_path / "train").mkdir()
    for path in images.iterdir():
        data = path.read_bytes()
        (tmp_path / "train" / path.name).write_bytes(data[:500] if path.name == "000004.jpg" else data)
    dataset = read_coco(annotations, tmp_path / "train")
    with pytest.raises(UserError, match="000004.jpg.*cannot be decoded"):
        take(loader(dataset, workers=workers).batches(), 8)


def test_shapes_dataset_is_deterministic_and_its_masks_fit(shapes, tmp_path):
    again = make_shapes_dataset(tmp_path, num_train=4, num_val=5, size_px=64, seed=1)
    for name in ("train/000003.jpg", "val/000005.jpg", "annotations/instances_val.json"):
        assert (shapes / name).read_bytes() == (again / name).read_bytes(), name


def test_shapes_masks_agree_with_boxes_and_areas(tmp_path):
    from pycocotools.coco import COCO

    root = make_shapes_dataset(tmp_path, num_train=30, num_val=1, size_px=128, seed=2)
    coco = COCO(root / "annotations" / "instances_train.json")
    kinds = set()
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation).astype(bool)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, width, height = annotation["bbox"]
        extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(np.array(extent) - [x, y, x + width, y + height]).max() <= 1
        assert abs(int(mask.sum()) - annotation["area"]) <= 0.12 * annotation["area"]
        kinds.add(type(annotation["segmentation"]))
    assert kinds == {list, dict}
    content = json.loads((root / "annotations" / "instances_train.json").read_text())
    assert [c["id"] for c in content["categories"]] == [3, 7, 8, 20]
    assert {a["category_id"] for a in content["annotations"]} == {3, 7, 8, 20}


def test_evaluation_batches_have_their_objects_where_a_loss_is_asked_for(shapes):
    dataset = read_coco(*find_split(shapes, "val"))
    spec = Preprocess(16, 24, "letterbox")
    plain, loaded = (EvalLoader(dataset, spec, batch_size=2, objects=objects) for objects in (False, True))
    assert plain.empty().shape == (2, 16, 24, 3) and not plain.has_objects and loaded.has_objects
    seen = 0
    for alone, batch in zip(plain, loaded, strict=True):
        assert alone.annotated is None and batch.annotated.images is batch.images
        np.testing.assert_array_equal(alone.images, batch.images)
        for row, image_id in enumerate(batch.image_id):
            valid = batch.annotated.valid[row]
            if image_id < 0:
                assert not valid.any()
                continue
            record = next(record for record in dataset.records if record.image_id == image_id)
            left, top, width, height = batch.view_px[row]
            x, y, w, h = batch.annotated.boxes_cxcywh[row, valid].T
            found = np.stack([(x - w / 2) * width + left, (y - h / 2) * height + top, w * width, h * height], 1)
            expected = record.boxes_xyxy_px.copy()
            expected[:, 2:] -= expected[:, :2]
            wide = (expected[:, 2:] / [width, height] * [24, 16] >= 1).all(1)
            np.testing.assert_allclose(found, expected[wide], atol=1e-3)
            np.testing.assert_array_equal(batch.annotated.labels[row, valid], record.labels[wide])
            seen += valid.sum()
    assert seen
    empty = loaded.empty()
    assert [array.shape for array in empty[:4]] == [array.shape for array in batch.annotated[:4]]
