"""Fair timing on a noisy machine: every contender lives in its own process, blocks of runs take turns.

A contender is a Python function ``setup() -> run`` in a file started as ``python FILE --worker NAME [ARGS]``. The
parent asks one worker at a time for a block of runs while the others sleep; ratios are formed block by block, so that
slow phases of the machine hit all contenders alike.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_ROW = "{:34s} {:>10s} {:>9s} {:>9s} {:>11s} {:>9s} {:>8s} {:>12s}"


def serve(setup: Callable[[], Callable[[], object]]) -> None:
    """Worker side: set up, then time blocks of runs on request (one JSON line each way)."""
    started = time.perf_counter()
    run = setup()
    first = time.perf_counter()
    run()
    now = time.perf_counter()
    print(json.dumps({"setup_s": first - started, "first_run_s": now - first}), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            t = time.perf_counter()
            run()
            times.append(time.perf_counter() - t)
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"times_s": times, "peak_mib": peak_mib}), flush=True)


class _Worker:
    def __init__(self, file: str, name: str, args: Sequence[str]) -> None:
        command = [sys.executable, file, "--worker", name, *args]
        self.name, self.times_s, self.blocks_s, self.peak_mib = name, [], [], 0.0
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(file).resolve().parent.parent
        )
        self.start = self._read()

    def _read(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"worker {self.name} ended without an answer (exit code {self.process.wait()})")

    def block(self, runs: int) -> None:
        self.process.stdin.write(f"{runs}\n")
        self.process.stdin.flush()
        answer = self._read()
        self.times_s += answer["times_s"]
        self.blocks_s.append(statistics.median(answer["times_s"]))
        self.peak_mib = answer["peak_mib"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(file: str, names: Sequence[str], args: Sequence[str], rounds: int, runs: int, title: str) -> list[dict]:
    """Parent side: start all workers, warm up, interleave, print a table; ratios are against the first name."""
    workers = [_Worker(file, name, args) for name in names]
    for worker in workers:
        worker.block(1)
        worker.times_s, worker.blocks_s = [], []
    for _ in range(rounds):
        for worker in workers:
            worker.block(runs)
    rows = []
    print(f"\n{title}: {rounds} rounds x {runs} runs")
    print(_ROW.format("contender", "median ms", "p10", "p90", "first/this", "peak MiB", "setup s", "first run s"))
    for worker in workers:
        ordered = sorted(worker.times_s)
        ratio = statistics.median(a / b for a, b in zip(workers[0].blocks_s, worker.blocks_s, strict=True))
        row = {
            "contender": worker.name,
            "median_ms": 1e3 * statistics.median(ordered),
            "p10_ms": 1e3 * ordered[len(ordered) // 10],
            "p90_ms": 1e3 * ordered[(9 * len(ordered)) // 10],
            "ratio_first_over_this": ratio,
            "peak_mib": worker.peak_mib,
            "setup_s": worker.start["setup_s"],  # imports, loading, compiling ahead
            "first_run_s": worker.start["first_run_s"],
        }
        rows.append(row)
        numbers = (f"{row[k]:.1f}" for k in ("median_ms", "p10_ms", "p90_ms"))
        tail = (f"{ratio:.3f}", f"{row['peak_mib']:.0f}", f"{row['setup_s']:.1f}", f"{row['first_run_s']:.1f}")
        print(_ROW.format(worker.name, *numbers, *tail), flush=True)
        worker.close()
    return rows
