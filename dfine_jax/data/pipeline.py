"""From a dataset to host batches: shuffled and augmented for training, in order for evaluation.

Every training row is a function of (seed, epoch, position in the epoch) alone. The batches are the same whatever the
number of worker processes, and training continues at any step without replaying the steps before.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from dfine_jax.config import DataConfig
from dfine_jax.data import transforms, workers
from dfine_jax.data.batch import Batch, EvalBatch
from dfine_jax.data.coco import Dataset, Record
from dfine_jax.data.images import Preprocess, open_annotated
from dfine_jax.errors import UserError

logger = logging.getLogger(__name__)

_SLOT_MULTIPLE = 4
_SHUFFLE, _AUGMENT = 0, 1  # streams of random numbers under one seed


def num_slots(dataset: Dataset, max_objects: int) -> int:
    """Ground-truth slots per image: ``max_objects``, or for 0 the largest count rounded up to a multiple of four.

    Raises:
      UserError: an image has more objects than ``max_objects``; nothing is cut off silently.
    """
    largest = dataset.max_objects
    if max_objects == 0:
        return max(_SLOT_MULTIPLE, -(-largest // _SLOT_MULTIPLE) * _SLOT_MULTIPLE)
    if largest > max_objects:
        raise UserError(
            f"data.max_objects={max_objects}, but an image of {dataset.annotation_file} has {largest} objects; "
            f"set data.max_objects={largest} or 0 (automatic)"
        )
    return max_objects


@functools.lru_cache(maxsize=2)
def epoch_order(num_images: int, length: int, seed: int, epoch: int) -> Int64[np.ndarray, "length"]:
    """Image index at each position of an epoch: a permutation, cut or continued by further ones to ``length``."""
    rng = np.random.default_rng((seed, _SHUFFLE, epoch))
    permutations = [rng.permutation(num_images) for _ in range(-(-length // num_images))]
    return np.concatenate(permutations)[:length]


@dataclasses.dataclass(frozen=True)
class TrainSource:
    """Rows of training batches (workers.Source)."""

    records: tuple[Record, ...]
    batch_size: int
    slots: int
    seed: int
    config: DataConfig

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the dataset, at least one."""
        return max(1, len(self.records) // self.batch_size)

    @property
    def layout(self) -> workers.Layout:
        """Arrays of ``Batch``."""
        b, g = self.batch_size, self.slots
        image = (b, self.config.height_px, self.config.width_px, 3)
        return (image, "uint8"), ((b, g), "int32"), ((b, g, 4), "float32"), ((b, g), "bool")

    def fill(self, step: int, row: int, out: workers.Arrays) -> None:
        """Load, augment and write one image with its objects."""
        record, epoch, position = self._locate(step, row)
        image = open_annotated(record.path, record.width_px, record.height_px)
        rng = np.random.default_rng((self.seed, _AUGMENT, epoch, position))
        sample = transforms.make_sample(image, record.boxes_xyxy_px, record.labels)
        sample = transforms.augment(rng, sample, self.config, epoch)
        images, labels, boxes, valid = (array[row] for array in out)
        count = len(sample.labels)
        images[:] = np.asarray(sample.image)
        labels[:count], labels[count:] = sample.labels, 0
        boxes[:count], boxes[count:] = transforms.normalised_cxcywh(sample), 0.0
        valid[:count], valid[count:] = True, False

    def describe(self, step: int, row: int) -> str:
        """Path of the image."""
        return str(self._locate(step, row)[0].path)

    def _locate(self, step: int, row: int) -> tuple[Record, int, int]:
        epoch, batch = divmod(step, self.steps_per_epoch)
        position = batch * self.batch_size + row
        order = epoch_order(len(self.records), self.steps_per_epoch * self.batch_size, self.seed, epoch)
        return self.records[order[position]], epoch, position


@dataclasses.dataclass(frozen=True)
class EvalSource:
    """Rows of evaluation batches (workers.Source)."""

    records: tuple[Record, ...]
    batch_size: int
    preprocess: Preprocess

    @property
    def layout(self) -> workers.Layout:
        """Arrays of ``EvalBatch``."""
        image = (self.batch_size, self.preprocess.height_px, self.preprocess.width_px, 3)
        return (image, "uint8"), ((self.batch_size,), "int64"), ((self.batch_size, 2), "float32")

    def fill(self, step: int, row: int, out: workers.Arrays) -> None:
        """Load and stretch one image, or write a row that only fills the batch."""
        images, image_id, size = out
        index = step * self.batch_size + row
        if index >= len(self.records):
            images[row], image_id[row], size[row] = 0, -1, 1.0
            return
        record = self.records[index]
        images[row] = self.preprocess(open_annotated(record.path, record.width_px, record.height_px))
        image_id[row], size[row] = record.image_id, (record.width_px, record.height_px)

    def describe(self, step: int, row: int) -> str:
        """Path of the image, empty for a filling row."""
        index = step * self.batch_size + row
        return str(self.records[index].path) if index < len(self.records) else ""


class TrainLoader:
    """Endless training batches of a dataset.

    Each epoch visits every image once in a new order; a last incomplete batch is dropped. With fewer images than
    ``batch_size`` an epoch is one batch in which images repeat (differently augmented).

    Raises:
      UserError: no images, too few slots, or values out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        height_px: int,
        width_px: int,
        batch_size: int,
        max_objects: int,
        seed: int,
        augment: DataConfig,
        workers: int,
    ) -> None:
        _check(dataset, height_px, width_px, batch_size, workers)
        if seed < 0:
            raise UserError(f"train.seed={seed} must not be negative")
        config = dataclasses.replace(augment, height_px=height_px, width_px=width_px)
        self._source = TrainSource(dataset.records, batch_size, num_slots(dataset, max_objects), seed, config)
        self._workers = workers
        if len(dataset) < batch_size:
            logger.warning("%d images fill a batch of %d: images repeat within a batch", len(dataset), batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return self._source.steps_per_epoch

    @property
    def slots(self) -> int:
        """Ground-truth slots per image, ``g``."""
        return self._source.slots

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Batches from global step ``start_step`` on, without end; closing the iterator ends its workers.

        Raises:
          UserError: an image cannot be read or a worker ended; the message names the file.
        """
        for arrays in workers.batches(self._source, itertools.count(start_step), self._workers):
            yield Batch(*arrays)


class EvalLoader:
    """Evaluation batches: every image once, in the order of the file; the last batch is filled up.

    Raises:
      UserError: no images, or values out of range.
    """

    def __init__(self, dataset: Dataset, *, height_px: int, width_px: int, batch_size: int, workers: int = 0) -> None:
        _check(dataset, height_px, width_px, batch_size, workers)
        self._source = EvalSource(dataset.records, batch_size, Preprocess(height_px, width_px))
        self._workers = workers

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._source.records) // self._source.batch_size)

    def __iter__(self) -> Iterator[EvalBatch]:
        """One pass. Raises UserError as ``TrainLoader.batches``."""
        for arrays in workers.batches(self._source, range(len(self)), self._workers):
            yield EvalBatch(*arrays)


def _check(dataset: Dataset, height_px: int, width_px: int, batch_size: int, workers: int) -> None:
    if not len(dataset):
        raise UserError(f"{dataset.annotation_file} lists no images")
    for name, value, least in (
        ("height_px", height_px, 1),
        ("width_px", width_px, 1),
        ("batch_size", batch_size, 1),
        ("workers", workers, 0),
    ):
        if value < least:
            raise UserError(f"{name}={value} must be at least {least}")
