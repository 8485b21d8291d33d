"""``.onnx`` in ONNX Runtime."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dfine_jax.errors import UserError
from dfine_jax.serving.artefact import KEY, from_json, missing
from dfine_jax.serving.backends.base import failed
from dfine_jax.system.installed import require

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# ONNX Runtime's exceptions, which have no common base.
_FAILURES = {
    "load": ("InvalidProtobuf", "InvalidGraph", "Fail", "NoSuchFile"),
    "kernels": ("NotImplemented", "RuntimeException"),
    "run": ("Fail", "InvalidArgument", "InvalidGraph", "RuntimeException", "NotImplemented", "EPFail", "EngineError"),
}
# Without this the CUDA kernels multiply float32 numbers with ten bits of mantissa on GPUs since Ampere.
_OPTIONS = {"cuda": {"use_tf32": "0"}}
_FAMILIES = {"float": "float32", "double": "float64"}  # ONNX Runtime's names that NumPy does not know


class OnnxRuntimeSession:
    """One ONNX file. Float32 products are float32 with ``cuda``, as on the CPU.

    Args:
      path: the file.
      device: ``cpu``, ``cuda``, ``tensorrt`` (ONNX Runtime's own TensorRT provider; it has no such switch, so set
        NVIDIA_TF32_OVERRIDE=0 in the environment where float32 must be exact), or None: CUDA where the installed
        package has it, otherwise the CPU.
      threads: of one run; None: as many as there are cores.

    Raises:
      UserError: package or provider absent, or the file is damaged or carries no description.
    """

    def __init__(self, path: str | os.PathLike[str], device: str | None = None, threads: int | None = None) -> None:
        ort = require("onnxruntime", os.fspath(path), note="for an NVIDIA GPU onnxruntime-gpu instead")
        self._path = path
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        self._threads = threads or os.cpu_count() or 1
        self._version = ort.__version__
        try:
            self._session = ort.InferenceSession(str(path), options, providers=_providers(ort, device))
        except failures("load") as error:
            raise UserError(f"{path} cannot be loaded by ONNX Runtime ({str(error).splitlines()[0]})") from error
        except failures("kernels") as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} has an operation that this ONNX Runtime cannot run ({reason})") from error
        if device in ("cuda", "tensorrt") and self._session.get_providers()[0] != _PROVIDERS[device]:
            raise UserError(f"device {device}: ONNX Runtime could not start it; check the driver and CUDA libraries")
        text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        if text is None:
            raise missing(path)
        self.artefact = from_json(text, Path(path))
        self.input_dtypes = {entry.name: _dtype(entry.type) for entry in self._session.get_inputs()}
        self.max_batch: int | None = None
        self._outputs = [entry.name for entry in self._session.get_outputs()]

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As ``Session.run``.

        Raises:
          UserError: ONNX Runtime fails; the message has file, shapes and reason.
        """
        try:
            values = self._session.run(self._outputs, feeds)
        except (*failures("run"), ValueError, RuntimeError) as error:
            raise failed(self._path, "ONNX Runtime", feeds, error) from error
        return {name: np.asarray(value) for name, value in zip(self._outputs, values, strict=True)}

    def describe(self) -> dict[str, Any]:
        """As ``Session.describe``."""
        provider = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        return {"runtime": "onnxruntime", "version": self._version, "device": provider, "threads": self._threads}


def failures(when: Literal["load", "kernels", "run"]) -> tuple[type[Exception], ...]:
    """Exceptions of a damaged file, of an operation that this ONNX Runtime lacks, of a run."""
    state: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    return tuple(getattr(state, name) for name in _FAILURES[when])


def _providers(ort: Any, device: str | None) -> list[tuple[str, dict[str, str]]]:
    """Providers in the order they are tried, each with its options."""
    present = ort.get_available_providers()
    if device is None:
        device = "cuda" if _PROVIDERS["cuda"] in present else "cpu"
    if device not in _PROVIDERS:
        raise UserError(f"device {device!r} is none of ONNX Runtime's: {', '.join(_PROVIDERS)}")
    if _PROVIDERS[device] not in present:
        raise UserError(f"device {device}: this ONNX Runtime has no {_PROVIDERS[device]}; pip install onnxruntime-gpu")
    first = {"cpu": [], "cuda": ["cuda"], "tensorrt": ["tensorrt", "cuda"]}[device]
    return [(_PROVIDERS[name], _OPTIONS.get(name, {})) for name in [*first, "cpu"] if _PROVIDERS[name] in present]


def _dtype(name: str) -> np.dtype:
    inner = name.removeprefix("tensor(").removesuffix(")")
    return np.dtype(_FAMILIES.get(inner, inner))
