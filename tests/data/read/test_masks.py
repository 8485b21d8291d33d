"""Masks after every operation equal the same operation on a painted picture."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dfine_jax.config import DataConfig
from dfine_jax.data.augment import mosaic, transforms
from dfine_jax.data.load.pipeline import TrainLoader
from dfine_jax.data.read import masks as K  # noqa: N812
from dfine_jax.data.read.coco import read_segmentations, with_shapes
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.data.read.synthetic import make_shapes_dataset, run_lengths
from dfine_jax.errors import UserError

WIDTH, HEIGHT = 120, 90
OUTLINE = [20, 15, 80, 20, 90, 60, 40, 75]


def bitmap_of(outline):
    encoded = coco_mask.merge(coco_mask.frPyObjects([outline], HEIGHT, WIDTH))
    return coco_mask.decode(encoded).astype(bool)


def sample_of(shape):
    """One object, painted white, with its box and mask."""
    painted = Image.fromarray(np.repeat(bitmap_of(OUTLINE)[..., None] * np.uint8(255), 3, 2))
    box = np.array([[20, 15, 90, 75]], np.float32)
    return transforms.make_sample(painted, box, np.zeros(1, np.int32), K.make_masks([shape], (WIDTH, HEIGHT)))


SHAPES = {
    "polygon": K.parse_segmentation([OUTLINE]),
    "run lengths": K.parse_segmentation(run_lengths(bitmap_of(OUTLINE))),
    "compressed": K.parse_segmentation(
        {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(np.asfortranarray(bitmap_of(OUTLINE)))["counts"].decode()}
    ),
}


def overlap(a, b):
    return (a & b).sum() / max(1, (a | b).sum())


def agreement(sample, stride=1):
    """IoU of the mask and the painted object in the sample, resized to a common size."""
    size = (sample.size_px[1] // stride, sample.size_px[0] // stride)
    pixels = transforms.render(sample, *sample.size_px[::-1]).resize(size[::-1], Image.Resampling.BOX)
    painted = np.asarray(pixels)[..., 0] > 127
    assert sample.masks is not None
    return overlap(K.rasterised(sample.masks, *size, stride)[0], painted), painted


@pytest.mark.parametrize("kind", SHAPES)
def test_masks_travel_through_every_operation(kind):
    base = sample_of(SHAPES[kind])
    assert agreement(base)[0] > 0.97
    flipped = transforms.flip(np.random.default_rng(0), base, 1.0)
    assert agreement(flipped)[0] > 0.97
    zoomed = transforms.zoom_out(np.random.default_rng(1), base, 1.0)
    assert zoomed is not base and agreement(zoomed)[0] > 0.97
    cropped = next(s for s in (transforms.iou_crop(np.random.default_rng(i), base, 1.0) for i in range(9)) if s != base)
    assert cropped.size_px != base.size_px and agreement(cropped)[0] > 0.97
    for letterbox in (False, True):
        resized = transforms.resize(flipped, 160, 160, letterbox=letterbox)
        assert agreement(resized)[0] > 0.95
        assert agreement(resized, 4)[0] > 0.85
    warped = mosaic.warped(base, mosaic.random_affine(np.random.default_rng(2), WIDTH, HEIGHT))
    assert agreement(warped)[0] > 0.95
    tiled = mosaic.mosaic(np.random.default_rng(3), [mosaic.tile(base, 45)] * 4)
    painted = np.asarray(tiled.image)[..., 0] > 127
    assert overlap(K.rasterised(tiled.masks, *tiled.size_px[::-1], 1).any(0), painted) > 0.9


FULL = {
    "polygon": K.parse_segmentation([[-2, -2, 102, -2, 102, 102, -2, 102]]),  # annotated beyond the picture
    "run lengths": K.parse_segmentation(run_lengths(np.ones((100, 100), bool))),
}


def full_sample(kind, level=255):
    """An object that fills its picture of 100 x 100."""
    image = Image.new("RGB", (100, 100), (level,) * 3)
    box = np.array([[0, 0, 100, 100]], np.float32)
    return transforms.make_sample(image, box, np.zeros(1, np.int32), K.make_masks([FULL[kind]], (100, 100)))


def drawn(sample, stride=1):
    return K.rasterised(sample.masks, sample.size_px[1] // stride, sample.size_px[0] // stride, stride)


@pytest.mark.parametrize("kind", FULL)
def test_what_a_crop_hides_stays_hidden_in_a_letterbox(kind):
    cropped = transforms._cut(full_sample(kind), (25, 0, 75, 100), np.ones(1, bool))
    boxed = transforms.resize(cropped, 64, 64, letterbox=True)
    assert boxed.boxes_xyxy_px.tolist() == [[16, 0, 48, 64]]
    lit = np.asarray(boxed.image)[..., 0] > 127
    assert lit[:, 16:48].all() and lit.sum() == 32 * 64
    np.testing.assert_array_equal(drawn(boxed)[0], lit)
    np.testing.assert_array_equal(drawn(boxed, 4)[0], lit[2::4, 2::4])
    base = transforms.zoom_out(np.random.default_rng(1), full_sample(kind), 1.0)  # as the pipeline: zoom, crop, flip
    left, top = -base.window_px[0], -base.window_px[1]
    part = transforms._cut(base, (left + 50, top - 20, left + 150, top + 20), np.ones(1, bool))
    part = transforms.resize(transforms.flip(np.random.default_rng(1), part, 1.0), 96, 96, letterbox=True)
    painted = np.asarray(part.image)[..., 0] > 127
    assert overlap(drawn(part)[0], painted) > 0.97 and 0.05 * painted.size < painted.sum() < 0.2 * painted.size


@pytest.mark.parametrize("kind", FULL)
def test_what_a_mosaic_hides_stays_hidden_in_a_letterbox(kind):
    magnified = 0
    for seed in range(12):
        tiles = [mosaic.tile(full_sample(kind, 120 + 40 * i), 60) for i in range(4)]
        tiles[1:3] = [transforms._cut(t, (0, 0, 60, 30), np.ones(1, bool)) for t in tiles[1:3]]
        tiles[1:3] = [transforms.resize(t, 30, 60) for t in tiles[1:3]]
        tiles[0] = transforms.resize(tiles[0], 60, 90)  # cells of 90 x 60: a wide canvas has bars
        boxed = transforms.resize(mosaic.mosaic(np.random.default_rng(seed), tiles), 96, 96, letterbox=True)
        assert boxed.size_px == (96, 96)
        masks = drawn(boxed)
        assert not masks[:, :16].any() and not masks[:, 80:].any()  # 180 x 120 in 96 x 96: bars of 16 rows
        painted = np.asarray(boxed.image)[..., 0] > 20
        assert overlap(masks.any(0), painted) > 0.88  # seams are thin, and painted is what is not black
        magnified += masks[:, [16, 79]].any()
    assert magnified >= 4  # of them, some reached the edge and beyond


def test_masks_are_dropped_with_their_boxes():
    base = sample_of(SHAPES["polygon"])
    boxes = np.array([[0, 0, 0.5, 9], [20, 15, 90, 75]], np.float32)
    masks = K.make_masks([None, SHAPES["polygon"]], (WIDTH, HEIGHT))
    kept = transforms.sanitize(transforms.make_sample(base.image, boxes, np.arange(2, dtype=np.int32), masks))
    assert kept.labels.tolist() == [1] and kept.masks.shapes == (SHAPES["polygon"],)
    assert len(kept.masks.affine) == len(kept.masks.visible_xyxy_px) == 1


def test_objects_without_masks_and_several_parts():
    square = [10, 10, 20, 10, 20, 20, 10, 20]
    parts = K.parse_segmentation([square, [v + 30 for v in square]])
    drawn = K.rasterised(K.make_masks([None, parts], (WIDTH, HEIGHT)), HEIGHT, WIDTH, 1)
    assert not drawn[0].any() and drawn[1].sum() == 200 and drawn[1, 15, 15] and drawn[1, 45, 45]
    for nothing in (None, [], [[1, 2]], "x", {"size": [2, 2]}):
        assert K.parse_segmentation(nothing) is None
    assert K.parse_segmentation([[1, 2, 3, 4, 5, 6, 7]]).parts[0].shape == (3, 2)  # an odd number at the end


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=9, num_val=1, size_px=96, seed=5)


def batches(dataset, count=3, workers=0, **data):
    size = {"height_px": 64, "width_px": 96}
    config = DataConfig(**{"mask_stride": 4, "start_augment_epoch": 0, "stop_mosaic_epoch": 9, **size, **data})
    loader = TrainLoader(dataset, config, batch_size=4, seed=0, workers=workers)
    stream = loader.batches()
    out = [next(stream) for _ in range(count)]
    stream.close()
    return out


def test_a_loader_gives_masks_that_fit_the_boxes(shapes):
    dataset = read_dataset(shapes, "train")
    seen = 0
    for batch in batches(dataset, 6, mixup_prob=1.0, augment="dense"):
        assert batch.masks.shape == (4, batch.valid.shape[1], 16, 24) and batch.masks.dtype == np.bool_
        assert not batch.masks[~batch.valid].any()
        for box, mask in zip(batch.boxes_cxcywh[batch.valid], batch.masks[batch.valid], strict=True):
            if not mask.any():
                continue
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            low, high = box[:2] - box[2:] / 2, box[:2] + box[2:] / 2
            extent = np.array([columns[0] / 24, rows[0] / 16, (columns[-1] + 1) / 24, (rows[-1] + 1) / 16])
            assert (extent[:2] > low - 0.08).all() and (extent[2:] < high + 0.08).all()
            seen += 1
    assert seen > 60


def test_masks_change_nothing_else_and_come_through_workers(shapes):
    dataset = read_dataset(shapes, "train")
    with_masks, without = batches(dataset), batches(dataset, mask_stride=0)
    for a, b in zip(with_masks, without, strict=True):
        for x, y in zip(a[:4], b, strict=True):
            np.testing.assert_array_equal(x, y)
    for a, b in zip(with_masks, batches(dataset, workers=2), strict=True):
        np.testing.assert_array_equal(a.masks, b.masks)


def test_every_object_of_the_set_has_a_mask(shapes):
    dataset = with_shapes(read_dataset(shapes, "train"))
    assert all(shape is not None for record in dataset.records for shape in record.shapes)
    assert len(read_segmentations(dataset)) == sum(len(record.shapes) for record in dataset.records)
    with pytest.raises(UserError, match="mask_stride=5"):
        batches(dataclasses.replace(dataset), mask_stride=5)
