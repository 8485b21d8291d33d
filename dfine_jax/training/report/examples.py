"""The same few validation images after every evaluation: what is annotated beside what is detected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dfine_jax.config import Config
from dfine_jax.data.load.batch import Batch
from dfine_jax.data.load.grid import batch_grid
from dfine_jax.data.load.pipeline import TrainLoader
from dfine_jax.data.picture.captions import strip, strip_height_px
from dfine_jax.data.picture.draw import class_colour, draw_boxes, style_for
from dfine_jax.data.picture.draw_masks import paint_masks
from dfine_jax.data.picture.images import save_picture
from dfine_jax.data.picture.object_masks import RunMasks
from dfine_jax.data.read.dataset import Dataset, Record, open_record
from dfine_jax.evaluation.detections import Objects
from dfine_jax.evaluation.truth import Truth

_LONGER_SIDE_PX = 800  # of each half; larger pictures are reduced
_GAP_PX = 8
HEADING_PX = 18  # of letters
_SHOWN_OF_BATCH = 16


def augmented_batch(loader: TrainLoader, epoch: int) -> Batch:
    """The first batch of the 0-based ``epoch``."""
    with closing(loader.batches(epoch * loader.steps_per_epoch)) as batches:
        return next(batches)


def save_inputs(config: Config, loader: TrainLoader, batch: Batch, names: Sequence[str], file: Path) -> None:
    """Write what the model gets: the first batch, or that of the epoch in which augmentation starts, if it does."""
    data, start = config.data, config.data.start_augment_epoch
    strong = data.augment != "none" and 0 < start < config.train.epochs
    step = start * loader.steps_per_epoch if strong else 0
    shown = augmented_batch(loader, start) if strong else batch
    save_batch(shown, names, file, loader.names(step), loader.treatment(step))


def save_batch(batch: Batch, names: Sequence[str], file: Path, files: Sequence[str] = (), title: str = "") -> None:
    """Write the first rows of a training batch as one picture, with their objects; the rest as for ``batch_grid``."""
    rows = batch.each(lambda values: values[:_SHOWN_OF_BATCH])
    save_picture(batch_grid([rows], names, _SHOWN_OF_BATCH, files, title), file, quality=90)


class Example(NamedTuple):
    """One picture twice."""

    annotated: Image.Image
    detected: Image.Image

    def side_by_side(self) -> Image.Image:
        """Both in one picture, with what they are above them."""
        above = strip_height_px(HEADING_PX)
        size = sum(half.width for half in self) + _GAP_PX, above + max(half.height for half in self)
        pair, left = Image.new("RGB", size, "#808080"), 0
        for what, half in self._asdict().items():
            pair.paste(strip(half.width, what, HEADING_PX), (left, 0))
            pair.paste(half, (left, above))
            left += half.width + _GAP_PX
        return pair


class Examples:
    """Some images of a dataset, and the detections of the latest evaluation on them."""

    def __init__(self, data: Dataset, number: int, truth: Truth | None = None) -> None:
        """Take ``number`` images with objects, spread evenly over the set (all, when there are fewer).

        Args:
          truth: what evaluations compare with; masks in it are drawn.
        """
        self._data = data
        self._truth = truth if isinstance(truth, Objects) and truth.masks is not None else None
        annotated = [record for record in data.records if len(record.labels)]
        chosen = np.linspace(0, len(annotated) - 1, min(number, len(annotated))).round().astype(int)
        self._records = [annotated[i] for i in chosen]
        self._label_of = {category: label for label, category in enumerate(data.classes.ids)}
        self._found: dict[int, list[Mapping[str, Any]]] = {}

    def observe(self, results: Iterable[Mapping[str, Any]]) -> None:
        """Keep the COCO results of these images."""
        self._found = {record.image_id: [] for record in self._records}
        for result in results:
            if result["image_id"] in self._found:
                self._found[result["image_id"]].append(result)

    def draw(self, threshold: float) -> dict[str, Example]:
        """By the name of the file: what is annotated, and what is detected with a score of at least ``threshold``.

        Images of one name in several folders carry their ids.
        """
        repeated = Counter(record.path.stem.casefold() for record in self._records)
        names: set[str] = set()
        drawn = {}
        for record in self._records:
            name = record.path.stem
            if repeated[name.casefold()] > 1:
                name += f"_{record.image_id}"
            while name.casefold() in names:
                name += "_"
            names.add(name.casefold())
            drawn[name] = self._pair(record, threshold)
        return drawn

    def _pair(self, record: Record, threshold: float) -> Example:
        image = open_record(record)
        scale = min(1.0, _LONGER_SIDE_PX / max(image.size))
        found = [r for r in self._found.get(record.image_id, []) if r["score"] >= threshold]
        boxes = np.array([r["bbox"] for r in found], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([self._label_of[r["category_id"]] for r in found], np.int64)
        scores = np.array([r["score"] for r in found], np.float64)
        names = self._data.names
        before, after = self._annotated(image, record.image_id, scale), image
        if found and all("segmentation" in result for result in found):
            after = _painted(
                image, [result["segmentation"]["counts"].encode() for result in found], labels.tolist(), scale
            )
        before, after = (_scaled(picture, scale) for picture in (before, after))
        truths = [names[i] for i in record.labels]
        left = draw_boxes(before, record.boxes_xyxy_px * scale, record.labels, truths, enlarge=True)
        right = draw_boxes(after, boxes * scale, labels, [names[i] for i in labels], scores, enlarge=True)
        return Example(left, right)

    def _annotated(self, image: Image.Image, image_id: int, scale: float) -> Image.Image:
        """The picture with the masks of its objects."""
        truth = self._truth
        if truth is None or truth.masks is None:
            return image
        rows = np.flatnonzero((truth.image_id == image_id) & ~truth.crowd & truth.masks.exist)
        labels = [self._label_of[category] for category in truth.category_id[rows].tolist()]
        return _painted(image, [mask["counts"] for mask in truth.masks.coco(rows)], labels, scale)


def _painted(image: Image.Image, counts: Sequence[bytes], labels: Sequence[int], scale: float) -> Image.Image:
    """With masks over the whole picture, in lines that are right once it is scaled."""
    line_px = style_for(round(image.width * scale), round(image.height * scale)).line / scale
    pixels = np.array(image.convert("RGB"))
    colours = [class_colour(int(label)) for label in labels]
    paint_masks(pixels, RunMasks(tuple(counts), image.size), colours, max(1, round(line_px)))
    return Image.fromarray(pixels)


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
