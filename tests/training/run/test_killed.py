"""``dfine train`` killed at random moments: every resume works, and the end is that of a run left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT

from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.training.report.run_files import read_metrics
from dfine_jax.training.run import checkpoint

EPOCHS, KILLS = 36, 10
CLOCK = {"images_per_s", "data_wait"}  # the columns of metrics.csv that differ between equal runs


def start(folder, out, *more):
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiled in half the time
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "dfine_jax.cli", "train", *more, "--data", str(folder / "data"), "--out", str(out)]
    with open(folder / f"{out.name}.txt", "a") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


def wait_for_training(process, log, times):
    """Until the log says for the ``times``-th time that all is compiled: moments of compilation would prove little."""
    while process.poll() is None and log.read_text().count("compiled the evaluation") < times:
        time.sleep(0.05)


def everything(folder):
    """All arrays under a checkpoint, by file and place."""
    trees = {part.name: checkpoint._restore(part) for part in folder.iterdir() if part.is_dir()}
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(trees)}


def assert_equal_runs(ours, theirs):
    for name in ("last", "best"):
        left, right = everything(ours / name), everything(theirs / name)
        assert left.keys() == right.keys() and len(left) > 100
        assert [path for path in left if not np.array_equal(left[path], right[path])] == []
        texts = [(folder / name / "metadata.json").read_text() for folder in (ours, theirs)]
        assert texts[0] == texts[1]
    rows = [[{k: v for k, v in row.items() if k not in CLOCK} for row in read_metrics(run)] for run in (ours, theirs)]
    assert rows[0] == rows[1] and len(rows[0]) == EPOCHS


@pytest.mark.slow
def test_ten_kills_leave_no_trace(tmp_path):
    make_shapes_dataset(tmp_path / "data", num_train=32, num_val=8, size_px=96, seed=0)
    options = ["n", "--size", "96x96", "--epochs", str(EPOCHS), "--batch-size", "4", "train.stage2_epoch=24"]
    options += ["model.num_queries=50", "loss.num_denoising=20", "data.workers=0", "log.pictures=0"]
    options += ["loss.assignment=device"]  # can be kept by the compilation cache
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    process = start(tmp_path, alone, *options)
    wait_for_training(process, tmp_path / "alone.txt", 1)
    began = time.monotonic()
    assert process.wait() == 0
    epoch_s = (time.monotonic() - began) / EPOCHS
    rng, log, moments = np.random.default_rng(), tmp_path / "killed.txt", []
    process = start(tmp_path, killed, *options)
    for number in range(1, KILLS + 1):
        wait_for_training(process, log, number)
        time.sleep(rng.uniform(0, 4.5 * epoch_s))
        assert process.poll() is None, f"over before kill {number}: {log.read_text()[-2000:]}"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        found = sorted(path.name for path in killed.iterdir())
        moments.append((len(read_metrics(killed)) if "metrics.csv" in found else 0, found))
        saved = "last" in found or ".last.replaced" in found  # not in the moment between compiling and the first step
        process = start(tmp_path, killed, *(["n", "--resume"] if saved else options))
    assert process.wait() == 0, log.read_text()[-2000:]
    print("\n(epochs done, files) at each kill:", *moments, sep="\n")
    assert_equal_runs(killed, alone)
