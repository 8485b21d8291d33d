"""``.xml`` (and ``.onnx``) in OpenVINO."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from dfine_jax.errors import UserError
from dfine_jax.serving.artefact import KEY, from_json, missing
from dfine_jax.serving.backends.base import failed
from dfine_jax.system.installed import require


class OpenVinoSession:
    """One model in OpenVINO.

    Processors with bfloat16 units and GPUs would compute in less than float32 unasked; here they compute in float32
    unless the weights are meant for less, so that the same file gives the same boxes everywhere.

    Args:
      path: an ``.xml`` with its ``.bin``, or an ``.onnx``.
      device: a device of OpenVINO (``CPU``, ``GPU``, ``NPU``, ``AUTO``); None: ``CPU``.
      threads: of one run on the CPU; None: OpenVINO decides.

    Raises:
      UserError: package or device absent, or the file is damaged or carries no description.
    """

    def __init__(self, path: str | os.PathLike[str], device: str | None = None, threads: int | None = None) -> None:
        ov = require("openvino", os.fspath(path))
        self._path = path
        self._device = (device or "CPU").upper()
        core = ov.Core()
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist")
        try:
            model = core.read_model(str(path))
        except RuntimeError as error:
            raise UserError(f"{path} cannot be loaded by OpenVINO ({_reason(error)})") from error
        self.artefact = from_json(stored_text(model, path), Path(path))
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if self._device == "CPU":
            config["INFERENCE_PRECISION_HINT"] = "f32"
            if threads:
                config["INFERENCE_NUM_THREADS"] = threads
        elif self._device.startswith("GPU"):
            config["INFERENCE_PRECISION_HINT"] = "f32" if self.artefact.precision == "fp32" else "f16"
        elif self._device != "NPU" and self.artefact.precision == "fp32":  # AUTO and the like; an NPU has no float32
            config["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            self._compiled = core.compile_model(model, self._device, config)
        except RuntimeError as error:
            present = ", ".join(core.available_devices)
            raise UserError(
                f"{path}: OpenVINO cannot run it on {self._device} ({_reason(error)}); here: {present}"
            ) from error
        self._requests = threading.local()  # of each thread its own: one that is busy refuses another run
        # Names are those of the file: a compiled port also has those of operations that compiling took away.
        ports = zip(model.inputs, self._compiled.inputs, strict=True)
        self.input_dtypes = {own.get_any_name(): port.get_element_type().to_dtype() for own, port in ports}
        self.max_batch: int | None = None
        ports = zip(model.outputs, self._compiled.outputs, strict=True)
        self._outputs = {own.get_any_name(): port for own, port in ports}
        self._version = ov.get_version().split("-")[0]

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As ``Session.run``.

        Raises:
          UserError: OpenVINO fails; the message has file, shapes and reason.
        """
        if not hasattr(self._requests, "own"):
            self._requests.own = self._compiled.create_infer_request()
        try:
            out = self._requests.own.infer(feeds, share_inputs=True)
        except (RuntimeError, ValueError, TypeError) as error:
            raise failed(self._path, "OpenVINO", feeds, error) from error
        return {name: np.array(out[port]) for name, port in self._outputs.items()}

    def describe(self) -> dict[str, Any]:
        """As ``Session.describe``."""
        out = {"runtime": "openvino", "version": self._version, "device": self._device}
        if self._device == "CPU":
            out["threads"] = self._compiled.get_property("INFERENCE_NUM_THREADS")
        return out


def stored_text(model: Any, path: str | os.PathLike[str]) -> str:
    """The description inside an OpenVINO model.

    Raises:
      UserError: there is none.
    """
    for place in ([KEY], ["framework", KEY]):  # IR files; ONNX files, whose metadata OpenVINO puts there
        if model.has_rt_info(place):
            return str(model.get_rt_info(place).astype(str))
    raise missing(path)


def _reason(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no reason given"
