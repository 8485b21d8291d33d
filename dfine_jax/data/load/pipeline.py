"""From a dataset to host batches: shuffled and augmented for training, in order for evaluation.

Every training row is a function of (seed, epoch, position in the epoch) alone. The batches are the same whatever the
number of worker processes and hosts, and training continues at any step without replaying the steps before.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator, Sequence

import numpy as np

from dfine_jax.config import DataConfig
from dfine_jax.data.augment.schedule import announced_sizes_px, batch_size_px, multi_scale_sizes, policy
from dfine_jax.data.load import workers
from dfine_jax.data.load.batch import Batch, EvalBatch
from dfine_jax.data.load.columns import for_loading
from dfine_jax.data.load.plan import Sampling, most_objects, num_slots
from dfine_jax.data.load.rows import EvalSource, RecentTiles, TrainSource
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.coco import with_outlines
from dfine_jax.data.read.dataset import Dataset, listed
from dfine_jax.data.read.records import objects_and_images, objects_per_image, sizes_px, thin_objects
from dfine_jax.errors import UserError

_NO_LIMIT = 10**9


class TrainLoader:
    """Endless training batches of a dataset.

    Each epoch visits every image once in a new order; a last incomplete batch is dropped. With fewer images than
    ``batch_size`` an epoch is one batch in which images repeat (differently augmented). Of several hosts each gets its
    rows of the same global batches.

    Args:
      config: size of the input, slots, augmentation; ``workers`` is given apart, as it is a matter of the machine.
      preprocess: of the model, at the size of the batches; None: as the configuration has it.
      sizes_px: (height, width) of multi-scale training, one for each batch; empty: those around the input's size.
      batch_size: over all hosts.
      epochs: length of the run, if known: the slots are counted for its mosaics and mixtures only.
      mask_stride: of the masks to the input, which it must divide; None: outlines are not even read.

    Raises:
      UserError: no images, too few slots, masks that cannot be drawn, or values out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: DataConfig,
        preprocess: Preprocess | None = None,
        sizes_px: Sequence[tuple[int, int]] = (),
        *,
        batch_size: int,
        seed: int,
        workers: int,
        epochs: int = _NO_LIMIT,
        host_index: int = 0,
        host_count: int = 1,
        mask_stride: int | None = None,
    ) -> None:
        preprocess = preprocess or Preprocess.of(config)
        _check(dataset, preprocess, batch_size, workers, host_index, host_count)
        if seed < 0:
            raise UserError(f"train.seed={seed} must not be negative")
        if batch_size % host_count:
            raise UserError(f"train.batch_size={batch_size} must be a multiple of the {host_count} hosts")
        self._sampling = Sampling(len(dataset), batch_size, seed, config)
        most = most_objects(self._sampling, objects_per_image(dataset.records).tolist(), epochs)
        slots = num_slots(most, config.max_objects, str(dataset.annotation_file))
        tiles = RecentTiles(config.mosaic_cache)
        dataset = with_outlines(dataset) if mask_stride else dataset
        records = for_loading(dataset.records, workers)
        self._source = TrainSource(
            records, slots, self._sampling, host_index, host_count, tiles, preprocess, mask_stride
        )
        self._workers = workers
        self._sizes_px = sizes_px or multi_scale_sizes(config.height_px, config.width_px, config.multi_scale_repeat)
        self.notes = _notes(dataset, config, preprocess, batch_size, slots, most)  # for the log of the run
        self.notes += _mask_notes(dataset) if mask_stride else ()

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return self._sampling.steps_per_epoch

    @property
    def slots(self) -> int:
        """Ground-truth slots per image, ``g``."""
        return self._source.slots

    def size_px(self, step: int) -> tuple[int, int]:
        """(height, width) at which the step runs; the device brings the batch to it."""
        epoch = step // self.steps_per_epoch
        return batch_size_px(self._sampling.config, self._sampling.seed, epoch, step, self._sizes_px)

    def sizes_px(self, epochs: int, first: int = 0) -> tuple[tuple[int, int], ...]:
        """Every size that ``size_px`` can give from epoch ``first`` to the end of so many epochs."""
        return announced_sizes_px(self._sampling.config, self._sizes_px, epochs, first)

    def names(self, step: int) -> list[str]:
        """What the rows of this host's batch at the step are of: names of files."""
        return [self._source.name(step, row) for row in range(self._source.rows)]

    def treatment(self, step: int) -> str:
        """What is done to the pictures of the step, in words."""
        allowed = policy(self._sampling.config, step // self.steps_per_epoch)
        done = "no augmentation" if not allowed.flip else "only flips and turns"
        done = "with augmentation" if allowed.strong else done
        return f"as the network gets them; {done}{', mosaic and MixUp' * allowed.dense}"

    def batches(self, start_step: int = 0) -> Generator[Batch, None, None]:
        """Batches from global step ``start_step`` on, without end; closing the iterator ends its workers.

        Raises:
          UserError: an image cannot be read or a worker ended; the message names the file.
        """
        with contextlib.closing(workers.batches(self._source, itertools.count(start_step), self._workers)) as stream:
            while True:
                yield Batch(*next(stream))


def _mask_notes(dataset: Dataset) -> tuple[str, ...]:
    """A line about objects without masks.

    Raises:
      UserError: none has one.
    """
    has_mask = [outline is not None for record in dataset.records for outline in record.outlines]
    if has_mask and not any(has_mask):
        raise UserError(f"{dataset.annotation_file}: no object has a mask; train it to detect (--task detect)")
    if all(has_mask):
        return ()
    return (f"{sum(has_mask)} of {len(has_mask)} objects have masks; the others train boxes alone",)


class EvalLoader:
    """Evaluation batches: every image once, in the order of the file; the last batch is filled up.

    Of several hosts each gets every n-th image, and all the same number of batches.

    Args:
      objects: batches have the annotated objects, too, for a loss.
      mask_stride: of the masks of these to the input; None: none.

    Raises:
      UserError: no images, or values out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocess: Preprocess,
        *,
        batch_size: int,
        workers: int = 0,
        host_index: int = 0,
        host_count: int = 1,
        objects: bool = False,
        mask_stride: int | None = None,
    ) -> None:
        _check(dataset, preprocess, batch_size, workers, host_index, host_count)
        dataset = with_outlines(dataset) if mask_stride and objects else dataset
        records = for_loading(dataset.records[host_index::host_count], workers)
        slots = num_slots(dataset.max_objects, 0) if objects else None
        self._source = EvalSource(records, batch_size, preprocess, slots, mask_stride if objects else None)
        longest = -(-len(dataset) // host_count)
        self._length = -(-longest // batch_size)
        self._workers = workers

    def __len__(self) -> int:
        """Number of batches."""
        return self._length

    @property
    def has_objects(self) -> bool:
        """Whether batches have the annotated objects."""
        return self._source.slots is not None

    def empty(self) -> np.ndarray | Batch:
        """What an evaluation step gets, all black and without objects: uint8 [b, h, w, 3], or with objects a batch."""
        images, _, _, _, *objects = (np.zeros(shape, dtype) for shape, dtype in self._source.layout)
        return Batch(images, *objects) if objects else images

    def __iter__(self) -> Iterator[EvalBatch]:
        """One pass. Raises UserError as ``TrainLoader.batches``."""
        with contextlib.closing(workers.batches(self._source, range(len(self)), self._workers)) as stream:
            for images, image_id, size_px, view_px, *objects in stream:
                annotated = Batch(images, *objects) if objects else None
                yield EvalBatch(images, image_id, size_px, view_px, annotated)


def _notes(
    dataset: Dataset, config: DataConfig, preprocess: Preprocess, batch_size: int, slots: int, most: int
) -> tuple[str, ...]:
    """What the data makes of the configuration, for the log."""
    notes = [f"{slots} slots for objects per image: the fullest image has {dataset.max_objects}"]
    if config.augment == "dense":
        notes[0] += f", up to {most} meet by mosaic and MixUp"
    unique_px, which = np.unique(sizes_px(dataset.records), axis=0, return_inverse=True)
    sizes = [preprocess.view_px(size)[2:] for size in map(tuple, unique_px.tolist())]
    scales = np.array([(config.width_px / width, config.height_px / height) for width, height in sizes])
    small = thin_objects(dataset.records, scales[which])
    objects, _ = objects_and_images(dataset.records)
    if small:
        size = f"{config.height_px}x{config.width_px}"
        notes.append(f"{small} of {objects.total()} objects are thinner than a pixel at {size} and are dropped")
    absent = [name for label, name in enumerate(dataset.names) if not objects[label]]
    if absent:
        notes.append(f"{len(absent)} of {len(dataset.names)} classes have no object to train on: {listed(absent)}")
    if len(dataset) < batch_size:
        notes.append(f"{len(dataset)} images fill a batch of {batch_size}: images repeat within a batch")
    return tuple(notes)


def _check(
    dataset: Dataset, preprocess: Preprocess, batch_size: int, workers: int, host_index: int, host_count: int
) -> None:
    if not len(dataset):
        raise UserError(f"{dataset.annotation_file} lists no images")
    for name, value, least in (
        ("height_px", preprocess.height_px, 1),
        ("width_px", preprocess.width_px, 1),
        ("batch_size", batch_size, 1),
        ("workers", workers, 0),
        ("host_index", host_index, 0),
        ("host_count", host_count, host_index + 1),
    ):
        if value < least:
            raise UserError(f"{name}={value} must be at least {least}")
