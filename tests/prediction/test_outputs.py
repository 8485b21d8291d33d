"""Result files: complete whenever they end."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dfine_jax.data.picture.object_masks import RunMasks
from dfine_jax.prediction.outputs import ResultsFile, frame_entries, save_crops, save_labels, save_masks, uninterrupted
from dfine_jax.prediction.result import DetectionResult


def result(*boxes, names=None) -> DetectionResult:
    count = len(boxes)
    return DetectionResult(
        boxes_xyxy_px=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.linspace(0.9, 0.6, count).astype(np.float32),
        labels=np.zeros(count, np.int32),
        names=tuple(names or ["cat"] * count),
        category_ids=(17,) * count,
        size_px=(100, 80),
    )


def test_a_results_file_is_json_after_an_error_and_when_nothing_was_found(tmp_path):
    with pytest.raises(KeyboardInterrupt), ResultsFile(tmp_path / "a.json") as results:
        results.add(result((0, 0, 10, 20)).to_coco(1))
        results.add(result((0, 0, 10, 20), (5, 5, 9, 9)).to_coco(2))
        raise KeyboardInterrupt
    assert [e["image_id"] for e in json.loads((tmp_path / "a.json").read_text())] == [1, 2, 2]
    with ResultsFile(tmp_path / "b.json"):
        pass
    assert json.loads((tmp_path / "b.json").read_text()) == []
    with pytest.raises(ValueError, match="before"), ResultsFile(tmp_path / "c.json"):
        raise ValueError("before the first result")
    assert not (tmp_path / "c.json").exists()


def test_frames_carry_their_number_and_time():
    (entry,) = frame_entries(result((1, 2, 11, 22)), "clip.mp4", 7, 0.29171)
    assert entry == {
        "image_id": "clip.mp4#7", "category_id": 17, "bbox": [1, 2, 10, 20], "score": 0.9, "frame": 7, "time_s": 0.2917,
    }  # fmt: skip


def test_crops_are_clipped_and_class_names_become_folders(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    boxes = [(10.2, 20, 30, 39.5), (-5, -5, 4, 3), (200, 10, 210, 20)]
    save_crops(
        image, result(*boxes, names=["cat", "a/b: c", "cat"]), tmp_path, tmp_path.relative_to(tmp_path) / "x.png"
    )
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*"))
    assert files == ["a_b_ c/x_1.png", "cat/x_0.png"]  # the third lies outside
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "cat" / "x_0.png")), image[20:40, 10:30])
    assert Image.open(tmp_path / "a_b_ c" / "x_1.png").size == (4, 3)


def with_masks(masks) -> DetectionResult:
    """A detection of each mask [h, w], in a box of the whole picture."""
    counts = tuple(coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask in masks)
    boxes = [(0, 0, 100, 80)] * len(masks)
    return dataclasses.replace(result(*boxes), object_masks=RunMasks(counts, (100, 80)))


def test_the_best_object_is_seen_where_several_are(tmp_path):
    masks = np.zeros((3, 80, 100), bool)
    masks[0, 10:20, 10:20] = masks[1, 15:30, 15:30] = True
    save_masks(with_masks(masks), tmp_path / "a.png")
    numbers = np.asarray(Image.open(tmp_path / "a.png"))
    assert numbers.dtype == np.uint8
    np.testing.assert_array_equal(numbers, np.where(masks[0], 1, 2 * masks[1]))
    objects = json.loads((tmp_path / "a.json").read_text())["objects"]
    assert [one["area"] for one in objects] == [100, 200, 0]
    assert objects[1] == {
        "id": 2, "name": "cat", "category_id": 17, "bbox": [0, 0, 100, 80], "score": 0.75, "area": 200
    }  # fmt: skip


def test_many_objects_take_sixteen_bits(tmp_path):
    masks = np.zeros((300, 80, 100), bool)
    masks.reshape(300, -1)[np.arange(300), np.arange(300) * 20] = True
    save_masks(with_masks(masks), tmp_path / "a.png")
    numbers = np.asarray(Image.open(tmp_path / "a.png"))
    assert sorted(np.unique(numbers)) == list(range(301))


def test_a_label_is_the_outline_of_the_largest_part(tmp_path):
    masks = np.zeros((2, 80, 100), bool)
    masks[0, 10:30, 10:30] = True
    masks[0, 15:20, 15:20] = False  # a hole
    masks[0, 50:60, 50:55] = True  # a smaller part
    save_labels(with_masks(masks), tmp_path / "a.txt")
    (line,) = (tmp_path / "a.txt").read_text().splitlines()  # the second has no pixel
    corners = np.array(line.split()[1:], float).reshape(-1, 2) * [100, 80]
    assert line.split()[0] == "0"
    assert sorted(map(tuple, corners.round(3).tolist())) == [(10, 10), (10, 30), (30, 10), (30, 30)]


def test_boxes_of_labels_are_cut_at_the_picture(tmp_path):
    save_labels(result((-10, 20, 50, 100)), tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "0 0.25 0.625 0.5 0.75\n"


def test_cut_out_objects_are_transparent_around_their_masks(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    masks = np.zeros((3, 80, 100), bool)
    masks[0, 10:30, 10:30], masks[1, 70:, 90:] = np.tri(20, dtype=bool), True
    found = dataclasses.replace(
        with_masks(masks), boxes_xyxy_px=np.array([(5.5, 5, 25, 40), (85, 60, 120, 90), (1, 1, 9, 9)], np.float32)
    )
    save_crops(image, found, tmp_path, Path("x.png"))
    for number, (x0, y0, x1, y1) in enumerate([(5, 5, 25, 40), (85, 60, 100, 80), (1, 1, 9, 9)]):
        cut = np.asarray(Image.open(tmp_path / "cat" / f"x_{number}.png"))
        np.testing.assert_array_equal(cut[..., :3], image[y0:y1, x0:x1])
        np.testing.assert_array_equal(cut[..., 3] == 255, masks[number, y0:y1, x0:x1])


def test_ctrl_c_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append("the rest")
    assert done == ["the rest"]
    with pytest.raises(KeyboardInterrupt):  # as before again
        signal.raise_signal(signal.SIGINT)
