"""COCO average precision and counts, the same for every runtime: a function that predicts, and batches to feed it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from dfine_jax.backends.base import PixelPredictions, in_view
from dfine_jax.data.batch import EvalBatch
from dfine_jax.data.dataset import listed
from dfine_jax.data.workers import closing_batches
from dfine_jax.errors import UserError
from dfine_jax.metrics import DetectionReport, detection_report
from dfine_jax.postprocess import AnyArray

# Scores, labels and boxes (cxcywh, fractions of the image) of each image, best first.
Predictions = tuple[Float[AnyArray, "b n"], Int[AnyArray, "b n"], Float[AnyArray, "b n 4"]]
Predict = Callable[[UInt8[np.ndarray, "b h w 3"]], Predictions]
Detect = Callable[[UInt8[np.ndarray, "b h w 3"], Float[np.ndarray, "b 4"]], PixelPredictions]


class Categories(Protocol):
    """Classes by label, as ``data.coco.Dataset`` and checkpoints describe them."""

    @property
    def names(self) -> Sequence[str]:
        """Class names."""
        ...

    @property
    def category_ids(self) -> Sequence[int]:
        """Ids in the annotation file."""
        ...


@dataclasses.dataclass(frozen=True)
class ClassList:
    """Classes by label."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ClassMatch:
    """Which categories of a dataset a model's labels stand for."""

    scored: ClassList  # what the dataset annotates
    category_of_label: tuple[int | None, ...]  # by label of the model; None: the dataset has no such class
    unscored: tuple[str, ...] = ()  # classes of those labels, whose detections count for nothing

    def note(self) -> str | None:
        """What a user should know of the classes that do not count."""
        if not self.unscored:
            return None
        total = len(self.category_of_label)
        return (
            f"{len(self.unscored)} of the model's {total} classes are not in the data, detections of them do not count:"
            f" {listed(self.unscored)}"
        )


@dataclasses.dataclass(frozen=True)
class Metrics:
    """COCO's twelve numbers in [0, 1] (-1: no such ground truth), AP by class name, and counts at score thresholds."""

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: dict[str, float]
    num_images: int
    report: DetectionReport

    def numbers(self) -> dict[str, float]:
        """The twelve numbers by name."""
        return {name: getattr(self, name) for name in METRIC_NAMES}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None where nothing is annotated."""
        return {
            **{name: _or_none(value) for name, value in self.numbers().items()},
            "per_class": {name: _or_none(value) for name, value in self.per_class.items()},
            "num_images": self.num_images,
            "report": self.report.to_dict(),
        }


METRIC_NAMES = tuple(field.name for field in dataclasses.fields(Metrics))[:12]


def evaluate(
    predict: Predict,
    batches: Iterable[EvalBatch],
    annotation_file: Path | str,
    categories: Categories,
    observe: Callable[[list[dict[str, Any]]], None] | None = None,
) -> Metrics:
    """Predict every image of ``batches`` and compare with the annotations.

    Args:
      predict: images as the loader makes them to predictions; labels count as in ``categories``.
      batches: every image of the set once; rows that only fill a batch are ignored.
      annotation_file: the COCO file, ground truth as it stands: crowd regions serve to ignore, as COCO does.
      categories: by label, of the annotation file.
      observe: is given the COCO results of all images.
    """

    def detect(images: np.ndarray, view_px: np.ndarray) -> PixelPredictions:
        return _in_pixels(predict(images), view_px)

    scored = ClassList(tuple(categories.names), tuple(categories.category_ids))
    return evaluate_detections(detect, batches, annotation_file, ClassMatch(scored, scored.category_ids), observe)


def evaluate_detections(
    detect: Detect,
    batches: Iterable[EvalBatch],
    annotation_file: Path | str,
    classes: ClassMatch,
    observe: Callable[[list[dict[str, Any]]], None] | None = None,
) -> Metrics:
    """As ``evaluate``, for what answers in pixels (``Backend.detect`` of any runtime) and may know more classes."""
    results: list[dict[str, Any]] = []
    seen: list[int] = []
    with closing_batches(batches) as stream:
        for batch in stream:
            seen += [int(i) for i in batch.image_id[_real(batch)]]
            results += pixel_results(detect(batch.images, _view_px(batch)), batch, classes.category_of_label)
    if observe is not None:
        observe(results)
    return score(json.loads(Path(annotation_file).read_text()), results, seen, classes.scored)


def coco_results(predictions: Predictions, batch: EvalBatch, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """COCO result entries: boxes [x, y, width, height] in pixels of the original image, not clipped."""
    return pixel_results(_in_pixels(predictions, _view_px(batch)), batch, category_ids)


def pixel_results(
    predictions: PixelPredictions, batch: EvalBatch, category_ids: Sequence[int | None]
) -> list[dict[str, Any]]:
    """As ``coco_results``, from corners in pixels; labels with None as category are left out."""
    scores, labels, corners = (np.asarray(value) for value in predictions)
    boxes = corners.astype(np.float64)
    boxes[..., 2:] -= boxes[..., :2]
    real = _real(batch)
    return [
        {
            "image_id": int(image_id),
            "category_id": category,
            "bbox": [float(v) for v in box],
            "score": float(value),
        }
        for row, image_id in enumerate(batch.image_id)
        if real[row]
        for value, label, box in zip(scores[row], labels[row], boxes[row], strict=True)
        if (category := category_ids[label]) is not None
    ]


def score(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], image_ids: Sequence[int], categories: Categories
) -> Metrics:
    """COCO metrics of ``results`` on the images named, with pycocotools, and counts (metrics.py).

    Differences to feeding it the files: annotations are numbered from 1 (it takes number 0 for "unmatched", which loses
    a true positive), and ``iscrowd`` and ``area`` that are missing or no numbers are filled in (0, width * height).
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: Any = COCO()
    found: Any = COCO()
    truth.dataset = _complete(ground_truth)
    found.dataset = dict(truth.dataset, annotations=[_as_annotation(r, i) for i, r in enumerate(results, 1)])
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found.createIndex()
        run = COCOeval(truth, found, "bbox")
        run.params.imgIds = sorted(set(image_ids))
        run.params.catIds = list(categories.category_ids)
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = run.eval["precision"][:, :, :, 0, 2]  # [thresholds, recalls, k], all areas, 100 detections
    names = dict(zip(categories.category_ids, categories.names, strict=True))
    per_class = {names[i]: _mean_of_present(precision[:, :, k]) for k, i in enumerate(run.params.catIds)}
    return Metrics(
        *(float(v) for v in run.stats[:12]),
        per_class=per_class,
        num_images=len(run.params.imgIds),
        report=detection_report(truth.dataset, results, image_ids, categories.names, categories.category_ids),
    )


def match_categories(model_names: Sequence[str], data: Categories, model: str, dataset: str) -> ClassMatch:
    """The dataset's categories by the model's labels, matched by name; the model may know more of them.

    Args:
      model, dataset: what to call them in the message.

    Raises:
      UserError: the dataset has classes that the model does not know.
    """
    ids = dict(zip(data.names, data.category_ids, strict=True))
    unknown = [name for name in data.names if name not in model_names]
    unscored = tuple(name for name in model_names if name not in ids)
    if unknown:
        parts = [f"only in the data: {listed(unknown)}"]
        parts += [f"only in the model: {listed(unscored)}"] if unscored else []
        raise UserError(
            f"{model} does not know all classes of {dataset} ({'; '.join(parts)}); "
            "use data whose classes the model knows, or rename them there"
        )
    both = tuple(name for name in model_names if name in ids)
    scored = ClassList(both, tuple(ids[name] for name in both))
    return ClassMatch(scored, tuple(ids.get(name) for name in model_names), unscored)


def table(metrics: Metrics) -> str:
    """The numbers as text of a few lines."""
    rows = [("AP", "ap"), ("AP50", "ap50"), ("AP75", "ap75"), ("AP small", "ap_small"), ("AP medium", "ap_medium")]
    rows += [("AP large", "ap_large"), ("AR 1", "ar_1"), ("AR 10", "ar_10"), ("AR 100", "ar_100")]
    rows += [("AR small", "ar_small"), ("AR medium", "ar_medium"), ("AR large", "ar_large")]
    values = metrics.numbers()
    lines = [f"{label:<12}{_number(values[name])}" for label, name in rows]
    width = max((len(name) for name in metrics.per_class), default=0) + 2
    lines += ["", "AP by class", *(f"{name:<{width}}{_number(v)}" for name, v in metrics.per_class.items())]
    lines += ["", metrics.report.table()]
    return "\n".join(lines)


def _or_none(value: float) -> float | None:
    return None if value < 0 else value


def _number(value: float) -> str:
    return "     -" if value < 0 else f"{value:6.3f}"


def _mean_of_present(precision: Float[np.ndarray, "t r"]) -> float:
    present = precision[precision > -1]
    return float(present.mean()) if present.size else -1.0


def _complete(ground_truth: dict[str, Any]) -> dict[str, Any]:
    annotations = []
    for number, annotation in enumerate(ground_truth["annotations"], 1):
        entry = copy.copy(annotation)
        entry["id"] = number
        entry["iscrowd"] = int(_as_number(entry.get("iscrowd"), 0))
        entry["area"] = _as_number(entry.get("area"), entry["bbox"][2] * entry["bbox"][3])
        annotations.append(entry)
    return {"images": ground_truth["images"], "categories": ground_truth["categories"], "annotations": annotations}


def _as_number(value: Any, otherwise: float) -> float:
    """Some tools write numbers as text, or null."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return otherwise
    return number if np.isfinite(number) else otherwise


def _real(batch: EvalBatch) -> Bool[np.ndarray, " b"]:
    """Rows that hold an image. Those that fill a batch have id -1, which is a legal id too, and one pixel."""
    return (np.asarray(batch.image_id) != -1) | (np.asarray(batch.size_px) != 1).any(1)


def _view_px(batch: EvalBatch) -> Float[np.ndarray, "b 4"]:
    if batch.view_px is not None:
        return np.asarray(batch.view_px, np.float64)
    size_px = np.asarray(batch.size_px, np.float64)
    return np.concatenate([np.zeros_like(size_px), size_px], 1)


def _in_pixels(predictions: Predictions, view_px: Float[np.ndarray, "b 4"]) -> PixelPredictions:
    scores, labels, boxes_cxcywh = (np.asarray(value) for value in predictions)
    return scores, labels, in_view(boxes_cxcywh.astype(np.float64), view_px)


def _as_annotation(result: dict[str, Any], number: int) -> dict[str, Any]:
    return {**result, "id": number, "iscrowd": 0, "area": result["bbox"][2] * result["bbox"][3]}
