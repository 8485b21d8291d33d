"""The process of one contender (see ``latency``): requests and answers are lines of JSON on stdin and stdout."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dfine_jax.errors import UserError
from dfine_jax.prediction.detector import Detector, open_model
from dfine_jax.prediction.result import DetectionResult
from dfine_jax.serving.artefact import is_artefact
from dfine_jax.serving.backends.base import ArtefactBackend, Backend
from dfine_jax.system.host_memory import keep_freed_memory

_WARM_UP_RUNS = 3
SHOWN = 0.5  # score of detections whose masks are made, Detector's default threshold


class Served:
    """A loaded model.

    Args:
      given: a ``latency.Contender`` as a dictionary.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given
        if not is_artefact(given["model"]):
            keep_freed_memory()  # as the commands do
        started = time.perf_counter()
        self._opened = self._open(given["threads"])
        self._backends: dict[int | None, Backend] = {None: self._opened.backend}
        self._detector = Detector(self._opened, threshold=0.0)
        self._load_s = time.perf_counter() - started
        self._runs: dict[tuple[int, int | None], Callable[[], Any]] = {}
        started = time.perf_counter()
        self._prepared(self._opened.batch or 1, None)()
        self._first_run_s = time.perf_counter() - started

    def hello(self) -> dict[str, Any]:
        """What the parent learns at once."""
        backend, preprocess = self._opened.backend, self._opened.preprocess
        return {
            "ran_on": backend.describe(),
            "load_s": self._load_s,
            "first_run_s": self._first_run_s,
            "input_size_px": [preprocess.height_px, preprocess.width_px],
            "class_names": list(self._opened.classes.names),
            "precision": backend.artefact.precision if isinstance(backend, ArtefactBackend) else "fp32",
            "raw_batch": self._opened.batch or 1,
            "segments": self._opened.segments,
        }

    def detect(self, pictures: Iterable[dict[str, Any]], pause_ms: float = 0) -> dict[str, Any]:
        """From the encoded file to detections, one image after the other, each after a pause that is not timed.

        Masks are made in the size of the picture for the detections that are shown (``SHOWN``).
        """
        from dfine_jax.data.picture.images import open_annotated, read_image

        times, found = [], []
        for picture in pictures:
            size = picture["size_px"]
            time.sleep(pause_ms / 1e3)
            started = time.perf_counter()
            image = open_annotated(Path(picture["path"]), *size) if size else read_image(picture["path"])
            result = self._detector(image)
            if result.object_masks is not None:
                result.object_masks.select(np.flatnonzero(result.scores >= SHOWN)).all()
            times.append(1e3 * (time.perf_counter() - started))
            found.append(_plain(result))
        return {"ms": times, "found": found}

    def raw(self, batch: int, runs: int, threads: int | None = None, pause_ms: float = 0) -> dict[str, Any]:
        """Runs of the network alone; none where the file has another batch or its runtime takes no threads."""
        backend = self._backend(threads)
        most = self._opened.batch or (backend.session.max_batch if isinstance(backend, ArtefactBackend) else None)
        if backend is None or batch > (most or batch) or batch != (self._opened.batch or batch):
            return {"ms": [], "threads": 0}
        run = self._prepared(batch, threads)
        times = []
        for _ in range(runs):
            time.sleep(pause_ms / 1e3)
            started = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - started))
        return {"ms": times, "threads": backend.describe().get("threads", 0)}

    def memory(self) -> dict[str, Any]:
        """Peak resident memory so far."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak_mib": peak / 1024 if sys.platform != "darwin" else peak / 1024**2}

    def _open(self, threads: int | None) -> Any:
        given = self._given
        return open_model(given["model"], runtime=given["runtime"], device=given["device"], threads=threads)

    def _backend(self, threads: int | None) -> Backend | None:
        if threads not in self._backends:
            if not isinstance(self._opened.backend, ArtefactBackend):
                return None
            self._backends[threads] = self._open(threads).backend
        return self._backends[threads]

    def _prepared(self, batch: int, threads: int | None) -> Callable[[], Any]:
        """A warm run of the network on noise that is laid out already."""
        if (batch, threads) not in self._runs:
            backend, preprocess = self._backends[threads], self._opened.preprocess
            shape = (batch, preprocess.height_px, preprocess.width_px, 3)
            images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            if isinstance(backend, ArtefactBackend):
                sizes = np.full((batch, 2), 640) if backend.artefact.graph == "complete" else None
                feeds, session = backend.feeds(images, sizes), backend.session
                self._runs[batch, threads] = lambda: session.run(feeds)
            else:
                self._runs[batch, threads] = lambda: backend.predict(images)
            if self._runs.keys() != {(batch, threads)}:  # the very first run is timed by itself
                for _ in range(_WARM_UP_RUNS):
                    self._runs[batch, threads]()
        return self._runs[batch, threads]


def _plain(result: DetectionResult) -> list[Any]:
    """Scores, labels, corners and, of models that segment, run lengths, for JSON."""
    columns = [result.scores.tolist(), result.labels.tolist(), result.boxes_xyxy_px.tolist()]
    masks = result.object_masks
    return columns if masks is None else [*columns, [_text(masks.rle(i)) for i in range(len(masks))]]


def _text(mask: dict[str, Any]) -> dict[str, Any]:
    return {**mask, "counts": mask["counts"].decode()}


def main() -> int:
    """Serve until stdin ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not mix with answers

    def answer(values: dict[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        served = Served(json.loads(sys.argv[1]))
        answer(served.hello())
        for line in sys.stdin:
            request = json.loads(line)
            answer(getattr(served, request.pop("do"))(**request))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
