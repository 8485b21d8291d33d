"""Two processes with two simulated devices each take the run of one process with four."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from tiny import tiny_config

from dfine_jax.config import to_json
from dfine_jax.data.synthetic import make_shapes_dataset
from dfine_jax.errors import UserError
from dfine_jax.training import checkpoint, hosts
from dfine_jax.training.log import read_metrics


def launch(data, out, config, processes, devices, cache, stop_step=0):
    """The printed results of all processes."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    script = str(Path(__file__).with_name("hosts_run.py"))
    running = [
        subprocess.Popen(
            [sys.executable, script, *map(str, (data, out, config, port, processes, index, stop_step))],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    outputs = [process.communicate(timeout=1500)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes
    return [json.loads(text.splitlines()[-1]) for text in outputs]


@pytest.mark.slow
def test_two_hosts_take_the_run_of_one(tmp_path):
    data = make_shapes_dataset(tmp_path / "shapes", num_train=12, num_val=7, size_px=96, seed=0)
    config = tiny_config(
        model={"num_classes": 4},
        # the distillation term is a ratio of local sums
        loss={"weight_ddf": 0.0, "num_denoising": 0, "assignment": "device"},
        data={"augment": "none"},
        train={"epochs": 6, "stage2_epoch": 5},
    )
    (tmp_path / "config.json").write_text(to_json(config))
    (one,) = launch(data, tmp_path / "one", tmp_path / "config.json", 1, 4, tmp_path)
    # the second host alone is asked to stop at step 3; both stop at the next common question, and continue
    stopped = launch(data, tmp_path / "two", tmp_path / "config.json", 2, 2, tmp_path, stop_step=3)
    assert [result["finished"] for result in stopped] == [False, False]
    two = launch(data, tmp_path / "two", tmp_path / "config.json", 2, 2, tmp_path)
    assert one["finished"] and two[0] == two[1] and two[0]["images"] == one["images"] == 7
    rows = [read_metrics(tmp_path / name) for name in ("one", "two")]
    assert [row["epoch"] for row in rows[1]] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(rows[1][0]["loss"], rows[0][0]["loss"], rtol=1e-4)
    np.testing.assert_allclose(rows[1][-1]["loss"], rows[0][-1]["loss"], rtol=2e-2)
    weights = [checkpoint.load_weights(tmp_path / name / "last")[0]["params"] for name in ("one", "two")]
    for part in ("backbone", "encoder", "decoder"):
        leaves = [np.concatenate([np.ravel(x) for x in _leaves(tree[part])]) for tree in weights]
        assert np.abs(leaves[0] - leaves[1]).mean() < 1e-3
    assert (tmp_path / "two" / "host1" / "log.txt").is_file() and not (tmp_path / "two" / "host1" / "last").exists()
    # another number of devices goes on with the same run
    assert checkpoint.load_metadata(tmp_path / "two" / "last").epoch == 6


def _leaves(tree):
    return [leaf for node in tree.values() for leaf in _leaves(node)] if isinstance(tree, dict) else [tree]


def test_numbers_that_do_not_fit_are_told_at_once():
    with pytest.raises(UserError, match="--process 2 of --processes 2: give 0 to 1, each once"):
        hosts.join("localhost:1", 2, 2)


def test_a_single_process_shares_with_nobody():
    predict, batches = object(), []
    assert hosts.shared(predict, batches) == (predict, batches)
    assert (hosts.count(), hosts.index()) == (1, 0)
