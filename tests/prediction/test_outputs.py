"""Result files: complete whenever they end."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
from PIL import Image

from dfine_jax.prediction.detector import DetectionResult
from dfine_jax.prediction.outputs import ResultsFile, frame_entries, save_crops, uninterrupted


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


def test_ctrl_c_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append("the rest")
    assert done == ["the rest"]
    with pytest.raises(KeyboardInterrupt):  # as before again
        signal.raise_signal(signal.SIGINT)
