"""The worst errors on the page of a run: of which evaluation, and what is held until its end."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import numpy as np
import pytest
from tiny import tiny_config

from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.evaluation.detections import Detections
from dfine_jax.evaluation.encoded_masks import EncodedMasks
from dfine_jax.evaluation.score import score
from dfine_jax.training.report.log import RunLog
from dfine_jax.training.report.run_files import ERRORS
from dfine_jax.training.report.run_page import Origin, RunPage
from dfine_jax.training.report.worst_errors import WorstErrors, read_errors


@pytest.fixture
def data(tmp_path):
    root = make_shapes_dataset(tmp_path / "shapes", num_train=1, num_val=4, size_px=96, seed=0)
    return read_coco(*find_split(root, "val"))


def detected(data, missed):
    """Every object but the first few, exactly, the first one weakly; one detection of nothing, noise of low scores."""
    results = []
    for record in data.records:
        for box, label in zip(record.boxes_xyxy_px, record.labels, strict=True):
            x0, y0, x1, y1 = box.tolist()
            found = {"image_id": record.image_id, "category_id": data.classes.ids[label]}
            results.append({**found, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": 0.9})
    nothing = {**results[0], "bbox": [1, 1, 3, 3], "score": 0.95}
    noise = [{**results[0], "bbox": [x, 90, 3, 3], "score": 0.04} for x in range(0, 90, 10)]
    return Detections.of_coco([{**results[0], "score": 0.03}, *results[missed:], nothing, *noise])


def evaluated(log, data, missed, epoch, best):
    found = detected(data, missed)
    log.observe(found)
    metrics = score(data, found, [record.image_id for record in data.records], data.classes)
    if best:
        log.best(metrics)
    log.draw(epoch, metrics, best, epoch)


def run(folder, data, *evaluations):
    folder.mkdir(exist_ok=True)
    page = RunPage(folder, tiny_config(log={"pictures": 1}), [], Origin())
    log = RunLog(folder, 0, page=page, errors=WorstErrors(data, data))
    for missed, epoch, best in evaluations:
        evaluated(log, data, missed, epoch, best)
    before = (folder / "report.html").read_text() if evaluations else ""
    log.finish()
    return before, (folder / "report.html").read_text()


def counts(page):
    return {heading: int(n) for heading, n in re.findall(r">([\w ]+)</h2><p>[^<]* (\d+) in all\.</p>", page)}


def test_errors_are_those_of_the_best_epoch(data, tmp_path):
    before, page = run(tmp_path / "run", data, (3, 1, False), (2, 2, True), (1, 3, False))
    assert "drawn when the run is finished" in before and "drawn when" not in page
    assert counts(page) == {"Missed objects": 2, "False detections": 1} and "The best evaluation, epoch 2." in page
    assert page.count("Only these classes") == 1
    pictures = {unquote(link) for link in re.findall(r'src="(pictures/[^"]+)"', page)}
    assert len(pictures) == 3 and all((tmp_path / "run" / link).is_file() for link in pictures)
    assert "The run is finished." in page and f"{data.records[0].path.name}</a>" in page


def test_where_the_best_is_older_than_the_process_the_latest_is_shown_and_named(data, tmp_path):
    _, page = run(tmp_path / "run", data, (3, 1, False), (1, 2, False))
    assert counts(page)["Missed objects"] == 1 and "The latest evaluation, epoch 2." in page


def test_those_of_the_best_stay_where_a_resumed_run_finds_no_better_one(data, tmp_path):
    run(tmp_path / "run", data, (2, 1, True))
    _, page = run(tmp_path / "run", data, (3, 2, False))
    assert counts(page)["Missed objects"] == 2 and "The best evaluation, epoch 1." in page
    _, page = run(tmp_path / "run", data, (1, 3, True))
    assert counts(page)["Missed objects"] == 1 and "The best evaluation, epoch 3." in page


def test_a_missed_object_has_the_score_that_the_evaluation_saw(data, tmp_path):
    _, page = run(tmp_path / "run", data, (2, 1, True))
    assert page.count("best score 0.03") == 1 and page.count("best score 0.00") == 1


def test_a_run_that_is_resumed_at_its_end_keeps_them(data, tmp_path):
    run(tmp_path / "run", data, (2, 1, True))
    drawn = read_errors(tmp_path / "run")
    _, page = run(tmp_path / "run", data)
    assert counts(page)["Missed objects"] == 2 and read_errors(tmp_path / "run") == drawn


def test_a_picture_that_is_gone_is_told_and_the_run_is_whole(data, tmp_path, monkeypatch):
    errors = WorstErrors(data, data)
    log = RunLog(tmp_path, 0, errors=errors)
    evaluated(log, data, 1, 1, True)
    data.records[0].path.unlink()
    log.finish()
    text = (tmp_path / "log.txt").read_text()
    assert "the worst errors could not be drawn: " in text and data.records[0].path.name in text
    assert not (tmp_path / ERRORS).exists() and read_errors(tmp_path) == []


@pytest.mark.parametrize("error", [errno.EACCES, errno.EINVAL])
def test_an_old_close_up_that_cannot_be_removed_is_told_and_the_run_is_whole(data, tmp_path, monkeypatch, error):
    run(tmp_path / "run", data, (3, 1, True))

    def refused(file, missing_ok=False):
        raise OSError(error, os.strerror(error), str(file))

    monkeypatch.setattr(Path, "unlink", refused)
    _, page = run(tmp_path / "run", data, (1, 2, True))
    text = (tmp_path / "run" / "log.txt").read_text()
    assert "the worst errors could not be drawn: " in text and os.strerror(error) in text
    assert "The run is finished." in page


def test_an_error_of_the_system_in_drawing_is_told_and_the_run_is_whole(tmp_path):
    class Gone:
        def draw(self, *_):
            raise OSError(errno.ESTALE, "Stale file handle")

    log = RunLog(tmp_path, 0, page=RunPage(tmp_path, tiny_config(), [], Origin()), errors=cast(Any, Gone()))
    log.finish()
    assert f"could not be drawn: [Errno {errno.ESTALE}] Stale file handle" in (tmp_path / "log.txt").read_text()
    assert "The run is finished." in (tmp_path / "report.html").read_text()


def test_of_low_scores_nothing_is_held():
    counts = [b"a", b"bcd", b"ef"]
    columns = np.arange(3), np.arange(3), np.zeros((3, 4)), np.array([0.9, 0.01, 0.3])
    some = Detections(*columns, EncodedMasks.of(counts, (5, 6))).at_least(0.3)
    assert some.image_id.tolist() == [0, 2] and some.masks is not None and some.masks.counts == b"aef"
    assert [mask["counts"] for mask in some.masks.coco(np.arange(2))] == [b"a", b"ef"]
