"""What single values of an annotation file mean, whatever JSON type a tool wrote them in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Int64

REPAIR = "dfine check --data DIR --repair OUT.json"  # what messages name where it cures the matter

_MOST_SHOWN = 80
_FLAGS = {"0": False, "1": True, "false": False, "true": True, "": False}


def is_id(value: Any) -> bool:
    """Whether it can be an id: an integer of 64 bits, as batches carry them."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def whole(value: Any) -> int | None:
    """The id that a number stands for (1.0 is 1); None for anything else."""
    if is_id(value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() and is_id(int(value)) else None


def finite(value: Any) -> bool:
    """Whether it is a number that arithmetic can take."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def flag(value: Any) -> bool | None:
    """Whether a flag is set: 0 and 1, false and true, these as text or float, and nothing; None for what is neither."""
    if value is None:
        return False
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def shown(value: Any, most: int = _MOST_SHOWN) -> str:
    """A value for a message, shortened."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def first_repeated(ids: Int64[np.ndarray, " n"]) -> int | None:
    """Position of the first value that occurred before."""
    if (ids[1:] > ids[:-1]).all():
        return None
    order = np.argsort(ids, kind="stable")
    again = order[1:][ids[order[1:]] == ids[order[:-1]]]
    return int(again.min()) if len(again) else None
