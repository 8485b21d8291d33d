"""Masks evaluated by several processes: the numbers of one, and only run lengths travel."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import hosts_masks
import numpy as np
import pytest
from conftest import ROOT

from dfine_jax.evaluation.detections import Detections
from dfine_jax.evaluation.encoded_masks import EncodedMasks
from dfine_jax.training.run import hosts


def launch(processes):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, str(Path(hosts_masks.__file__)), f"localhost:{port}", str(processes)]
    running = [
        subprocess.Popen([*command, str(index)], env=environment, stdout=subprocess.PIPE, text=True)
        for index in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [json.loads(text.splitlines()[-1]) for text in outputs]


@pytest.mark.slow
def test_hosts_evaluate_masks_as_one_does_and_run_lengths_alone_travel():
    (one,), pair, three = launch(1), launch(2), launch(3)
    assert one["numbers"]["mask_ap"] > 0.1 and one["images"] == hosts_masks.IMAGES and one["sent"] == 0
    for results in (pair, three):
        for result in results:
            assert result["numbers"] == one["numbers"] and result["images"] == hosts_masks.IMAGES
            assert result["segmented"] == one["segmented"] == hosts_masks.IMAGES * hosts_masks.FOUND
    maps = hosts_masks.IMAGES // 2 * hosts_masks.FOUND * hosts_masks.MAP**2 * 2
    assert 0 < pair[0]["sent"] == pair[1]["sent"] < maps / 10


def test_what_hosts_have_is_joined_in_their_order_whatever_its_length(monkeypatch):
    """Two threads stand for hosts, of which one has less; in pieces of a thousand bytes."""
    masks = EncodedMasks.of([b"abc", b"", b"de"], (3, 4))
    boxes = np.arange(12.0).reshape(3, 4)
    first = Detections(np.array([2**40, 7, 7]), np.array([1, 2, 3]), boxes, np.array([0.5, 0.25, 0.125]), masks)
    second = Detections.joined([first] * 30)
    meeting, sent = threading.Barrier(2, timeout=20), {}

    def gathered(data):
        host = int(threading.current_thread().name)
        sent[host] = data
        meeting.wait()
        both = np.stack([sent[0], sent[1]])
        meeting.wait()
        sizes.append(data.nbytes)
        return both

    sizes: list[int] = []
    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(hosts, "wait_for_all", lambda where: None)
    monkeypatch.setattr(hosts, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(hosts, "_gathered", gathered)
    results = {}

    def host(index):
        results[index] = hosts.together((first, second)[index], [[0], [3, 4]][index])

    threads = [threading.Thread(target=host, args=(index,), name=str(index)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(sizes) == 1000 and len(sizes) > 6
    for found, seen in (results[0], results[1]):
        assert list(found) == [*first, *second] and seen == [0, 3, 4]
        assert found.masks is not None and found.masks.exist.tolist() == [True, False, True] * 31
