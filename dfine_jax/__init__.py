"""Real-time object detection and instance segmentation in JAX: D-FINE, RT-DETRv2 and RF-DETR.

The names below and those of ``dfine_jax.losses`` are the public surface. They are imported on first use (PEP 562), so
that ``import dfine_jax`` and ``dfine --help`` do not start JAX; this is the one place where the package defines
``__getattr__``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfine_jax.api import build, default_config, evaluate, train
    from dfine_jax.config import Config
    from dfine_jax.data.picture.draw import draw_boxes
    from dfine_jax.data.read.dataset import open_record
    from dfine_jax.data.read.sources import read_dataset
    from dfine_jax.errors import UserError
    from dfine_jax.evaluation.plots import confusion_figure, threshold_figure, training_figure
    from dfine_jax.nn.fdr_head import FDRHead
    from dfine_jax.prediction.detector import Detector
    from dfine_jax.prediction.result import Detection, DetectionResult
    from dfine_jax.training.report.run_files import read_metrics
    from dfine_jax.weights.load import load, load_checkpoint

__version__ = "0.1.0"
_HOME = {
    "Config": "config",
    "Detection": "prediction.result",
    "DetectionResult": "prediction.result",
    "Detector": "prediction.detector",
    "FDRHead": "nn.fdr_head",
    "UserError": "errors",
    "build": "api",
    "confusion_figure": "evaluation.plots",
    "default_config": "api",
    "draw_boxes": "data.picture.draw",
    "evaluate": "api",
    "load": "weights.load",
    "load_checkpoint": "weights.load",
    "open_record": "data.read.dataset",
    "read_dataset": "data.read.sources",
    "read_metrics": "training.report.run_files",
    "threshold_figure": "evaluation.plots",
    "train": "api",
    "training_figure": "evaluation.plots",
}
__all__ = [
    "Config",
    "Detection",
    "DetectionResult",
    "Detector",
    "FDRHead",
    "UserError",
    "build",
    "confusion_figure",
    "default_config",
    "draw_boxes",
    "evaluate",
    "load",
    "load_checkpoint",
    "open_record",
    "read_dataset",
    "read_metrics",
    "threshold_figure",
    "train",
    "training_figure",
]


def __getattr__(name: str) -> Any:
    if name == "losses":  # a module, unlike the others; the import makes it an attribute
        return importlib.import_module(f"{__name__}.losses")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "losses"])
