"""Keeping some classes of a detector's results."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dfine_jax.errors import UserError

if TYPE_CHECKING:
    from dfine_jax.data.read.dataset import Classes
    from dfine_jax.prediction.result import DetectionResult

_LISTED = 10  # names shown when none is near


def class_labels(wanted: Sequence[str], classes: Classes) -> frozenset[int]:
    """Class indices of names or original category ids; a name goes before an id that is written like it.

    Args:
      wanted: each a name, an id, or several of them separated by commas.

    Raises:
      UserError: a class the model does not have; the message suggests the nearest names.
    """
    by_name = {name: label for label, name in enumerate(classes.names)}
    by_id = {str(category): label for label, category in enumerate(classes.ids)}
    labels = set()
    for text in wanted:
        parts = [text] if text in by_name else [part.strip() for part in text.split(",")]
        for part in filter(None, parts):
            label = by_name.get(part, by_id.get(part))
            if label is None:
                raise UserError(f"the model has no class {part!r}; {_advice(part, classes)}")
            labels.add(label)
    if not labels:
        raise UserError(f"no class is named; {_advice('', classes)}")
    return frozenset(labels)


def keep_classes(result: DetectionResult, labels: frozenset[int]) -> DetectionResult:
    """The detections of these class indices, in the same order."""
    return result[np.isin(result.labels, list(labels))]


def _advice(text: str, classes: Classes) -> str:
    folded = {name.casefold(): name for name in classes.names}
    near = [folded[close] for close in difflib.get_close_matches(text.casefold(), list(folded), n=3)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    shown = [f"{name} ({category})" for name, category in zip(classes.names, classes.ids, strict=True)]
    more = f", and {len(shown) - _LISTED} more" if len(shown) > _LISTED else ""
    return f"give names or ids of: {', '.join(shown[:_LISTED])}{more}"
