"""Precision, recall, F1, overlap and confusions of detections at a score threshold, and the best threshold.

Average precision ranks; these numbers count, as a user of the detector would (D-FINE-seg, src/dl/validator.py). In each
image the pairs of prediction and object that overlap enough are accepted from the highest overlap down, whatever their
classes, if both are still free. An accepted pair of one class is a true positive; of two classes it is a false negative
of the object's class and a false positive of the predicted one; what stays free is false.

Two additions: equal overlaps are taken by score, and a free prediction that lies in a crowd region of its class counts
for nothing, as in COCO's average precision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dfine_jax.data.read.dataset import Classes
from dfine_jax.evaluation.detections import Detections, Groups, Kind, Objects

THRESHOLDS: Float[np.ndarray, " t"] = np.arange(1, 100) / 100  # where the best one is looked for
IOU_THRESHOLD = 0.5
BACKGROUND = "background"
RATIO_NAMES = ("precision", "recall", "f1", "iou")
_USUAL_THRESHOLD = 0.5  # shown beside the best one: what most users run with


@dataclasses.dataclass(frozen=True, eq=False)
class ImageOverlaps:
    """Predictions and objects of one image, and the overlap of each pair (of boxes or of masks)."""

    scores: Float[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    truth_labels: Int[np.ndarray, " g"]
    iou: Float[np.ndarray, "n g"]
    in_crowd: Bool[np.ndarray, " n"]  # lies in a crowd region of its class


@dataclasses.dataclass(frozen=True)
class Scores:
    """Counts and their ratios; a ratio of nothing is 0."""

    true_positives: int
    false_positives: int
    false_negatives: int
    iou_sum: float  # of the true positives

    @property
    def precision(self) -> float:
        """Share of the predictions that are right."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of the objects that are found."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)

    @property
    def iou(self) -> float:
        """Mean overlap where every false positive and false negative counts as an overlap of 0."""
        return _ratio(self.iou_sum, self.true_positives + self.false_positives + self.false_negatives)

    def numbers(self) -> dict[str, float]:
        """The ratios by name."""
        return {name: getattr(self, name) for name in RATIO_NAMES}


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """Counts by threshold and class."""

    thresholds: Float[np.ndarray, " t"]
    true_positives: Int[np.ndarray, "t k"]
    false_positives: Int[np.ndarray, "t k"]
    false_negatives: Int[np.ndarray, "t k"]
    iou_sum: Float[np.ndarray, "t k"]

    def overall(self, index: int) -> Scores:
        """All classes at the threshold of this index (micro average)."""
        return Scores(
            int(self.true_positives[index].sum()),
            int(self.false_positives[index].sum()),
            int(self.false_negatives[index].sum()),
            float(self.iou_sum[index].sum()),
        )

    def of_class(self, index: int, label: int) -> Scores:
        """One class at the threshold of this index."""
        return Scores(
            int(self.true_positives[index, label]),
            int(self.false_positives[index, label]),
            int(self.false_negatives[index, label]),
            float(self.iou_sum[index, label]),
        )

    def best_index(self) -> int:
        """Threshold of the largest F1, the highest one of equals; where nothing is found at any, that near 0.5."""
        f1 = [self.overall(i).f1 for i in range(len(self.thresholds))]
        return _last_largest(f1) if any(f1) else self.nearest_index(_USUAL_THRESHOLD)

    def nearest_index(self, threshold: float) -> int:
        """The counted threshold nearest to this one."""
        return int(np.argmin(np.abs(self.thresholds - threshold)))

    def best_of_class(self, label: int) -> dict[str, float]:
        """The threshold with the largest F1 of one class, and that F1."""
        f1 = [self.of_class(i, label).f1 for i in range(len(self.thresholds))]
        index = _last_largest(f1)
        return {"threshold": float(self.thresholds[index]), "f1": f1[index]}


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionReport:
    """What a detector gets right and wrong at its best threshold, and how that depends on the threshold.

    Where no object is found at any threshold, none is better than another, and ``best_threshold`` is the usual 0.5.
    """

    names: tuple[str, ...]
    counts: Counts
    best_threshold: float
    best: Scores
    per_class: dict[str, Scores]  # at the best threshold
    confusion: Int[np.ndarray, "k1 k1"]  # at the best threshold; rows: objects, columns: predictions, last: none
    kind: Kind = "boxes"  # what was compared

    @property
    def found_any(self) -> bool:
        """Whether an object is found at the best threshold; else no threshold is better than another."""
        return self.best.true_positives > 0

    def at(self, threshold: float) -> Scores:
        """All classes at the counted threshold nearest to this one."""
        return self.counts.overall(self.counts.nearest_index(threshold))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        curve = [self.counts.overall(i) for i in range(len(self.counts.thresholds))]
        return {
            "best_threshold": self.best_threshold,
            **_plain(self.best),
            "per_class": {name: _plain(scores) for name, scores in self.per_class.items()},
            "best_by_class": {name: self.counts.best_of_class(label) for label, name in enumerate(self.names)},
            "confusion": {"names": [*self.names, BACKGROUND], "rows_are": "objects", "counts": self.confusion.tolist()},
            "curve": {
                "threshold": self.counts.thresholds.tolist(),
                **{name: [scores.numbers()[name] for scores in curve] for name in RATIO_NAMES},
            },
        }

    def table(self) -> str:
        """Ratios at the best and at the usual threshold, and by class, as text of a few lines."""
        width = max(len(name) for name in ("threshold 0.00 (best)", *self.names)) + 2
        lines = [f"{'':<{width}}precision  recall      F1     IoU     found   missed    false"]
        if not self.found_any:
            of = "mask" if self.kind == "masks" else "object"
            return "\n".join(
                [
                    *lines,
                    _line(f"threshold {_USUAL_THRESHOLD:.2f}", self.at(_USUAL_THRESHOLD), width),
                    "",
                    f"no {of} is found at any threshold, so none is better than another",
                ]
            )
        lines.append(_line(f"threshold {self.best_threshold:.2f} (best)", self.best, width))
        lines.append(_line(f"threshold {_USUAL_THRESHOLD:.2f}", self.at(_USUAL_THRESHOLD), width))
        lines += ["", f"by class at {self.best_threshold:.2f}"]
        return "\n".join(lines + [_line(name, scores, width) for name, scores in self.per_class.items()])


def detection_report(
    ground_truth: Objects | Mapping[str, Any],
    results: Detections | Iterable[Mapping[str, Any]],
    image_ids: Iterable[int],
    classes: Classes,
    kind: Kind = "boxes",
) -> DetectionReport:
    """Count the boxes or masks of COCO ``results`` against COCO ``ground_truth`` on the images named.

    Args:
      classes: by label; annotations and results of others do not count.
    """
    images = Overlaps(ground_truth, results, image_ids, classes.ids, float(THRESHOLDS[0]), kind)
    counts = count(images, len(classes))
    index = counts.best_index()
    return DetectionReport(
        names=classes.names,
        counts=counts,
        best_threshold=float(THRESHOLDS[index]),
        best=counts.overall(index),
        per_class={name: counts.of_class(index, label) for label, name in enumerate(classes.names)},
        confusion=confusion_matrix(images, len(classes), float(THRESHOLDS[index])),
        kind=kind,
    )


def count(
    images: Iterable[ImageOverlaps], num_classes: int, thresholds: Float[np.ndarray, " t"] = THRESHOLDS
) -> Counts:
    """Count at each of the ascending ``thresholds``; predictions that score exactly a threshold count there."""
    steps = len(thresholds)
    right, counted = np.zeros((2, steps, num_classes), np.int64)
    iou_sum, objects = np.zeros((steps, num_classes)), np.zeros(num_classes, np.int64)
    for image in images:
        partner = _pair(image, thresholds)
        alive = image.scores >= thresholds[:, None]  # [t, n]
        counts = alive & ~(image.in_crowd & (partner < 0))
        at, prediction = np.nonzero(counts)
        np.add.at(counted, (at, image.labels[prediction]), 1)
        at, prediction = np.nonzero(partner >= 0)
        truth = partner[at, prediction]
        same = image.labels[prediction] == image.truth_labels[truth]
        at, prediction, truth = at[same], prediction[same], truth[same]
        np.add.at(right, (at, image.labels[prediction]), 1)
        np.add.at(iou_sum, (at, image.labels[prediction]), image.iou[prediction, truth])
        np.add.at(objects, image.truth_labels, 1)
    return Counts(np.asarray(thresholds, np.float64), right, counted - right, objects - right, iou_sum)


def confusion_matrix(images: Iterable[ImageOverlaps], num_classes: int, threshold: float) -> Int[np.ndarray, "k1 k1"]:
    """Objects (rows) by prediction (columns) at ``threshold``; the last row and column stand for none."""
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for image in images:
        partner = _pair(image, np.array([threshold]))[0]
        paired = partner >= 0
        np.add.at(matrix, (image.truth_labels[partner[paired]], image.labels[paired]), 1)
        free = (image.scores >= threshold) & ~paired & ~image.in_crowd
        np.add.at(matrix[num_classes], image.labels[free], 1)
        missed = np.setdiff1d(np.arange(len(image.truth_labels)), partner[paired])
        np.add.at(matrix[:, num_classes], image.truth_labels[missed], 1)
    return matrix


class Overlaps:
    """Overlaps of COCO results, one entry for each image.

    They are made anew in each pass: those of all images at once would need gigabytes.

    Args:
      min_score: results below it do not count.
      kind: what is compared; of masks, all objects and results must have one.
    """

    def __init__(
        self,
        ground_truth: Objects | Mapping[str, Any],
        results: Detections | Iterable[Mapping[str, Any]],
        image_ids: Iterable[int],
        category_ids: Sequence[int],
        min_score: float = 0.0,
        kind: Kind = "boxes",
    ) -> None:
        is_coco = isinstance(ground_truth, Mapping)
        self._truth = Objects.of_coco(ground_truth["annotations"]) if is_coco else ground_truth
        self._found = results if isinstance(results, Detections) else Detections.of_coco(results)
        self._image_ids = sorted(set(image_ids))
        self._truth_label = _labels(self._truth.category_id, category_ids)
        self._label = _labels(self._found.category_id, category_ids)
        self._label[self._found.score < min_score] = -1
        self._groups = Groups(self._truth.image_id), Groups(self._found.image_id)
        self._kind = kind

    def __iter__(self) -> Iterator[ImageOverlaps]:
        """By image, in ascending order of the ids."""
        return (overlaps for *_, overlaps in self.numbered())

    def numbered(self) -> Iterator[tuple[int, Int[np.ndarray, " g"], Int[np.ndarray, " n"], ImageOverlaps]]:
        """The same, each with the id of its image and the rows of its objects and of its predictions."""
        for image_id in self._image_ids:
            annotated, detected = (groups.rows(image_id) for groups in self._groups)
            annotated, detected = annotated[self._truth_label[annotated] >= 0], detected[self._label[detected] >= 0]
            crowd = self._truth.crowd[annotated]
            objects = annotated[~crowd]
            yield image_id, objects, detected, self._of_image(objects, annotated[crowd], detected)

    def among(self, found: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n n"]:
        """Overlaps of predictions of one image with each other."""
        from pycocotools.mask import iou as overlap

        shapes = self._shapes(self._found, found)
        return np.asarray(overlap(shapes, shapes, [0] * len(found))) if len(found) else np.zeros((0, 0))

    def _of_image(
        self, objects: Int[np.ndarray, " g"], crowds: Int[np.ndarray, " c"], found: Int[np.ndarray, " n"]
    ) -> ImageOverlaps:
        from pycocotools.mask import iou as overlap

        iou, inside = np.zeros((len(found), len(objects))), np.zeros((len(found), len(crowds)))
        detected = self._shapes(self._found, found)
        if iou.size:
            iou = np.asarray(overlap(detected, self._shapes(self._truth, objects), [0] * len(objects)))
        if inside.size:  # with the crowd flag the share of the prediction's own area
            inside = np.asarray(overlap(detected, self._shapes(self._truth, crowds), [1] * len(crowds)))
        labels = self._label[found]
        in_crowd = np.any((inside >= IOU_THRESHOLD) & (labels[:, None] == self._truth_label[crowds]), 1)
        return ImageOverlaps(self._found.score[found], labels, self._truth_label[objects], iou, in_crowd)

    def _shapes(self, of: Detections | Objects, rows: Int[np.ndarray, " r"]) -> Any:
        """As pycocotools takes them."""
        if self._kind == "boxes":
            return of.box_xywh_px[rows]
        assert of.masks is not None
        return of.masks.coco(rows)


def _labels(ids: Int[np.ndarray, " n"], category_ids: Sequence[int]) -> Int[np.ndarray, " n"]:
    """Labels of category ids, -1 for those that do not count."""
    known, which = np.unique(ids, return_inverse=True)
    label_of = {category: label for label, category in enumerate(category_ids)}
    return np.array([label_of.get(category, -1) for category in known.tolist()], np.int64)[which]


def _pair(image: ImageOverlaps, thresholds: Float[np.ndarray, " t"]) -> Int[np.ndarray, "t n"]:
    """Object of each prediction at each threshold, -1 where it stays free."""
    predictions, truths = np.nonzero(image.iou >= IOU_THRESHOLD)
    order = np.lexsort((truths, predictions, -image.scores[predictions], -image.iou[predictions, truths]))
    partner = np.full((len(thresholds), len(image.scores)), -1)
    free = np.ones((len(thresholds), len(image.truth_labels)), bool)
    for prediction, truth in zip(predictions[order], truths[order], strict=True):
        accepted = (image.scores[prediction] >= thresholds) & (partner[:, prediction] < 0) & free[:, truth]
        partner[accepted, prediction] = truth
        free[accepted, truth] = False
    return partner


def _last_largest(values: Sequence[float]) -> int:
    return len(values) - 1 - int(np.argmax(values[::-1]))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _plain(scores: Scores) -> dict[str, float]:
    return {**scores.numbers(), **dataclasses.asdict(scores)}


def _line(name: str, scores: Scores, width: int) -> str:
    ratios = "".join(f"{value:8.3f}" for value in scores.numbers().values())
    counts = (scores.true_positives, scores.false_negatives, scores.false_positives)
    return f"{name:<{width}} {ratios}  " + "".join(f"{value:>8} " for value in counts)
