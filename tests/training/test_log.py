"""Means, speeds and files of a run."""

from __future__ import annotations

import pytest

from dfine_jax.training.log import RunLog, duration, read_metrics
from dfine_jax.training.meter import Meter, by_kind


def test_terms_are_summed_by_kind():
    terms = {"loss_vfl": 1.0, "loss_vfl_aux_0": 2.0, "loss_vfl_dn_pre": 4.0, "loss_ddf_dn_1": 8.0, "grad_norm": 3.0}
    assert by_kind(terms) == {"loss_vfl": 7.0, "loss_ddf": 8.0, "grad_norm": 3.0}


def test_skipped_steps_do_not_enter_the_means():
    meter = Meter()
    meter.add(4, {"loss": 1.0})
    meter.add(4, None)
    meter.add(4, {"loss": 3.0})
    assert meter.means() == {"loss": 2.0}


def test_time_stops(monkeypatch):
    now = [10.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter = Meter()
    meter.add(8, {})
    now[0] = 12.0
    meter.stop()
    now[0] = 100.0
    assert meter.images_per_second() == pytest.approx(4.0)
    meter.restart()
    meter.add(3, {})
    now[0] = 101.0
    assert meter.images_per_second() == pytest.approx(3.0)


def test_a_resumed_run_drops_rows_that_it_repeats(tmp_path):
    log = RunLog(tmp_path, 0)
    for epoch in (1, 2, 3):
        log.row({"epoch": epoch, "ap": None if epoch == 1 else 0.1 * epoch})
    log = RunLog(tmp_path, 2)
    log.row({"epoch": 3, "ap": 0.7})
    assert read_metrics(tmp_path) == [{"epoch": 1}, {"epoch": 2, "ap": 0.2}, {"epoch": 3, "ap": 0.7}]


def test_lines_are_kept_with_their_time(tmp_path):
    RunLog(tmp_path, 0).line("first")
    RunLog(tmp_path, 0).line("second")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(None, 2)[2] for line in lines] == ["first", "second"]


def test_durations_read_like_a_clock():
    assert (duration(59.6), duration(3601)) == ("1:00", "1:00:01")
