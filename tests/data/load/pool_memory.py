"""What a pool of two workers costs before its first batch, and in memory, by the number of records.

python tests/data/load/pool_memory.py 200000            as the loaders hand records over
python tests/data/load/pool_memory.py 200000 --plain    every worker gets the Python objects, for comparison
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path

import numpy as np

from dfine_jax.data.load import workers
from dfine_jax.data.load.columns import RecordColumns
from dfine_jax.data.read.dataset import Record

WORKERS, ROWS = 2, 256


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads records as a source of batches does, but no pictures."""

    records: tuple[Record, ...] | RecordColumns

    @property
    def layout(self):
        return (((ROWS, 3), "int64"),)

    def fill(self, step, row, out):
        index = step * ROWS + row
        record = self.records[index] if index < len(self.records) else None
        touched = record.boxes_xyxy_px.sum() + record.labels.sum() if record else 0
        out[0][row] = os.getpid(), record.image_id if record else -1, touched

    def finish(self, step, arrays):
        return tuple(array.copy() for array in arrays)

    def describe(self, step, row):
        return ""


def made_up(count, objects=15):
    """Records with paths as long as those of Objects365."""
    rng = np.random.default_rng(0)
    return tuple(
        Record(
            image_id=i,
            path=Path(f"/data/objects365/train/images/v1/patch{i % 51}/objects365_v1_{i:08d}.jpg"),
            width_px=1024,
            height_px=768,
            boxes_xyxy_px=rng.random((objects, 4), np.float32),
            labels=rng.integers(365, size=objects, dtype=np.int32),
            areas_px=rng.random(objects, np.float32),
            annotation_ids=np.arange(objects) + objects * i,
        )
        for i in range(count)
    )


def kib(pid):
    """Proportional and anonymous (shared with nobody) memory of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return found["Pss"], found["Anonymous"]


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(records):
    """Start of a pool, and its memory once every record has been read."""
    started = time.perf_counter()
    stream = workers.batches(Reader(records), range(-(-len(records) // ROWS) + 1), WORKERS)
    first = next(stream)
    out = {"first_batch_s": time.perf_counter() - started}
    pids = sorted(set(first[0][:, 0].tolist()))
    out["worker_cpu_s"] = max(cpu_seconds(pid) for pid in pids)
    seen = [first[0][:, 1]]
    for _ in range(-(-len(records) // ROWS) - 1):
        seen.append(next(stream)[0][:, 1])
    out["pss_mib"], out["anonymous_mib"] = (max(values) / 1024 for values in zip(*map(kib, pids), strict=True))
    stream.close()
    assert np.concatenate(seen)[: len(records)].tolist() == list(range(len(records)))
    return out


def main():
    """Measure once and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    made = made_up(options.count)
    start = time.perf_counter()
    given = made if options.plain else RecordColumns(made)
    conversion_s = time.perf_counter() - start
    numbers = {"conversion_s": conversion_s, **measure(given)}
    print(options.count, "plain" if options.plain else "columns", {key: round(v, 2) for key, v in numbers.items()})


if __name__ == "__main__":
    import pool_memory  # by name: the workers cannot import a main module

    pool_memory.main()
