"""Numbers of an evaluation as sections of a page."""

from __future__ import annotations

import json

import pytest

from dfine_jax.data.read.dataset import Classes
from dfine_jax.evaluation.evaluation_page import evaluation_sections
from dfine_jax.evaluation.score import score
from dfine_jax.pages.page import Confusion, Facts, FigureFile, page


def evaluated(names, annotated, detected):
    """Boxes of one image: (label, x), and (label, x, score)."""
    truth = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 500, "height": 99}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": label, "bbox": [x, 0, 20, 20]}
            for i, (label, x) in enumerate(annotated)
        ],
    }
    found = [{"image_id": 1, "category_id": k, "bbox": [x, 0, 20, 20], "score": s} for k, x, s in detected]
    metrics = score(truth, found, [1], Classes(tuple(names), tuple(range(len(names)))))
    return json.loads(json.dumps(metrics.to_dict()))


def section(sections, heading):
    return next(one for one in sections if one.heading == heading)


def test_classes_have_their_counts_and_a_threshold_of_their_own():
    values = evaluated(
        ["cat", "dog"], [(0, 0), (0, 50), (1, 100)], [(0, 0, 0.9), (0, 50, 0.8), (1, 100, 0.3), (0, 200, 0.35)]
    )
    (table,) = section(evaluation_sections(values), "Classes").items
    rows = {row[0]: row[1:] for row in table.rows}
    assert values["report"]["best_threshold"] == pytest.approx(0.3)
    assert rows["dog"] == ("1.000", "1.000", "1.000", "1.000", "1", "0", "0", "1.000", "0.30")
    assert rows["cat"][4:] == ("2", "0", "1", "1.000", "0.80")  # the false one is gone at its own threshold


def test_the_chart_of_thresholds_marks_the_best():
    values = evaluated(["cat"], [(0, 0)], [(0, 0, 0.9), (0, 200, 0.5)])
    by_threshold, by_recall = section(evaluation_sections(values), "Thresholds").items
    assert by_threshold.marked == (0.9, "best F1, 0.90")
    lines = {curve.name: dict(curve.points) for curve in by_threshold.curves}
    assert lines["precision"][0.5] == 0.5 and lines["precision"][0.9] == 1 and 0.95 not in lines["precision"]
    assert lines["recall"][0.95] == 0
    assert by_recall.curves[0].points[-1] == (1.0, 1.0)


def test_nothing_found_and_nothing_annotated_have_words():
    nothing = evaluation_sections(evaluated(["cat"], [(0, 0)], [(0, 200, 0.5)]))
    assert section(nothing, "Thresholds").items == () and "Nothing is found" in section(nothing, "Thresholds").text
    facts = [item for item in section(nothing, "Result").items if isinstance(item, Facts)]
    assert "No detection is right at any threshold" in facts[0].rows[0][1]
    assert "every object is missed" in section(nothing, "Confusions").text
    empty = evaluation_sections(evaluated(["cat"], [], []))
    assert section(empty, "Confusions").text == "Nothing is annotated and nothing detected."
    page("t", "", [*nothing, *empty])


def test_many_classes_have_a_picture_of_their_confusions():
    names = [f"c{i}" for i in range(30)]
    values = evaluated(names, [(0, 0)], [(0, 0, 0.9)])
    (picture,) = section(evaluation_sections(values, "best_evaluation/"), "Confusions").items
    assert isinstance(picture, FigureFile) and picture.picture == "best_evaluation/confusion.png"
    assert section(evaluation_sections(values), "Confusions").items == ()
    (table,) = section(evaluation_sections(evaluated(names[:3], [(0, 0)], [(0, 0, 0.9)])), "Confusions").items
    assert isinstance(table, Confusion) and table.counts[0] == [1, 0, 0, 0]


def test_numbers_of_older_files_are_shown_too():
    values = evaluated(["cat"], [(0, 0)], [(0, 0, 0.9)])
    del values["report"]["best_by_class"]
    (table,) = section(evaluation_sections(values), "Classes").items
    assert table.rows[0][-2:] == ("-", "-")


def test_each_class_has_its_curve_of_precision_by_recall():
    values = evaluated(
        ["cat", "dog", "owl"], [(0, 0), (0, 50), (1, 100)], [(0, 0, 0.9), (0, 300, 0.6), (0, 50, 0.5), (1, 107, 0.8)]
    )
    curves = values["precision_by_recall"]
    assert len(curves["recall"]) == 101 and set(curves["iou"]["0.50"]["per_class"]) == {"cat", "dog"}  # no owl is there
    cat, dog = (curves["iou"]["0.50"]["per_class"][name] for name in ("cat", "dog"))
    assert cat == [1.0] * 51 + [0.6667] * 50  # the third detection finds the second cat
    assert dog[0] == 0 == curves["iou"]["0.75"]["per_class"]["dog"][0]  # 13 of 27 pixels are common
    assert curves["iou"]["0.50"]["all"][0] == 0.5
    shown = section(evaluation_sections(values), "Precision by recall")
    assert [chart.title for chart in shown.items] == ["all classes, their mean", "dog", "cat"]
    assert shown.items[1].curves[0].points == [(0, 0)]
    assert "<svg" in page("t", "", [shown])
    del values["precision_by_recall"]  # of an evaluation long ago
    assert all(one.heading != "Precision by recall" for one in evaluation_sections(values))


def test_the_mean_of_the_curves_is_average_precision():
    values = evaluated(["cat", "dog"], [(0, 0), (0, 50), (1, 100)], [(0, 0, 0.9), (0, 303, 0.8), (1, 102, 0.7)])
    for iou, name in (("0.50", "ap50"), ("0.75", "ap75")):
        assert sum(values["precision_by_recall"]["iou"][iou]["all"]) / 101 == pytest.approx(values[name], abs=1e-4)


def test_of_many_classes_the_lowest_and_the_best_have_a_chart_and_all_a_row():
    names = [f"c{i}" for i in range(80)]
    objects = [(i, 25 * j) for i in range(80) for j in range(3)]
    found = [(i, 25 * j, 0.9 - j / 10) for i in range(80) for j in range(3) if (i + j) % 4]
    *charts, table = section(evaluation_sections(evaluated(names, objects, found)), "Precision by recall").items
    assert len(charts) == 13 and len(table.rows) == 80
    assert [row[0] for row in table.rows[:6]] == [chart.title for chart in charts[1:7]]
    assert float(table.rows[0][1]) <= float(table.rows[-1][1]) == 1.0
