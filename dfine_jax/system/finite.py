"""Weights that hold NaN or infinite values: found wherever weights are read, told with their names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_LISTED = 3


def not_finite(arrays: Mapping[str, np.ndarray]) -> str:
    """What is wrong with arrays of floating-point numbers, in words; empty when every value is finite."""
    wrong = []
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype.kind in "iubOUS":
            continue
        bad = array.size - int(np.count_nonzero(np.isfinite(array.astype(np.float32, copy=False))))
        if bad:
            wrong.append(f"{name} ({bad:,} of {array.size:,})")
    if not wrong:
        return ""
    more = f" and {len(wrong) - _LISTED} more entries" if len(wrong) > _LISTED else ""
    return (
        f"values that are not finite (NaN, or too large for float32) in {', '.join(wrong[:_LISTED])}{more}: the "
        "training that made them diverged, or they overflowed in half precision; take an earlier checkpoint"
    )
