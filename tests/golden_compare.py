"""Comparing outputs whose queries may be ranked differently by float noise."""

from __future__ import annotations

import numpy as np


def query_order(got_index, want_index) -> np.ndarray:
    """Permutation [b, q] that brings our queries into the reference's order; the chosen tokens must be the same."""
    got_index, want_index = np.asarray(got_index), np.asarray(want_index)
    np.testing.assert_array_equal(np.sort(got_index, 1), np.sort(want_index, 1))
    return np.take_along_axis(np.argsort(got_index, 1), np.argsort(np.argsort(want_index, 1), 1), 1)


def reorder(x, order: np.ndarray) -> np.ndarray:
    """Rows of an array [b, q, ...] in another order."""
    x = np.asarray(x)
    return np.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), 1)
