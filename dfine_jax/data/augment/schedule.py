"""What happens in which epoch and batch: the policy of augmentations and the input sizes of multi-scale training.

Pure functions of the configuration, the seed and the position, so that every host and every resumed run agrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dfine_jax.config import DataConfig

_CELL_PX = 32  # coarsest stride of the network
_MULTI_SCALE = 3  # stream of random numbers under one seed (data/load/plan.py has the others)


class Policy(NamedTuple):
    """What an epoch allows."""

    strong: bool  # effects, rotation, photometric distortion, zooming out, cropping
    dense: bool  # mosaic and MixUp
    flip: bool  # mirroring and quarter turns
    multi_scale: bool


def policy(config: DataConfig, epoch: int) -> Policy:
    """The policy [e0, e1, e2] of an epoch counted from 0.

    Flips and turns in all epochs; the strong operations in e0 <= epoch < e2; mosaic and MixUp, where the method has
    them, in e0 <= epoch < e1; several input sizes in epoch < e2 (D-FINE configs/*/include, DEIM's engine/data). With
    augment=none there is nothing of all this.
    """
    strong = config.start_augment_epoch <= epoch < config.stop_augment_epoch
    return Policy(
        strong=strong and config.augment != "none",
        dense=strong and epoch < config.stop_mosaic_epoch and config.augment == "dense",
        flip=config.augment != "none",
        multi_scale=epoch < config.stop_augment_epoch and config.multi_scale_repeat > 0 and config.augment != "none",
    )


def multi_scale_sizes(height_px: int, width_px: int, repeat: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of all choices, the base size ``repeat`` times; the reference's list for square sizes.

    The list is that of the longer side; the shorter one follows in proportion, in multiples of 32.
    """
    base = max(height_px, width_px)
    low, high = (_CELL_PX * int(share * base / _CELL_PX) for share in (0.75, 1.25))
    steps = range((base - low) // _CELL_PX)
    sides = [low + _CELL_PX * i for i in steps] + [base] * repeat + [high - _CELL_PX * i for i in steps]

    def scaled(side_px: int, base_side_px: int) -> int:
        return max(_CELL_PX, round(base_side_px * side_px / base / _CELL_PX) * _CELL_PX)

    return tuple((scaled(side, height_px), scaled(side, width_px)) for side in sides if side > 0)


def batch_size_px(
    config: DataConfig, seed: int, epoch: int, step: int, sizes: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """(height, width) that the batch of a global step is resized to, on the device.

    Args:
      sizes: the choices of multi-scale training.
    """
    if not policy(config, epoch).multi_scale:
        return config.height_px, config.width_px
    return sizes[int(np.random.default_rng((seed, _MULTI_SCALE, step)).integers(len(sizes)))]


def announced_sizes_px(
    config: DataConfig, sizes_px: Sequence[tuple[int, int]], epochs: int, first: int = 0
) -> tuple[tuple[int, int], ...]:
    """Every (height, width) that epochs ``first`` to ``epochs - 1`` meet, small to large: the shapes to compile.

    Args:
      sizes_px: the choices of multi-scale training.
    """
    base = (config.height_px, config.width_px)
    phases = [policy(config, epoch).multi_scale for epoch in (min(first, epochs - 1), epochs - 1)]
    sizes = set() if all(phases) else {base}
    if phases[0]:  # several sizes come first, one size last
        sizes.update(sizes_px)
    return tuple(sorted(sizes))
