"""The first set of reference weights and its images, drawn from NumPy's frozen ``RandomState`` streams.

The reference implementation was given ``fill(key, shape)`` for every entry of its state dict, and then the batch-norm
statistics of one batch, which keep its activations at unit scale. A manifest (shapes and constants) and the stored
statistics rebuild the same checkpoint.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np


def fill(key: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Values of one entry: He-like kernels, scales around 1, small biases, offsets of two pixels."""
    stream = np.random.RandomState((zlib.crc32(key.encode()) + 7919 * seed) % 2**32)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if len(shape) == 1 and "sampling_offsets" not in key and key.endswith(("weight", "scale")):
        return stream.uniform(0.8, 1.2, shape).astype(np.float32)
    normal = stream.standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        gain = 0.3 if "score_head" in key or "bbox_head" in key else 1.0  # moderate losses
        return normal * np.float32(gain * np.sqrt(2.0 / int(np.prod(shape[1:]))))
    if "sampling_offsets" in key:
        return 2.0 * normal
    return 0.1 * normal - 3 if "score_head" in key else 0.1 * normal


def state_dict(manifest: Path, statistics: Path) -> dict[str, np.ndarray]:
    """All entries of a variant under their official names."""
    listed = json.loads(manifest.read_text())
    out = {key: fill(key, tuple(shape), listed["seed"]) for key, shape in listed["random"].items()}
    out |= {key: np.asarray(value, np.float32) for key, value in listed["constant"].items()}
    with np.load(statistics) as file:
        return out | {key: file[key] for key in file.files}


def image(height: int, width: int, batch: int = 1, seed: int = 0) -> np.ndarray:
    """Float32 images [batch, height, width, 3] in [0, 1]: six waves a channel, and noise."""
    stream = np.random.RandomState(1234 + seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.empty((batch, height, width, 3))
    for b, c in np.ndindex(batch, 3):
        waves = np.zeros((height, width))
        for _ in range(6):
            across, down, phase = stream.uniform(0.002, 0.05), stream.uniform(0.002, 0.05), stream.uniform(0, 6.28)
            waves += np.sin(across * x + down * y + phase)
        out[b, :, :, c] = 0.5 + waves / 16 + 0.1 * stream.standard_normal((height, width))
    return np.clip(out, 0, 1).astype(np.float32)
