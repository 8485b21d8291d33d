"""Annotations that the answers of a detector speak against: missing, of the wrong class, out of place, or of nothing.

Predictions from a score on take, the highest score first, the free object of their class that they overlap most, as in
D-FINE-seg's error analysis. What is left over on either side is not a fault at once: a prediction of another class on
an object means its class, one that overlaps an object of its class a little means its outline, and one on an object
that has its prediction already says nothing new. Predictions in crowd regions of their class count for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float

from dfine_jax.evaluation.detections import Objects
from dfine_jax.evaluation.metrics import IOU_THRESHOLD, ImageOverlaps, Overlaps

Fault = Literal["false_positive", "wrong_class", "poor_fit", "missed"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
_LOOSE_IOU = 0.3  # a prediction that overlaps an object less means another one: neighbours, where they lie close


class Judged(NamedTuple):
    """A prediction, an object, or a pair of them, by their places in an image; -1 stands for none."""

    fault: Fault
    prediction: int
    truth: int


class Judgement(NamedTuple):
    """What the predictions of one image say of its objects."""

    faults: list[Judged]
    agreed: int  # objects found as they are annotated
    repeated: int  # predictions of an object that is found already


class Suspect(NamedTuple):
    """An annotation to look at, or a place without one; rows of ``Objects`` and ``Detections``, -1 for none."""

    fault: Fault
    image_id: int
    object_row: int
    found_row: int
    # Of the prediction; of a missed object, the best of its class on it, which finds another or is too low.
    score: float
    iou: float  # of the two; 0 where there is but one
    area_px: float  # of the object; 0 where there is none


class Findings(NamedTuple):
    """Suspects of a dataset by fault, the most suspicious first, and how many objects and predictions are none."""

    suspects: dict[Fault, list[Suspect]]
    agreed: int
    repeated: int


def find_suspects(overlaps: Overlaps, objects: Objects, threshold: float, fit_iou: float) -> Findings:
    """Judge all images.

    False positives and wrong classes are ordered by score, poor fits by the score times what the two do not share,
    missed objects by area. Of predictions of nothing that overlap each other the one with the highest score stays.

    Args:
      overlaps: of ``objects``, also with predictions below the threshold, which give missed objects a score.
      threshold: score from which predictions count, above 0.
      fit_iou: objects are found as annotated from this overlap on.
    """
    found: dict[Fault, list[Suspect]] = {fault: [] for fault in FAULTS}
    agreed = repeated = 0
    for image_id, object_rows, found_rows, image in overlaps.numbered():
        judgement = judge(image, threshold, fit_iou)
        nothing = [judged.prediction for judged in judgement.faults if judged.fault == "false_positive"]
        alone = {nothing[i] for i in _strongest(overlaps.among(found_rows[nothing]))}
        agreed, repeated = agreed + judgement.agreed, repeated + judgement.repeated + len(nothing) - len(alone)
        for fault, prediction, truth in judgement.faults:
            if fault == "false_positive" and prediction not in alone:
                continue
            row = int(object_rows[truth]) if truth >= 0 else -1
            suspect = Suspect(
                fault,
                image_id,
                row,
                int(found_rows[prediction]) if prediction >= 0 else -1,
                float(image.scores[prediction]) if prediction >= 0 else _weak_score(image, truth),
                float(image.iou[prediction, truth]) if prediction >= 0 and truth >= 0 else 0.0,
                float(objects.area_px[row]) if row >= 0 else 0.0,
            )
            found[fault].append(suspect)
    for suspects in found.values():
        suspects.sort(key=_suspicion, reverse=True)
    return Findings(found, agreed, repeated)


def judge(image: ImageOverlaps, threshold: float, fit_iou: float) -> Judgement:
    """Judge one image; false positives come in the order of their scores.

    Args:
      threshold: score from which predictions count.
      fit_iou: objects are found as annotated from this overlap on.
    """
    alive = np.flatnonzero(image.scores >= threshold)
    left = alive[np.argsort(-image.scores[alive], kind="stable")].tolist()
    same = image.labels[:, None] == image.truth_labels
    free = np.ones(len(image.truth_labels), bool)
    found, left = _take(left, free, np.where(same, image.iou, 0.0), IOU_THRESHOLD)
    confused, left = _take(left, free, np.where(same, 0.0, image.iou), IOU_THRESHOLD)
    loose, left = _take(left, free, np.where(same, image.iou, 0.0), _LOOSE_IOU)
    poor = [pair for pair in found if image.iou[pair] < fit_iou]
    faults = [Judged("wrong_class", *pair) for pair in confused] + [Judged("poor_fit", *pair) for pair in poor + loose]
    faults += [Judged("missed", -1, int(truth)) for truth in np.flatnonzero(free)]
    best = np.zeros(len(free))  # score of whoever speaks for an object
    for prediction, truth in found + confused + loose:
        best[truth] = image.scores[prediction]
    repeated = 0
    for prediction in left:
        on = image.iou[prediction] >= IOU_THRESHOLD
        stronger = on & (best < image.scores[prediction])
        if on.any() and ((on & same[prediction]).any() or not stronger.any()):
            repeated += 1
        elif on.any():  # the object was found, but this class is the likelier one
            truth = int(np.argmax(np.where(stronger, image.iou[prediction], 0.0)))
            best[truth] = image.scores[prediction]
            faults.append(Judged("wrong_class", prediction, truth))
        elif not image.in_crowd[prediction]:
            faults.append(Judged("false_positive", prediction, -1))
    return Judgement(faults, len(found) - len(poor), repeated)


def _take(
    predictions: Iterable[int], free: Bool[np.ndarray, " g"], iou: Float[np.ndarray, "n g"], least: float
) -> tuple[list[tuple[int, int]], list[int]]:
    """Each prediction in turn takes the free object that it overlaps most; the pairs, and the predictions left."""
    pairs, left = [], []
    for prediction in predictions:
        candidates = np.where(free, iou[prediction], 0.0)
        truth = int(np.argmax(candidates)) if len(candidates) else -1
        if truth >= 0 and candidates[truth] >= least:
            free[truth] = False
            pairs.append((prediction, truth))
        else:
            left.append(prediction)
    return pairs, left


def _strongest(iou: Float[np.ndarray, "n n"]) -> Sequence[int]:
    """Of things in the order of their scores, those that overlap no better one that stays."""
    kept: list[int] = []
    for i in range(len(iou)):
        if not (iou[i, kept] >= IOU_THRESHOLD).any():
            kept.append(i)
    return kept


def _weak_score(image: ImageOverlaps, truth: int) -> float:
    """The best score of its class on an object; 0 where there is none."""
    on = (image.iou[:, truth] >= IOU_THRESHOLD) & (image.labels == image.truth_labels[truth])
    return float(image.scores[on].max(initial=0.0))


def _suspicion(suspect: Suspect) -> float:
    if suspect.fault == "missed":
        return suspect.area_px
    return suspect.score * (1 - suspect.iou if suspect.fault == "poor_fit" else 1)
