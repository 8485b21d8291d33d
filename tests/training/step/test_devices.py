"""Several devices, simulated on the CPU: the number of devices is fixed when JAX starts, so each run is a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT


def run(out, devices, steps, batch, mode, timeout_s, family="dfine"):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"  # soon compiled
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("devices.py")), family, str(out), str(steps), str(batch), mode],
        env=environment,
        check=True,
        timeout=timeout_s,
    )
    return np.load(out)


_SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in ("dfine", "rtdetrv2")]


@pytest.mark.parametrize("family", ["masks", *_SLOW])
def test_two_devices_take_the_step_of_one(tmp_path, family):
    one = run(tmp_path / "one.npz", 1, 2, 4, "exact", 1200, family)
    two = run(tmp_path / "two.npz", 2, 2, 4, "exact", 1200, family)
    assert one["rows"][:, 2].all() and two["rows"][:, 2].all()
    np.testing.assert_allclose(two["rows"][:, 0], one["rows"][:, 0], rtol=1e-4)
    np.testing.assert_allclose(two["rows"][:, 1], one["rows"][:, 1], rtol=1e-3)
    # Adam turns rounding in tiny gradients into steps of full length, so single values may differ by a learning rate
    difference = np.abs(two["leaves"] - one["leaves"])
    assert difference.max() < 4e-3 and difference.mean() < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_eight_devices_on_few_cores_do_not_hang(tmp_path, attempt):
    rows = run(tmp_path / "eight.npz", 8, 50, 16, "noisy", 1800)["rows"]
    assert rows.shape == (50, 3) and rows[:, 2].all()
