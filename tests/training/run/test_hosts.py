"""``dfine train`` in two processes with two simulated devices each, and resumed on other numbers of devices."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hosts_run import digests
from tiny import tiny_config

from dfine_jax.data.load.plan import epoch_order
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.errors import UserError
from dfine_jax.evaluation.detections import Detections
from dfine_jax.training.report.run_files import read_metrics
from dfine_jax.training.run import checkpoint, hosts, setup
from dfine_jax.training.run.setup import make_loaders

STEPS = 18  # six epochs of three batches
STOPPED = 10  # in the middle of an epoch; the hosts ask each other every ten steps and while they evaluate


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=12, num_val=7, size_px=96, seed=0)


def launch(data, out, config, processes, devices, stop_step=0, status=0):
    """What all processes tell, or if they fail (``status``) print; the last one alone is asked to stop."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        # compiled in half the time
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(out.parent / "cache"),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    arguments = ["train", str(config), "--data", str(data), "--out", str(out)]
    arguments += ["--resume"] if (out / "last").exists() else []
    running = []
    for index in range(processes):
        stops = str(stop_step if index == processes - 1 else 0)
        together = ["--coordinator", f"localhost:{port}", "--processes", str(processes), "--process", str(index)]
        command = [sys.executable, str(Path(__file__).with_name("hosts_run.py")), stops, *arguments]
        command += together if processes > 1 else []
        errors = subprocess.STDOUT if status else None
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True))
    try:
        outputs = [process.communicate(timeout=1500)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [status] * processes, outputs
    if status:
        return outputs
    return [json.loads(text.splitlines()[-1]) for text in outputs]


def write_config(folder, **changes):
    """The tiny model; the augmentation is done before the last epoch and the second stage begins with it."""
    sections = {"model": {"num_classes": 4}, "train": {"epochs": STEPS // 3, "stage2_epoch": 5}, **changes}
    config = tiny_config(**sections)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    return config, folder / "config.json"


def expected_rows(config, data):
    """Of every batch, as a single process reads them."""
    stream = make_loaders(config, read_dataset(data, "train"), None)[0].batches()
    return [digests(next(stream).images) for _ in range(STEPS)]


def rows_of(results):
    """Of every batch, over all hosts."""
    return [sum(parts, []) for parts in zip(*(result["rows"] for result in results), strict=True)]


@pytest.mark.slow
def test_two_hosts_take_the_run_of_one_and_others_continue_it(tmp_path, data):
    config, file = write_config(
        tmp_path,
        # the distillation term is a ratio of local sums, and each device draws its own noise
        loss={"weight_ddf": 0.0, "num_denoising": 0, "assignment": "device"},
        data={"augment": "none"},
    )
    order = expected_rows(config, data)
    (one,) = launch(data, tmp_path / "one", file, 1, 4)
    assert one["finished"] and one["images"] == 7 and one["rows"] == order
    stopped = launch(data, tmp_path / "two", file, 2, 2, stop_step=STOPPED)
    assert [result["finished"] for result in stopped] == [False, False]
    assert rows_of(stopped) == order[:STOPPED]
    assert len(stopped[0]["losses"]) == STOPPED and stopped[0]["losses"] == stopped[1]["losses"]
    np.testing.assert_allclose(stopped[0]["losses"][0], one["losses"][0], rtol=1e-5)
    for name in ("four", "single"):
        shutil.copytree(tmp_path / "two", tmp_path / name)

    two = launch(data, tmp_path / "two", file, 2, 2)
    assert two[0]["losses"] == two[1]["losses"] and [result["images"] for result in two] == [7, 7]
    assert rows_of(two) == order[STOPPED:]
    rows = [read_metrics(tmp_path / name) for name in ("one", "two")]
    assert [row["epoch"] for row in rows[1]] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(rows[1][0]["loss"], rows[0][0]["loss"], rtol=1e-4)
    np.testing.assert_allclose(rows[1][-1]["loss"], rows[0][-1]["loss"], rtol=2e-2)
    weights = [checkpoint.load_weights(tmp_path / name / "last")[0]["params"] for name in ("one", "two")]
    for part in ("backbone", "encoder", "decoder"):
        leaves = [np.concatenate([np.ravel(x) for x in _leaves(tree[part])]) for tree in weights]
        assert np.abs(leaves[0] - leaves[1]).mean() < 1e-3
    assert (tmp_path / "two" / "host1" / "log.txt").is_file() and not (tmp_path / "two" / "host1" / "last").exists()

    # Another number of devices takes the same next step: from the same weights, on the same images.
    for name, devices in (("four", 4), ("single", 1)):
        (other,) = launch(data, tmp_path / name, file, 1, devices, stop_step=2)
        print(f"{devices} devices after 2 x 2: {other['losses']}, 2 x 2: {two[0]['losses'][:2]}")
        assert other["rows"] == order[STOPPED : STOPPED + 2] and not other["finished"]
        np.testing.assert_allclose(other["losses"][0], two[0]["losses"][0], rtol=1e-5)
        np.testing.assert_allclose(other["losses"][1], two[0]["losses"][1], rtol=1e-4)


@pytest.mark.slow
def test_two_hosts_with_the_default_losses_and_augmentation_then_one(tmp_path, data):
    config, file = write_config(tmp_path, data={"stop_augment_epoch": 5})
    assert (config.loss.assignment, config.data.augment) == ("scipy", "standard")
    assert config.loss.num_denoising and config.loss.weight_ddf
    order = expected_rows(config, data)
    stopped = launch(data, tmp_path / "run", file, 2, 2, stop_step=STOPPED)
    assert rows_of(stopped) == order[:STOPPED] and stopped[0]["losses"] == stopped[1]["losses"]
    shutil.copytree(tmp_path / "run", tmp_path / "pair")
    two = launch(data, tmp_path / "run", file, 2, 2)
    assert [result["finished"] for result in two] == [True, True] and rows_of(two) == order[STOPPED:]
    (pair,) = launch(data, tmp_path / "pair", file, 1, 2)
    print(f"2 devices after 2 x 2: {pair['losses'][:2]}, 2 x 2: {two[0]['losses'][:2]}")
    assert pair["finished"] and pair["rows"] == order[STOPPED:] and pair["images"] == two[0]["images"] == 7
    # Devices draw noise of their own and normalise the distillation by their own objects.
    np.testing.assert_allclose(pair["losses"][0], two[0]["losses"][0], rtol=0.1)
    assert np.isfinite(pair["losses"]).all() and checkpoint.load_metadata(tmp_path / "pair" / "last").epoch == 6


@pytest.mark.slow
def test_an_error_of_one_host_ends_both(tmp_path, data):
    config, file = write_config(tmp_path, loss={"assignment": "device"})
    shutil.copytree(data, tmp_path / "data")
    second = read_dataset(tmp_path / "data", "train").records[epoch_order(12, 12, config.train.seed, 1)[2]].path
    second.write_bytes(second.read_bytes()[:300])  # in the rows of host 1
    began = time.monotonic()
    texts = launch(tmp_path / "data", tmp_path / "run", file, 2, 2, status=2)
    print(f"{time.monotonic() - began:.0f} s")
    told = [[line for line in text.splitlines() if "dfine: error:" in line] for text in texts]
    assert len(told[0]) == len(told[1]) == 1
    assert "dfine: error: host 1 ended: " in told[0][0] and second.name in told[0][0]
    assert "host 1" not in told[1][0] and second.name in told[1][0]


def _leaves(tree):
    return [leaf for node in tree.values() for leaf in _leaves(node)] if isinstance(tree, dict) else [tree]


def test_numbers_that_do_not_fit_are_told_at_once():
    with pytest.raises(UserError, match="--process 2 of --processes 2: give 0 to 1, each once"):
        hosts.join("localhost:1", 2, 2)


def test_a_single_process_shares_with_nobody():
    detections, seen = Detections.of_coco([]), [3]
    assert hosts.together(detections, seen) == (detections, seen)
    assert (hosts.count(), hosts.index()) == (1, 0)


def test_hosts_with_different_numbers_of_devices_are_refused(monkeypatch, data):
    class Device:
        def __init__(self, host):
            self.process_index = host

    config = tiny_config(model={"num_classes": 4})
    monkeypatch.setattr(setup.jax, "devices", lambda: [Device(0), Device(1), Device(0)])
    with pytest.raises(UserError, match="equal numbers of devices, not 2 on host 0, 1 on host 1; hide some"):
        setup.check(config, read_dataset(data, "train"), None)
