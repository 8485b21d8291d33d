"""Ending a run in good order: on a signal, or when its time is up."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from dfine_jax.training.run import hosts


class Stop:
    """Whether the run should end now, and why."""

    def __init__(self, max_hours: float | None = None) -> None:
        self._event = threading.Event()
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self.reason = ""

    def request(self, reason: str) -> None:
        """End soon."""
        self.reason = self.reason or reason
        self._event.set()

    def is_set(self) -> bool:
        """Asked of this host alone."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.request("the time given by --max-hours is up")
        return self._event.is_set()

    def agreed(self) -> bool:
        """Asked of all hosts at the same step: all get the same answer."""
        if hosts.count() == 1:
            return self.is_set()
        if hosts.any_host(self.is_set()):
            self.request("another host was asked to stop")
        return self._event.is_set()


@contextmanager
def stop_on_signals(max_hours: float | None = None) -> Iterator[Stop]:
    """SIGINT and SIGTERM request the end; the second signal acts as usual. Outside the main thread, no signals."""
    stop = Stop(max_hours)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        stop.request(f"signal {signal.Signals(number).name}")
        os.write(2, b"\nstopping, as soon as all is saved; a second signal ends at once\n")  # print may be under way
        for each, handler in previous.items():
            signal.signal(each, handler)

    # A handler that was not set from Python reads as None.
    previous: dict[int, Any] = {n: signal.getsignal(n) or signal.SIG_DFL for n in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
