"""AP of anything that detects, on part of a dataset; for exporters that must know what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from tqdm import tqdm

from dfine_jax.data.load.pipeline import EvalLoader
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.dataset import Dataset, Record
from dfine_jax.evaluation.evaluate import evaluate_detections, match_categories
from dfine_jax.evaluation.truth import Truth, annotated
from dfine_jax.serving.backends.base import Backend


class MeasuredAP(NamedTuple):
    """COCO AP."""

    boxes: float
    masks: float | None  # None: the backend makes none, or none is annotated


class AveragePrecision:
    """COCO AP of a backend: ``AveragePrecision(...)(backend)``.

    Args:
      dataset: a split with objects.
      class_names, preprocess: of the model.
      max_images: at most so many, spread evenly over the dataset.

    Raises:
      UserError: the dataset has classes that the model does not know.
    """

    def __init__(self, dataset: Dataset, class_names: Sequence[str], preprocess: Preprocess, max_images: int) -> None:
        self._dataset = dataset
        self._classes = match_categories(class_names, dataset.classes, "the model", str(dataset.annotation_file))
        self._preprocess = preprocess
        self._truth: Truth | None = None  # with masks, which are drawn once for all later calls
        step = max(1, -(-len(dataset) // max_images))
        self.records: Sequence[Record] = dataset.records[::step]

    def __call__(self, backend: Backend, batch: int = 1, records: Sequence[Record] | None = None) -> MeasuredAP:
        """AP on all images, or on some of them."""
        part = dataclasses.replace(self._dataset, records=self.records if records is None else records)
        loader = EvalLoader(part, self._preprocess, batch_size=batch)
        bar = tqdm(loader, total=len(loader), unit="batch", desc="AP", leave=False, disable=None)
        truth = part if self._truth is None else self._truth
        numbers = evaluate_detections(backend.detect, bar, truth, self._classes).numbers()
        if self._truth is None and numbers.get("mask_ap") is not None:
            self._truth = annotated(self._dataset, masks=True)
        return MeasuredAP(numbers["ap"], numbers.get("mask_ap"))
