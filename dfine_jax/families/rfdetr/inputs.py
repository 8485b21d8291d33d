"""From pictures to the input, and the sizes that it has."""

from __future__ import annotations

import dataclasses

from dfine_jax.config import DataConfig
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.families.family import MultiScale, preprocess_as_configured
from dfine_jax.families.rfdetr.config import RFDetrConfig
from dfine_jax.families.rfdetr.variants import SIZES

_STEPS = 5  # of the grid, up and down
_LEAST_CELLS = 2  # of the grid, on every side


def preprocess(model: RFDetrConfig, data: DataConfig) -> Preprocess:
    """As configured, without antialiasing where nothing is said about it."""
    return preprocess_as_configured(model, dataclasses.replace(data, interpolation=data.interpolation or "bilinear"))


def size_px(model: RFDetrConfig) -> tuple[int, int]:
    """(height, width) that the variant is published for."""
    known = SIZES.get(model.variant)
    side = known.size_px if known else model.table * model.patch_px
    return side, side


def scales_px(model: RFDetrConfig, data: DataConfig) -> tuple[tuple[int, int], ...]:
    """(height, width) that batches are trained at, small to large, the input's size ``data.multi_scale_repeat`` times.

    They are up to five steps of the grid smaller and larger, and two cells of it at least; the list is that of the
    longer side, the shorter one follows in proportion. Sizes with fewer patches than queries are left out, but where
    ``model.few_tokens`` is that of the reference, which trains at them.
    """
    base = data.height_px, data.width_px
    cells = [max(1, side // model.grid_px) for side in base]
    longest, found = max(cells), []
    for step in range(-_STEPS, _STEPS + 1):
        scaled = [round(number * (longest + step) / longest) for number in cells]
        height, width = (number * model.grid_px for number in scaled)
        tokens = (height // model.patch_px) * (width // model.patch_px)
        too_few = model.few_tokens == "pad" and tokens < model.num_queries
        if min(scaled) >= _LEAST_CELLS and (step == 0 or not too_few):
            found += [(height, width)] * (data.multi_scale_repeat if step == 0 else 1)
    return tuple(found) or (base,)


MULTI_SCALE = MultiScale(scales_px, resize="bilinear", from_largest=True)
