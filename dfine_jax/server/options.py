"""Parameters of a request: which objects, and in what form the answer is."""

from __future__ import annotations

import difflib
from typing import Literal, NamedTuple

from dfine_jax.errors import UserError
from dfine_jax.prediction.between import Chosen
from dfine_jax.prediction.detector import Detector
from dfine_jax.server.received import Fields

FORMS = ("json", "coco", "png", "jpeg")
MASKS = ("polygons", "rle", "none")
PARAMETERS = ("threshold", "classes", "format", "masks")
_MEANT = {"conf": "threshold", "confidence": "threshold", "score": "threshold", "class": "classes", "draw": "format"}
_ACCEPTED = {"application/json": "json", "image/png": "png", "image/jpeg": "jpeg", "image/*": "jpeg"}


class Options(NamedTuple):
    """What a request asks for."""

    chosen: Chosen
    form: Literal["json", "coco", "png", "jpeg"]
    masks: Literal["polygons", "rle", "none"]


def options(fields: Fields, accept: str, detector: Detector) -> Options:
    """From parameters, and from the header Accept where they say nothing of the format.

    Raises:
      UserError: an unknown parameter, one that is given twice, or a value that cannot be.
    """
    for name in fields:
        if name not in PARAMETERS:
            near = [_MEANT[name]] if name in _MEANT else difflib.get_close_matches(name, PARAMETERS, n=1)
            cure = f"did you mean {near[0]}?" if near else f"there are {', '.join(PARAMETERS)}"
            raise UserError(f"unknown parameter {name[:40]!r}; {cure}")
    classes = [text for text in fields.get("classes", []) if text.strip()]
    return Options(
        detector.chosen(_threshold(_single(fields, "threshold")), classes or None),
        _one_of("format", _single(fields, "format") or _asked(accept), FORMS),  # pyright: ignore
        _one_of("masks", _single(fields, "masks") or MASKS[0], MASKS),  # pyright: ignore
    )


def _single(fields: Fields, name: str) -> str:
    values = set(fields.get(name, [""]))
    if len(values) > 1:
        raise UserError(f"{name} is given {len(values)} times with different values; give it once")
    return values.pop().strip()


def _threshold(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise UserError(f"threshold {text[:20]!r} is no number; give one between 0 and 1") from None


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    value = {"jpg": "jpeg"}.get(value.lower(), value.lower())
    if value not in known:
        raise UserError(f"{name} {value[:20]!r} is none of {', '.join(known)}")
    return value


def _asked(accept: str) -> str:
    """The first kind of the header Accept that there is."""
    kinds = (entry.partition(";")[0].strip().lower() for entry in accept.split(","))
    return next((_ACCEPTED.get(kind, "json") for kind in kinds if kind in _ACCEPTED or kind == "*/*"), "json")
