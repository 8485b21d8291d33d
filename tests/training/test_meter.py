"""What counts as waiting for data: time in which the device has nothing to do."""

from __future__ import annotations

import threading
import time

import pytest

from dfine_jax.training.meter import Meter


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
