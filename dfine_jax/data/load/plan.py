"""Which image goes where: order, mosaic partners and MixUp shares of a whole epoch, before any image is read.

All are functions of (seed, epoch) and the position alone. So is the largest number of objects that can meet in one
row, which is how many ground-truth slots a run needs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from dfine_jax.config import DataConfig
from dfine_jax.data.augment.schedule import policy
from dfine_jax.errors import UserError

# Streams of random numbers under one seed. 1 is that of the single image (data/load/rows.py), 3 that of the input size
# (data/augment/schedule.py).
_SHUFFLE, _MOSAIC, _MIXUP = 0, 4, 5
_SLOT_MULTIPLE = 4
_MIXUP_SHARE = (0.45, 0.55)
_MIXUP_DIGITS = 6


class EpochPlan(NamedTuple):
    """One epoch: positions are batch * batch_size + row."""

    order: Int64[np.ndarray, " p"]  # image at each position
    is_mosaic: Bool[np.ndarray, " p"]
    partners: Int64[np.ndarray, "p 3"]  # images beside it in its mosaic
    mix_share: Float64[np.ndarray, " s"]  # of the own image, by batch; 1 = no MixUp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What the plans of a run depend on."""

    num_images: int
    batch_size: int  # over all hosts
    seed: int
    config: DataConfig

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the dataset, at least one."""
        return max(1, self.num_images // self.batch_size)


def epoch_order(num_images: int, length: int, seed: int, epoch: int) -> Int64[np.ndarray, " length"]:
    """Image index at each position of an epoch: a permutation, cut or continued by further ones to ``length``."""
    rng = np.random.default_rng((seed, _SHUFFLE, epoch))
    permutations = [rng.permutation(num_images) for _ in range(-(-length // num_images))]
    return np.concatenate(permutations)[:length]


@functools.lru_cache(maxsize=4)
def epoch_plan(sampling: Sampling, epoch: int) -> EpochPlan:
    """The plan of an epoch.

    Mosaic partners are any three images, the own one and repetitions included; with ``mosaic_cache`` = n they are among
    the last n images of the same row, this one included, which the process that fills the row still holds.
    """
    config, steps = sampling.config, sampling.steps_per_epoch
    length = steps * sampling.batch_size
    order = _order(sampling, epoch)
    if not policy(config, epoch).dense:
        return EpochPlan(order, np.zeros(length, bool), np.zeros((length, 3), np.int64), np.ones(steps))
    rng = np.random.default_rng((sampling.seed, _MOSAIC, epoch))
    is_mosaic = rng.random(length) < config.mosaic_prob
    if config.mosaic_cache:
        partners = _recent(sampling, epoch, rng.integers(config.mosaic_cache, size=(length, 3)))
    else:
        partners = rng.integers(sampling.num_images, size=(length, 3))
    rng = np.random.default_rng((sampling.seed, _MIXUP, epoch))
    share = rng.uniform(*_MIXUP_SHARE, steps).round(_MIXUP_DIGITS)
    return EpochPlan(order, is_mosaic, partners, np.where(rng.random(steps) < config.mixup_prob, share, 1.0))


def _order(sampling: Sampling, epoch: int) -> Int64[np.ndarray, " p"]:
    return epoch_order(sampling.num_images, sampling.steps_per_epoch * sampling.batch_size, sampling.seed, epoch)


def _recent(sampling: Sampling, epoch: int, age: Int64[np.ndarray, "p 3"]) -> Int64[np.ndarray, "p 3"]:
    """Images that the same row showed ``age`` batches ago; the first image of the run where there were not so many."""
    steps, rows = sampling.steps_per_epoch, sampling.batch_size
    back = min(epoch, -(-int(age.max(initial=0)) // steps))
    history = np.concatenate([_order(sampling, e) for e in range(epoch - back, epoch + 1)]).reshape(-1, rows)
    position = np.arange(steps * rows)[:, None]
    step = np.maximum(position // rows + back * steps - age, 0)
    return history[step, position % rows]


def most_objects(sampling: Sampling, counts: Sequence[int], epochs: int) -> int:
    """The largest number of objects that one row can get in so many epochs.

    Counts before anything is cropped away: an upper bound that needs no pixels, for this seed.
    """
    number = np.asarray(counts, np.int64)
    most = int(number.max(initial=0))
    config = sampling.config
    for epoch in range(config.start_augment_epoch, min(epochs, config.stop_mosaic_epoch, config.stop_augment_epoch)):
        if not policy(config, epoch).dense:
            break
        plan = epoch_plan(sampling, epoch)
        own = number[plan.order] + np.where(plan.is_mosaic, number[plan.partners].sum(1), 0)
        rows = own.reshape(-1, sampling.batch_size)
        mixed = np.where(plan.mix_share[:, None] < 1, rows + np.roll(rows, 1, axis=1), rows)
        most = max(most, int(mixed.max(initial=0)))
    return most


def num_slots(most: int, max_objects: int, source: str = "the data") -> int:
    """Ground-truth slots per image: ``max_objects``, or for 0 the largest count rounded up to a multiple of four.

    Raises:
      UserError: more objects than ``max_objects`` can meet in one image; nothing is cut off silently.
    """
    if max_objects == 0:
        return max(_SLOT_MULTIPLE, -(-most // _SLOT_MULTIPLE) * _SLOT_MULTIPLE)
    if most > max_objects:
        raise UserError(
            f"data.max_objects={max_objects}, but an image of {source} can have {most} objects; "
            f"set data.max_objects={most} or 0 (automatic)"
        )
    return max_objects
