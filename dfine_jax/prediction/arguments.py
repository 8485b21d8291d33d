"""What a detector is made of and told, checked before it is used: a mistake is one line with the cure."""

from __future__ import annotations

import math
import numbers
import os
from pathlib import Path
from typing import Any, overload

import numpy as np

from dfine_jax.data.picture.images import EXTENSIONS
from dfine_jax.errors import UserError
from dfine_jax.prediction.addresses import VIDEO_EXTENSIONS

_MODELS = "a checkpoint folder, a weights file, a published name, or an exported file (.onnx, .xml, .engine)"


def require_share(name: str, value: Any) -> None:
    """UserError for what is no number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)) or math.isnan(value):
        raise UserError(f"{name}={value!r} is no number; it must lie between 0 and 1")
    if not 0 <= value <= 1:
        cure = f"; as a share it is {value / 100:g}" if 1 < value <= 100 else ""
        raise UserError(f"{name}={value} must lie between 0 and 1{cure}")


class Share:
    """An attribute that is a number from 0 to 1, also when it is set later."""

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn the name."""
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Share: ...

    @overload
    def __get__(self, instance: object, owner: type) -> float: ...

    def __get__(self, instance: object | None, owner: type) -> Share | float:
        """The number; of the class itself this."""
        return self if instance is None else instance.__dict__[self._name]

    def __set__(self, instance: object, value: float) -> None:
        """Take another one, see ``require_share``."""
        require_share(self._name, value)
        instance.__dict__[self._name] = value


def require_count(name: str, value: Any) -> None:
    """UserError for what is no whole number from 1 on; None stands for a default."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise UserError(f"{name}={value!r} is no whole number")
    if value < 1:
        raise UserError(f"{name}={value} must be at least 1")


def require_model(model: Any) -> None:
    """UserError for what cannot be a model: a picture, or nothing that names or is one."""
    if isinstance(model, (str, os.PathLike)):
        name = os.fspath(model)
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"a Detector was given an empty name as its model; give {_MODELS}")
        if Path(name).suffix.lower() in (*EXTENSIONS, *VIDEO_EXTENSIONS):
            raise UserError(f"{name} is a picture or video and no model; Detector(MODEL) is called with it: {_MODELS}")
    elif not (hasattr(model, "model") and hasattr(model, "metadata")):
        raise UserError(f"a Detector is made of {_MODELS}, or of what load_checkpoint gives, not of {_kind(model)}")


def _kind(value: Any) -> str:
    return "None" if value is None else f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
