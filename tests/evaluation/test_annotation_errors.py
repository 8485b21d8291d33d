"""Suspects among annotations, image by image: cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dfine_jax.evaluation.annotation_errors import find_suspects, judge
from dfine_jax.evaluation.detections import Detections, Objects
from dfine_jax.evaluation.metrics import ImageOverlaps, Overlaps

CAT, DOG = 0, 1


def judged(scores, labels, truth_labels, iou, in_crowd=None):
    shape = len(labels), len(truth_labels)
    crowd = np.zeros(len(labels), bool) if in_crowd is None else np.array(in_crowd)
    table = np.array(iou, float).reshape(shape)
    image = ImageOverlaps(np.array(scores, float), np.array(labels, int), np.array(truth_labels, int), table, crowd)
    judgement = judge(image, 0.5, 0.75)
    assert len(set(judgement.faults)) == len(judgement.faults)
    return {(fault.fault, fault.prediction, fault.truth) for fault in judgement.faults}, *judgement[1:]


def test_what_agrees_is_no_suspect():
    assert judged([0.9, 0.6], [CAT, DOG], [DOG, CAT], [[0, 0.8], [0.75, 0]]) == (set(), 2, 0)


def test_one_of_each_fault():
    iou = [[0, 0, 0], [0.9, 0, 0], [0, 0.6, 0]]
    faults, agreed, repeated = judged([0.9, 0.8, 0.7], [CAT, CAT, DOG], [DOG, DOG, CAT], iou)
    expected = {("false_positive", 0, -1), ("wrong_class", 1, 0), ("poor_fit", 2, 1), ("missed", -1, 2)}
    assert (faults, agreed, repeated) == (expected, 0, 0)


def test_what_scores_less_than_the_threshold_finds_nothing():
    assert judged([0.499], [CAT], [CAT], [[0.9]]) == ({("missed", -1, 0)}, 0, 0)
    assert judged([0.5], [CAT], [CAT], [[0.9]]) == (set(), 1, 0)
    assert judged([], [], [], []) == (set(), 0, 0)


def test_the_higher_score_takes_the_object_that_it_overlaps_most():
    assert judged([0.8, 0.9], [CAT, CAT], [CAT, CAT], [[0.95, 0.8], [0.9, 0.8]]) == (set(), 2, 0)
    faults, agreed, repeated = judged([0.8, 0.9], [CAT, CAT], [CAT], [[0.95], [0.6]])
    assert (faults, agreed, repeated) == ({("poor_fit", 1, 0)}, 0, 1)


def test_its_own_class_comes_before_a_larger_overlap():
    assert judged([0.9, 0.8], [CAT, DOG], [DOG, CAT], [[0.95, 0.8], [0.9, 0.7]])[0] == set()


def test_a_box_far_off_is_one_suspect_not_two():
    assert judged([0.9], [CAT], [CAT], [[0.3]])[0] == {("poor_fit", 0, 0)}
    assert judged([0.9], [CAT], [CAT], [[0.29]])[0] == {("false_positive", 0, -1), ("missed", -1, 0)}
    assert judged([0.9], [CAT], [DOG], [[0.4]])[0] == {("false_positive", 0, -1), ("missed", -1, 0)}


def test_another_class_on_an_object_that_was_found_counts_when_it_is_the_likelier():
    assert judged([0.6, 0.9], [CAT, DOG], [CAT], [[0.9], [0.9]]) == ({("wrong_class", 1, 0)}, 1, 0)
    assert judged([0.9, 0.6], [CAT, DOG], [CAT], [[0.9], [0.9]]) == (set(), 1, 1)
    faults, *_, repeated = judged([0.6, 0.9, 0.8], [CAT, DOG, 2], [CAT], [[0.9]] * 3)
    assert (faults, repeated) == ({("wrong_class", 1, 0)}, 1)  # once is enough


def test_crowd_regions_count_for_nothing():
    assert judged([0.9, 0.8], [CAT, DOG], [], [], [True, False])[0] == {("false_positive", 1, -1)}
    assert judged([0.9], [CAT], [CAT], [[0.9]], [True]) == (set(), 1, 0)


def dataset(annotations, results):
    """Rows (image, category, x, y, width, height) and the same with a score in front."""
    truth = [
        {"id": 100 + i, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
        for i, (image, category, *box) in enumerate(annotations)
    ]
    found = [
        {"score": score, "image_id": image, "category_id": category, "bbox": box}
        for score, image, category, *box in results
    ]
    objects, detections = Objects.of_coco(truth), Detections.of_coco(found)
    return Overlaps(objects, detections, [1, 2], [5, 7], 0.01), objects


def test_the_most_suspicious_come_first():
    annotations = [
        (1, 5, 0, 0, 10, 10),  # found, a little off: IoU 0.6
        (1, 5, 40, 0, 10, 10),  # found, far off: IoU 1/3
        (1, 7, 0, 40, 20, 10),  # missed
        (2, 7, 0, 40, 20, 20),  # missed, larger
        (2, 5, 60, 60, 10, 10),  # of the other class
    ]
    results = [
        (0.9, 1, 5, 2.5, 0, 10, 10),
        (0.6, 1, 5, 45, 0, 10, 10),
        (0.6, 2, 5, 0, 0, 10, 10),
        (0.8, 1, 7, 80, 80, 10, 10),
        (0.7, 2, 7, 60, 60, 10, 9),
        (0.2, 2, 7, 0, 40, 20, 15),
    ]
    overlaps, objects = dataset(annotations, results)
    findings = find_suspects(overlaps, objects, 0.5, 0.75)
    rows = {fault: [(s.image_id, s.object_row, s.found_row) for s in own] for fault, own in findings.suspects.items()}
    assert rows == {
        "false_positive": [(1, -1, 3), (2, -1, 2)],
        "wrong_class": [(2, 4, 4)],
        "poor_fit": [(1, 1, 1), (1, 0, 0)],  # 0.6 * 2/3 before 0.9 * 0.4
        "missed": [(2, 3, -1), (1, 2, -1)],
    }
    assert (findings.agreed, findings.repeated) == (0, 0)
    (missed, small), (far, near) = findings.suspects["missed"], findings.suspects["poor_fit"]
    assert (missed.score, small.score) == (0.2, 0.0)
    assert (missed.area_px, small.area_px) == (400, 200)
    assert (far.iou, near.iou) == pytest.approx((1 / 3, 0.6))


def test_one_place_without_annotation_is_one_suspect():
    results = [(0.7, 1, 5, 0, 0, 10, 10), (0.9, 1, 7, 1, 0, 10, 10), (0.8, 1, 5, 50, 0, 10, 10)]
    overlaps, objects = dataset([], results)
    findings = find_suspects(overlaps, objects, 0.5, 0.75)
    assert [s.found_row for s in findings.suspects["false_positive"]] == [1, 2]
    assert findings.repeated == 1


def test_an_object_annotated_twice_is_missed_with_a_high_score():
    overlaps, objects = dataset([(1, 5, 0, 0, 10, 10), (1, 5, 0, 0, 10, 9)], [(0.9, 1, 5, 0, 0, 10, 10)])
    findings = find_suspects(overlaps, objects, 0.5, 0.75)
    (suspect,) = findings.suspects["missed"]
    assert (suspect.object_row, suspect.score, findings.agreed) == (1, 0.9, 1)
