"""COCO average precision and counts, the same for every runtime: a function that predicts, and batches to feed it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from tqdm import tqdm

from dfine_jax.data.load.batch import EvalBatch
from dfine_jax.data.load.pipeline import EvalLoader
from dfine_jax.data.load.workers import closing_batches
from dfine_jax.data.picture.object_masks import MapMasks
from dfine_jax.data.read.dataset import Classes, Dataset, listed
from dfine_jax.errors import UserError
from dfine_jax.evaluation.average_precision import MOST_OF_CLASS
from dfine_jax.evaluation.detections import Detections
from dfine_jax.evaluation.encoded_masks import EncodedMasks
from dfine_jax.evaluation.metrics import THRESHOLDS
from dfine_jax.evaluation.score import Metrics, score
from dfine_jax.evaluation.truth import Truth, annotated
from dfine_jax.ops.postprocess import AnswerRules, Selected, clipped
from dfine_jax.serving.backends.base import PixelPredictions, in_view

if TYPE_CHECKING:
    from dfine_jax.prediction.detector import OpenedModel

Predict = Callable[[UInt8[np.ndarray, "b h w 3"]], Selected]
Detect = Callable[[UInt8[np.ndarray, "b h w 3"], Float[np.ndarray, "b 4"]], PixelPredictions]

Together = Callable[[Detections, list[int]], tuple[Detections, list[int]]]  # also ids of the images


@dataclasses.dataclass(frozen=True)
class ClassMatch:
    """Which classes of a dataset a model's labels stand for."""

    scored: Classes  # what the dataset annotates
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


def evaluate(
    predict: Predict,
    batches: Iterable[EvalBatch],
    truth: Truth,
    classes: Classes,
    observe: Callable[[Detections], None] | None = None,
    together: Together | None = None,
    rules: AnswerRules = AnswerRules(),  # noqa: B008
) -> Metrics:
    """Predict every image of ``batches`` and compare with the annotations.

    Args:
      predict: images as the loader makes them to predictions; labels count as in ``classes``.
      batches: every image of the set once; rows that only fill a batch are ignored.
      truth: the dataset (read once), or its COCO file; as it stands there: crowd regions serve to ignore, as COCO does.
      classes: those of the annotations.
      observe: is given the detections of all images; they iterate as COCO results.
      together: where others predict the other images, makes the detections and images of all of each one's.
      rules: how predictions become detections.
    """

    def detect(images: np.ndarray, view_px: np.ndarray) -> PixelPredictions:
        return _in_pixels(predict(images), view_px)._replace(rules=rules)

    return evaluate_detections(detect, batches, truth, ClassMatch(classes, classes.ids), observe, together)


def evaluate_detections(
    detect: Detect,
    batches: Iterable[EvalBatch],
    truth: Truth,
    classes: ClassMatch,
    observe: Callable[[Detections], None] | None = None,
    together: Together | None = None,
) -> Metrics:
    """As ``evaluate``, for what answers in pixels (``Backend.detect`` of any runtime) and may know more classes."""
    detections, seen = detect_all(detect, batches, classes.category_of_label)
    if together is not None:
        detections, seen = together(detections, seen)
    if observe is not None:
        observe(detections)
    return score(truth, detections, seen, classes.scored)


def detect_all(
    detect: Detect,
    batches: Iterable[EvalBatch],
    category_of_label: Sequence[int | None],
    least_score: float = float(THRESHOLDS[0]),
) -> tuple[Detections, list[int]]:
    """Detections of all images that can count (``pixel_results``), and the ids of the images."""
    found: list[Detections] = []
    seen: list[int] = []
    latest: Future[Detections] | None = None
    # Run lengths are made while the network is at the next batch; not of more than one, maps are large.
    with closing_batches(batches) as stream, ThreadPoolExecutor(1, "run lengths") as worker:
        for batch in stream:
            seen += [int(i) for i in batch.image_id[_real(batch)]]
            predictions = detect(batch.images, _view_px(batch))
            found += [latest.result()] if latest else []
            latest = worker.submit(pixel_results, predictions, batch, category_of_label, least_score)
            del predictions
        found += [latest.result()] if latest else []
    return Detections.joined(found), seen


def check_objects(data: Dataset) -> None:
    """UserError unless there is something to find."""
    if not data.max_objects:
        raise UserError(f"{data.annotation_file} annotates no object, so there is no precision; use dfine predict")


def evaluate_opened(
    opened: OpenedModel,
    data: Dataset,
    *,
    named: tuple[str, str],
    size_px: tuple[int, int],
    batch_size: int,
    workers: int,
) -> tuple[Metrics, ClassMatch]:
    """A model on a dataset whose classes it knows; with the classes that did not count.

    Arguments and errors as ``detect_opened``.
    """
    found = detect_opened(opened, data, named=named, size_px=size_px, batch_size=batch_size, workers=workers)
    return score(found.truth, found.detections, found.image_ids, found.classes.scored), found.classes


class Found(NamedTuple):
    """What a model detects in a dataset."""

    detections: Detections
    image_ids: list[int]
    classes: ClassMatch  # which count
    seconds: float  # from the first picture read to the last detection, without compiling
    truth: Truth  # what is annotated, with masks where they are compared

    def speed(self) -> dict[str, float]:
        """Seconds and images per second, for JSON."""
        rate = len(self.image_ids) / max(self.seconds, 1e-9)
        return {"evaluation_s": round(self.seconds, 3), "evaluation_images_per_s": round(rate, 3)}


def detect_opened(
    opened: OpenedModel,
    data: Dataset,
    *,
    named: tuple[str, str],
    size_px: tuple[int, int],
    batch_size: int,
    workers: int,
    least_score: float = float(THRESHOLDS[0]),
    masks: bool = True,
) -> Found:
    """A model's detections on a dataset whose classes it knows.

    Annotated masks are drawn first, so that one that cannot be drawn is told before the network runs.

    Args:
      named: what to call model and data in messages.
      size_px: (height, width) of the input.
      batch_size: images at a time, where the model leaves it open.
      workers: processes that read pictures; -1: one per core.
      least_score: from which all detections are needed, see ``pixel_results``.
      masks: they are compared, if the model makes any.

    Raises:
      UserError: the dataset has classes that the model does not know, or a mask that cannot be drawn.
    """
    classes = match_categories(opened.classes.names, data.classes, *named)
    truth = annotated(data, masks=True) if masks and opened.segments else data
    batch_size = opened.batch or batch_size
    preprocess = dataclasses.replace(opened.preprocess, height_px=size_px[0], width_px=size_px[1])
    loader = EvalLoader(data, preprocess, batch_size=batch_size, workers=workers)
    opened.backend.prepare((batch_size, *size_px, 3))
    bar = tqdm(loader, total=len(loader), unit="batch", desc="evaluate", disable=None)
    since = time.perf_counter()
    detected = detect_all(opened.backend.detect, bar, classes.category_of_label, least_score)
    return Found(*detected, classes, time.perf_counter() - since, truth)


def pixel_results(
    predictions: PixelPredictions,
    batch: EvalBatch,
    category_ids: Sequence[int | None],
    least_score: float = float(THRESHOLDS[0]),
) -> Detections:
    """Detections from corners in pixels, those that can count. Masks become run lengths.

    Left out are labels with None as category, and in each image what is below ``least_score``, from which on
    ``metrics`` counts, and behind the best of its class that average precision looks at.
    """
    scores, labels, corners = (np.asarray(value) for value in predictions[:3])
    if predictions.rules.clip_boxes:
        corners = clipped(corners, batch.size_px)
    boxes = corners.astype(np.float64)
    boxes[..., 2:] -= boxes[..., :2]
    known = np.array([category is not None for category in category_ids], bool)
    ids = np.array([category or 0 for category in category_ids], np.int64)
    use = known[labels] & _real(batch)[:, None]
    use &= (scores.astype(np.float64) >= least_score) | (_rank_in_class(scores, labels) < MOST_OF_CLASS)
    image_id = np.broadcast_to(np.asarray(batch.image_id, np.int64)[:, None], labels.shape)
    columns = image_id[use], ids[labels[use]], boxes[use], scores[use].astype(np.float64)
    return Detections(*columns, _run_lengths(predictions, use, batch))


def _rank_in_class(scores: Float[np.ndarray, "b n"], labels: Int[np.ndarray, "b n"]) -> Int[np.ndarray, "b n"]:
    """How many of the same class and image come before, by score; of equal ones the earlier, as in pycocotools."""
    order = np.lexsort((-scores, labels), axis=1)
    image = np.arange(len(order))[:, None]
    ordered = labels[image, order]
    place = np.broadcast_to(np.arange(order.shape[1]), order.shape)
    first = np.ones(order.shape, bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ranks = np.empty(order.shape, np.int64)
    ranks[image, order] = place - np.maximum.accumulate(np.where(first, place, 0), axis=1)
    return ranks


def _run_lengths(predictions: PixelPredictions, use: Bool[np.ndarray, "b n"], batch: EvalBatch) -> EncodedMasks | None:
    """Masks of the detections in use, over their whole pictures."""
    if predictions.masks_logit is None:
        return None
    counts, sizes = [], []
    views, rules = _view_px(batch).tolist(), predictions.rules
    pictures = zip(predictions.masks_logit, predictions.boxes_xyxy_px, views, batch.size_px, use, strict=True)
    for maps, boxes, view, size_px, used in pictures:
        picture = round(float(size_px[0])), round(float(size_px[1]))
        left, top, width, height = view
        masks = MapMasks(maps, boxes, (left, top, width, height), picture, 0.5, rules.cut_to_boxes, rules.interpolated)
        texts = [masks.rle(row)["counts"] for row in np.flatnonzero(used).tolist()]
        counts += texts
        sizes += [picture[::-1]] * len(texts)
    return EncodedMasks.of(counts, np.array(sizes, np.int64).reshape(-1, 2))


def match_categories(model_names: Sequence[str], data: Classes, model: str, dataset: str) -> ClassMatch:
    """The dataset's categories by the model's labels, matched by name; the model may know more of them.

    Args:
      model, dataset: what to call them in the message.

    Raises:
      UserError: the dataset has classes that the model does not know.
    """
    ids = dict(zip(data.names, data.ids, strict=True))
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
    scored = Classes(both, tuple(ids[name] for name in both))
    return ClassMatch(scored, tuple(ids.get(name) for name in model_names), unscored)


def _real(batch: EvalBatch) -> Bool[np.ndarray, " b"]:
    """Rows that hold an image. Those that fill a batch have id -1, which is a legal id too, and one pixel."""
    return (np.asarray(batch.image_id) != -1) | (np.asarray(batch.size_px) != 1).any(1)


def _view_px(batch: EvalBatch) -> Float[np.ndarray, "b 4"]:
    if batch.view_px is not None:
        return np.asarray(batch.view_px, np.float64)
    size_px = np.asarray(batch.size_px, np.float64)
    return np.concatenate([np.zeros_like(size_px), size_px], 1)


def _in_pixels(predictions: Selected, view_px: Float[np.ndarray, "b 4"]) -> PixelPredictions:
    scores, labels, boxes_cxcywh = (np.asarray(value) for value in predictions[:3])
    masks_logit = None if predictions.masks_logit is None else np.asarray(predictions.masks_logit)
    return PixelPredictions(scores, labels, in_view(boxes_cxcywh.astype(np.float64), view_px), masks_logit)
