"""What counts as waiting for data: time in which the device has nothing to do."""

from __future__ import annotations

import threading
import time

import pytest

from dfine_jax.training.report import meter
from dfine_jax.training.report.meter import Forecast, Meter


class Output:
    """Of a step on a device that is busy until told otherwise."""

    def __init__(self):
        self.ready = threading.Event()

    def block_until_ready(self):
        assert self.ready.wait(30)


def waited(meter):
    """Seconds counted so far."""
    return meter.wait_share() * meter._elapsed()


def test_before_the_first_step_all_waiting_counts():
    meter = Meter()
    with meter.waiting():
        time.sleep(0.05)
    assert waited(meter) >= 0.05


def test_while_the_device_is_busy_nothing_counts():
    meter, busy = Meter(), Output()
    meter.dispatched(busy)
    with meter.waiting():
        time.sleep(0.05)
    assert waited(meter) == 0
    busy.ready.set()


def test_waiting_counts_from_the_end_of_the_step():
    meter, busy = Meter(), Output()
    meter.dispatched(busy)
    with meter.waiting():
        time.sleep(0.2)
        busy.ready.set()
        ended = time.perf_counter()
        time.sleep(0.1)
        idle = time.perf_counter() - ended
    assert waited(meter) == pytest.approx(idle, abs=0.05) and waited(meter) < 0.2


def test_a_step_that_ended_earlier_does_not_lengthen_the_waiting():
    meter, busy = Meter(), Output()
    busy.ready.set()
    meter.dispatched(busy)
    time.sleep(0.1)
    with meter.waiting():
        pass
    assert waited(meter) < 0.05


@pytest.mark.parametrize(
    ("seconds_a_step", "told"), [(12, "about 17 minutes left"), (1.5, "about 2.1 minutes"), (90, "about 2.1 hours")]
)
def test_the_forecast_is_told_once_with_the_pace_of_the_first_epoch(monkeypatch, seconds_a_step, told):
    now = [100.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    forecast = Forecast(4, 104)
    now[0] += 16 * seconds_a_step
    assert forecast.lines(4) == []  # nothing measured yet
    (line,) = forecast.lines(20)
    assert told in line and "84 steps" in line
    assert forecast.lines(40) == []


def test_a_run_of_one_epoch_has_no_forecast():
    assert Forecast(1, 20).lines(20) == []
