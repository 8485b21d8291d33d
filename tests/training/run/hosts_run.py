"""``dfine ARGUMENTS...`` with the tiny backbone, watched; run by test_hosts.py.

Usage: hosts_run.py STOP_STEP ARGUMENTS...; the process is asked to stop as by a signal before its STOP_STEP-th step.
The last line printed is JSON: the result, and for each step the rows of this host's batch (digests) and the loss.
"""

from __future__ import annotations

import hashlib
import json
import sys

from tiny import known_backbone

from dfine_jax import cli
from dfine_jax.training.report.meter import Meter
from dfine_jax.training.run import loop
from dfine_jax.training.run.stop import Stop


def digests(images):
    """One for each row."""
    return [hashlib.sha256(row.tobytes()).hexdigest()[:12] for row in images]


def main(stop_step: int, arguments: list[str]) -> int:
    train, split, init = loop.train, loop.split_over_devices, Stop.__init__
    results, stops, rows, losses = [], [], [], []

    class Watched(Meter):
        def add(self, images, values):
            losses.append(values["loss"] if values else None)
            super().add(images, values)

    def split_watched(batch):
        rows.append(digests(batch.images))
        if len(rows) == stop_step:
            stops[0].request("test")
        return split(batch)

    def train_watched(*given, **options):
        results.append(train(*given, **options))
        return results[0]

    Stop.__init__ = lambda self, *rest: (stops.append(self), init(self, *rest))[1]  # type: ignore[method-assign]
    loop.split_over_devices, loop.Meter, loop.train = split_watched, Watched, train_watched
    status = cli.main(arguments)
    if results:
        images = results[0].metrics.num_images if results[0].metrics else None
        print(json.dumps({"finished": results[0].finished, "images": images, "rows": rows, "losses": losses}))
    return status


if __name__ == "__main__":
    with known_backbone():
        sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
