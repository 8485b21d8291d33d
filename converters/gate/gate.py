"""The gate every exported file passes before it gets its name: it is run, and its detections are those of the model.

``staging.staging`` gives the exporter a place to write, ``check_artefact`` measures, ``staging.release`` moves the file
to its name or refuses it. Limits by precision are in ``compare.LIMITS``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dfine_jax.config import ModelSection
from dfine_jax.converters.gate import compare
from dfine_jax.converters.gate.compare import LIMITS, RESIZING, Comparison, Limits, Rows
from dfine_jax.converters.gate.data import CheckData, open_data, pictures
from dfine_jax.converters.gate.report import Accuracy, GateReport
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.dataset import Classes, Dataset
from dfine_jax.errors import UserError
from dfine_jax.families import of
from dfine_jax.ops.boxes import xyxy_to_cxcywh
from dfine_jax.ops.postprocess import Answer, AnswerRules, select, sigmoid
from dfine_jax.ops.precision import exact_products
from dfine_jax.serving.artefact import Artefact
from dfine_jax.serving.backends.base import ArtefactBackend, Backend
from dfine_jax.serving.backends.jax_model import JaxBackend
from dfine_jax.serving.backends.registry import open_artefact
from dfine_jax.system.files import sha256

BATCHES = (1, 2, 8)
_REFERENCE_IMAGES = max(BATCHES)
_SAME_PREPROCESSING = ("height_px", "width_px")  # the file may be made for another size than the model was trained at

Images = UInt8[np.ndarray, "n h w 3"]
Reference = Callable[[Images], Answer]


def check_artefact(
    path: Path | str,
    model: Any,
    variables: Any,
    *,
    classes: Classes | None = None,
    preprocess: Preprocess | None = None,
    reference: Reference | None = None,
    baseline: Reference | None = None,
    data: CheckData | Path | str | None = None,
    split: str = "val",
    max_images: int = 200,
    limits: Limits | None = None,
    max_ap_drop: float | None = None,
    operating_point: dict[str, Any] | None = None,
    quantization: dict[str, Any] | None = None,
    runtime: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> GateReport:
    """Run an exported file and compare it with the model it was made from.

    Args:
      path: the file, wherever it was staged.
      model, variables: the exported model, ``model.apply(variables, images, train=False)``.
      classes: what the file must carry as class names and original category ids, by label.
      preprocess: what the file must carry, except for the size.
      reference: replaces ``model`` as the answer to compare with, where the file is another function on purpose (fewer
        layers, pruned queries).
      baseline: the unreduced model, whose AP is measured beside the reference's to show what the operating point costs.
      data: dataset with annotations (then AP is compared too), a folder of images, or what ``data.open_data`` made
        of it; None: generated pictures.
      max_images: annotated images that AP is measured on, at most.
      limits: of errors; None: those of the file's precision.
      max_ap_drop: replaces the limit on the AP lost against the model, and limits that lost against ``baseline`` too.
      operating_point, quantization: what is reduced and what int8 cost, for the report.
      runtime, device, threads: see ``backends.registry.open_artefact``.

    Raises:
      UserError: the file cannot be loaded, the data cannot be read, or AP is limited where it cannot be measured.
        Differences, and failures of the running file, are in the report instead.
    """
    checked_on = data if isinstance(data, CheckData) else open_data(data, split)
    checked_on.require_ap(max_ap_drop)
    backend = open_artefact(path, runtime=runtime, device=device, threads=threads)
    artefact = backend.artefact
    limits = limits or limits_of(artefact)
    if max_ap_drop is not None:
        limits = dataclasses.replace(limits, ap_drop=max_ap_drop)
    answer = exact(of_input(reference or JaxBackend(model, variables, artefact.preprocess.scale).predict, artefact))
    baseline = None if baseline is None else exact(of_input(baseline, artefact))
    wrong_description = _description_failures(artefact, classes, preprocess, getattr(model, "config", None))
    shown, origin = pictures(checked_on, _REFERENCE_IMAGES)
    images = np.stack([artefact.preprocess(picture) for picture in shown])
    sizes_px = np.array([(picture.shape[1], picture.shape[0]) for picture in shown])
    comparisons, failures = _measure(backend, answer, images, sizes_px, limits)
    accuracies, no_accuracy = (None, None), checked_on.no_ap or "refused before"
    if checked_on.dataset is not None and not failures and not wrong_description:
        accuracies, wrong = _precision(backend, (answer, baseline), checked_on.dataset, max_images, limits, max_ap_drop)
        failures += wrong
    divergence, no_divergence = None, ""
    if failures and model is not None:
        divergence, no_divergence = _divergence(path, model, variables, images, comparisons, artefact)
    return GateReport(
        file=Path(path).name,
        sha256=sha256(path),
        graph=artefact.graph,
        precision=artefact.precision,
        input=dataclasses.asdict(artefact.input),
        operating_point=operating_point or {},
        ran_on=backend.describe(),
        images=origin,
        limits=limits,
        comparisons=tuple(comparisons),
        accuracy=accuracies[0],
        mask_accuracy=accuracies[1],
        no_accuracy="" if accuracies[0] else no_accuracy,
        failures=(*wrong_description, *failures),
        first_divergence=divergence,
        no_divergence=no_divergence,
        quantization=quantization or {},
    )


def limits_of(artefact: Artefact) -> Limits:
    """Of the file's precision; wider where a float32 graph resizes."""
    return RESIZING if artefact.resizes and artefact.precision == "fp32" else LIMITS[artefact.precision]


def of_input(answer: Reference, artefact: Artefact) -> Reference:
    """The model's answer to what the file takes: where the graph resizes, the host does it for the model."""
    inside = artefact.resizes
    if inside is None:
        return answer
    height, width = artefact.input.size_hw
    cells = None
    if artefact.mask_stride is not None:
        inner = inside.inner_px((width, height))
        cells = [side // artefact.mask_stride for side in inner]
    left, top, across, down = inside.view_px((width, height))
    scale = np.array([across / width, down / height] * 2, np.float32)
    shift = np.array([left / width, top / height, 0, 0], np.float32)

    def resized(images: Images) -> Answer:
        found = answer(np.stack([inside(image) for image in images]))
        masks_logit = found.masks_logit
        if masks_logit is not None and cells is not None:
            masks_logit = masks_logit[:, :, cells[1] :, cells[0] :][:, :, : cells[3], : cells[2]]
        return Answer(found.logits, np.asarray(found.boxes_cxcywh) * scale + shift, masks_logit)

    return resized


def exact(answer: Reference) -> Reference:
    """The answer with float32 products whatever JAX was told: TF32's noise is above the limits of float32 files."""

    def asked(images: Images) -> Answer:
        with exact_products():
            return answer(images)

    return asked


def _description_failures(
    artefact: Artefact, classes: Classes | None, preprocess: Preprocess | None, config: ModelSection | None
) -> list[str]:
    """What the file says about itself that the model contradicts."""
    out = []
    if classes is not None:
        ours = list(zip(classes.names, classes.ids, strict=True))
        theirs = list(zip(artefact.classes.names, artefact.classes.ids, strict=True))
        wrong = [i for i, pair in enumerate(ours) if i >= len(theirs) or theirs[i] != pair]
        if len(ours) != len(theirs):
            out.append(f"class map: {len(theirs)} classes in the file, {len(ours)} in the model")
        elif wrong:
            out.append(f"class map: class {wrong[0]} is {theirs[wrong[0]]} in the file, {ours[wrong[0]]} in the model")
    if preprocess is not None:
        ours, theirs = vars(preprocess), vars(artefact.resizes or artefact.preprocess)
        out += [
            f"preprocessing: {key} is {theirs[key]!r} in the file, {ours[key]!r} in the model"
            for key in ours
            if key not in _SAME_PREPROCESSING and ours[key] != theirs[key]
        ]
    if config is not None:
        ours, theirs = of(config).answer_rules(config)._asdict(), artefact.rules._asdict()
        out += [
            f"rules of answers: {key} is {theirs[key]!r} in the file, {ours[key]!r} in the model"
            for key in ours
            if ours[key] != theirs[key]
        ]
    return out


def _measure(
    backend: ArtefactBackend, answer: Reference, images: Images, sizes_px: np.ndarray, limits: Limits
) -> tuple[list[Comparison], list[str]]:
    """Errors in every batch size that the file accepts, and what is wrong with them."""
    comparisons: list[Comparison] = []
    failures: list[str] = []
    fixed, most = backend.artefact.input.batch, backend.session.max_batch or max(BATCHES)
    try:
        expected = _answers(answer, images)
        for batch in (fixed,) if fixed else [size for size in BATCHES if size <= most]:
            comparisons.append(_compare(backend, batch, images, sizes_px, expected, limits))
            failures += compare.exceeded(comparisons[-1], limits)
    except UserError as error:
        failures.append(str(error))
    return comparisons, failures


def _answers(answer: Reference, images: Images) -> list[Answer]:
    """The model's answer to each image [1, ...]; one by one, so that it is compiled for one shape."""
    return [answer(image[None]) for image in images]


def _compare(
    backend: ArtefactBackend,
    batch: int,
    images: Images,
    sizes_px: np.ndarray,
    expected: Sequence[Answer],
    limits: Limits,
) -> Comparison:
    """Errors when the file runs in batches of one size, every image at every place of a batch being another one."""
    preprocess = backend.artefact.resizes or backend.artefact.preprocess
    size_hw = (preprocess.height_px, preprocess.width_px)
    errors, lost = [], []
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        found = _found(backend, images[part], sizes_px[part])
        for rows, answer in zip(found, expected[part], strict=True):
            model = model_rows(answer, len(rows.scores), backend.artefact.graph)
            errors.append(compare.compare_image(model, rows, size_hw))
            lost.append(compare.lost(model, rows))
    return compare.summarise(batch, errors, limits, lost)


def _found(backend: ArtefactBackend, images: Images, sizes_px: np.ndarray) -> list[Rows]:
    if backend.artefact.graph == "raw":
        answer = backend.predict(images)
        return [_raw_rows(answer, i) for i in range(len(images))]
    views_px = np.concatenate([np.zeros_like(sizes_px), sizes_px], 1)
    found = backend.detect(images, views_px)
    corners = found.boxes_xyxy_px / sizes_px[:, None, [0, 1, 0, 1]]
    boxes_cxcywh, count = xyxy_to_cxcywh(corners).astype(np.float32), len(backend.artefact.class_names)
    return [
        compare.rows_of_detections(
            found.scores[i], found.labels[i], boxes_cxcywh[i], count, _of_image(found.masks_logit, i)
        )
        for i in range(len(images))
    ]


def model_rows(answer: Answer, count: int, graph: str) -> Rows:
    """The model's answer to one image as the rows that a graph gives; ``count`` of a complete one."""
    if graph == "raw":
        return _raw_rows(answer, 0)
    scores, labels, boxes_cxcywh, masks_logit = (_of_image(column, 0) for column in select(answer, count))
    return compare.rows_of_detections(scores, labels, boxes_cxcywh, answer.logits.shape[-1], masks_logit)


def _raw_rows(answer: Answer, image: int) -> Rows:
    logits, boxes_cxcywh, masks_logit = (_of_image(column, image) for column in answer)
    return Rows(boxes_cxcywh, sigmoid(np.asarray(logits, np.float32)), masks_logit)


def _of_image(column: Any, image: int) -> Any:
    return None if column is None else np.asarray(column[image])


def _precision(
    backend: ArtefactBackend,
    models: tuple[Reference, Reference | None],
    dataset: Dataset,
    max_images: int,
    limits: Limits,
    max_ap_drop: float | None,
) -> tuple[tuple[Accuracy | None, Accuracy | None], list[str]]:
    """AP of the file, of the model and of the unreduced one on the same images, and what is wrong with it.

    Of boxes and, where there are any, of masks.
    """
    from dfine_jax.converters.gate.accuracy import AveragePrecision

    artefact = backend.artefact
    try:
        ap = AveragePrecision(dataset, artefact.class_names, artefact.preprocess, max_images)
        file = ap(backend, artefact.input.batch or 1)
    except UserError as error:
        return (None, None), [str(error)]
    model, full = (None if function is None else ap(FunctionBackend(function, artefact.rules)) for function in models)
    assert model is not None
    out: list[Accuracy | None] = []
    failures = []
    for kind, name in (("boxes", "AP"), ("masks", "mask AP")):
        ours, theirs, whole = (None if found is None else getattr(found, kind) for found in (model, file, full))
        if ours is None or theirs is None:
            out.append(None)
            continue
        accuracy = Accuracy(model=ours, artefact=theirs, images=len(ap.records), baseline=whole)
        out.append(accuracy)
        if accuracy.drop > limits.ap_drop:
            failures.append(f"{name} {theirs:.4f} is {accuracy.drop:.4f} below the model's, limit {limits.ap_drop}")
        if max_ap_drop is not None and accuracy.cost is not None and accuracy.cost > max_ap_drop:
            failures.append(
                f"{name} {theirs:.4f} of this operating point is {accuracy.cost:.4f} below the unreduced model's, "
                f"limit {max_ap_drop}"
            )
    return (out[0], out[1]), failures


def _divergence(
    path: Path | str,
    model: Any,
    variables: Any,
    images: Images,
    comparisons: Sequence[Comparison],
    artefact: Artefact,
) -> tuple[str | None, str]:
    """Where the file diverges first, on the worst image; None, and why that is not known."""
    from dfine_jax.converters.gate.divergence import first_divergence

    image = images[comparisons[-1].worst_image if comparisons else 0]
    try:
        return first_divergence(path, model, variables, image, artefact), ""
    except UserError as error:
        return None, str(error)


class FunctionBackend(Backend):
    """A function of images as a backend.

    Args:
      rules: how its answers become detections; those of the file that it is compared with.
    """

    def __init__(self, function: Reference, rules: AnswerRules) -> None:
        self._function, self.rules = function, rules

    def predict(self, images: Images) -> Answer:
        """As ``Backend.predict``."""
        found = Answer(*self._function(images))
        masks_logit = None if found.masks_logit is None else np.asarray(found.masks_logit, np.float32)
        return Answer(np.asarray(found.logits, np.float32), np.asarray(found.boxes_cxcywh, np.float32), masks_logit)
