"""Fair timing on a noisy machine: every contender lives in its own process, blocks of runs take turns.

A contender is a Python function ``setup() -> run`` in a file started as ``python FILE --worker NAME [ARGS]``. The
parent asks one worker at a time for a block of runs while the others sleep; ratios are formed block by block, so that
slow phases of the machine hit all contenders alike. Beside the wall stand the processor's time, page faults and
voluntary context switches of a run: where memory is handed back and forth or threads wait for a lock, they say why.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

_ROW = "{:34s} {:>10s} {:>9s} {:>9s} {:>11s} {:>9s} {:>9s} {:>9s} {:>9s} {:>8s} {:>12s}"


def serve(setup: Callable[[], Callable[[], object]]) -> None:
    """Worker side: set up, then time blocks of runs on request (one JSON line each way)."""
    started = time.perf_counter()
    run = setup()
    first = time.perf_counter()
    run()
    now = time.perf_counter()
    print(json.dumps({"setup_s": first - started, "first_run_s": now - first}), flush=True)
    for line in sys.stdin:
        times, before = [], resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(int(line)):
            t = time.perf_counter()
            run()
            times.append(time.perf_counter() - t)
        after = resource.getrusage(resource.RUSAGE_SELF)
        answer = {
            "times_s": times,
            "peak_mib": after.ru_maxrss / 1024,
            "cpu_s": (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / len(times),
            "faults": (after.ru_minflt - before.ru_minflt) / len(times),
            "switches": (after.ru_nvcsw - before.ru_nvcsw) / len(times),
        }
        print(json.dumps(answer), flush=True)


class _Worker:
    def __init__(self, file: str, name: str, args: Sequence[str], environment: Mapping[str, str]) -> None:
        command = [sys.executable, file, "--worker", name, *args]
        self.name, self.times_s, self.blocks, self.peak_mib = name, [], [], 0.0
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(file).resolve().parent.parent,
            env={**os.environ, **environment},
        )
        self.start = self._read()

    def _read(self) -> dict:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"worker {self.name} ended without an answer (exit code {self.process.wait()})")

    def block(self, runs: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{runs}\n")
        self.process.stdin.flush()
        answer = self._read()
        self.times_s += answer["times_s"]
        self.blocks.append({**answer, "wall_s": statistics.median(answer["times_s"])})
        self.peak_mib = answer["peak_mib"]

    def median(self, key: str) -> float:
        return statistics.median(block[key] for block in self.blocks)

    def ratio(self, other: _Worker, key: str) -> float:
        return statistics.median(a[key] / b[key] for a, b in zip(self.blocks, other.blocks, strict=True))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(
    file: str,
    names: Sequence[str],
    args: Sequence[str],
    rounds: int,
    runs: int,
    title: str,
    environments: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> list[dict]:
    """Parent side: start all workers, warm up, interleave, print a table; ratios are against the first name.

    Args:
      environments: variables for the worker of a name, beside those of this process.
    """
    workers = [_Worker(file, name, args, environments.get(name, {})) for name in names]
    for worker in workers:
        worker.block(1)
        worker.times_s, worker.blocks = [], []
    for _ in range(rounds):
        for worker in workers:
            worker.block(runs)
    rows = []
    print(f"\n{title}: {rounds} rounds x {runs} runs")
    times = ("median ms", "p10", "p90", "first/this", "cpu ms")
    print(_ROW.format("contender", *times, "faults", "switches", "peak MiB", "setup s", "first run s"))
    for worker in workers:
        ordered = sorted(worker.times_s)
        ratio = workers[0].ratio(worker, "wall_s")
        row = {
            "contender": worker.name,
            "median_ms": 1e3 * statistics.median(ordered),
            "p10_ms": 1e3 * ordered[len(ordered) // 10],
            "p90_ms": 1e3 * ordered[(9 * len(ordered)) // 10],
            "ratio_first_over_this": ratio,
            "cpu_ratio_first_over_this": workers[0].ratio(worker, "cpu_s"),
            "cpu_ms": 1e3 * worker.median("cpu_s"),  # of all threads
            "page_faults": worker.median("faults"),
            "context_switches": worker.median("switches"),  # voluntary ones: waiting
            "peak_mib": worker.peak_mib,
            "setup_s": worker.start["setup_s"],  # imports, loading, compiling ahead
            "first_run_s": worker.start["first_run_s"],
        }
        rows.append(row)
        numbers = (f"{row[k]:.1f}" for k in ("median_ms", "p10_ms", "p90_ms"))
        counts = (f"{row[k]:.0f}" for k in ("cpu_ms", "page_faults", "context_switches", "peak_mib"))
        tail = (f"{ratio:.3f}", *counts, f"{row['setup_s']:.1f}", f"{row['first_run_s']:.1f}")
        print(_ROW.format(worker.name, *numbers, *tail), flush=True)
        worker.close()
    return rows
