"""ONNX to OpenVINO: IR with float16 weights, or int8 with a limit on what that may cost in AP.

For int8 the decoder and the stem, up to its pooling or the end of both its branches, stay in floating point from the
start. The decoder's coordinates do not survive eight bits, and the graph without its quantisation nodes is the faster
one. Eight bits are too few for the stem's first maps as well: of D-FINE-N on BCCD, AP 0.546, int8 has 0.547 without
both, 0.422 without the decoder. Of a transformer NNCF keeps what its blocks cannot do without and smooths activations
into weights: RF-DETR-Nano that knows 8 pictures by heart has AP 0.970 on them, in int8 0.970, without this 0.024.
Should AP still fall by more than the limit, NNCF's accuracy control searches for further operations to keep, which
takes its time: each trial compiles the model.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dfine_jax.converters.gate.accuracy import AveragePrecision, MeasuredAP
from dfine_jax.converters.gate.compare import LIMITS
from dfine_jax.converters.gate.data import calibration_sources, read_source
from dfine_jax.data.read.dataset import Dataset
from dfine_jax.errors import UserError
from dfine_jax.serving.artefact import KEY, Artefact, from_json
from dfine_jax.serving.backends.base import ArtefactBackend
from dfine_jax.serving.backends.openvino import stored_text
from dfine_jax.system.installed import require

logger = logging.getLogger(__name__)

_SELECTION = "TopK"  # the first one picks the queries; everything computed from it is the decoder


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How int8 is made.

    Args:
      calibration: folder of images like those the model will see, some hundred are enough, or anything that
        ``read_dataset`` takes; where there is a training split, only that is used, so that AP is measured on other
        images.
      data: annotated split that AP is measured on; None: the drop is not limited.
      max_drop: largest accepted loss of AP, of boxes and of masks, in [0, 1].
      calibration_images: taken from the folder, evenly.
      max_images: annotated images that AP is measured on, at most.
      ranking_images, max_iterations: bounds on the search of accuracy control.
      is_transformer: as of ``Family``.
    """

    calibration: Path | str
    data: Dataset | None = None
    max_drop: float = LIMITS["int8"].ap_drop
    calibration_images: int = 300
    max_images: int = 200
    ranking_images: int = 40
    max_iterations: int = 20
    is_transformer: bool = False


@dataclasses.dataclass(frozen=True)
class QuantizationResult:
    """What int8 cost."""

    float_ap: float | None
    int8_ap: float | None
    accuracy_control: bool  # whether excluding the decoder was not enough
    quantizers: int
    float_mask_ap: float | None = None
    int8_mask_ap: float | None = None


def export_openvino(onnx_file: Path | str, xml_file: Path | str, precision: Literal["fp32", "fp16"] = "fp16") -> Path:
    """Write ``.xml`` and ``.bin``; returns the path of the ``.xml``.

    Args:
      onnx_file: a float32 graph with description.
      precision: of the stored weights; the CPU computes in float32 either way.

    Raises:
      UserError: package absent, or the file is not one of ours, not float32, or cannot be read.
    """
    model, artefact = _read(onnx_file)
    _save(model, dataclasses.replace(artefact, precision=precision), xml_file, half=precision == "fp16")
    return Path(xml_file)


def export_int8(onnx_file: Path | str, xml_file: Path | str, options: Quantization) -> QuantizationResult:
    """Write an int8 ``.xml`` and ``.bin``.

    Raises:
      UserError: as ``export_openvino``, no images in the calibration folder, or AP falls by more than the limit
        whatever is left in floating point; nothing is written then.
    """
    os.environ.setdefault("NNCF_CI", "1")  # no usage statistics: they are sent by a fork of this process
    nncf = require("nncf", "int8")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own call also changes handlers that others added
    model, artefact = _read(onnx_file)
    samples = _calibration_inputs(model, artefact, options)
    ignored = nncf.IgnoredScope(names=[*decoder_operations(model), *stem_operations(model)], validate=False)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(samples),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=_kind(options),
        subset_size=len(samples),
        ignored_scope=ignored,
    )
    before = after = None
    controlled = False
    if options.data is not None:
        ap = AveragePrecision(options.data, artefact.class_names, artefact.preprocess, options.max_images)
        before, after = (ap(_backend(m, artefact), artefact.input.batch or 1) for m in (model, quantized))
        if (drop := largest_drop(before, after)) > options.max_drop:
            logger.warning("int8 without the decoder loses %.4f AP (of boxes or masks); looking for more to keep", drop)
            controlled = True
            quantized = _accuracy_control(model, artefact, samples, ignored, ap, before, options)
            after = ap(_backend(quantized, artefact), artefact.input.batch or 1)
        if (drop := largest_drop(before, after)) > options.max_drop:
            raise UserError(
                f"int8 loses {drop:.4f} AP, limit {options.max_drop} (boxes or masks); calibrate with more images, "
                "allow more with --max-ap-drop, or use fp16"
            )
    _save(quantized, dataclasses.replace(artefact, precision="int8"), xml_file, half=True)
    (float_ap, float_mask_ap), (int8_ap, int8_mask_ap) = before or (None, None), after or (None, None)
    count = count_quantizers(quantized)
    return QuantizationResult(float_ap, int8_ap, controlled, count, float_mask_ap, int8_mask_ap)


def largest_drop(before: MeasuredAP, after: MeasuredAP) -> float:
    """What is lost of the AP of boxes or of that of masks, whichever is more."""
    pairs = [(x, y) for x, y in zip(before, after, strict=True) if x is not None and y is not None]
    return max(x - y for x, y in pairs)


def decoder_operations(model: Any) -> list[str]:
    """Names of all operations of an OpenVINO model that depend on the query selection."""
    first = next((op for op in model.get_ordered_ops() if op.get_type_name() == _SELECTION), None)
    if first is None:
        return []

    def behind(node: Any) -> list[Any]:
        return [target.get_node() for port in node.outputs() for target in port.get_target_inputs()]

    return _reached(first, behind)


def stem_operations(model: Any) -> list[str]:
    """Names of all operations up to the first pooling; where it is one of two branches, up to where they join."""
    end = next((op for op in model.get_ordered_ops() if op.get_type_name() == "MaxPool"), None)
    if end is None:
        return []
    behind = end
    while targets := list(behind.output(0).get_target_inputs()):
        behind = targets[0].get_node()
        if "Convolution" in behind.get_type_name():  # one branch, which has ended before
            break
        if behind.get_type_name() == "Concat":
            end = behind
            break
    return _reached(end, lambda node: [port.get_source_output().get_node() for port in node.inputs()])


def _reached(start: Any, neighbours: Callable[[Any], list[Any]]) -> list[str]:
    reached, queue = {start.get_friendly_name()}, deque([start])
    while queue:
        for node in neighbours(queue.popleft()):
            if node.get_friendly_name() not in reached:
                reached.add(node.get_friendly_name())
                queue.append(node)
    return sorted(reached)


def count_quantizers(model: Any) -> int:
    """FakeQuantize operations of an OpenVINO model."""
    return sum(op.get_type_name() == "FakeQuantize" for op in model.get_ops())


def _accuracy_control(
    model: Any,
    artefact: Artefact,
    samples: Sequence[Any],
    ignored: Any,
    ap: AveragePrecision,
    before: MeasuredAP,
    options: Quantization,
) -> Any:
    import nncf

    def validate(compiled: Any, records: Iterable[Any]) -> tuple[float, None]:
        backend = ArtefactBackend(_CompiledSession(compiled, artefact))
        # From 1, because NNCF divides by what the float model has.
        return 1 - largest_drop(before, ap(backend, artefact.input.batch or 1, list(records))), None

    return nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=nncf.Dataset(samples),
        validation_dataset=nncf.Dataset(ap.records),
        validation_fn=validate,
        max_drop=options.max_drop,
        drop_type=nncf.DropType.ABSOLUTE,
        preset=nncf.QuantizationPreset.MIXED,
        model_type=_kind(options),
        subset_size=len(samples),
        ignored_scope=ignored,
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            max_num_iterations=options.max_iterations,
            ranking_subset_size=min(options.ranking_images, len(ap.records)),
        ),
    )


def _kind(options: Quantization) -> Any:
    import nncf

    return nncf.ModelType.TRANSFORMER if options.is_transformer else None


class _CompiledSession:
    """A model that OpenVINO has compiled already (backends.base.Session)."""

    def __init__(self, compiled: Any, artefact: Artefact) -> None:
        self._compiled = compiled
        self.artefact = artefact
        self.max_batch: int | None = None
        self.input_dtypes = {port.get_any_name(): port.get_element_type().to_dtype() for port in compiled.inputs}

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = self._compiled(feeds)
        return {port.get_any_name(): np.array(out[port]) for port in self._compiled.outputs}

    def describe(self) -> dict[str, Any]:
        return {"runtime": "openvino"}


def _backend(model: Any, artefact: Artefact) -> ArtefactBackend:
    import openvino as ov

    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return ArtefactBackend(_CompiledSession(compiled, artefact))


def _read(onnx_file: Path | str) -> tuple[Any, Artefact]:
    ov = require("openvino", "an OpenVINO file")
    if not Path(onnx_file).is_file():
        raise UserError(f"{onnx_file} does not exist")
    try:
        model = ov.Core().read_model(str(onnx_file))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise UserError(f"{onnx_file} cannot be read by OpenVINO ({reason})") from error
    artefact = from_json(stored_text(model, onnx_file), onnx_file)
    if artefact.precision != "fp32":
        raise UserError(f"{onnx_file} is {artefact.precision}; OpenVINO files are made from an fp32 export")
    return model, artefact


def _save(model: Any, artefact: Artefact, xml_file: Path | str, *, half: bool) -> None:
    import openvino as ov

    text = json.dumps(artefact.to_dict())
    model.set_rt_info(text, [KEY])
    if model.has_rt_info(["framework", KEY]):  # where the ONNX reader put the description of the source
        model.set_rt_info(text, ["framework", KEY])
    ov.save_model(model, str(xml_file), compress_to_fp16=half)


def _calibration_inputs(model: Any, artefact: Artefact, options: Quantization) -> list[dict[str, np.ndarray]]:
    sources = calibration_sources(options.calibration)
    step = max(1, len(sources) // options.calibration_images)
    backend = _backend(model, artefact)
    batch = artefact.input.batch or 1
    out = []
    for source in sources[::step][: options.calibration_images]:
        picture = read_source(source)
        images = np.repeat(artefact.preprocess(picture)[None], batch, 0)
        sizes = np.array([(picture.shape[1], picture.shape[0])] * batch) if artefact.graph == "complete" else None
        out.append(backend.feeds(images, sizes))
    return out
