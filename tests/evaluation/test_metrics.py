"""Counting against cases worked out by hand and against a plain implementation of the definition, pair by pair."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dfine_jax.data.read.dataset import Classes
from dfine_jax.evaluation.metrics import ImageOverlaps, Overlaps, confusion_matrix, count, detection_report

CLASSES = Classes(("cat", "dog", "bird"), (5, 2, 9))


def image(scores, labels, truth_labels, iou, in_crowd=None):
    n, g = len(labels), len(truth_labels)
    crowd = np.zeros(n, bool) if in_crowd is None else np.array(in_crowd)
    iou = np.array(iou, float).reshape(n, g)
    return ImageOverlaps(np.array(scores, float), np.array(labels, int), np.array(truth_labels, int), iou, crowd)


def at(images, threshold=0.5, num_classes=3):
    return count(images, num_classes, np.array([threshold])).overall(0)


def ratios(scores):
    return pytest.approx((scores.precision, scores.recall, scores.iou), abs=1e-12)


def mask_iou(predicted, truth):
    return (predicted & truth).sum() / (predicted | truth).sum()


def brute_force(images, threshold, num_classes):
    """The definition as it reads, with lists of overlaps; crowds as stated in the module."""
    right, false, missed = [0] * num_classes, [0] * num_classes, [0] * num_classes
    overlaps = [[] for _ in range(num_classes)]
    everything = []
    table = np.zeros((num_classes + 1, num_classes + 1), int)
    for entry in images:
        alive = [p for p in range(len(entry.scores)) if entry.scores[p] >= threshold]
        pairs = [(entry.iou[p, g], p, g) for p in alive for g in range(len(entry.truth_labels))]
        pairs = sorted((pair for pair in pairs if pair[0] >= 0.5), key=lambda pair: (-pair[0], -entry.scores[pair[1]]))
        used_p, used_g = set(), set()
        for iou, p, g in pairs:
            if p in used_p or g in used_g:
                continue
            used_p.add(p)
            used_g.add(g)
            predicted, actual = entry.labels[p], entry.truth_labels[g]
            table[actual, predicted] += 1
            if predicted == actual:
                right[actual] += 1
                overlaps[actual].append(iou)
                everything.append(iou)
            else:
                missed[actual] += 1
                false[predicted] += 1
                overlaps[actual].append(0.0)
                overlaps[predicted].append(0.0)
                everything += [0.0, 0.0]
        for p in set(alive) - used_p:
            if not entry.in_crowd[p]:
                false[entry.labels[p]] += 1
                overlaps[entry.labels[p]].append(0.0)
                everything.append(0.0)
                table[num_classes, entry.labels[p]] += 1
        for g in set(range(len(entry.truth_labels))) - used_g:
            missed[entry.truth_labels[g]] += 1
            overlaps[entry.truth_labels[g]].append(0.0)
            everything.append(0.0)
            table[entry.truth_labels[g], num_classes] += 1
    return right, false, missed, [np.mean(o) if o else 0.0 for o in overlaps], np.mean(everything or [0.0]), table


def random_images(rng, number, crowds):
    images = []
    for _ in range(number):
        n, g = rng.randint(0, 12), rng.randint(0, 6)
        # rounded, so that equal overlaps, equal scores and values exactly at a limit occur
        iou = np.round(rng.uniform(0, 1, (n, g)), 1)
        scores = np.round(rng.uniform(0, 1, n) + rng.uniform(0, 1e-6, n), 7)
        crowd = rng.uniform(size=n) < 0.3 if crowds else None
        images.append(image(scores, rng.randint(0, 3, n), rng.randint(0, 3, g), iou, crowd))
    return images


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_counts_equal_the_definition_taken_literally(seed, crowds):
    images = random_images(np.random.RandomState(seed), 40, crowds)
    thresholds = np.array([0.0, 0.2, 0.5, 0.9, 1.1])
    counts = count(images, 3, thresholds)
    for index, threshold in enumerate(thresholds):
        right, false, missed, class_iou, iou, table = brute_force(images, threshold, 3)
        classes = [counts.of_class(index, label) for label in range(3)]
        assert [c.true_positives for c in classes] == right
        assert [c.false_positives for c in classes] == false
        assert [c.false_negatives for c in classes] == missed
        assert [c.iou for c in classes] == pytest.approx(class_iou)
        total = counts.overall(index)
        assert total.iou == pytest.approx(iou)
        tp, fp, fn = sum(right), sum(false), sum(missed)
        precision, recall = tp / (tp + fp) if tp + fp else 0.0, tp / (tp + fn) if tp + fn else 0.0
        assert (total.precision, total.recall) == pytest.approx((precision, recall))
        both = precision + recall
        assert total.f1 == pytest.approx(2 * precision * recall / both if both else 0.0)
        np.testing.assert_array_equal(confusion_matrix(images, 3, threshold), table)


def test_identical_object():
    assert ratios(at([image([0.9], [1], [1], [[1.0]])])) == (1, 1, 1)


def test_mask_without_one_row():
    truth = np.ones((4, 4), bool)
    predicted = truth.copy()
    predicted[3] = False
    assert ratios(at([image([0.9], [0], [0], [[mask_iou(predicted, truth)]])])) == (1, 1, 0.75)


def test_right_place_wrong_class():
    scores = at([image([0.9], [1], [0], [[1.0]])])
    assert ratios(scores) == (0, 0, 0)
    assert (scores.false_positives, scores.false_negatives) == (1, 1)


def test_prediction_without_object_and_object_without_prediction():
    assert ratios(at([image([0.9], [0], [], [])])) == (0, 0, 0)
    assert ratios(at([image([], [], [0], [])])) == (0, 0, 0)
    assert ratios(at([])) == (0, 0, 0)


def test_one_of_two_predictions_is_the_object():
    """30 pixels of truth, one prediction that shares 18 of 32, another beside it: 1/2, 1, 18/32/2."""
    truth, first, second = np.zeros((3, 10, 10), bool)
    truth[:5, :6] = True
    first[:3, :6] = first[9, :2] = True
    second[6:8, 6:8] = True
    for extra in (second, truth & ~first):  # outside, and a smaller part inside
        iou = [[mask_iou(first, truth)], [mask_iou(extra, truth)]]
        assert ratios(at([image([0.8, 0.9], [0, 0], [0], iou)])) == (0.5, 1, 0.28125)


def test_the_higher_overlap_wins_whatever_class_and_score():
    scores = count([image([0.99, 0.6], [0, 1], [0], [[0.6], [0.7]])], 3, np.array([0.5, 0.65]))
    assert (scores.overall(0).true_positives, scores.overall(1).true_positives) == (0, 1)


def test_limits_belong_to_the_inside():
    at_limits = image([0.5], [0], [0], [[0.5]])
    assert at([at_limits], 0.5).true_positives == 1
    assert at([image([0.5 - 1e-9], [0], [0], [[0.5]])], 0.5).true_positives == 0
    assert at([image([0.5], [0], [0], [[0.5 - 1e-9]])], 0.5).true_positives == 0


def test_best_threshold_is_the_highest_of_equals():
    images = [image([0.9, 0.3, 0.2], [0, 0, 0], [0, 0], [[0.8, 0], [0, 0.8], [0, 0]])]
    thresholds = np.arange(4, 20) / 20  # the reference's sixteen
    counts = count(images, 3, thresholds)
    f1 = [counts.overall(i).f1 for i in range(len(thresholds))]
    assert f1[:3] == pytest.approx([0.8, 1.0, 1.0])
    assert counts.thresholds[counts.best_index()] == 0.3


def test_where_nothing_is_found_no_threshold_is_the_best():
    """All the wrong class: 0.99, the highest of equals, would be what a user is told to detect with."""
    counts = count([image([0.9, 0.3], [1, 1], [0], [[0.8], [0.8]])], 3)
    assert counts.thresholds[counts.best_index()] == 0.5
    truth = {"annotations": [{"image_id": 1, "category_id": CLASSES.ids[0], "bbox": [0, 0, 9, 9], "iscrowd": 0}]}
    truth |= {"images": [{"id": 1, "width": 20, "height": 20}]}
    wrong = [{"image_id": 1, "category_id": CLASSES.ids[1], "bbox": [0, 0, 9, 9], "score": 0.8}]
    report = detection_report(truth, wrong, [1], CLASSES)
    assert report.best_threshold == report.to_dict()["best_threshold"] == 0.5 and not report.found_any
    assert (report.best.false_positives, report.confusion.sum()) == (1, 1)  # counted there, too


def masks_report(truth, found, labels=None, truth_labels=None):
    """Bitmaps of one picture, counted as run lengths; all score 0.9."""

    def entries(bitmaps, classes, **more):
        return [
            {"image_id": 1, "category_id": CLASSES.ids[c], "bbox": [0, 0, 1, 1], "segmentation": encode(bitmap), **more}
            for bitmap, c in zip(bitmaps, classes or [0] * len(bitmaps), strict=True)
        ]

    def encode(bitmap):
        from pycocotools.mask import encode

        return encode(np.asfortranarray(bitmap.astype(np.uint8)))

    return detection_report(
        coco(entries(truth, truth_labels)), entries(found, labels, score=0.9), [1], CLASSES, "masks"
    ).at(0.5)


def test_masks_are_counted_from_their_run_lengths():
    whole, empty = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    shorter = whole.copy()
    shorter[3] = False
    assert ratios(masks_report([whole], [whole])) == (1, 1, 1)
    assert ratios(masks_report([whole], [shorter])) == (1, 1, 0.75)
    assert ratios(masks_report([whole], [whole], [1], [0])) == (0, 0, 0)
    assert ratios(masks_report([], [whole])) == (0, 0, 0)
    assert ratios(masks_report([whole], [empty])) == (0, 0, 0)
    truth, first, second = np.zeros((3, 10, 10), bool)
    truth[:5, :6] = True
    first[:3, :6] = first[9, :2] = True
    second[6:8, 6:8] = True
    for extra in (second, truth & ~first):
        assert ratios(masks_report([truth], [first, extra])) == (0.5, 1, 0.28125)


def coco(annotations):
    return {"annotations": [{"id": i, **a} for i, a in enumerate(annotations)], "images": [], "categories": []}


def test_boxes_of_coco_results():
    """Two cats found, a dog taken for a cat, a bird missed, one box of nothing and one image without objects."""
    truth = coco(
        [
            {"image_id": 1, "category_id": 5, "bbox": [0, 0, 10, 10]},
            {"image_id": 1, "category_id": 2, "bbox": [50, 50, 20, 10]},
            {"image_id": 2, "category_id": 5, "bbox": [0, 0, 10, 10]},
            {"image_id": 2, "category_id": 9, "bbox": [30, 30, 4, 4]},
            {"image_id": 7, "category_id": 9, "bbox": [30, 30, 4, 4]},  # an image that is not evaluated
            {"image_id": 1, "category_id": 77, "bbox": [80, 80, 4, 4]},  # a class that is not evaluated
        ]
    )
    results = [
        {"image_id": 1, "category_id": 5, "bbox": [0, 0, 10, 8], "score": 0.9},
        {"image_id": 1, "category_id": 5, "bbox": [50, 50, 20, 10], "score": 0.8},
        {"image_id": 2, "category_id": 5, "bbox": [0, 0, 10, 10], "score": 0.7},
        {"image_id": 2, "category_id": 2, "bbox": [60, 60, 10, 10], "score": 0.6},
        {"image_id": 3, "category_id": 9, "bbox": [0, 0, 10, 10], "score": 0.3},
    ]
    report = detection_report(truth, results, [1, 2, 3, 1], CLASSES)
    at_half = report.at(0.5)
    assert (at_half.true_positives, at_half.false_positives, at_half.false_negatives) == (2, 2, 2)
    assert at_half.iou == pytest.approx((0.8 + 1.0) / 6)
    assert report.best_threshold == 0.7  # without the dog of nowhere; the higher ones lose the second cat
    assert (report.best.precision, report.best.recall) == pytest.approx((2 / 3, 2 / 4))
    assert report.confusion.tolist() == [[2, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert report.per_class["cat"].precision == pytest.approx(2 / 3)
    assert report.per_class["dog"].false_negatives == 1
    values = json.loads(json.dumps(report.to_dict()))
    assert values["per_class"]["cat"]["true_positives"] == 2
    assert values["confusion"]["names"][-1] == "background"
    assert values["curve"]["f1"][values["curve"]["threshold"].index(0.7)] == values["f1"] == report.best.f1
    rows = {line.rsplit(None, 7)[0].strip(): line.split()[-7:] for line in report.table().splitlines() if line}
    assert rows["threshold 0.70 (best)"] == ["0.667", "0.500", "0.571", f"{1.8 / 5:.3f}", "2", "2", "1"]
    assert rows["cat"][4:] == ["2", "0", "1"]


def test_predictions_in_a_crowd_count_for_nothing():
    truth = coco([{"image_id": 1, "category_id": 5, "bbox": [0, 0, 100, 100], "iscrowd": 1}])
    inside = {"image_id": 1, "category_id": 5, "bbox": [10, 10, 5, 5], "score": 0.9}
    half_out = {**inside, "bbox": [97.6, 10, 5, 5]}
    other = {**inside, "category_id": 2}
    (overlaps,) = Overlaps(truth, [inside, half_out, other], [1], CLASSES.ids)
    assert overlaps.in_crowd.tolist() == [True, False, False]
    assert at([overlaps]).false_positives == 2
    assert confusion_matrix([overlaps], 3, 0.5)[3].tolist() == [1, 1, 0, 0]


def test_nothing_found_and_nothing_there():
    report = detection_report(coco([]), [], [1, 2], CLASSES)
    assert report.best.f1 == 0 and report.confusion.sum() == 0
    assert "no object is found at any threshold" in report.table() and json.dumps(report.to_dict())
