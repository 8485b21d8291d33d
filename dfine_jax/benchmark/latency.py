"""Latency, throughput, memory and accuracy of models, measured fairly on a noisy machine.

Every contender lives in a process of its own. One at a time is asked for a block of runs while the others sleep, and
the blocks take turns, so that slow phases of the machine hit all alike; ratios are formed block by block. The
detections that AP is computed from are those of the timed runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfine_jax.errors import UserError

if TYPE_CHECKING:
    from dfine_jax.evaluation.evaluate import ClassMatch
    from dfine_jax.evaluation.truth import Truth

_THROUGHPUT_RUNS = 5


@dataclasses.dataclass(frozen=True)
class Contender:
    """A model in a runtime."""

    model: str
    runtime: str | None = None
    device: str | None = None
    threads: int | None = None

    @property
    def name(self) -> str:
        """Short and unique enough for a table."""
        place = ":".join(filter(None, (self.runtime, self.device)))
        return Path(self.model).name + (f"@{place}" if place else "")


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image to detect in; size and id of annotated ones."""

    path: str
    image_id: int = 0
    size_px: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Amounts:
    """What is measured, and how often."""

    pictures: tuple[Picture, ...]  # each is detected in once in every round of end-to-end runs
    rounds: int = 10
    raw_runs: int = 10  # of each contender in each round
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = ()  # of throughput; empty: the runtime's default alone
    pause_ms: float = 0.0  # before each run, but those of throughput: what is idle stays cool, and its clock high


@dataclasses.dataclass
class Measurement:
    """One contender."""

    contender: Contender
    ran_on: dict[str, Any]
    load_s: float  # from an idle process to a loaded model
    first_run_s: float
    memory_mib: float  # peak of the process before other batches run
    file_mb: float
    input_size_px: tuple[int, int]
    class_names: tuple[str, ...]
    precision: str
    raw_batch: int  # 1, or the only one the file accepts
    segments: bool = False  # makes masks too
    end_to_end_ms: list[float] = dataclasses.field(
        default_factory=list
    )  # encoded file to detections, masks in the size of the picture
    raw_ms: list[float] = dataclasses.field(default_factory=list)  # prepared batch to outputs
    block_ms: list[float] = dataclasses.field(default_factory=list)  # median raw time of each round
    throughput: list[dict[str, float]] = dataclasses.field(default_factory=list)  # batch, threads, images_per_s
    # By image id: scores, labels, corners and, of models that segment, run lengths.
    detections: dict[int, Any] = dataclasses.field(default_factory=dict)
    ap: float | None = None
    mask_ap: float | None = None

    def ratio(self, other: Measurement) -> float:
        """This one's raw time over the other's, as the median over rounds."""
        return float(np.median(np.array(self.block_ms) / np.array(other.block_ms)))


def percentiles(times_ms: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99."""
    return {f"p{q}": float(np.percentile(times_ms, q)) for q in (50, 95, 99)} if times_ms else {}


def measure(
    contenders: Sequence[Contender],
    amounts: Amounts,
    progress: Callable[[], Any] = lambda: None,
    loaded: Callable[[Measurement], Any] = lambda _: None,
) -> list[Measurement]:
    """Measure all contenders, interleaved.

    Args:
      progress: called after every block.
      loaded: called for every contender before the first is measured; what it raises ends all.

    Raises:
      UserError: a contender cannot be loaded or fails; the message is its own.
    """
    workers: list[_Worker] = []
    try:
        for contender in contenders:
            workers.append(_Worker(contender))
            loaded(workers[-1].measurement)
            progress()
        out = [worker.measurement for worker in workers]
        chunks = _split(amounts.pictures, amounts.rounds)
        for chunk in chunks:
            for worker in workers:
                worker.detect(chunk, amounts.pause_ms)
                worker.raw(amounts.raw_runs, amounts.pause_ms)
                progress()
        for worker in workers:
            worker.measurement.memory_mib = worker.ask({"do": "memory"})["peak_mib"]
        for threads, batch in itertools.product(amounts.threads or (None,), amounts.batches):
            for worker in workers:
                worker.throughput(batch, threads)
                progress()
        return out
    finally:
        for worker in workers:
            worker.close()


def num_blocks(contenders: int, amounts: Amounts) -> int:
    """How often ``measure`` reports progress."""
    return contenders * (
        1 + len(_split(amounts.pictures, amounts.rounds)) + max(1, len(amounts.threads)) * len(amounts.batches)
    )


def average_precision(measurement: Measurement, truth: Truth, classes: ClassMatch) -> tuple[float, float | None]:
    """AP of the timed detections on the images that were detected in, of boxes and, where there are any, of masks."""
    from dfine_jax.evaluation.score import score

    results = []
    for image_id, columns in measurement.detections.items():
        for value, label, (left, top, right, bottom), *mask in zip(*columns, strict=True):
            if (category := classes.category_of_label[label]) is None:
                continue
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [left, top, right - left, bottom - top],
                    "score": value,
                    **({"segmentation": mask[0]} if mask else {}),
                }
            )
    numbers = score(truth, results, list(measurement.detections), classes.scored).numbers()
    return numbers["ap"], numbers.get("mask_ap")


def hardware() -> dict[str, Any]:
    """What the numbers belong to."""
    import platform

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    out: dict[str, Any] = {"cpu": model, "cores": cores, "system": platform.platform()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        out["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if hasattr(os, "getloadavg"):
        out["load_before"] = round(os.getloadavg()[0], 2)  # other work that disturbs the numbers
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
        if answer.returncode == 0 and answer.stdout.strip():
            out["gpu"] = answer.stdout.strip().splitlines()
    except (OSError, subprocess.TimeoutExpired):
        pass  # no NVIDIA driver
    return out


def _split(pictures: Sequence[Picture], rounds: int) -> list[list[Picture]]:
    rounds = max(1, min(rounds, len(pictures)))
    return [list(pictures[i::rounds]) for i in range(rounds)]


class _Worker:
    """Parent side of a contender's process: one JSON line there, one back."""

    def __init__(self, contender: Contender) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._errors = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would fill up and block
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dfine_jax.benchmark.latency_worker", json.dumps(dataclasses.asdict(contender))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # Unfiltered, because JAX ends a shortened traceback with a note of its own.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_TRACEBACK_FILTERING": "off"},
        )
        self._contender = contender
        answer = self._read()
        self.measurement = Measurement(
            contender=contender,
            memory_mib=0.0,
            file_mb=_size_mb(Path(contender.model)),
            **{**answer, "input_size_px": tuple(answer["input_size_px"]), "class_names": tuple(answer["class_names"])},
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # why it ended stands in its output
        return self._read()

    def detect(self, pictures: Sequence[Picture], pause_ms: float) -> None:
        """Timed detection in some pictures."""
        given = [dataclasses.asdict(p) for p in pictures]
        answer = self.ask({"do": "detect", "pictures": given, "pause_ms": pause_ms})
        self.measurement.end_to_end_ms += answer["ms"]
        for picture, found in zip(pictures, answer["found"], strict=True):
            self.measurement.detections[picture.image_id] = found

    def raw(self, runs: int, pause_ms: float) -> None:
        """Timed runs of the smallest batch."""
        request = {"do": "raw", "batch": self.measurement.raw_batch, "runs": runs, "pause_ms": pause_ms}
        times = self.ask(request)["ms"]
        self.measurement.raw_ms += times
        self.measurement.block_ms.append(float(np.median(times)))

    def throughput(self, batch: int, threads: int | None) -> None:
        """Images per second of one batch size and number of threads, where the file can run it."""
        answer = self.ask({"do": "raw", "batch": batch, "runs": _THROUGHPUT_RUNS, "threads": threads})
        if answer["ms"]:
            rate = batch / (float(np.median(answer["ms"])) / 1e3)
            cell = {"batch": batch, "threads": threads or answer["threads"], "images_per_s": rate}
            self.measurement.throughput.append(cell)

    def close(self) -> None:
        """End the process."""
        self._errors.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise UserError(f"{self._contender.name}: {_cause(self._errors.read())}")
        return json.loads(line)


def _cause(text: str) -> str:
    """The error in what a process wrote before it ended: after a traceback the first line that is not of it."""
    lines = text.strip().splitlines()
    start = max((i for i, line in enumerate(lines) if line.startswith("Traceback (")), default=None)
    if start is not None:
        # Messages may have several lines, and notes stand behind them.
        lines = next(([line] for line in lines[start + 1 :] if line and not line[0].isspace()), lines)
    return lines[-1] if lines else "ended without a word"


def _size_mb(model: Path) -> float:
    """Size on disk with what belongs to it: the .bin of an .xml, all of a checkpoint's weights."""
    if model.is_dir():
        weights = model / "weights" if (model / "weights").is_dir() else model
        return sum(file.stat().st_size for file in weights.rglob("*") if file.is_file()) / 1e6
    companions = [model, model.with_suffix(".bin")] if model.suffix == ".xml" else [model]
    return sum(file.stat().st_size for file in companions if file.is_file()) / 1e6
