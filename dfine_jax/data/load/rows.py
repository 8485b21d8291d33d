"""How one row of a batch is made: the work of the loader processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int

from dfine_jax.config import DataConfig
from dfine_jax.data.augment import masks as object_masks
from dfine_jax.data.augment import transforms
from dfine_jax.data.augment.mosaic import mix_pixels, mosaic, tile
from dfine_jax.data.augment.sample import Sample, make_sample, normalised_cxcywh
from dfine_jax.data.augment.schedule import policy
from dfine_jax.data.load import workers
from dfine_jax.data.load.batch import batch_layout
from dfine_jax.data.load.columns import RecordColumns
from dfine_jax.data.load.plan import Sampling, epoch_plan
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.dataset import Record, open_record
from dfine_jax.errors import UserError

_AUGMENT = 1  # stream of random numbers under one seed (data/load/plan.py has the others)


class RecentTiles:
    """Mosaic tiles of the last batches, by image; a store of this process, which changes no result."""

    def __init__(self, batches: int) -> None:
        self._batches, self._tiles, self._step = batches, dict[int, tuple[int, Sample]](), -1

    def get(self, index: int) -> Sample | None:
        found = self._tiles.get(index)
        return found[1] if found else None

    def add(self, index: int, step: int, made: Sample) -> None:
        if self._batches:
            self._tiles[index] = step, made
        if step != self._step:
            self._step, oldest = step, step - self._batches
            self._tiles = {i: entry for i, entry in self._tiles.items() if entry[0] >= oldest}


@dataclasses.dataclass(frozen=True)
class TrainSource:
    """Rows of training batches (workers.RowSource): those of one host and, where MixUp needs it, the row before."""

    records: Sequence[Record] | RecordColumns
    slots: int
    sampling: Sampling
    host_index: int
    host_count: int
    tiles: RecentTiles
    preprocess: Preprocess
    mask_stride: int | None = None  # None: no masks

    @property
    def config(self) -> DataConfig:
        """Augmentation, at the size of the batches."""
        size = {"height_px": self.preprocess.height_px, "width_px": self.preprocess.width_px}
        return dataclasses.replace(self.sampling.config, **size)

    @property
    def rows(self) -> int:
        """Rows of this host's batches."""
        return self.sampling.batch_size // self.host_count

    @property
    def layout(self) -> workers.Layout:
        """Arrays of ``Batch``; a last row for MixUp across hosts."""
        config = self.config
        mixes = config.augment == "dense" and config.mixup_prob > 0
        rows = self.rows + (mixes and self.host_count > 1)
        return batch_layout(rows, config.height_px, config.width_px, self.slots, self.mask_stride)

    def fill(self, step: int, row: int, out: workers.Arrays) -> None:
        """Load, augment and write one image, or mosaic, with its objects."""
        epoch, position = self._locate(step, row)
        if row == self.rows and epoch_plan(self.sampling, epoch).mix_share[step % self.sampling.steps_per_epoch] == 1:
            return  # nobody looks at it
        sample = self.sample(step, row)
        images, labels, boxes, valid, *masks = (array[row] for array in out)
        count = len(sample.labels)
        if count > self.slots:
            raise UserError(f"{count} objects meet in {self.describe(step, row)}, but there are {self.slots} slots")
        images[:] = np.asarray(sample.image)
        labels[:count], labels[count:] = sample.labels, 0
        boxes[:count], boxes[count:] = normalised_cxcywh(sample), 0.0
        valid[:count], valid[count:] = True, False
        if self.mask_stride and sample.masks is not None:
            cells, has_mask = masks
            size_px = self.config.height_px, self.config.width_px
            cells[:count], cells[count:] = object_masks.drawn(sample.masks, *size_px, self.mask_stride), 0
            has_mask[:count], has_mask[count:] = sample.masks.exist, False

    def sample(self, step: int, row: int) -> Sample:
        """One augmented image or mosaic, before MixUp."""
        epoch, position = self._locate(step, row)
        plan = epoch_plan(self.sampling, epoch)
        rng = np.random.default_rng((self.sampling.seed, _AUGMENT, epoch, position))
        index, is_mosaic = int(plan.order[position]), bool(plan.is_mosaic[position])
        if is_mosaic:
            images = [index, *map(int, plan.partners[position])]
            sample = mosaic(rng, [self._tile(image, step) for image in images], self.config)
        else:
            sample = self._whole(index)
            if self.config.mosaic_cache and policy(self.config, epoch).dense:
                self.tiles.add(index, step, tile(sample, self.config))
        return transforms.augment(
            rng, sample, self.config, epoch, is_mosaic=is_mosaic, interpolation=self.preprocess.interpolation
        )

    def finish(self, step: int, arrays: workers.Arrays) -> workers.Arrays:
        """Copies of this host's rows, mixed with the rows before them where the plan says so."""
        epoch, batch = divmod(step, self.sampling.steps_per_epoch)
        share = float(epoch_plan(self.sampling, epoch).mix_share[batch])
        if share == 1:
            return tuple(array[: self.rows].copy() for array in arrays)
        out = tuple(np.zeros((self.rows, *array.shape[1:]), array.dtype) for array in arrays)
        counts: Int[np.ndarray, " b"] = arrays[3].sum(1)
        for row in range(self.rows):
            before = row - 1  # -1 is the last row: of the batch, or the one added for this
            mix_pixels(arrays[0][row], arrays[0][before], share, out[0][row])
            own, other = int(counts[row]), int(counts[before])
            for mixed, array in zip(out[1:], arrays[1:], strict=True):
                mixed[row, :own] = array[row, :own]
                mixed[row, own : own + other] = array[before, :other]
        return out

    def describe(self, step: int, row: int) -> str:
        """Path of the image."""
        epoch, position = self._locate(step, row)
        return str(self.records[int(epoch_plan(self.sampling, epoch).order[position])].path)

    def name(self, step: int, row: int) -> str:
        """Name of the file, and of what a mosaic and MixUp bring into the same picture."""
        epoch, position = self._locate(step, row)
        share = epoch_plan(self.sampling, epoch).mix_share[step % self.sampling.steps_per_epoch]
        own = self._pieces(epoch, position)
        return own if share == 1 else f"{own} and {self._pieces(*self._locate(step, row - 1 if row else self.rows))}"

    def _pieces(self, epoch: int, position: int) -> str:
        plan = epoch_plan(self.sampling, epoch)
        own = self.records[int(plan.order[position])].path.name
        others = len(plan.partners[position])
        return f"{own} with {others} more" if plan.is_mosaic[position] else own

    def _locate(self, step: int, row: int) -> tuple[int, int]:
        """Epoch and position in it."""
        epoch, batch = divmod(step, self.sampling.steps_per_epoch)
        first = self.host_index * self.rows
        row = first + row if row < self.rows else (first - 1) % self.sampling.batch_size
        return epoch, batch * self.sampling.batch_size + row

    def _whole(self, index: int) -> Sample:
        record = self.records[index]
        size_px = record.width_px, record.height_px
        masks = object_masks.make_masks(record.outlines, size_px) if self.mask_stride else None
        return make_sample(open_record(record), record.boxes_xyxy_px, record.labels, masks)

    def _tile(self, index: int, step: int) -> Sample:
        made = self.tiles.get(index) or tile(self._whole(index), self.config)
        self.tiles.add(index, step, made)
        return made


@dataclasses.dataclass(frozen=True)
class EvalSource:
    """Rows of evaluation batches (workers.RowSource)."""

    records: Sequence[Record] | RecordColumns
    batch_size: int
    preprocess: Preprocess
    slots: int | None = None  # of objects; None: only images
    mask_stride: int | None = None  # None: no masks

    @property
    def layout(self) -> workers.Layout:
        """Arrays of ``EvalBatch``, and those of its objects."""
        b, size_px = self.batch_size, (self.preprocess.height_px, self.preprocess.width_px)
        image, *objects = batch_layout(b, *size_px, self.slots or 1, self.mask_stride)
        about = ((b,), "int64"), ((b, 2), "float32"), ((b, 4), "float32")
        return (image, *about, *(objects if self.slots else ()))

    def fill(self, step: int, row: int, out: workers.Arrays) -> None:
        """Load and stretch one image, or write a row that only fills the batch."""
        images, image_id, size, view, *objects = out
        index = step * self.batch_size + row
        if index >= len(self.records):
            images[row], image_id[row], size[row], view[row] = 0, -1, 1.0, (0, 0, 1, 1)
            for array in objects:
                array[row] = 0
            return
        record = self.records[index]
        images[row] = self.preprocess(open_record(record))
        image_id[row], size[row] = record.image_id, (record.width_px, record.height_px)
        view[row] = self.preprocess.view_px((record.width_px, record.height_px))
        if objects:
            self._annotate(record, view[row].astype(np.float64), [array[row] for array in objects])

    def _annotate(self, record: Record, view_px: Float64[np.ndarray, " 4"], out: Sequence[np.ndarray]) -> None:
        """Objects of a picture, as its input shows them; those thinner than a pixel there are left out."""
        labels, boxes, valid, *masks = out
        corner, sides = view_px[:2], view_px[2:]
        height_px, width_px = self.preprocess.height_px, self.preprocess.width_px
        size_px = np.array([width_px, height_px])
        placed = (record.boxes_xyxy_px.reshape(-1, 2, 2) - corner) / sides
        spans = placed[:, 1] - placed[:, 0]
        keep = np.all(spans * size_px >= 1, axis=1)
        count = int(keep.sum())
        labels[:count], labels[count:] = record.labels[keep], 0
        boxes[:count], boxes[count:] = np.concatenate([placed.mean(1), spans], 1)[keep], 0.0
        valid[:count], valid[count:] = True, False
        if masks and self.mask_stride:
            cells, has_mask = masks
            made = object_masks.make_masks(record.outlines, (record.width_px, record.height_px))
            scale = size_px / sides
            made = object_masks.moved(object_masks.select(made, keep), scale.tolist(), (-corner * scale).tolist())
            assert made is not None
            cells[:count], cells[count:] = object_masks.drawn(made, height_px, width_px, self.mask_stride), 0
            has_mask[:count], has_mask[count:] = made.exist, False

    def finish(self, step: int, arrays: workers.Arrays) -> workers.Arrays:
        """Copies."""
        return tuple(array.copy() for array in arrays)

    def describe(self, step: int, row: int) -> str:
        """Path of the image, empty for a filling row."""
        index = step * self.batch_size + row
        return str(self.records[index].path) if index < len(self.records) else ""
