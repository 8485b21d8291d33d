"""Batches of the DEIM method, of several hosts, with letterbox, and what the loader reports."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from PIL import Image

from dfine_jax.config import DataConfig
from dfine_jax.data.augment import transforms
from dfine_jax.data.augment.sample import make_sample, sanitize
from dfine_jax.data.load.pipeline import EvalLoader, TrainLoader
from dfine_jax.data.load.plan import Sampling, epoch_plan
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.dataset import Classes
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.errors import UserError

DEIM = DataConfig(augment="dense", start_augment_epoch=1, stop_mosaic_epoch=3, stop_augment_epoch=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=13, num_val=7, size_px=64, seed=1)
    return read_dataset(root, "train"), read_dataset(root, "val")


def loader(dataset, config=DEIM, batch_size=4, workers=0, **options):
    config = dataclasses.replace(config, height_px=32, width_px=48)
    return TrainLoader(dataset, config, batch_size=batch_size, seed=2, workers=workers, **options)


def take(source, count, start=0):
    stream = source.batches(start)
    out = [next(stream) for _ in range(count)]
    stream.close()
    return out


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("cache", [0, 5])
def test_workers_and_resume_change_nothing(data, cache):
    config = dataclasses.replace(DEIM, mosaic_cache=cache)
    whole = take(loader(data[0], config), 12)
    assert_same(whole, take(loader(data[0], config, workers=3), 12))
    assert_same(whole[5:], take(loader(data[0], config), 7, 5))
    sampling = Sampling(13, 4, 2, dataclasses.replace(config, height_px=32, width_px=48))
    plans = [epoch_plan(sampling, epoch) for epoch in range(4)]
    assert any(p.is_mosaic.any() for p in plans) and any((p.mix_share < 1).any() for p in plans)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_get_the_rows_of_the_same_batches(data, hosts):
    whole = take(loader(data[0], mask_stride=4), 12)
    parts = [take(loader(data[0], mask_stride=4, host_index=i, host_count=hosts), 12) for i in range(hosts)]
    joined = [map(np.concatenate, zip(*rows, strict=True)) for rows in zip(*parts, strict=True)]
    assert_same(whole, joined)
    assert all(batch.masks.any() for batch in whole)
    with pytest.raises(UserError, match="multiple of the 3 hosts"):
        loader(data[0], host_count=3)
    with pytest.raises(UserError, match="host_count=1"):
        loader(data[0], host_index=1)


def test_mixup_is_the_sum_of_neighbours_and_the_union_of_their_objects(data):
    plain = take(loader(data[0], dataclasses.replace(DEIM, mixup_prob=0.0)), 9)
    mixed = take(loader(data[0], dataclasses.replace(DEIM, mixup_prob=1.0)), 9)
    sampling = Sampling(13, 4, 2, dataclasses.replace(DEIM, height_px=32, width_px=48, mixup_prob=1.0))
    for step, (before, after) in enumerate(zip(plain, mixed, strict=True)):
        share = epoch_plan(sampling, step // 3).mix_share[step % 3]
        assert (share == 1) == (step < 3)
        expected = share * before.images + (1 - share) * np.roll(before.images, 1, axis=0).astype(np.float64)
        assert np.abs(after.images - expected).max() <= 0.501
        for row in range(4):
            own, other = before.valid[row], before.valid[row - 1]
            labels = [*before.labels[row][own], *(before.labels[row - 1][other] if share < 1 else [])]
            boxes = [*before.boxes_cxcywh[row][own], *(before.boxes_cxcywh[row - 1][other] if share < 1 else [])]
            assert after.labels[row][after.valid[row]].tolist() == labels
            np.testing.assert_array_equal(after.boxes_cxcywh[row][after.valid[row]], np.reshape(boxes, (-1, 4)))
            assert not after.labels[row][~after.valid[row]].any()


def test_the_loader_says_what_it_made_of_the_data(data):
    source = loader(data[0])
    assert f"{source.slots} slots" in source.notes[0] and "meet by mosaic and MixUp" in source.notes[0]
    assert source.slots > data[0].max_objects and len(source.notes) == 1
    assert loader(data[0], epochs=1).slots < source.slots
    thin = data[0].records[0]
    thin = dataclasses.replace(
        thin,
        boxes_xyxy_px=np.array([[0, 0, 1.2, 60], [0, 0, 60, 2.1], [5, 5, 9, 9]], np.float32),
        labels=np.zeros(3, np.int32),
    )
    dataset = dataclasses.replace(data[0], records=(thin,) * 4)
    notes = loader(dataset, DataConfig()).notes
    assert "4 of 12 objects are thinner than a pixel at 32x48" in notes[1]  # 1.2 of 64 pixels become 0.9 of 48
    absent = ", ".join(dataset.names[1:])
    assert notes[2] == f"3 of 4 classes have no object to train on: {absent}" and len(notes) == 3
    assert take(loader(dataset, DataConfig(augment="none")), 1)[0].valid.sum(1).tolist() == [2] * 4


def test_many_classes_without_objects_stay_one_readable_line(data):
    listed = Classes(tuple(f"c{number}" for number in range(80)), tuple(range(100, 180)))
    notes = loader(dataclasses.replace(data[0], classes=listed)).notes
    present = {label for record in data[0].records for label in record.labels.tolist()}
    assert present == {0, 1, 2, 3}
    assert notes[1:] == ("76 of 80 classes have no object to train on: c4, c5, c6, c7, c8 and 71 more",)


def test_batches_are_made_ahead(data):
    stream = loader(data[0], workers=1).batches()
    next(stream)
    time.sleep(1.0)  # three batches are made meanwhile
    started = time.perf_counter()
    next(stream)
    assert time.perf_counter() - started < 0.3
    stream.close()


def test_input_sizes_are_announced(data):
    source = loader(data[0], dataclasses.replace(DEIM, multi_scale_repeat=1))
    seen = {source.size_px(step) for step in range(200)}
    assert (32, 48) in seen and seen == set(source.sizes_px(50))
    assert source.size_px(4 * source.steps_per_epoch) == (32, 48)


# --- the edge of the picture -----------------------------------------------------------------------------------------


def touching(width, height):
    box = np.array([[width // 2, height // 2, width, height]], np.float32)
    return make_sample(Image.new("RGB", (width, height)), box, np.zeros(1, np.int32))


def test_objects_at_the_edge_survive_rounding():
    lost = {True: 0, False: 0}
    for width in range(300, 700):
        for clip in lost:
            lost[clip] += not len(sanitize(transforms.resize(touching(width, 481), 640, 640, clip=clip)).labels)
    assert lost[True] == 0 and lost[False] > 10  # the reference's arithmetic loses them


def test_clipping_moves_corners_by_rounding_errors_only():
    for width in range(300, 700):
        kept, free = (transforms.resize(touching(width, 481), 640, 640, clip=clip) for clip in (True, False))
        np.testing.assert_allclose(kept.boxes_xyxy_px, free.boxes_xyxy_px, rtol=2e-7)
        assert kept.boxes_xyxy_px.max() <= 640


# --- letterbox -------------------------------------------------------------------------------------------------------


def test_letterbox_is_the_same_in_training_evaluation_and_prediction(data):
    config = DataConfig(augment="none", resize="letterbox")
    (batch,) = take(loader(data[0], config), 1)
    spec = Preprocess(32, 48, "letterbox")
    order = epoch_plan(Sampling(13, 4, 2, config), 0).order
    for row in range(4):
        record = data[0].records[order[row]]
        image = np.asarray(Image.open(record.path))
        np.testing.assert_array_equal(batch.images[row], spec(image))
        assert not batch.images[row][:, :8].any() and not batch.images[row][:, 40:].any()
        left, top, width, height = spec.view_px((64, 64))
        centre, half = np.split(batch.boxes_cxcywh[row][batch.valid[row]], 2, axis=1)
        corners = np.concatenate([centre - half / 2, centre + half / 2], 1) * [width, height, width, height]
        np.testing.assert_allclose(corners + [left, top, left, top], record.boxes_xyxy_px, atol=1e-3)
    evaluated = next(iter(EvalLoader(data[1], Preprocess(32, 48, "letterbox"), batch_size=2)))
    np.testing.assert_array_equal(evaluated.view_px, [[-16, 0, 96, 64]] * 2)
    np.testing.assert_array_equal(evaluated.images[0], spec(np.asarray(Image.open(data[1].records[0].path))))


def test_training_enlarges_on_the_border_that_evaluation_has(data):
    config = DataConfig(augment="none", height_px=96, width_px=160, resize="letterbox", border=114, enlarge=False)
    sample = next(iter(data[0].records))
    whole = make_sample(Image.open(sample.path), sample.boxes_xyxy_px, sample.labels)
    image = np.asarray(transforms.augment(np.random.default_rng(0), whole, config, 0).image)
    np.testing.assert_array_equal(image, Preprocess(96, 160, "letterbox", border=114)(np.asarray(whole.image)))
    evaluated = Preprocess.of(config)
    assert evaluated == Preprocess(96, 160, "letterbox", border=114, enlarge=False)
    np.testing.assert_array_equal(evaluated(whole.image)[16:80, 48:112], np.asarray(whole.image))
    assert (image[:, :32] == 114).all() and (evaluated(whole.image)[:16] == 114).all()
    assert Preprocess.of(dataclasses.replace(config, resize="stretch")) == Preprocess(96, 160)


@pytest.mark.parametrize("size", [(640, 480), (100, 300), (37, 501), (1, 9)])
def test_letterbox_geometry(size):
    spec = Preprocess(96, 64, "letterbox")
    left, top, width, height = spec.view_px(size)
    assert left <= 0 and top <= 0 and left + width >= size[0] - 1e-9 and top + height >= size[1] - 1e-9
    assert spec(Image.new("RGB", size, (255, 255, 255))).shape == (96, 64, 3)
    assert Preprocess(96, 64).view_px(size) == (0, 0, *size)
    assert Preprocess.from_dict(spec.to_dict()) == spec


# --- evaluation on several hosts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("hosts", [1, 2, 3, 8])
def test_evaluation_of_all_hosts_shows_every_image_once(data, hosts):
    shown, lengths = [], set()
    for host in range(hosts):
        part = EvalLoader(data[1], Preprocess(32, 32), batch_size=2, host_index=host, host_count=hosts)
        lengths.add(len(part))
        shown += [int(i) for batch in part for i in batch.image_id if i >= 0]
        assert len(list(part)) == len(part)
    assert sorted(shown) == [r.image_id for r in data[1].records] and len(lengths) == 1


def test_rows_are_named_after_their_files(data):
    records = {record.path.name: record for record in data[0].records}
    plain = loader(data[0], DataConfig(augment="none"))
    assert plain.treatment(0) == "as the network gets them; no augmentation"
    (batch,) = take(plain, 1, 4)
    for name, image in zip(plain.names(4), batch.images, strict=True):
        with Image.open(records[name].path) as picture:
            expected = np.asarray(picture.convert("RGB").resize((48, 32), Image.Resampling.BILINEAR), int)
        assert np.abs(expected - image).max() <= 1


def test_mosaics_and_mixtures_name_what_is_in_them(data):
    dense = loader(data[0], epochs=5)
    plan = epoch_plan(Sampling(13, 4, 2, dataclasses.replace(DEIM, height_px=32, width_px=48)), 1)
    files = [data[0].records[i].path.name for i in plan.order]
    own = [f"{file} with 3 more" if many else file for file, many in zip(files, plan.is_mosaic, strict=True)]
    steps = dense.steps_per_epoch
    for batch, share in enumerate(plan.mix_share):
        rows = own[4 * batch : 4 * batch + 4]
        mixed = [f"{row} and {before}" for row, before in zip(rows, [rows[-1], *rows[:-1]], strict=True)]
        assert dense.names(steps + batch) == (rows if share == 1 else mixed)
    assert plan.is_mosaic.any() and (plan.mix_share < 1).any()
    whole = "as the network gets them; with augmentation, mosaic and MixUp"
    assert [dense.treatment(epoch * steps).partition("; ")[2] for epoch in range(5)] == [
        "only flips and turns", whole.partition("; ")[2], whole.partition("; ")[2], "with augmentation",
        "only flips and turns",
    ]  # fmt: skip
