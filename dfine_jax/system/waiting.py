"""A line about what a program waits for, and how long it took; nothing about what is over in a moment."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_MOMENT_S = 2.0


@contextmanager
def waiting(what: str, detail: str = "") -> Iterator[None]:
    """Log ``what`` if the block takes longer than a moment, and its seconds at the end.

    Args:
      what: such as "compiling for 640x640".
      detail: what to expect, for the first of the two lines.
    """
    started = time.perf_counter()
    told = threading.Event()

    def tell() -> None:
        told.set()
        logger.info("%s ...%s", what, f" ({detail})" if detail else "")

    timer = threading.Timer(_MOMENT_S, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
    if told.is_set():
        logger.info("%s: done in %.0f s", what, time.perf_counter() - started)
