"""Anchors against the values published in the specification (appendix A.4)."""

from __future__ import annotations

import numpy as np
import pytest

from dfine_jax.ops.anchors import anchors


def _sizes(height: int, width: int, strides: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(height // s, width // s) for s in strides]


@pytest.mark.parametrize(
    ("side", "strides", "valid", "total"),
    [
        (640, (8, 16, 32), 8084, 8400),
        (480, (8, 16, 32), 4489, 4725),
        (800, (8, 16, 32), 12533, 13125),
        (320, (8, 16, 32), 2100, 2100),
        (640, (16, 32), 2000, 2000),
        (800, (16, 32), 2929, 3125),
    ],
)
def test_counts(side, strides, valid, total):
    boxes, mask = anchors(_sizes(side, side, strides))
    assert boxes.shape == (total, 4) and boxes.dtype == np.float32
    assert mask.sum() == valid
    assert np.isfinite(boxes[mask]).all() and np.isposinf(boxes[~mask]).all()


def test_values():
    boxes, _ = anchors(_sizes(640, 640, (8, 16, 32)))
    np.testing.assert_allclose(boxes[81], [-3.9576335, -3.9576335, -2.9444389, -2.9444389], rtol=2e-7)
    np.testing.assert_allclose(boxes[-1], [3.6635625, 3.6635625, -1.3862944, -1.3862944], rtol=2e-7)
    boxes, _ = anchors(_sizes(640, 640, (16, 32)))
    np.testing.assert_allclose(boxes[0], [-4.3694477, -4.3694477, -2.9444389, -2.9444389], rtol=2e-7)


def test_rows_run_over_width_first():
    boxes, _ = anchors([(2, 4)])
    centre = 1 / (1 + np.exp(-boxes[:, :2]))
    np.testing.assert_allclose(centre[5], [0.375, 0.75], rtol=1e-6)
