"""Work done ahead in a thread: pictures are decoded while the network runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")
_PATIENCE_S = 0.1  # between looks at whether the other side has gone
_END = object()


class Ahead(Generic[T]):
    """The items of an iterable, taken by a thread; use it as a context manager, which ends the thread.

    Args:
      items: iterated in the thread. What it raises is raised here, after the items before it.
      depth: most items waiting.
      newest: for live sources: while the consumer is busy the oldest waiting item is dropped for a new one, instead of
        making the source wait.
    """

    def __init__(self, items: Iterable[T], depth: int, *, newest: bool = False) -> None:
        self.dropped = 0
        self._items = items
        self._newest = newest
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._worker = ThreadPoolExecutor(1)
        self._done: Future[None] | None = None

    def __enter__(self) -> Self:
        """Start the thread."""
        self._done = self._worker.submit(self._work)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the thread after the item it is at."""
        self._stopped.set()
        self._worker.shutdown()

    def __iter__(self) -> Iterator[T]:
        """Items in order; a KeyboardInterrupt comes through while waiting."""
        assert self._done is not None, "enter the context first"
        while True:
            try:
                item = self._queue.get(timeout=_PATIENCE_S)
            except queue.Empty:
                continue
            if item is _END:
                self._done.result()
                return
            yield item

    def _work(self) -> None:
        try:
            for item in self._items:
                if not self._put(item, self._newest):
                    return
        finally:
            self._put(_END, False)

    def _put(self, item: Any, newest: bool) -> bool:
        """False when the consumer has gone."""
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0 if newest else _PATIENCE_S)
                return True
            except queue.Full:
                if newest:
                    self._drop()
        return False

    def _drop(self) -> None:
        try:
            self._queue.get_nowait()
            self.dropped += 1
        except queue.Empty:
            pass  # the consumer took it meanwhile
