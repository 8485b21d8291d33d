"""The constant 1 / points per level that state dicts of deformable decoders hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dfine_jax.errors import UserError


def point_scale(num_points: Sequence[int]) -> np.ndarray:
    """The constant, one number a point."""
    return np.asarray([1 / n for n in num_points for _ in range(n)], np.float32)


def points_per_level(scale: np.ndarray | tuple[()]) -> tuple[int, ...]:
    """Read back from 1/3 1/3 1/3 1/6 ...; empty when the values are not of that form."""
    rest, points = [float(value) for value in scale], []
    while rest:
        count = round(1 / rest[0]) if rest[0] > 0 else 0
        if not np.allclose(rest[:count], 1 / max(count, 1), rtol=0.01) or not 0 < count <= len(rest):
            return ()
        points.append(count)
        del rest[:count]
    return tuple(points)


def fold_point_scale(
    tensors: Mapping[str, np.ndarray], prefixes: Sequence[str], num_points: Sequence[int], num_heads: int
) -> dict[str, np.ndarray]:
    """Averaging of weights also averages the constant 1 / points and lets it drift (1/3 became 0.33328).

    The model multiplies predicted offsets by the constant, so the drift moves into the layer that predicts them.

    Args:
      tensors: a state dict.
      prefixes: of the names in the cross-attention of each layer.

    Raises:
      UserError: it is another constant.
    """
    out, constant = dict(tensors), point_scale(num_points)
    for prefix in prefixes:
        found = np.asarray(tensors.get(f"{prefix}num_points_scale", constant), np.float32)
        if found.shape != constant.shape or not np.allclose(found, constant, rtol=0.01):
            raise UserError(f"{prefix}num_points_scale is not 1 / points per level for {tuple(num_points)} points")
        if np.array_equal(found, constant):
            continue
        rows = np.tile(np.repeat(found.astype(np.float64) / constant, 2), num_heads)  # [m * p * 2]
        for name in ("weight", "bias"):
            key = f"{prefix}sampling_offsets.{name}"
            tensor = np.asarray(tensors[key], np.float64)
            out[key] = (tensor * rows.reshape(-1, *[1] * (tensor.ndim - 1))).astype(np.float32)
    return out
