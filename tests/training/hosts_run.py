"""One process of a whole run on several hosts; run by test_hosts.py.

Usage: hosts_run.py DATA OUT CONFIG PORT PROCESSES PROCESS [STOP_STEP]; PROCESSES 1 = without jax.distributed
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tiny  # noqa: F401  (adds the small backbone)

from dfine_jax.config import Config, from_dict
from dfine_jax.data.coco import find_split, read_coco
from dfine_jax.training import hosts, loop
from dfine_jax.training.stop import Stop


def main(data: str, out: str, config: str, port: str, processes: int, process: int, stop_step: int) -> None:
    if processes > 1:
        hosts.join(f"localhost:{port}", processes, process)
    settings = from_dict(Config, json.loads(Path(config).read_text()))
    train_data, val_data = (read_coco(*find_split(data, split)) for split in ("train", "val"))
    original, count = loop.split_over_devices, [0]

    def counted(batch):
        count[0] += 1
        if stop_step and count[0] == stop_step and process == processes - 1:  # one host alone is asked to stop
            stops[0].request("test")
        return original(batch)

    stops, init = [], Stop.__init__
    Stop.__init__ = lambda self, *rest: (stops.append(self), init(self, *rest))[1]  # type: ignore[method-assign]
    loop.split_over_devices = counted
    result = loop.train(settings, train_data, val_data, out, resume=Path(out, "last").exists())
    metrics = result.metrics
    print(json.dumps({
        "finished": result.finished,
        "ap50": metrics.ap50 if metrics else None,
        "images": metrics.num_images if metrics else None,
    }))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:5], *map(int, sys.argv[5:7]), int(sys.argv[7]) if len(sys.argv) > 7 else 0)
