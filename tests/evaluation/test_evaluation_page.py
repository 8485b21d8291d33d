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
