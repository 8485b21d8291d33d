"""Steps of the shrunken model on all devices of this process; run by test_devices.py with simulated ones.

Usage: devices.py FAMILY OUT STEPS BATCH MODE
"""

from __future__ import annotations

import sys

import jax
import numpy as np
from tiny import known_backbone, random_batch, tiny_config, tiny_rtdetr, tiny_segmenter, with_masks

from dfine_jax.families import of
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.state import create_state, ema_variables
from dfine_jax.training.step.step import make_train_step, replicated


def main(family: str, out: str, steps: int, batch: int, exact: bool) -> None:
    """Train and store the state; ``exact`` leaves out what depends on how images are spread over devices."""
    devices = jax.local_device_count()
    if exact:  # noise differs by device, and the distillation term is a ratio of local sums
        loss = {"label_noise_ratio": 0.0, "box_noise_scale": 0.0, "weight_ddf": 0.0}
    else:
        loss = {}
    config = {"dfine": tiny_config, "rtdetrv2": tiny_rtdetr, "masks": tiny_segmenter}[family](loss=loss)
    tx = make_optimizer(config.model, config.optim)
    state = replicated(create_state(of(config.model).init(config.model, jax.random.key(0)), tx, jax.random.key(1)))
    step = make_train_step(config, tx)
    rows = []
    for index in range(steps):
        counts = [3, 1, 0, 3] if exact else None  # the layout follows the largest count of a device
        images = random_batch(index, devices, batch // devices, counts)
        state, metrics = step(state, with_masks(images) if family == "masks" else images)
        rows.append([metrics.loss, metrics.grad_norm, metrics.finite])
        print(index, *map(float, rows[-1]), flush=True)
    leaves = jax.tree.leaves((state.params, state.batch_stats, ema_variables(state)))
    np.savez(out, rows=np.array(rows, np.float64), leaves=np.concatenate([np.ravel(x) for x in leaves]))


if __name__ == "__main__":
    with known_backbone():
        main(*sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "exact")
