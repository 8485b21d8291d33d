"""Masks after every operation equal the same operation on a painted picture."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dfine_jax.config import DataConfig
from dfine_jax.data import masks as K  # noqa: N812
from dfine_jax.data import mosaic, transforms
from dfine_jax.data.coco import read_segmentations, with_shapes
from dfine_jax.data.pipeline import TrainLoader
from dfine_jax.data.sources import read_dataset
from dfine_jax.data.synthetic import make_shapes_dataset, run_lengths
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
    return transforms.make_sample(painted, box, np.zeros(1, np.int32), K.make_masks([shape]))


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


def test_masks_are_dropped_with_their_boxes():
    base = sample_of(SHAPES["polygon"])
    boxes = np.array([[0, 0, 0.5, 9], [20, 15, 90, 75]], np.float32)
    two = transforms.make_sample(
        base.image, boxes, np.arange(2, dtype=np.int32), K.make_masks([None, SHAPES["polygon"]])
    )
    kept = transforms.sanitize(two)
    assert kept.labels.tolist() == [1] and kept.masks.shapes == (SHAPES["polygon"],) and len(kept.masks.affine) == 1


def test_objects_without_masks_and_several_parts():
    square = [10, 10, 20, 10, 20, 20, 10, 20]
    parts = K.parse_segmentation([square, [v + 30 for v in square]])
    drawn = K.rasterised(K.make_masks([None, parts]), HEIGHT, WIDTH, 1)
    assert not drawn[0].any() and drawn[1].sum() == 200 and drawn[1, 15, 15] and drawn[1, 45, 45]
    for nothing in (None, [], [[1, 2]], "x", {"size": [2, 2]}):
        assert K.parse_segmentation(nothing) is None
    assert K.parse_segmentation([[1, 2, 3, 4, 5, 6, 7]]).parts[0].shape == (3, 2)  # an odd number at the end


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=9, num_val=1, size_px=96, seed=5)


def batches(dataset, count=3, workers=0, **data):
    config = DataConfig(**{"mask_stride": 4, "start_augment_epoch": 0, "stop_mosaic_epoch": 9, **data})
    loader = TrainLoader(
        dataset, height_px=64, width_px=96, batch_size=4, max_objects=0, seed=0, augment=config, workers=workers
    )
    stream = loader.batches()
    out = [next(stream) for _ in range(count)]
    stream.close()
    return out


def test_a_loader_gives_masks_that_fit_the_boxes(shapes):
    dataset = read_dataset(shapes, "train")
    seen = 0
    for batch in batches(dataset, 6, mixup_prob=1.0, augment="deim"):
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
