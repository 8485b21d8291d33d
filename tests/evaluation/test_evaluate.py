"""COCO metrics against pycocotools fed from files, and cases whose answer is known by hand."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest

from dfine_jax.data.load.batch import EvalBatch
from dfine_jax.data.read.dataset import Classes
from dfine_jax.errors import UserError
from dfine_jax.evaluation.evaluate import (
    ClassMatch,
    evaluate,
    evaluate_detections,
    match_categories,
    pixel_results,
)
from dfine_jax.evaluation.score import score
from dfine_jax.ops.postprocess import Selected
from dfine_jax.serving.backends.base import PixelPredictions

CLASSES = Classes(("cat", "dog"), (5, 2))  # ids in another order than labels


def annotation(number, image, category, bbox, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, **more}


def ground_truth(annotations, images=(1, 2)):
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 100} for i in images],
        "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": annotations,
    }


def perfect(annotations):
    return [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in annotations
    ]


def batch(ids=(1, 2)):
    return EvalBatch(
        images=np.zeros((len(ids), 8, 8, 3), np.uint8),
        image_id=np.array(ids, np.int64),
        size_px=np.array([[1, 1] if i == -1 else [200, 100] for i in ids], np.float32),
    )


def test_results_are_in_original_pixels_and_ids():
    corners = np.array([[[50.0, 25.0, 150.0, 75.0]], [[0.0, 0.0, 1.0, 1.0]]])
    predictions = PixelPredictions(np.array([[0.7], [0.6]]), np.array([[0], [1]]), corners)
    results = pixel_results(predictions, batch((1, -1)), CLASSES.ids)
    assert list(results) == [{"image_id": 1, "category_id": 5, "bbox": [50.0, 25.0, 100.0, 50.0], "score": 0.7}]


def test_perfect_predictions_score_one_whatever_the_numbering(tmp_path):
    # number 0, absent iscrowd and area: pycocotools alone loses the first box and fails on the others
    annotations = [annotation(0, 1, 5, [10, 10, 50, 40]), annotation(7, 2, 2, [0, 0, 100, 100])]
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(ground_truth(annotations)))
    truth = {1: (0, [0.175, 0.3, 0.25, 0.4]), 2: (1, [0.25, 0.5, 0.5, 1.0])}
    seen = []

    def predict(images):
        rows = [truth[i] for i in (1, 2)]
        seen.append(images.shape)
        labels = np.array([[label] for label, _ in rows])
        return Selected(np.full((2, 1), 0.9), labels, np.array([[box] for _, box in rows]))

    metrics = evaluate(predict, [batch()], file, CLASSES)
    assert seen == [(2, 8, 8, 3)]
    assert metrics.ap == pytest.approx(1.0) and metrics.per_class == pytest.approx({"cat": 1.0, "dog": 1.0})
    assert metrics.num_images == 2
    assert metrics.ap_small == -1.0


def test_numbers_are_those_of_pycocotools(tmp_path, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.RandomState(0)
    images = range(1, 7)
    annotations = []
    for image in images:
        for _ in range(rng.randint(0, 8)):
            x, y, w, h = rng.randint(0, 100), rng.randint(0, 50), rng.randint(4, 100), rng.randint(4, 50)
            bbox = [int(v) for v in (x, y, w, h)]
            crowd = int(rng.rand() < 0.1)
            annotations.append(
                annotation(len(annotations) + 1, image, int(rng.choice([2, 5])), bbox, area=float(w * h), iscrowd=crowd)
            )
    results = []
    for a in annotations:
        for _ in range(3):
            bbox = (np.array(a["bbox"]) + rng.randint(-6, 7, 4)).clip(1).tolist()
            category = a["category_id"] if rng.rand() < 0.8 else 2
            results.append(
                {"image_id": a["image_id"], "category_id": category, "bbox": bbox, "score": float(rng.rand())}
            )
    truth = ground_truth(annotations, images)
    metrics = score(truth, results, list(images), CLASSES)
    assert capsys.readouterr().out == ""

    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(file))
        reference = COCOeval(coco, coco.loadRes([dict(r) for r in results]), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
        one_class = COCOeval(coco, coco.loadRes([dict(r) for r in results]), "bbox")
        one_class.params.catIds = [5]
        one_class.evaluate()
        one_class.accumulate()
        one_class.summarize()
    np.testing.assert_array_equal(list(metrics.numbers().values()), reference.stats)
    assert 0.1 < metrics.ap < 0.9
    assert metrics.per_class["cat"] == pytest.approx(one_class.stats[0])


def test_no_detections_and_no_ground_truth():
    assert score(ground_truth([annotation(1, 1, 5, [1, 1, 9, 9])]), [], [1, 2], CLASSES).ap == 0.0
    empty = score(ground_truth([]), [], [1, 2], CLASSES)
    assert empty.ap == -1.0 and empty.per_class == {"cat": -1.0, "dog": -1.0}
    assert "-" in empty.table()


def test_numbers_written_as_text_or_null_and_negative_image_ids(tmp_path):
    annotations = [
        annotation(1, -7, 5, [10, 10, 50, 40], area="2000", iscrowd=None),
        annotation(2, -7, 2, [0, 0, 100, 100], area=None, iscrowd="0"),
        annotation(3, -7, 2, [100, 0, 100, 100], area="n/a", iscrowd="1"),
    ]
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(ground_truth(annotations, (-7,))))
    boxes = np.array([[[0.175, 0.3, 0.25, 0.4], [0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.2, 0.2]]])
    found = Selected(np.full((1, 3), 0.9), np.array([[0, 1, 1]]), boxes)
    metrics = evaluate(lambda _: found, [batch((-7,))], file, CLASSES)
    assert metrics.per_class == pytest.approx({"cat": 1.0, "dog": 1.0})
    assert metrics.ap_medium == pytest.approx(1.0)  # 2000 and 100 * 100 as numbers
    assert metrics.num_images == 1


def test_images_not_predicted_do_not_count():
    annotations = [annotation(1, 1, 5, [1, 1, 9, 9]), annotation(2, 2, 5, [1, 1, 9, 9])]
    assert score(ground_truth(annotations), perfect(annotations[:1]), [1], CLASSES).ap == pytest.approx(1.0)


def test_crowds_are_ignored():
    crowd = annotation(2, 1, 5, [100, 0, 100, 100], area=10_000, iscrowd=1)
    annotations = [annotation(1, 1, 5, [1, 1, 50, 50]), crowd]
    inside = {"image_id": 1, "category_id": 5, "bbox": [120, 20, 30, 30], "score": 0.99}
    assert score(ground_truth(annotations), [inside, *perfect(annotations[:1])], [1], CLASSES).ap == pytest.approx(1.0)


def test_classes_are_matched_by_name():
    data = Classes(("dog", "cat"), (1, 9))
    assert match_categories(("cat", "dog"), data, "model", "data") == ClassMatch(
        Classes(("cat", "dog"), (9, 1)), (9, 1)
    )
    with pytest.raises(UserError, match="does not know .* \\(only in the data: dog, cat; only in the model: bird\\)"):
        match_categories(("bird",), data, "model", "data")


def test_a_model_may_know_more_classes_than_the_data(tmp_path):
    """Objects365 weights have a row for no class; a COCO model may be judged by its persons alone."""
    match = match_categories(("none", "cat", "bird", "dog"), CLASSES, "model", "data")
    assert match == ClassMatch(CLASSES, (None, 5, None, 2), ("none", "bird"))
    assert match.note() == (
        "2 of the model's 4 classes are not in the data, detections of them do not count: none, bird"
    )
    file = tmp_path / "truth.json"
    file.write_text(
        json.dumps(ground_truth([annotation(1, 1, 5, [20, 10, 40, 20]), annotation(2, 1, 2, [0, 0, 9, 9])]))
    )
    corners = np.array([[[20, 10, 60, 30], [20, 10, 60, 30], [0, 0, 9, 9]]], np.float32)

    def detect(images, view_px):
        return PixelPredictions(
            np.array([[0.9, 0.8, 0.7]]), np.array([[2, 1, 3]]), corners
        )  # the bird scores best and does not count

    metrics = evaluate_detections(detect, [batch((1,))], file, match)
    assert metrics.per_class == pytest.approx({"cat": 1.0, "dog": 1.0})
    assert metrics.report.names == ("cat", "dog")
    assert metrics.report.best.false_positives == 0


def test_table_names_classes():
    annotations = [annotation(1, 1, 5, [10, 10, 50, 40]), annotation(2, 2, 2, [0, 0, 100, 100])]
    text = score(ground_truth(annotations), perfect(annotations[:1]), [1, 2], CLASSES).table()
    rows = {line.rsplit(None, 1)[0]: line.split()[-1] for line in text.splitlines() if line}
    assert rows["cat"] == "1.000" and rows["dog"] == "0.000" and rows["AP"] == "0.500" and rows["AP small"] == "-"
