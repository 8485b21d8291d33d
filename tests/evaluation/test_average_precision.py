"""Numbers class by class against pycocotools fed with the original file, to the last bit; and what they cost."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dfine_jax.data.load.batch import EvalBatch
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.dataset import Classes
from dfine_jax.evaluation.detections import Detections
from dfine_jax.evaluation.evaluate import evaluate
from dfine_jax.evaluation.score import score
from dfine_jax.ops.postprocess import Selected

CLASSES = Classes(("bird", "cat", "dog", "eel"), (90, 5, 17, 2))  # of eels there are none


def made_up(rng, images=25, most=160):
    """Content and results with equal scores, crowds, empty images, sizes at the limits of COCO's classes of size."""
    numbers = rng.permutation(1000)[:images] - 300  # negative ids and 0 too
    annotations, results = [], []
    for image in numbers.tolist():
        for _ in range(rng.integers(0, 9)):
            w, h = rng.choice([4, 32, 96, 31.9, 120], 2).tolist()
            box = [*rng.integers(0, 200, 2).tolist(), w, h]
            annotations.append(
                {
                    "id": 7 * len(annotations) + 3,
                    "image_id": image,
                    "category_id": int(rng.choice([90, 5, 17], p=[0.2, 0.6, 0.2])),
                    "bbox": box,
                    "area": w * h * float(rng.choice([1.0, 0.5])),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    for image in numbers.tolist():
        near = [a for a in annotations if a["image_id"] == image] or [{"bbox": [5, 5, 9, 9], "category_id": 5}]
        for _ in range(rng.integers(0, most)):
            of = near[rng.integers(len(near))]
            box = (np.array(of["bbox"]) + rng.integers(-4, 5, 4) * rng.integers(0, 2)).tolist()
            box[2:] = np.maximum(box[2:], 1).tolist()
            category = of["category_id"] if rng.random() < 0.8 else int(rng.choice(CLASSES.ids))
            result = {"image_id": image, "category_id": category, "bbox": box, "score": float(rng.integers(0, 12) / 12)}
            results.append(result)
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 400, "height": 400} for i in numbers.tolist()],
        "categories": [{"id": i, "name": n} for i, n in zip(CLASSES.ids, CLASSES.names, strict=True)],
        "annotations": annotations,
    }
    return content, results


def pycocotools(file, results, images, categories=None):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        run = COCOeval(truth, truth.loadRes([dict(r) for r in results]), "bbox")
        run.params.imgIds = images
        if categories:
            run.params.catIds = categories
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


@pytest.mark.parametrize("seed", range(6))
def test_the_numbers_are_those_of_the_original_file(seed, tmp_path, capsys):
    content, results = made_up(np.random.default_rng(seed))
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(content))
    images = [image["id"] for image in content["images"]][: 25 if seed % 2 else 18]
    for found in (results, Detections.of_coco(results)):
        metrics = score(file, found, images, CLASSES)
        np.testing.assert_array_equal(list(metrics.numbers().values()), pycocotools(file, results, images))
    assert capsys.readouterr().out == ""
    assert 0 < metrics.ap_small < 1 and 0 < metrics.ap_large < 1 and metrics.ar_1 < metrics.ar_10 < metrics.ar_100
    for name, category in zip(CLASSES.names, CLASSES.ids, strict=True):
        assert metrics.per_class[name] == pycocotools(file, results, images, [category])[0]
    assert metrics.per_class["eel"] == -1.0


def test_the_annotation_file_is_not_read_again(tmp_path, monkeypatch):
    content, results = made_up(np.random.default_rng(9))
    for image in content["images"]:
        (tmp_path / image["file_name"]).touch()
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(content))
    data = read_coco(file, tmp_path)
    images = [image["id"] for image in content["images"]]
    before = score(file, results, images, CLASSES).numbers()
    file.unlink()
    monkeypatch.setattr("dfine_jax.evaluation.truth.read_columns", lambda *_: 1 / 0)
    assert score(data, results, images, data.classes).numbers() == before
    batch = EvalBatch(np.zeros((1, 8, 8, 3), np.uint8), np.array(images[:1]), np.full((1, 2), 400, np.float32))
    nothing = Selected(np.zeros((1, 0)), np.zeros((1, 0), int), np.zeros((1, 0, 4)))
    assert evaluate(lambda _: nothing, [batch], data, data.classes).num_images == 1


def test_detections_iterate_as_coco_results():
    _, results = made_up(np.random.default_rng(2))
    assert list(Detections.of_coco(results)) == results and len(results) > 100
    both = Detections.joined([Detections.of_coco(results[:7]), Detections.of_coco(results[7:])])
    assert list(both) == results and len(Detections.joined([])) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory in KiB")
def test_detections_take_little_memory():
    """20,000 images of 100 detections are 2 million: dictionaries took 733 bytes each, arrays 56."""
    code = """
import resource
import numpy as np
from dfine_jax.data.load.batch import EvalBatch
from dfine_jax.evaluation.evaluate import Detections, pixel_results
from dfine_jax.serving.backends.base import PixelPredictions
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
found = PixelPredictions(np.random.rand(100, 100), np.zeros((100, 100), int), np.random.rand(100, 100, 4))
batch = EvalBatch(np.zeros((100, 1, 1, 3), np.uint8), np.arange(100), np.ones((100, 2), np.float32))
before = peak()
kept = Detections.joined([pixel_results(found, batch, [5]) for _ in range(200)])
print(len(kept), peak() - before)
"""
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    number, grown_mib = result.stdout.split()
    assert int(number) == 2_000_000 and float(grown_mib) < 300
