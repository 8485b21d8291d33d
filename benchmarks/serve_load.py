"""``dfine serve`` under load on the loopback address: latency and throughput, with and without batches.

    python benchmarks/serve_load.py cells.onnx photos/ --batch 8 --clients 1,4,16

One server for each size of batch, started once and all running; rounds of requests take turns between them, so that
slow phases of the machine hit all alike, and ratios are formed round by round. Each client sends the next picture when
it has its answer. Clients are threads of this process: on few cores they take their share of the time.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_ROW = "{:>8s} {:>8s} {:>10s} {:>9s} {:>9s} {:>13s} {:>12s}"


@contextlib.contextmanager
def server(model: str, batch: int, options: Sequence[str]) -> Iterator[int]:
    """A server process; its port."""
    command = [sys.executable, "-m", "dfine_jax", "serve", model, "--port", "0", "--batch", str(batch), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(r":(\d+) is the page", line):
                    yield int(found[1])
                    return
            raise RuntimeError("the server has not started")
        finally:
            process.terminate()


def load(port: int, pictures: Sequence[bytes], clients: int, requests: int) -> tuple[list[float], float, int]:
    """So many requests of so many clients: seconds of each, of all together, and runs of the network."""
    taken: list[float] = []
    numbers = iter(range(requests))
    lock = threading.Lock()
    before = health(port)

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            begun = time.perf_counter()
            connection.request("POST", "/detect", pictures[number % len(pictures)])
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise RuntimeError(content.decode())
            with lock:
                taken.append(time.perf_counter() - begun)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    if len(taken) != requests:
        raise RuntimeError(f"{requests - len(taken)} requests failed")
    return taken, seconds, health(port)["runs"] - before["runs"]


def health(port: int) -> dict:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/health")
    with contextlib.closing(connection):
        return json.loads(connection.getresponse().read())


def share(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(int(part * len(values)), len(values) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what dfine serve takes; exported files must take any batch")
    parser.add_argument("pictures", type=Path, help="folder of pictures")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--wait-ms", default="0")
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--requests", type=int, default=64, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--option", action="append", default=[], help="of dfine serve, such as --option=--threads=1")
    options = parser.parse_args()
    pictures = [path.read_bytes() for path in sorted(options.pictures.iterdir()) if path.is_file()]
    print(f"{len(pictures)} pictures, {options.rounds} rounds of {options.requests} requests, taking turns")
    print(_ROW.format("clients", "batch", "p50 ms", "p95 ms", "per s", "pictures/run", "to batch 1"))
    more = [*options.option, "--wait-ms", options.wait_ms, "--max-requests", "1024"]
    with server(options.model, 1, options.option) as alone, server(options.model, options.batch, more) as together:
        ports = {1: alone, options.batch: together}
        for port in ports.values():
            load(port, pictures, 4, 16)
        for clients in map(int, options.clients.split(",")):
            rounds: dict[int, list[tuple[list[float], float, int]]] = {batch: [] for batch in ports}
            for _ in range(options.rounds):
                for batch, port in ports.items():
                    rounds[batch].append(load(port, pictures, clients, options.requests))
            for batch, done in rounds.items():
                seconds = [second for taken, *_ in done for second in taken]
                rates = [options.requests / whole for _, whole, _ in done]
                ratio = statistics.median(a[1] / b[1] for a, b in zip(rounds[1], done, strict=True))
                per_run = options.requests * len(done) / sum(runs for *_, runs in done)
                numbers = (1e3 * share(seconds, 0.5), 1e3 * share(seconds, 0.95), statistics.median(rates))
                cells = [f"{clients}", f"{batch}", *(f"{number:.1f}" for number in numbers)]
                print(_ROW.format(*cells, f"{per_run:.1f}", f"{ratio:.2f}"), flush=True)


if __name__ == "__main__":
    main()
