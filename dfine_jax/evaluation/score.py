"""All numbers of detections: COCO average precision and counts, of boxes and, where there are any, of masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dfine_jax.data.read.dataset import Classes
from dfine_jax.evaluation.average_precision import coco_precision
from dfine_jax.evaluation.detections import Detections, Kind, Objects
from dfine_jax.evaluation.metrics import DetectionReport, detection_report
from dfine_jax.evaluation.precision_curves import PrecisionCurves
from dfine_jax.evaluation.truth import Truth, annotated

MASK = "mask_"  # before the name of a number that is of masks


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
    masks: Metrics | None = None  # the same, of masks; None: the model makes none, or none is annotated
    without_mask: int = 0  # objects that masks are not judged on
    curves: PrecisionCurves | None = None  # precision by recall of every class

    def numbers(self) -> dict[str, float]:
        """The twelve numbers by name; with masks twelve more, ``mask_ap`` and so on."""
        numbers = {name: getattr(self, name) for name in METRIC_NAMES}
        return numbers | ({MASK + name: value for name, value in self.masks.numbers().items()} if self.masks else {})

    def deciding_ap(self, best_by: Kind) -> float:
        """AP by which weights are compared: of masks only where there are any."""
        return self.masks.ap if self.masks and best_by == "masks" else self.ap

    def deciding_threshold(self, best_by: Kind) -> float | None:
        """Score of the best F1, of what ``deciding_ap`` is of; None where nothing is found at any."""
        report = self.masks.report if self.masks and best_by == "masks" else self.report
        return report.best_threshold if report.found_any else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, those of masks under names with ``mask_``; None where nothing is annotated."""
        out = {
            **{name: _or_none(getattr(self, name)) for name in METRIC_NAMES},
            "per_class": {name: _or_none(value) for name, value in self.per_class.items()},
            "num_images": self.num_images,
            "report": self.report.to_dict(),
            **({"precision_by_recall": self.curves.to_dict()} if self.curves else {}),
        }
        if self.masks:
            of_masks = self.masks.to_dict()
            del of_masks["num_images"]
            out |= {MASK + name: value for name, value in of_masks.items()}
            out["objects_without_mask"] = self.without_mask
        return out

    def table(self) -> str:
        """The numbers as text of a few lines."""
        rows = [("AP", "ap"), ("AP50", "ap50"), ("AP75", "ap75"), ("AP small", "ap_small"), ("AP medium", "ap_medium")]
        rows += [("AP large", "ap_large"), ("AR 1", "ar_1"), ("AR 10", "ar_10"), ("AR 100", "ar_100")]
        rows += [("AR small", "ar_small"), ("AR medium", "ar_medium"), ("AR large", "ar_large")]
        shown = [self, self.masks] if self.masks else [self]
        lines = [f"{'':<12} boxes  masks"] if self.masks else []
        lines += [f"{label:<12}{_numbers(getattr(of, name) for of in shown)}" for label, name in rows]
        width = max((len(name) for name in self.per_class), default=0) + 2
        lines += ["", "AP by class"]
        lines += [f"{name:<{width}}{_numbers(of.per_class[name] for of in shown)}" for name in self.per_class]
        if self.masks:
            lines += ["", "boxes", self.report.table(), "", "masks", self.masks.report.table()]
            if note := self.note():
                lines += ["", note]
        else:
            lines += ["", self.report.table()]
        return "\n".join(lines)

    def note(self) -> str | None:
        """What a user should know of objects that only have a box."""
        if not self.without_mask:
            return None
        what = "detections of their class there count for nothing in the mask numbers"
        return f"{self.without_mask} objects have no mask; {what}"


METRIC_NAMES = tuple(field.name for field in dataclasses.fields(Metrics))[:12]
MASK_METRIC_NAMES = tuple(MASK + name for name in METRIC_NAMES)


def score(
    truth: Truth,
    results: Detections | Iterable[Mapping[str, Any]],
    image_ids: Sequence[int],
    classes: Classes,
) -> Metrics:
    """COCO metrics of ``results`` on the images named, with pycocotools, and counts (metrics.py).

    The annotations are those of the file, with flags and areas of the wrong JSON type, and areas that cannot be, cured
    as when it is read (``data.coco.read_coco``). Results with masks are judged by boxes and by masks.

    Args:
      truth: the dataset, its COCO file, the content of one, or what ``annotated`` made of it.
    """
    found = results if isinstance(results, Detections) else Detections.of_coco(results)
    objects = annotated(truth, masks=found.masks is not None)
    metrics = _of_kind(objects, found, image_ids, classes, "boxes")
    if found.masks is None or objects.masks is None:
        return metrics
    counts = np.isin(objects.image_id, image_ids) & np.isin(objects.category_id, classes.ids) & ~objects.crowd
    without = int((counts & ~objects.masks.exist).sum())
    if without == counts.sum():
        return metrics
    masks = _of_kind(objects.judged_by_mask(), found, image_ids, classes, "masks")
    return dataclasses.replace(metrics, masks=masks, without_mask=without)


def _of_kind(objects: Objects, found: Detections, image_ids: Sequence[int], classes: Classes, kind: Kind) -> Metrics:
    coco = coco_precision(objects, found, image_ids, classes.ids, kind)
    return Metrics(
        *coco.stats.tolist(),
        per_class=dict(zip(classes.names, coco.by_class.tolist(), strict=True)),
        num_images=len(set(image_ids)),
        report=detection_report(objects, found, image_ids, classes, kind),
        curves=PrecisionCurves(classes.names, coco.curves),
    )


def _or_none(value: float) -> float | None:
    return None if value < 0 else value


def _numbers(values: Iterable[float]) -> str:
    return " ".join("     -" if value < 0 else f"{value:6.3f}" for value in values)
