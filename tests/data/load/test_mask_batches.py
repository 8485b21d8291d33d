"""Masks of batches against pycocotools' own reading and drawing of the same file, and YOLO's polygons beside boxes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from dfine_jax.config import DataConfig
from dfine_jax.data.load.pipeline import TrainLoader
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.sources import read_dataset

WIDTH, HEIGHT = SIZE = 160, 96
HOLED = [10, 10, 90, 10, 90, 80, 10, 80, 10, 10, 30, 30, 30, 60, 70, 60, 70, 30, 30, 30]
PARTS = [[100.5, 8.25, 150.75, 12, 140, 44.5, 104, 40], [120, 50, 158.5, 60.25, 130, 92.75], [20, 85, 60, 84, 61, 95]]
CROSSING = [10, 10, 100, 70, 100, 10, 10, 70]
BEYOND = [[-20, -9, 60, -9, 70, 50, -20, 40], [150, 80, 175, 80, 170, 110]]


def bitmap(seed):
    bits = np.zeros((HEIGHT, WIDTH), np.uint8)
    y, x = np.random.default_rng(seed).integers(5, 40, 2)
    bits[y : y + 41, x : x + 67] = np.random.default_rng(seed).random((41, 67)) < 0.8
    return bits


def plain(bits):
    changes = np.flatnonzero(np.diff(bits.T.ravel(), prepend=0, append=0))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *changes, bits.size]).tolist()}


def compressed(bits):
    return {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(np.asfortranarray(bits))["counts"].decode()}


SEGMENTATIONS = [
    [HOLED],
    PARTS,
    [CROSSING],
    BEYOND,
    plain(bitmap(1)),
    compressed(bitmap(2)),
    plain(np.ones((HEIGHT, WIDTH), np.uint8)),
    [],  # a box only
    None,  # likewise
    plain(bitmap(3)),  # of a crowd
]
CROWD = len(SEGMENTATIONS) - 1


@pytest.fixture
def file(tmp_path):
    """One picture of the input's size, whose objects are told apart by their labels."""
    Image.new("RGB", SIZE, (50, 90, 130)).save(tmp_path / "1.png")
    annotations = [
        {"id": 5 + i, "image_id": 1, "category_id": 1 + i, "bbox": [3, 3, 150, 90], "iscrowd": int(i == CROWD)}
        | ({} if outline is None else {"segmentation": outline})
        for i, outline in enumerate(SEGMENTATIONS)
    ]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 1 + i, "name": str(i)} for i in range(len(SEGMENTATIONS))],
        "annotations": annotations,
    }
    (tmp_path / "file.json").write_text(json.dumps(content))
    return tmp_path / "file.json"


def one_batch(dataset, stride, workers=0, **data):
    config = DataConfig(height_px=HEIGHT, width_px=WIDTH, augment="none", **data)
    loader = TrainLoader(dataset, config, batch_size=1, seed=0, workers=workers, mask_stride=stride)
    batches = loader.batches()
    batch = next(batches)
    batches.close()
    return batch


def quarters(bitmap, stride):
    """Of the four pixels at the centre of each cell, of an even stride: bilinear resizing without antialiasing."""
    first = slice(stride // 2 - 1, None, stride), slice(stride // 2, None, stride)
    return sum(bitmap[rows, columns].astype(int) for rows in first for columns in first)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_masks_of_a_batch_are_those_of_pycocotools(file, stride, workers):
    batch = one_batch(read_coco(file, file.parent), stride, workers)
    reference = COCO(str(file))
    assert batch.labels[batch.valid].tolist() == list(range(CROWD))  # without the crowd
    assert batch.has_mask[batch.valid].tolist() == [bool(outline) for outline in SEGMENTATIONS[:CROWD]]
    for label, mask in zip(batch.labels[batch.valid], batch.masks[batch.valid], strict=True):
        if not SEGMENTATIONS[label]:
            assert not mask.any()
            continue
        drawn = reference.annToMask(reference.anns[5 + label])
        assert drawn.any()
        np.testing.assert_array_equal(mask, 4 * drawn if stride == 1 else quarters(drawn, stride))


@pytest.mark.parametrize("stride", [1, 4])
def test_polygons_of_yolo_stand_beside_boxes(tmp_path, stride):
    for folder in ("images", "labels"):
        (tmp_path / folder / "train").mkdir(parents=True)
    Image.new("RGB", SIZE, (50, 90, 130)).save(tmp_path / "images" / "train" / "a.png")
    polygons = {0: HOLED, 2: PARTS[0], 3: CROSSING}
    lines = ["1 0.5 0.5 0.25 0.5", "# a comment", ""]
    for label, points in polygons.items():
        scaled = np.reshape(points, (-1, 2)) / SIZE
        lines.append(" ".join([str(label), *(repr(float(v)) for v in scaled.ravel())]))
    (tmp_path / "labels" / "train" / "a.txt").write_text("\n".join(lines))
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [a, b, c, d]\n")
    batch = one_batch(read_dataset(tmp_path, "train"), stride)
    assert batch.valid.sum() == 4
    for label, box, mask, has in zip(
        *(array[batch.valid] for array in (batch.labels, batch.boxes_cxcywh, batch.masks, batch.has_mask)), strict=True
    ):
        assert has == (label in polygons)
        if not has:
            assert not mask.any()
            np.testing.assert_allclose(box, [0.5, 0.5, 0.25, 0.5], atol=1e-6)
            continue
        points = np.reshape(polygons[int(label)], (-1, 2))
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([points.ravel().tolist()], HEIGHT, WIDTH)))
        np.testing.assert_array_equal(mask, 4 * drawn if stride == 1 else quarters(drawn, stride))
        low, high = points.min(0) / SIZE, points.max(0) / SIZE
        np.testing.assert_allclose(box, [*(low + high) / 2, *(high - low)], atol=1e-6)
