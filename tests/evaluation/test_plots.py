"""What the pictures show, read back from the figures and from the files."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from dfine_jax.data.read.dataset import Classes
from dfine_jax.evaluation.metrics import detection_report
from dfine_jax.evaluation.plots import (
    confusion_figure,
    most_confused,
    save_evaluation,
    save_png,
    threshold_figure,
    training_figure,
)
from dfine_jax.evaluation.score import score


def report(num_classes, found, names=None):
    """One object of each class, side by side; ``found``: {class: (class it is taken for, score)}."""
    boxes = {label: [20 * label, 0, 10, 10] for label in range(num_classes)}
    truth = {"annotations": [{"image_id": 1, "category_id": c, "bbox": box} for c, box in boxes.items()]}
    results = [
        {"image_id": 1, "category_id": as_class, "bbox": boxes[c], "score": value}
        for c, (as_class, value) in found.items()
    ]
    names = names or [f"class {i}" for i in range(num_classes)]
    return detection_report(truth, results, [1], Classes(tuple(names), tuple(range(num_classes))))


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_confusions_are_in_their_cells():
    axes = confusion_figure(report(3, {0: (0, 0.9), 1: (2, 0.8)})).axes[0]
    assert ticks(axes.yaxis) == ["class 0", "class 1", "class 2", "no object"]
    assert ticks(axes.xaxis) == ["class 0", "class 1", "class 2", "missed"]
    cells = {(text.get_position()[::-1]): text.get_text() for text in axes.texts}  # (row, column)
    best = {(0, 0): "1", (1, 3): "1", (2, 3): "1"}  # F1 is best without the mistake
    assert cells == best
    wrong, right = (image.get_array() for image in axes.images)  # each in its own hue
    assert right[0, 0] == 1.0 and wrong[2, 3] == 1.0 and wrong[3].sum() == 0
    assert wrong.mask[0, 0] and right.mask[2, 3] and axes.images[0].cmap.name != axes.images[1].cmap.name


def test_rows_are_shares():
    names = ("a", "b")
    truth = {"annotations": [{"image_id": i, "category_id": 0, "bbox": [0, 0, 10, 10]} for i in range(4)]}
    found = [{"image_id": i, "category_id": int(i == 3), "bbox": [0, 0, 10, 10], "score": 0.9} for i in range(4)]
    figure = confusion_figure(detection_report(truth, found, range(4), Classes(names, (0, 1))))
    wrong, right = (image.get_array() for image in figure.axes[0].images)
    assert wrong[0].tolist() == [None, 0.25, 0.0] and right[0].tolist() == [0.75, None, None]


def test_many_classes_show_those_with_errors():
    found = {c: (c, 0.9) for c in range(100) if c % 10}  # every tenth is missed
    many = report(100, found)
    axes = confusion_figure(many).axes[0]
    assert "80 classes with the most errors, of 100" in axes.get_title()
    shown = ticks(axes.yaxis)
    assert len(shown) == 81 and {f"class {c}" for c in range(0, 100, 10)} <= set(shown)
    assert not axes.texts
    assert most_confused(many.confusion, 10).tolist() == list(range(0, 100, 10))


def test_names_are_taken_literally_and_shortened(tmp_path):
    names = ["cost $x$", "白血球", "a" * 60]
    figure = confusion_figure(report(3, {0: (0, 0.9)}, names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_png(figure, tmp_path / "c.png")
    assert ticks(figure.axes[0].yaxis)[2] == "a" * 23 + "…"
    assert not figure.axes[0].get_yticklabels()[0].get_parse_math()


def test_threshold_curves_carry_the_counts():
    counted = report(4, {0: (0, 0.9), 1: (1, 0.6), 2: (3, 0.3)})
    left, right = threshold_figure(counted).axes
    curves = {line.get_label(): line.get_xydata() for line in left.lines if not line.get_label().startswith("_")}
    at = {label: dict(np.round(points, 6)) for label, points in curves.items()}
    assert at["recall"][0.5] == 0.5 and at["recall"][0.7] == 0.25 and at["precision"][0.2] == pytest.approx(2 / 3)
    assert np.isnan(at["precision"][0.95]) and at["F1"][0.95] == 0
    assert counted.best_threshold == 0.6 and "0.60" in left.get_title()
    assert right.lines[1].get_xydata().tolist() == [[0.5, 1.0]]


def test_training_curves_skip_what_is_missing():
    rows = [{"epoch": float(e), "loss": 10.0 / e, "lr": 1e-3, "loss_mal": 1.0} for e in (1, 2, 3)]
    rows[1]["ap"] = 0.2
    axes = [a for a in training_figure(rows).axes if a.axison]
    lines = {line.get_label(): line for a in axes for line in a.lines}
    assert set(lines) == {"training", "AP", "base"} | {line for line in lines if line.startswith("_")}
    titles = {a.get_title(): a for a in axes}
    assert {"Loss, all terms", "Loss, mal"} <= set(titles) and titles["Loss, all terms"].get_yscale() == "linear"
    assert lines["AP"].get_xydata().tolist() == [[2.0, 0.2]]
    total = titles["Loss, all terms"].lines[0]
    assert total.get_xydata()[:, 1].tolist() == [10.0, 5.0, pytest.approx(10 / 3)]


def test_training_curves_show_validation_and_the_best_epoch_and_no_line_twice():
    rows = [{"epoch": float(e), "loss": 9.0, "val_loss": 8.0, "lr": 1e-3, "backbone_lr": 1e-3} for e in (1, 2)]
    rows[0]["ap"], rows[1]["ap"] = 0.3, 0.2
    axes = {a.get_title(): a for a in training_figure(rows).axes if a.axison}
    assert [t.get_text() for t in axes["Loss, all terms"].get_legend().get_texts()] == ["training", "validation"]
    assert [t.get_text() for t in axes["Learning rate"].get_legend().get_texts()] == ["base"]
    assert all(list(a.lines[-1].get_xdata()) == [1.0, 1.0] for a in axes.values())  # the mark


def test_the_loss_by_step_is_drawn_as_it_is_and_smoothed():
    steps = [(s, 30.0 - s / 1000 + (-1) ** (s // 10)) for s in range(10, 9001, 10)]
    (axes,) = (a for a in training_figure([{"epoch": 1.0, "loss": 2.0}], steps).axes if "step" in a.get_title())
    raw, smooth = (np.asarray(line.get_ydata()) for line in axes.lines)
    assert len(raw) == 600 and np.abs(np.diff(smooth)).max() < 0.5 * np.abs(np.diff(raw)).max()
    assert not [a for a in training_figure([{"epoch": 1.0, "loss": 2.0}], steps[:1]).axes if "step" in a.get_title()]


@pytest.mark.parametrize(
    ("norms", "scale", "expected"),
    [
        ([37.0, 38.5, 41.0], "linear", ["37.0", "38.0", "39.0", "40.0", "41.0"]),
        ([4.0, 12.0, 60.0], "log", ["5", "10", "20", "50"]),
        ([0.002, 3.0, 4000.0], "log", ["0.01", "1", "100"]),
    ],
)
def test_gradient_norms_have_plain_ticks(norms, scale, expected):
    figure = training_figure([{"epoch": float(i), "grad_norm": norm} for i, norm in enumerate(norms, 1)])
    figure.draw_without_rendering()
    (axes,) = (a for a in figure.axes if a.get_title() == "Gradient norm before clipping")
    assert axes.get_yscale() == scale
    assert set(expected) <= set(ticks(axes.yaxis)) and not any("mathdefault" in text for text in ticks(axes.yaxis))
    assert not [label.get_text() for label in axes.yaxis.get_ticklabels(minor=True) if label.get_text()]


def test_waiting_has_its_own_axis():
    rows = [{"epoch": 1.0, "images_per_s": 50.0, "data_wait": 0.25}]
    speed, share = training_figure(rows).axes
    assert speed.lines[0].get_ydata().tolist() == [50.0]
    assert share.lines[0].get_ydata().tolist() == [0.25] and share.get_ylim() == (0, 1)


def test_little_waiting_is_not_drawn():
    assert len(training_figure([{"epoch": 1.0, "images_per_s": 50.0, "data_wait": 0.01}]).axes) == 1


def test_an_evaluation_that_finds_nothing_has_words():
    truth = {"images": [{"id": 1}], "categories": [{"id": 0, "name": "a"}]}
    truth["annotations"] = [{"id": 1, "image_id": 1, "category_id": 0, "bbox": [0, 0, 9, 9]}]
    figure = threshold_figure(score(truth, [], [1], Classes(("a",), (0,))).report)
    assert not figure.axes and "Nothing is found" in figure.texts[0].get_text()


def test_no_rows_and_no_objects_still_draw(tmp_path):
    save_png(training_figure([]), tmp_path / "empty.png")
    empty = {"images": [{"id": 1}], "categories": [{"id": 0, "name": "a"}], "annotations": []}
    save_evaluation(score(empty, [], [1], Classes(("a",), (0,))), tmp_path / "e", {"model": "m"})
    assert {p.name for p in (tmp_path / "e").iterdir()} == {"metrics.json", "confusion.png", "thresholds.png"}
    pixels = np.asarray(Image.open(tmp_path / "e" / "confusion.png").convert("RGB"))
    assert pixels.shape[0] > 300 and pixels.std() > 5


def test_a_picture_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "c.png"
    target.write_bytes(b"old")
    save_png(training_figure([{"epoch": 1.0, "loss": 2.0}]), target)
    assert Image.open(target).format == "PNG" and [p.name for p in tmp_path.iterdir()] == ["c.png"]


def test_nothing_global_changes():
    import matplotlib

    before = dict(matplotlib.rcParams)
    training_figure([{"epoch": 1.0, "loss": 2.0}])
    assert dict(matplotlib.rcParams) == before
