"""AP of anything that detects, on part of a dataset; for exporters that must know what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dfine_jax.backends.base import Backend
from dfine_jax.data.dataset import Record
from dfine_jax.data.images import Preprocess
from dfine_jax.data.pipeline import EvalLoader
from dfine_jax.data.sources import read_dataset
from dfine_jax.evaluate import evaluate_detections, match_categories


class AveragePrecision:
    """COCO AP of a backend: ``AveragePrecision(...)(backend)``; -1 where nothing is annotated.

    Args:
      class_names, preprocess: of the model.
      max_images: at most so many, spread evenly over the dataset.

    Raises:
      UserError: no such dataset, or one with other classes.
    """

    def __init__(
        self, data: Path | str, split: Any, class_names: Sequence[str], preprocess: Preprocess, max_images: int
    ) -> None:
        self._dataset = read_dataset(data, split)
        self._categories = match_categories(class_names, self._dataset, "the model", str(data))
        self._preprocess = preprocess
        step = max(1, -(-len(self._dataset) // max_images))
        self.records: tuple[Record, ...] = self._dataset.records[::step]

    def __call__(self, backend: Backend, batch: int = 1, records: Sequence[Record] | None = None) -> float:
        """AP on all images, or on some of them."""
        part = dataclasses.replace(self._dataset, records=tuple(self.records if records is None else records))
        loader = EvalLoader(
            part,
            height_px=self._preprocess.height_px,
            width_px=self._preprocess.width_px,
            batch_size=batch,
            resize=self._preprocess.resize,
        )
        bar = tqdm(loader, total=len(loader), unit="batch", desc="AP", leave=False, disable=None)
        return evaluate_detections(backend.detect, bar, part.annotation_file, self._categories).ap
