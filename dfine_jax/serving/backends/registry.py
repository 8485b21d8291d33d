"""From a file to the backend that runs it."""

from __future__ import annotations

import os
from pathlib import Path

from dfine_jax.errors import UserError
from dfine_jax.serving.artefact import SUFFIXES
from dfine_jax.serving.backends.base import ArtefactBackend, Session

RUNTIMES = ("onnxruntime", "openvino", "tensorrt")


def open_artefact(
    path: str | os.PathLike[str],
    *,
    runtime: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> ArtefactBackend:
    """Load an exported file.

    Args:
      path: ``.onnx``, ``.xml`` (OpenVINO) or ``.engine`` (TensorRT).
      runtime: one of ``RUNTIMES``; None: by the ending. OpenVINO also runs ``.onnx``.
      device: in the runtime's own words; None: its default.
      threads: of one run on the CPU; None: the runtime's default.

    Raises:
      UserError: unknown ending or runtime, missing file or package, or a file without description.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: exported files end in {', '.join(SUFFIXES)}")
    runtime = runtime or SUFFIXES[suffix]
    if runtime not in RUNTIMES:
        raise UserError(f"runtime {runtime!r} is none of {', '.join(RUNTIMES)}")
    if runtime != SUFFIXES[suffix] and (runtime, suffix) != ("openvino", ".onnx"):
        raise UserError(f"{path} cannot be run by {runtime}; {suffix} files need {SUFFIXES[suffix]}")
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist")
    if threads is not None and threads < 1:
        raise UserError(f"threads={threads} must be at least 1")
    return ArtefactBackend(_session(runtime, path, device, threads))


def _session(runtime: str, path: str | os.PathLike[str], device: str | None, threads: int | None) -> Session:
    match runtime:
        case "onnxruntime":
            from dfine_jax.serving.backends.onnxruntime import OnnxRuntimeSession

            return OnnxRuntimeSession(path, device, threads)
        case "openvino":
            from dfine_jax.serving.backends.openvino import OpenVinoSession

            return OpenVinoSession(path, device, threads)
        case _:
            from dfine_jax.serving.backends.tensorrt import TensorRtSession

            return TensorRtSession(path, device)
