"""What an exported file says about itself: one JSON object, the same in every format.

ONNX keeps it in ``metadata_props``, OpenVINO in ``rt_info`` (both under ``dfine_jax``), TensorRT in
``<engine>.json`` beside the engine.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Literal

from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.dataset import Classes
from dfine_jax.errors import UserError
from dfine_jax.ops.postprocess import AnswerRules

KEY = "dfine_jax"
FORMAT = 1
SUFFIXES = {".onnx": "onnxruntime", ".xml": "openvino", ".engine": "tensorrt"}
GRAPHS = {"raw": ("logits", "boxes"), "complete": ("labels", "boxes", "scores")}
MASKS = "masks"  # last output of models that segment: logits, whatever the graph
TASKS = ("detect", "segment")
SIZES_INPUT = "original_sizes_px"  # second input of complete graphs: (width, height) of each original image

_CURE = "export the model again with dfine export"
_INPUT_TYPES = ("float32", "float16", "uint8")
_INTERPOLATED = ("probability", "logit")


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """The image input of a graph."""

    name: str
    dtype: Literal["float32", "float16", "uint8"]  # uint8: the graph divides by itself
    layout: Literal["NCHW", "NHWC"]
    size_hw: tuple[int, int]
    batch: int | None  # None: any

    def shape(self, batch: int) -> tuple[int, ...]:
        """Shape of the input for ``batch`` images."""
        return (batch, 3, *self.size_hw) if self.layout == "NCHW" else (batch, *self.size_hw, 3)


@dataclasses.dataclass(frozen=True)
class Artefact:
    """Description of an exported file."""

    variant: str
    task: str
    graph: Literal["raw", "complete"]
    precision: Literal["fp32", "fp16", "int8"]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    preprocess: Preprocess
    input: InputSpec
    outputs: tuple[str, ...]
    num_queries: int
    layers: int
    source: dict[str, Any]  # file, weights_sha256; source_file, source_sha256 of what it was converted from
    mask_stride: int | None = None  # of the masks to the network's input; None: no masks
    rules: AnswerRules = AnswerRules()  # how its answers become detections; stored rule by rule, where it is not usual
    resizes: Preprocess | None = None  # what the graph does to its input first; the host brings pictures to its size
    best_threshold: float | None = None  # score of the best F1 in the evaluation of the weights
    dfine_jax_version: str = ""
    licence: str = ""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # entries this version does not interpret

    @property
    def classes(self) -> Classes:
        """Names and ids by label."""
        return Classes(self.class_names, self.category_ids)

    @property
    def mask_size_hw(self) -> tuple[int, int] | None:
        """Height and width of the masks, which show what the input shows; None without masks."""
        if self.mask_stride is None:
            return None
        height, width = self.input.size_hw
        if self.resizes is not None:
            *_, width, height = self.resizes.inner_px((width, height))
        return height // self.mask_stride, width // self.mask_stride

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; inverse of ``from_dict``."""
        values = {**dataclasses.asdict(self), "preprocess": self.preprocess.to_dict()}
        values["resizes"] = self.resizes and self.resizes.to_dict()
        values.pop("extra")
        values |= values.pop("rules")._asdict()
        left_out = {"mask_stride": None, "resizes": None, "best_threshold": None, **AnswerRules()._asdict()}
        for name, usual in left_out.items():
            if values[name] == usual:
                values.pop(name)
        return {"format_version": FORMAT, **values, **self.extra}


def outputs(graph: str, task: str) -> tuple[str, ...]:
    """Names of the outputs, in their order."""
    return (*GRAPHS.get(graph, ()), *((MASKS,) if task == "segment" else ()))


def from_json(text: str, where: object) -> Artefact:
    """Parse what an exporter stored.

    Args:
      where: the file, for messages.

    Raises:
      UserError: not JSON, of a later format, incomplete, or contradictory; nothing is guessed.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: its description is not JSON ({error}); {_CURE}") from error
    if not isinstance(values, dict) or values.get("format_version") != FORMAT:
        found = values.get("format_version") if isinstance(values, dict) else None
        if isinstance(found, int) and found > FORMAT:
            raise UserError(
                f"{where}: its description was written by a newer dfine_jax (format {found}, this version reads up to "
                f"{FORMAT}); upgrade dfine_jax, or {_CURE}"
            )
        raise UserError(f"{where}: its description is of format {found}, this version reads {FORMAT}; {_CURE}")
    try:
        return _checked(_build(values), where)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: its description is damaged ({type(error).__name__}: {error}); {_CURE}") from error


def missing(where: object) -> UserError:
    """The error for a file without description."""
    return UserError(
        f"{where} carries no {KEY!r} metadata (classes, preprocessing, layout), so it cannot be run safely; {_CURE}"
    )


def is_artefact(source: object) -> bool:
    """Whether a model name means an exported file, by its ending."""
    return isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() in SUFFIXES


def sidecar(path: str | os.PathLike[str]) -> Path:
    """Where the description of a TensorRT engine lies."""
    return Path(f"{path}.json")


def _build(values: dict[str, Any]) -> Artefact:
    known = {field.name for field in dataclasses.fields(Artefact)} - {"extra", "rules"}
    given = {name: values[name] for name in known if name in values}
    rules = {name: values[name] for name in AnswerRules._fields if name in values}
    known |= rules.keys()
    spec = dict(given["input"])
    given["input"] = InputSpec(**{**spec, "size_hw": tuple(int(side) for side in spec["size_hw"])})
    given["preprocess"] = Preprocess.from_dict(given["preprocess"])
    if given.get("resizes") is not None:
        given["resizes"] = Preprocess.from_dict(given["resizes"])
    for name, kind in (("class_names", str), ("category_ids", int), ("outputs", str)):
        given[name] = tuple(kind(value) for value in given[name])
    extra = {name: value for name, value in values.items() if name not in known and name != "format_version"}
    return Artefact(**given, rules=AnswerRules(**rules), extra=extra)


def _checked(artefact: Artefact, where: object) -> Artefact:
    spec, preprocess = artefact.input, artefact.preprocess
    known = set(outputs(artefact.graph, artefact.task))
    complaints = [
        (artefact.graph not in GRAPHS, f"graph {artefact.graph!r} is none of {', '.join(GRAPHS)}"),
        (artefact.task not in TASKS, f"task {artefact.task!r} is none of {', '.join(TASKS)}"),
        (set(artefact.outputs) != known, f"outputs {', '.join(artefact.outputs)}"),
        (
            ((artefact.mask_stride or 0) > 0) != (artefact.task == "segment"),
            f"task {artefact.task!r} with mask stride {artefact.mask_stride}",
        ),
        (spec.dtype not in _INPUT_TYPES, f"input type {spec.dtype!r} is none of {', '.join(_INPUT_TYPES)}"),
        (spec.layout not in ("NCHW", "NHWC"), f"layout {spec.layout!r} is neither NCHW nor NHWC"),
        (len(spec.size_hw) != 2 or min(spec.size_hw) < 1, f"input size {spec.size_hw}"),
        (spec.batch is not None and spec.batch < 1, f"batch {spec.batch}"),
        (
            (preprocess.height_px, preprocess.width_px) != spec.size_hw,
            f"preprocessing to {preprocess.height_px}x{preprocess.width_px}, input of {spec.size_hw}",
        ),
        (len(artefact.class_names) != len(artefact.category_ids), "class names and category ids of different number"),
        (not artefact.class_names, "no classes"),
        (artefact.rules.num_top < 1, f"{artefact.rules.num_top} detections"),
        (artefact.rules.interpolated not in _INTERPOLATED, f"masks interpolated as {artefact.rules.interpolated!r}"),
        (not 0 <= (artefact.best_threshold or 0) <= 1, f"best threshold {artefact.best_threshold}"),
    ]
    wrong = [text for is_wrong, text in complaints if is_wrong]
    if wrong:
        raise UserError(f"{where}: its description contradicts itself: {'; '.join(wrong)}; {_CURE}")
    return artefact
