"""One network for many requests: pictures that arrive while it runs are its next batch."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from dfine_jax.errors import UserError
from dfine_jax.prediction.between import Chosen, Preprocessed
from dfine_jax.prediction.detector import Detector, OpenedModel
from dfine_jax.prediction.result import DetectionResult
from dfine_jax.server import pictures

_MOST_THREADS = 4  # for pictures: each may hold a decoded one
T = TypeVar("T")


class Waiting(NamedTuple):
    """A picture before the network."""

    picture: Preprocessed
    chosen: Chosen
    answer: asyncio.Future[Found]


class Found(NamedTuple):
    """What the network says of a picture."""

    result: DetectionResult
    started: float  # of its run, on the clock ``time.perf_counter``
    ended: float


class Engine:
    """Detections for requests; an asynchronous context manager, used within one event loop.

    Pictures are decoded in a few threads, and nothing of them is kept but the network's input and the file as it came.
    The network has one thread. Whatever waits when it gets free is its next batch, up to ``batch``; it does not wait
    for more, unless ``wait_ms`` says so.

    Args:
      model: what runs.
      threshold, mask_threshold: as of ``Detector``.
      batch: most pictures of a run; None: the batch of a file of one fixed batch, else 1.
      wait_ms: how long an incomplete batch waits for more pictures.
      megapixels: of the largest picture that is decoded.

    Raises:
      UserError: a file of one fixed batch and another ``batch``, or numbers that cannot be.
    """

    def __init__(
        self,
        model: OpenedModel,
        *,
        threshold: float | None = None,
        mask_threshold: float = 0.5,
        batch: int | None = None,
        wait_ms: float = 0.0,
        megapixels: float = 50.0,
    ) -> None:
        if batch is not None and batch < 1:
            raise UserError(f"batch {batch} must be at least 1")
        if not 0 <= wait_ms <= 10_000:
            raise UserError(f"a wait of {wait_ms:g} ms must lie between 0 and 10000")
        if batch is not None and model.batch is not None and batch != model.batch:
            raise UserError(
                f"the file runs batches of {model.batch} and no others, so batch {batch} cannot be; leave it away, or "
                "export the model with --batch dynamic"
            )
        self.batch = batch or model.batch or 1
        self.wait_s, self.megapixels = wait_ms / 1000, megapixels
        self.describe: Callable[[], dict[str, Any]] = model.backend.describe
        # A picture alone is not filled up to a whole batch where the network is compiled for one.
        sizes = {model.batch or 1, self.batch}
        self._detectors = {
            size: Detector(model, threshold, batch_size=size, mask_threshold=mask_threshold) for size in sizes
        }
        self.detector = self._detectors[self.batch]
        self.runs = self.pictures = 0
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "picture")
        self._network = ThreadPoolExecutor(1, "network")
        self._runner: asyncio.Task[None] | None = None

    def prepare(self) -> None:
        """Compile, and run once on a grey picture, so that the first request is as quick as any.

        Raises:
          UserError: the network cannot be run.
        """
        with io.BytesIO() as stream:
            Image.new("RGB", (64, 64), "grey").save(stream, "JPEG")
            content = stream.getvalue()
        for size, detector in sorted(self._detectors.items()):
            detector.prepare()
            detector.detect_preprocessed([self._read(content)] * size, [detector.chosen()] * size)

    async def __aenter__(self) -> Engine:
        """Start to work."""
        self._runner = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop; requests that wait are not answered."""
        if self._runner is not None:
            self._runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._runner
        for pool in (self._threads, self._network):
            pool.shutdown(wait=True, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """Pictures before the network."""
        return self._queue.qsize()

    async def read(self, content: bytes) -> Preprocessed:
        """A picture file as the network's input.

        Raises:
          UnknownFormatError, TooManyPixelsError, UserError: see ``pictures.check`` and ``Detector``.
        """
        return await self.aside(self._read, content)

    async def detect(self, picture: Preprocessed, chosen: Chosen) -> Found:
        """What the network finds in it, together with others that wait."""
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(Waiting(picture, chosen, answer))
        return await answer

    async def aside(self, function: Callable[..., T], *arguments: Any) -> T:
        """A function in one of the threads for pictures."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _read(self, content: bytes) -> Preprocessed:
        pictures.check(content, self.megapixels)
        return self.detector.preprocess(content)

    async def _run(self) -> None:
        while True:
            batch = [one for one in await self._next() if not one.answer.done()]  # of clients that are still there
            if not batch:
                continue
            job = asyncio.get_running_loop().run_in_executor(self._network, self._detect, batch)
            await asyncio.wait([job])
            self.runs, self.pictures = self.runs + 1, self.pictures + len(batch)
            error = job.exception()
            for i, one in enumerate(batch):
                if one.answer.done():
                    continue
                if error is None:
                    one.answer.set_result(job.result()[i])
                else:
                    one.answer.set_exception(error)

    async def _next(self) -> list[Waiting]:
        """The next batch: at least one picture."""
        batch = [await self._queue.get()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.wait_s or None):
                while len(batch) < self.batch and (self.wait_s or not self._queue.empty()):
                    batch.append(await self._queue.get())
        return batch

    def _detect(self, batch: list[Waiting]) -> list[Found]:
        started = time.perf_counter()
        detector = self._detectors.get(len(batch), self.detector)
        results = detector.detect_preprocessed([one.picture for one in batch], [one.chosen for one in batch])
        ended = time.perf_counter()
        return [Found(result, started, ended) for result in results]
