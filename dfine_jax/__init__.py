"""D-FINE real-time object detection in JAX.

The names below are the public surface. They are imported on first use (PEP 562), so that ``import dfine_jax`` and
``dfine --help`` do not start JAX; this is the one place where the package defines ``__getattr__``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfine_jax.config import Config, ModelConfig
    from dfine_jax.errors import UserError
    from dfine_jax.families.dfine.model import DFine
    from dfine_jax.families.dfine.variants import model_config
    from dfine_jax.prediction.detector import DetectionResult, Detector
    from dfine_jax.weights.load import load

__version__ = "0.1.0"
__all__ = ["Config", "DFine", "DetectionResult", "Detector", "ModelConfig", "UserError", "load", "model_config"]

_HOME = {
    "Config": "config",
    "DFine": "families.dfine.model",
    "DetectionResult": "prediction.detector",
    "Detector": "prediction.detector",
    "ModelConfig": "config",
    "UserError": "errors",
    "load": "weights.load",
    "model_config": "families.dfine.variants",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
