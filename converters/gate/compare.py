"""How far an exported file is from the model, in detections.

Rows cannot be compared by position: queries are picked by a top-k whose near-ties fall either way, so correct files
differ by 0.9 row by row and by 1e-6 once rows are paired. And they must not be compared by sorted scores: files with
wrong boxes pass that. Here the rows of both sides are paired so that the sum of their distances is smallest, a distance
being the larger of box and score error; then the errors of the pairs are counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from dfine_jax.errors import UserError
from dfine_jax.ops.boxes import cxcywh_to_xyxy, iou

CONFIDENT = 0.3  # a detection of this score, unless it repeats another, is no near-tie of the query selection
_MEANINGS = {
    "box_median_px": "box error, median",
    "box_p95_px": "box error, 95 % of rows",
    "box_most_px": "box error, all but near-ties",
    "score_median": "score error, median",
    "score_p95": "score error, 95 % of rows",
    "score_most": "score error, all but near-ties",
    "mask_median": "1 - IoU of masks, median",
    "mask_p95": "1 - IoU of masks, 95 % of rows",
}
_SPECK = 16  # cells; the IoU of smaller masks hangs on one of them
_COARSE = 0.25  # share; bilinear maps of half the resolution lack 0.4 of smooth objects, noise and contrast nothing
_MOST_LOGIT = 10.0  # beyond it a probability is 0 or 1
_SURE = 5.0  # times what noise of the size of the errors gives
_PARTNER_IOU = 0.5
_PARTNER_SCORE = 0.5  # of the detection's own score


class Rows(NamedTuple):
    """What one side found in one image: boxes and the score of every class."""

    boxes_cxcywh: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n k"]
    masks_logit: Float[np.ndarray, "n h w"] | None = None  # of models that segment


class Errors(NamedTuple):
    """Of each pair of rows of one image."""

    boxes_px: Float[np.ndarray, " n"]  # pixels of the input
    scores: Float[np.ndarray, " n"]
    confidence: Float[np.ndarray, "n 2"]  # of the model and of the file
    repeats: Int[np.ndarray, "n 2"]  # pair of another row, at least as sure, that finds the same object; else its own
    masks: Float[np.ndarray, " n"] | None = None  # 1 - IoU, NaN for specks; None: no masks
    mask_coarse: float = 0.0  # see ``coarseness``


@dataclasses.dataclass(frozen=True)
class Limits:
    """Largest accepted errors. Boxes in pixels of the model input; scores, AP and 1 - IoU of masks in [0, 1].

    ``*_median`` holds for the median row of each image: most wrong weights move every row a little. ``*_p95`` holds for
    95 % of all rows: others move some rows. ``*_most`` holds for every confident row, but for one that repeats a surer
    row which both sides agree on, and for all others but a share of each image, ``tie_share``, for which the query
    selection may have fallen the other way: the coarser the numbers, the more. ``lost_share`` is the share of confident
    detections of either side that the other side does not have (see ``lost``).
    """

    box_median_px: float
    box_p95_px: float
    box_most_px: float
    score_median: float
    score_p95: float
    score_most: float
    mask_median: float
    mask_p95: float
    ap_drop: float  # of boxes and of masks
    tie_share: float = 0.02
    lost_share: float = 0.0


LIMITS = {
    "fp32": Limits(0.01, 0.05, 0.25, 1e-4, 5e-4, 2e-3, 1e-3, 0.01, ap_drop=0.001),
    "fp16": Limits(0.5, 3.0, 8.0, 5e-3, 0.03, 0.08, 0.01, 0.05, ap_drop=0.005, tie_share=0.05, lost_share=0.02),
    "int8": Limits(6.0, np.inf, np.inf, 0.05, np.inf, np.inf, 0.08, np.inf, ap_drop=0.01, lost_share=0.05),
}

# Of float32 files that resize: some pixels are one level off Pillow's.
RESIZING = Limits(0.1, 0.5, 2.5, 1e-3, 5e-3, 0.02, 0.01, 0.05, ap_drop=0.001)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Errors of all rows of some images, run in one batch size."""

    batch: int
    images: int
    rows: int
    box_median_px: float  # of the worst image, as the other medians
    box_p95_px: float
    box_most_px: float  # largest error among the rows that count
    score_median: float
    score_p95: float
    score_most: float
    mask_median: float | None  # None: no masks
    mask_p95: float | None
    cut_rows: int  # rows that were left out as near-ties
    sure_rows: int  # confident detections of both sides
    lost_share: float  # of those, without one on the other side
    worst_image: int
    mask_coarse: float = 0.0  # of the worst image: share of what half the resolution loses that the masks lack


def rows_of_detections(
    scores: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    boxes_cxcywh: Float[np.ndarray, "n 4"],
    num_classes: int,
    masks_logit: Float[np.ndarray, "n h w"] | None = None,
) -> Rows:
    """Selected detections as rows: the score stands in the column of the label."""
    dense = np.zeros((len(scores), num_classes), np.float32)
    dense[np.arange(len(scores)), labels] = scores
    return Rows(boxes_cxcywh, dense, masks_logit)


def compare_image(reference: Rows, found: Rows, size_hw: tuple[int, int]) -> Errors:
    """Errors of each pair of rows; ``size_hw`` is that of the input.

    Raises:
      UserError: the sides have different numbers of rows or classes or other masks, or a value is not finite.
    """
    if reference.boxes_cxcywh.shape != found.boxes_cxcywh.shape or reference.scores.shape != found.scores.shape:
        raise UserError(
            f"the file gives {list(found.boxes_cxcywh.shape)} boxes and {list(found.scores.shape)} scores, the model "
            f"{list(reference.boxes_cxcywh.shape)} and {list(reference.scores.shape)}"
        )
    ours, theirs = (None if rows.masks_logit is None else list(rows.masks_logit.shape) for rows in (reference, found))
    if ours != theirs:
        raise UserError(f"the file gives {theirs or 'no'} masks, the model {ours or 'none'}")
    for side, rows in (("file", found), ("model", reference)):
        if not all(np.isfinite(column).all() for column in rows if column is not None):
            raise UserError(f"outputs of the {side} hold values that are not finite")
    boxes = np.abs(reference.boxes_cxcywh[:, None] - found.boxes_cxcywh[None])
    scores = np.zeros(boxes.shape[:2], np.float32)
    for column in range(reference.scores.shape[1]):  # class by class: all at once is [n, n, k]
        np.maximum(scores, np.abs(reference.scores[:, None, column] - found.scores[None, :, column]), out=scores)
    left, right = linear_sum_assignment(np.maximum(boxes.max(-1), scores))
    height, width = size_hw
    errors_px = (boxes[left, right] * np.array([width, height, width, height])).max(-1)
    sides = [Rows(rows.boxes_cxcywh[order], rows.scores[order]) for rows, order in ((reference, left), (found, right))]
    apart = np.maximum(boxes.max(-1), scores)[left, right]
    masks, coarse = _mask_errors(reference, found, left, right), 0.0
    if reference.masks_logit is not None and found.masks_logit is not None:
        coarse = coarseness(reference.masks_logit[left], found.masks_logit[right])
    confidence = np.stack([rows.scores.max(-1) for rows in sides], 1)
    repeats = np.stack([_repeated(rows, apart) for rows in sides], 1)
    return Errors(errors_px, scores[left, right], confidence, repeats, masks, coarse)


def _repeated(rows: Rows, apart: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Of each row the one, at least as sure, of the same object that differs least between the sides; or itself."""
    score, label = rows.scores.max(-1), rows.scores.argmax(-1)
    boxes = cxcywh_to_xyxy(rows.boxes_cxcywh)
    same = (iou(boxes[:, None], boxes[None]) >= _PARTNER_IOU) & (label[:, None] == label) & (score >= score[:, None])
    np.fill_diagonal(same, False)
    return np.where(same.any(1), np.where(same, apart, np.inf).argmin(1), np.arange(len(score)))


def _mask_errors(
    reference: Rows, found: Rows, left: Int[np.ndarray, " n"], right: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"] | None:
    if reference.masks_logit is None or found.masks_logit is None:
        return None
    a, b = (reference.masks_logit >= 0)[left], (found.masks_logit >= 0)[right]
    common, either = ((np.count_nonzero(op(a, b), (1, 2))) for op in (np.logical_and, np.logical_or))
    return np.where(either < _SPECK, np.nan, 1 - common / np.maximum(either, 1))


def coarseness(reference: Float[np.ndarray, "n h w"], found: Float[np.ndarray, "n h w"]) -> float:
    """How much of what maps of half the resolution lose is missing: 0 for noise of any size, 1 for such maps enlarged.

    Limits on IoU that let int8's noise through let smoother masks through as well, but noise does not point to where
    the model's maps bend. What averaging pairs of cells and enlarging again, by repeating or bilinearly, takes from the
    model's maps is looked for in the file's, at the contrast that these have as a whole. 0 where this cannot be told
    from noise, or the sides are odd.
    """
    if reference.shape[1] % 2 or reference.shape[2] % 2 or not reference.size:
        return 0.0
    ours, theirs = (np.asarray(maps, np.float32).clip(-_MOST_LOGIT, _MOST_LOGIT) for maps in (reference, found))
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    contrast = float((ours * theirs).sum() / max(float(np.square(ours).sum()), 1e-12))
    noise, shares = float(np.sqrt(np.square(theirs - contrast * ours).mean())), [0.0]
    for enlarged in (lambda means: means.repeat(2, 1).repeat(2, 2), lambda means: _twice(_twice(means, 1), 2)):
        detail = ours - enlarged(_halved(ours))
        size = float(np.sqrt(np.square(detail).sum()))
        kept = float((detail * (theirs - enlarged(_halved(theirs)))).sum())
        lacking = contrast * size - kept / size if size else 0.0
        if lacking > _SURE * noise:
            shares.append(lacking / (contrast * size))
    return max(shares)


def _halved(maps: Float[np.ndarray, "n _ _"]) -> Float[np.ndarray, "n _ _"]:
    return maps.reshape(len(maps), maps.shape[1] // 2, 2, -1, 2).mean((2, 4))


def _twice(maps: Float[np.ndarray, "n _ _"], axis: int) -> Float[np.ndarray, "n _ _"]:
    """Bilinearly enlarged along an axis, half-pixel centres, edges repeated."""
    maps = np.moveaxis(maps, axis, -1)
    before = np.concatenate([maps[..., :1], maps[..., :-1]], -1)
    after = np.concatenate([maps[..., 1:], maps[..., -1:]], -1)
    both = np.stack([0.75 * maps + 0.25 * before, 0.75 * maps + 0.25 * after], -1)
    return np.moveaxis(both.reshape(*maps.shape[:-1], -1), -1, axis)


def lost(reference: Rows, found: Rows) -> tuple[int, int]:
    """Confident detections of both sides, and how many of them have no partner on the other.

    A partner overlaps by an IoU of 0.5, is of the same class and scores at least half as much.
    """
    counts = [_without_partner(a, b) for a, b in ((reference, found), (found, reference))]
    return sum(sure for sure, _ in counts), sum(alone for _, alone in counts)


def _without_partner(rows: Rows, others: Rows) -> tuple[int, int]:
    sure = rows.scores.max(-1) >= CONFIDENT
    scores, labels = rows.scores[sure].max(-1), rows.scores[sure].argmax(-1)
    alike = others.scores[:, labels].T >= _PARTNER_SCORE * scores[:, None]
    ours, theirs = cxcywh_to_xyxy(rows.boxes_cxcywh[sure]), cxcywh_to_xyxy(others.boxes_cxcywh)
    overlaps = iou(ours[:, None], theirs[None])
    partners = alike & (overlaps >= _PARTNER_IOU)
    return int(sure.sum()), int((~partners.any(1)).sum())


def summarise(
    batch: int,
    images: Sequence[Errors],
    limits: Limits,
    lost_rows_of: Sequence[tuple[int, int]] = (),
) -> Comparison:
    """Errors of several images as one line.

    Args:
      images: of each what ``compare_image`` gave.
      lost_rows_of: of each what ``lost`` gave.
    """
    counted: list[tuple[np.ndarray, np.ndarray]] = []
    cut_rows = 0
    for boxes_px, scores, confidence, repeats, *_ in images:
        over = np.maximum(boxes_px / limits.box_most_px, scores / limits.score_most)
        free = int(np.ceil(limits.tie_share * len(over)))
        worst = np.argsort(-over, kind="stable")[:free]
        counts = np.any((confidence[worst] >= CONFIDENT) & (over[repeats[worst]] > 1), axis=1)
        cut = worst[(over[worst] > 1) & ~counts]
        cut_rows += len(cut)
        counted.append((np.delete(boxes_px, cut), np.delete(scores, cut)))
    all_boxes = np.concatenate([image.boxes_px for image in images])
    all_scores = np.concatenate([image.scores for image in images])
    masks = [image.masks[~np.isnan(image.masks)] for image in images if image.masks is not None]
    mask_medians = [float(np.median(errors)) if len(errors) else 0.0 for errors in masks]
    sure_rows, lost_rows = (sum(counts) for counts in zip(*lost_rows_of, strict=True)) if lost_rows_of else (0, 0)
    medians = [(float(np.median(image.boxes_px)), float(np.median(image.scores))) for image in images]
    shares = [max(box / limits.box_median_px, score / limits.score_median) for box, score in medians]
    if masks:
        shares = np.maximum(shares, np.array(mask_medians) / limits.mask_median)
    return Comparison(
        batch=batch,
        images=len(images),
        rows=len(all_boxes),
        box_median_px=max(box for box, _ in medians),
        box_p95_px=float(np.quantile(all_boxes, 0.95)),
        box_most_px=max(float(boxes.max(initial=0)) for boxes, _ in counted),
        score_median=max(score for _, score in medians),
        score_p95=float(np.quantile(all_scores, 0.95)),
        score_most=max(float(scores.max(initial=0)) for _, scores in counted),
        mask_median=max(mask_medians) if masks else None,
        mask_p95=float(np.quantile(np.concatenate([[0.0], *masks]), 0.95)) if masks else None,
        cut_rows=cut_rows,
        sure_rows=sure_rows,
        lost_share=lost_rows / max(sure_rows, 1),
        worst_image=int(np.argmax(shares)),
        mask_coarse=max(image.mask_coarse for image in images),
    )


def exceeded(comparison: Comparison, limits: Limits) -> list[str]:
    """What is above its limit, in words."""
    out = []
    for name, meaning in _MEANINGS.items():
        value, limit = getattr(comparison, name), getattr(limits, name)
        unit = " px" if name.endswith("_px") else ""
        if value is not None and not value <= limit:
            out.append(f"batch {comparison.batch}: {meaning}: {value:.3g}{unit} > {limit:.3g}{unit}")
    if comparison.mask_coarse > _COARSE:
        out.append(
            f"batch {comparison.batch}: masks lack {comparison.mask_coarse:.0%} of what half their resolution loses, "
            f"limit {_COARSE:.0%}"
        )
    if comparison.lost_share > limits.lost_share:
        out.append(
            f"batch {comparison.batch}: {comparison.lost_share:.0%} of {comparison.sure_rows} confident detections "
            f"have no partner on the other side, limit {limits.lost_share:.0%}"
        )
    return out
