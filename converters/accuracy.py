"""AP of anything that detects, on part of a dataset; for exporters that must know what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dfine_jax.backends.base import Backend
from dfine_jax.data.coco import find_split, read_coco
from dfine_jax.data.images import Preprocess
from dfine_jax.data.pipeline import EvalLoader
from dfine_jax.evaluate import evaluate_detections, match_categories


def average_precision(
    backend: Backend,
    class_names: Sequence[str],
    preprocess: Preprocess,
    data: Path,
    split: Any,
    max_images: int,
    batch: int = 1,
) -> tuple[float, int]:
    """COCO AP (-1: nothing annotated) and the number of images.

    Args:
      max_images: the images are spread evenly over the dataset.

    Raises:
      UserError: no such dataset, or one with other classes.
    """
    dataset = read_coco(*find_split(data, split))
    categories = match_categories(class_names, dataset, "the model", str(data))
    step = max(1, -(-len(dataset) // max_images))
    part = dataclasses.replace(dataset, records=dataset.records[::step])
    loader = EvalLoader(
        part, height_px=preprocess.height_px, width_px=preprocess.width_px, batch_size=batch, resize=preprocess.resize
    )
    bar = tqdm(loader, total=len(loader), unit="batch", desc="AP", leave=False, disable=None)
    metrics = evaluate_detections(backend.detect, bar, dataset.annotation_file, categories)
    return metrics.ap, metrics.num_images
