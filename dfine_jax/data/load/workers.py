"""Batches filled by worker processes, in order, the same whatever their number.

A worker is a fresh interpreter started by command line, not a fork and not a multiprocessing child: it never runs the
user's main module (scripts without a guard, notebooks and standard input are safe) and never imports jax (this process
may hold a device and threads). Pixels come back through anonymous shared memory, which nothing has to clean up, not
even after a kill, and which container limits on /dev/shm do not touch. Workers end when their standard input does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import mmap
import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import IO, Protocol, TypeVar

import numpy as np

from dfine_jax.data.load.shared import aligned, dumps, unnamed_memory
from dfine_jax.data.picture import pixels
from dfine_jax.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Arrays = tuple[np.ndarray, ...]
Layout = tuple[tuple[tuple[int, ...], str], ...]

_PREFETCHED_BATCHES = 3
_CLOSE_SECONDS = 5.0
_MOST_AUTOMATIC = 16
_BOOTSTRAP = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from dfine_jax.data.load.workers import work
work(*map(int, sys.argv[2:]))
"""


class RowSource(Protocol):
    """What batches are made of; travels to the workers by ``shared.dumps``, which pickles."""

    @property
    def layout(self) -> Layout:
        """(shape, dtype) of each array of a batch; the first axis is the row."""
        ...

    def fill(self, step: int, row: int, out: Arrays) -> None:
        """Write one row of batch ``step``; every element of the row. A function of (step, row) alone."""
        ...

    def finish(self, step: int, arrays: Arrays) -> Arrays:
        """The batch from its filled rows, in new arrays; runs in the main process."""
        ...

    def describe(self, step: int, row: int) -> str:
        """The file behind a row, for error messages."""
        ...


def automatic_workers() -> int:
    """Processes for ``data.workers=-1``: one per core that this process may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_AUTOMATIC)


def batches(source: RowSource, steps: Iterable[int], workers: int) -> Generator[Arrays]:
    """The batches of ``steps``, freshly allocated each; ``workers=0`` makes them in this process.

    Raises:
      UserError: raised by ``fill`` here or in a worker, or a worker process ended; the message names the file.
    """
    if workers > 0 and not hasattr(os, "fork"):
        logger.warning("worker processes need a POSIX system; images are loaded in the main process")
        workers = 0
    rows = source.layout[0][0][0]
    return _serial(source, steps, rows) if workers == 0 else _parallel(source, steps, min(workers, rows), rows)


@contextlib.contextmanager
def closing_batches(batches: Iterable[T]) -> Iterator[Iterator[T]]:
    """An iterator over the batches that is closed, with its processes, when the block ends.

    Without it an error in the block would keep them: a traceback that somebody holds (a notebook does) holds the
    iterator.
    """
    stream = iter(batches)
    try:
        yield stream
    finally:
        if isinstance(stream, Generator):
            stream.close()


def _serial(source: RowSource, steps: Iterable[int], rows: int) -> Generator[Arrays]:
    for step in steps:
        out = tuple(np.empty(shape, dtype) for shape, dtype in source.layout)
        for row in range(rows):
            source.fill(step, row, out)
        yield source.finish(step, out)


def _parallel(source: RowSource, steps: Iterable[int], workers: int, rows: int) -> Generator[Arrays]:
    pending: list[int] = []
    upcoming = enumerate(steps)
    with _Pool(source, workers) as pool:
        for number, step in upcoming:
            pool.submit(step, number % _PREFETCHED_BATCHES)
            pending.append(step)
            if len(pending) == _PREFETCHED_BATCHES:
                break
        number = 0
        while pending:
            slot = number % _PREFETCHED_BATCHES
            out = pool.collect(pending.pop(0), slot)
            following = next(upcoming, None)
            if following is not None:
                pool.submit(following[1], slot)
                pending.append(following[1])
            number += 1
            yield out


class _Pool:
    """Worker processes and their shared memory: one progress cell per worker, then the slots.

    Worker i fills rows i, i + n, … of every batch and answers one line per batch, in order, so that one blocking read
    per worker and batch is all the synchronisation there is.
    """

    def __init__(self, source: RowSource, workers: int) -> None:
        self._source = source
        pickled, shared = dumps(source)
        self._memory = unnamed_memory(_progress_bytes(workers) + _PREFETCHED_BATCHES * _slot_bytes(source.layout))
        spec = unnamed_memory(len(pickled))
        spec_map = mmap.mmap(spec.fileno(), len(pickled))
        spec_map[:] = pickled
        spec_map.close()
        size = os.fstat(self._memory.fileno()).st_size
        self._map = mmap.mmap(self._memory.fileno(), size)
        self._progress, self._slots = _views(self._map, source.layout, workers)
        self._processes = [self._start(spec, shared, index, workers) for index in range(workers)]
        spec.close()
        # Also at exit: an iterator that is still open is collected when modules are half gone.
        self._end = weakref.finalize(self, _end, self._processes)

    def __enter__(self) -> _Pool:
        return self

    def _start(self, spec: IO[bytes], shared: tuple[int, ...], index: int, workers: int) -> subprocess.Popen[bytes]:
        descriptors = (self._memory.fileno(), spec.fileno())
        home = str(Path(__file__).resolve().parents[3])  # last resort when sys.path names it relative to an old folder
        arguments = [json.dumps([*sys.path, home]), *map(str, (*descriptors, index, workers))]
        return subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(*descriptors, *shared),
            start_new_session=True,  # signals to the process group are for the main process, which ends the workers
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )

    def submit(self, step: int, slot: int) -> None:
        """Ask all workers for their rows of a batch."""
        for process in self._processes:
            assert process.stdin is not None
            try:
                process.stdin.write(f"{step} {slot}\n".encode())
                process.stdin.flush()
            except BrokenPipeError:
                pass  # it has ended; collecting its answer reports why

    def collect(self, step: int, slot: int) -> Arrays:
        """Wait for a batch and take it out, so that the slot can be filled again."""
        for index, process in enumerate(self._processes):
            assert process.stdout is not None
            answer = process.stdout.readline()
            if not answer:
                code = process.wait()
                where = self._source.describe(*map(int, self._progress[index]))
                raise UserError(
                    f"data worker {index} ended with status {code} while reading {where}; "
                    "if memory ran out, lower data.workers or the batch size (data.workers=0 needs the least)"
                )
            message = json.loads(answer)
            if message is not None:
                raise UserError(message)
        return self._source.finish(step, self._slots[slot])

    def __exit__(self, *exc: object) -> None:
        self._end()
        self._progress = self._slots = ()
        self._map.close()
        self._memory.close()


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.close()
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass  # it had ended with an order unread
        process.terminate()
    for process in processes:
        try:
            process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def work(memory_fd: int, spec_fd: int, index: int, workers: int) -> None:
    """Body of a worker process: "step slot" lines on standard input; null or an error message per batch back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then ends this one
    if index:
        pixels.warn_of_nothing()
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    with mmap.mmap(spec_fd, 0, access=mmap.ACCESS_READ) as spec:
        source: RowSource = pickle.loads(spec)
    memory = mmap.mmap(memory_fd, 0)
    progress, slots = _views(memory, source.layout, workers)
    rows = source.layout[0][0][0]
    for line in sys.stdin:
        step, slot = map(int, line.split())
        error = None
        for row in range(index, rows, workers):
            progress[index] = step, row
            try:
                source.fill(step, row, slots[slot])
            except UserError as problem:
                error = str(problem)
                break
        try:
            os.write(replies, (json.dumps(error) + "\n").encode())
        except BrokenPipeError:
            return


def _progress_bytes(workers: int) -> int:
    return aligned(workers * 2 * 8)


def _slot_bytes(layout: Layout) -> int:
    return sum(aligned(math.prod(shape) * np.dtype(dtype).itemsize) for shape, dtype in layout)


def _views(memory: mmap.mmap, layout: Layout, workers: int) -> tuple[np.ndarray, tuple[Arrays, ...]]:
    """Progress cells [worker, (step, row)] and the arrays of each slot."""
    progress = np.frombuffer(memory, np.int64, workers * 2).reshape(workers, 2)
    offset = _progress_bytes(workers)
    slots = []
    for _ in range(_PREFETCHED_BATCHES):
        arrays = []
        for shape, dtype in layout:
            count = math.prod(shape)
            arrays.append(np.frombuffer(memory, dtype, count, offset).reshape(shape))
            offset += aligned(count * np.dtype(dtype).itemsize)
        slots.append(tuple(arrays))
    return progress, tuple(slots)
