"""The gate for a folder: its graph in ONNX Runtime here, then the whole of it in a browser, against the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dfine_jax.converters.gate import compare
from dfine_jax.converters.gate.compare import RESIZING, Comparison, Limits, Rows
from dfine_jax.converters.gate.gate import Reference, exact, model_rows
from dfine_jax.converters.web import browser
from dfine_jax.converters.web.graph import IMAGES, VIEW
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.errors import UserError
from dfine_jax.ops.boxes import xyxy_to_cxcywh
from dfine_jax.ops.postprocess import Answer
from dfine_jax.serving.backends.onnxruntime import failures

# Of GPUs: their products round otherwise, in software too.
GPU_LIMITS = dataclasses.replace(
    RESIZING, box_median_px=0.2, box_p95_px=2.0, box_most_px=8.0, score_most=0.05, tie_share=0.05
)
_GPU_PICTURES = 1  # each takes a minute where the GPU is software


class Graph:
    """The folder's graph in ONNX Runtime on this machine.

    Raises:
      UserError: it cannot be loaded.
    """

    def __init__(self, content: bytes, threads: int | None = None) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, threads or 0
        try:
            self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except failures("load") as error:
            raise UserError(f"ONNX Runtime cannot load the graph ({str(error).splitlines()[0]})") from error
        self._names = [output.name for output in self._session.get_outputs()]
        self.describe = {"runtime": "onnxruntime", "version": ort.__version__, "device": "CPU"}

    def __call__(self, picture: UInt8[np.ndarray, "h w 3"]) -> dict[str, np.ndarray]:
        """All outputs.

        Raises:
          UserError: it does not run.
        """
        opaque = np.full((*picture.shape[:2], 1), 255, np.uint8)
        try:
            values = self._session.run(self._names, {IMAGES: np.concatenate([picture, opaque], 2)[None]})
        except (*failures("run"), ValueError, RuntimeError) as error:
            raise UserError(f"ONNX Runtime fails on the graph ({str(error).splitlines()[-1][-200:]})") from error
        return {name: np.asarray(value) for name, value in zip(self._names, values, strict=True)}


def model_answers(
    reference: Reference, preprocess: Preprocess, pictures: Sequence[UInt8[np.ndarray, "h w 3"]]
) -> list[Answer]:
    """What the model itself says of each picture, prepared as prediction prepares it."""
    return [exact(reference)(preprocess(picture)[None]) for picture in pictures]


def compared(
    outputs: Sequence[dict[str, np.ndarray]],
    answers: Sequence[Answer],
    preprocess: Preprocess,
    num_classes: int,
    limits: Limits,
) -> Comparison:
    """Errors of the graph's detections, paired with the model's, in pixels of the network's input.

    Raises:
      UserError: other numbers of rows, or values that are not finite.
    """
    size_hw = (preprocess.height_px, preprocess.width_px)
    errors, lost = [], []
    for found, answer in zip(outputs, answers, strict=True):
        rows = _rows(found, num_classes)
        model = model_rows(answer, len(rows.scores), "complete")
        errors.append(compare.compare_image(model, rows, size_hw))
        lost.append(compare.lost(model, rows))
    return compare.summarise(1, errors, limits, lost)


def _rows(found: dict[str, np.ndarray], num_classes: int) -> Rows:
    left, top, width, height = found[VIEW].astype(np.float64)
    corners = (found["boxes"][0] - [left, top, left, top]) / [width, height, width, height]
    masks = found["masks"][0].astype(np.float32) if "masks" in found else None
    boxes_cxcywh = xyxy_to_cxcywh(corners).astype(np.float32)
    return compare.rows_of_detections(found["scores"][0], found["labels"][0], boxes_cxcywh, num_classes, masks)


@dataclasses.dataclass(frozen=True)
class InBrowser:
    """What one backend of a browser gave."""

    name: str  # browser and backend
    outcome: Comparison | str  # why there is none
    failures: tuple[str, ...]
    times: dict[str, Any]


def in_browsers(
    folder: Path,
    pictures: Sequence[UInt8[np.ndarray, "h w 3"]],
    answers: Sequence[Answer],
    preprocess: Preprocess,
    num_classes: int,
) -> list[InBrowser]:
    """The folder in WebAssembly and WebGPU of the browser that is installed here; empty where there is none."""
    program = browser.find_browser()
    if program is None:
        return []
    named, out = browser.version(program), []
    for backend, count, limits in (("wasm", len(pictures), RESIZING), ("webgpu", _GPU_PICTURES, GPU_LIMITS)):
        shown = f"{named}, {'WebAssembly' if backend == 'wasm' else 'WebGPU'}"
        try:
            values, outputs = browser.look(folder, pictures[:count], program, backend)  # type: ignore[arg-type]
            outcome = compared(outputs, answers[:count], preprocess, num_classes, limits)
        except UserError as error:
            out.append(InBrowser(shown, str(error), (f"{shown}: {error}",), {}))
            continue
        shown = f"{named}, {values['backend']}"
        wrong = tuple(f"{shown}: {failure}" for failure in compare.exceeded(outcome, limits))
        times = {"created_ms": values["created_ms"], "times_ms": values["times_ms"]}
        out.append(InBrowser(shown, outcome, wrong, times))
    return out
