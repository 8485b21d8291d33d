"""Several processes that train one model (jax.distributed), each feeding its own devices; trivial for a single one.

Every host keeps the same state and takes the same decisions; the first one writes. All must see the run folder.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import sys
import threading
import time
import traceback
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float64, UInt8
from orbax.checkpoint import multihost

from dfine_jax.errors import UserError
from dfine_jax.evaluation.detections import Detections

logger = logging.getLogger(__name__)

PyTree = Any
_PATIENCE_MS = 2 * 3600 * 1000
_FAILED, _WATCH_SECONDS = "dfine_jax/failed", 1.0
_PIECE_BYTES = 1 << 26  # that travel at once: every host holds as many of each
_meetings = itertools.count()  # all hosts count alike


def join(coordinator: str, processes: int, index: int) -> None:
    """Meet the other processes; before anything else touches a device.

    Args:
      coordinator: ``ADDRESS:PORT`` of process 0, which all can reach.

    Raises:
      UserError: the numbers make no sense, or the others did not come.
    """
    if processes < 1 or not 0 <= index < processes:
        raise UserError(f"--process {index} of --processes {processes}: give 0 to {max(processes, 1) - 1}, each once")
    try:
        jax.distributed.initialize(coordinator, processes, index)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"no connection to the other processes through {coordinator} ({str(error).splitlines()[0][:200]}); start "
            f"all {processes} with the same --coordinator ADDRESS:PORT of the machine with --process 0"
        ) from error


def count() -> int:
    """Processes that take part."""
    return jax.process_count()


def index() -> int:
    """Number of this one; 0 writes the files."""
    return jax.process_index()


class EndingTogether:
    """``with EndingTogether():`` an error of one host ends all: they would wait for it in the middle of a step.

    Each says whose error it was and exits with status 2 from where it is; what was done since the last checkpoint is
    lost. To be used by a program's outermost function.
    """

    def __enter__(self) -> None:
        """Look out for errors of the others from here on."""
        if count() > 1:
            threading.Thread(target=_watch, daemon=True).start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Tell the others of an error, unless it is the consequence of theirs."""
        if kind is None or count() == 1 or not issubclass(kind, Exception):
            return
        if first := _notice():
            _leave(first)
        text = str(error) if issubclass(kind, UserError) else f"{kind.__name__}: {error}"
        multihost.get_jax_distributed_client().key_value_set(_FAILED, f"{index()} {text}", allow_overwrite=True)
        if not issubclass(kind, UserError):
            traceback.print_exception(error)
        logger.error("dfine: error: %s", text)
        if index() == 0:
            time.sleep(3 * _WATCH_SECONDS)  # the notices are kept here until all have seen them
        _leave()


def _watch() -> None:
    while not (text := _notice()):
        time.sleep(_WATCH_SECONDS)
    if not text.startswith(f"{index()} "):
        _leave(text)


def _notice() -> str:
    try:
        return multihost.get_jax_distributed_client().key_value_try_get(_FAILED)
    except jax.errors.JaxRuntimeError:  # none yet; that the others are out of reach JAX says itself
        return ""


def _leave(text: str = "") -> None:
    """At once: JAX's own farewell waits for the others."""
    if text:
        host, _, why = text.partition(" ")
        logger.error("dfine: error: host %s ended: %s", host, why)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def any_host(flag: bool) -> bool:
    """Whether any host says so; all must ask."""
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def wait_for_all(where: str) -> None:
    """Return when every host has come here, however long that takes: compiling, or the first one writing."""
    if count() > 1:
        # Through the coordinator: collectives of devices give up after half a minute on some platforms.
        meet = multihost.get_barrier_sync_fn(processes=set(range(count())))
        meet(key=f"{where} {next(_meetings)}", timeout_ms=_PATIENCE_MS)


def on_host(tree: PyTree) -> PyTree:
    """Arrays that are the same on all devices of all hosts, as NumPy."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0) if isinstance(x, jax.Array) else x), tree)


def together(detections: Detections, seen: list[int]) -> tuple[Detections, list[int]]:
    """Detections and ids of images of every host, one host after another, for ``evaluate.evaluate``.

    Each host predicts its own images and makes run lengths of its masks; these travel, once, not the network's maps.
    """
    if count() == 1:
        return detections, seen
    wait_for_all("predicted")
    data = _packed(detections.columns() | {"seen": np.array(seen, np.int64)})
    parts = [dict(np.load(io.BytesIO(part))) for part in _of_all(data)]
    joined = Detections.joined([Detections.of_columns(part) for part in parts])
    return joined, [image_id for part in parts for image_id in part["seen"].tolist()]


def _packed(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]  # for its option of another type
    return buffer.getvalue()


def _of_all(data: bytes) -> list[bytes]:
    """What every host has; all must ask."""
    # As bytes: without 64-bit mode JAX would shorten numbers.
    lengths = _gathered(np.array([len(data)], np.int64).view(np.uint8)).view(np.int64)[:, 0].tolist()
    mine, received = np.frombuffer(data, np.uint8), [[] for _ in lengths]
    for start in range(0, max(lengths), _PIECE_BYTES):
        size = min(_PIECE_BYTES, max(lengths) - start)
        piece = mine[start : start + size]
        pieces = _gathered(np.pad(piece, (0, size - len(piece))))
        for parts, length, row in zip(received, lengths, pieces, strict=True):
            parts.append(row[: max(length - start, 0)].tobytes())
    return [b"".join(parts) for parts in received]


def _gathered(data: UInt8[np.ndarray, " n"]) -> UInt8[np.ndarray, "h n"]:
    """As many bytes of every host."""
    return np.ascontiguousarray(multihost_utils.process_allgather(data))


def summed(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Values added over the hosts, which all must ask."""
    if count() == 1:
        return values
    return _gathered(np.ascontiguousarray(values).view(np.uint8)).view(np.float64).sum(0)
