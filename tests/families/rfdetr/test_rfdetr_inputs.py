"""Sizes of the input, those of multi-scale training among them, and what is done to pictures on the device."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dfine_jax.config import DataConfig
from dfine_jax.data.load.batch import Batch
from dfine_jax.families.rfdetr.inputs import preprocess, scales_px, size_px
from dfine_jax.families.rfdetr.variants import SIZES, VARIANTS
from dfine_jax.training.step.gradient import images_and_targets


def reference_scales(side: int, grid: int) -> list[int]:
    """``compute_multi_scale_scales`` of rfdetr 1.11.2 with expanded scales."""
    return [(side // grid + k) * grid for k in range(-5, 6) if side // grid + k >= 2]


@pytest.mark.parametrize("variant", list(SIZES))
def test_scales_are_the_reference_ones_with_tokens_for_all_queries(variant):
    model, side = VARIANTS[variant], SIZES[variant].size_px
    assert size_px(model) == (side, side) and side % model.grid_px == 0
    data = DataConfig(height_px=side, width_px=side, multi_scale_repeat=1)
    expected = reference_scales(side, model.grid_px)
    theirs = scales_px(dataclasses.replace(model, few_tokens="shift"), data)
    assert theirs == tuple((s, s) for s in expected)
    enough = [s for s in expected if (s // model.patch_px) ** 2 >= model.num_queries]
    assert scales_px(model, data) == tuple((s, s) for s in enough)
    assert all(height % model.grid_px == width % model.grid_px == 0 for height, width in theirs)


def test_nano_leaves_out_the_two_smallest():
    data = DataConfig(height_px=384, width_px=384, multi_scale_repeat=3)
    sides = [height for height, _ in scales_px(VARIANTS["nano"], data)]
    assert sides == [288, 320, 352, 384, 384, 384, 416, 448, 480, 512, 544]


def test_other_shapes_keep_about_their_aspect():
    sizes = scales_px(VARIANTS["nano"], DataConfig(height_px=320, width_px=640, multi_scale_repeat=1))
    assert (320, 640) in sizes and sizes[0] == (256, 480) and sizes[-1] == (384, 800)
    assert all(abs(height / width - 0.5) < 0.05 for height, width in sizes)


def test_a_size_that_is_smaller_than_all_scales_is_trained_at_itself():
    assert (64, 64) in scales_px(VARIANTS["nano"], DataConfig(height_px=64, width_px=64, multi_scale_repeat=1))
    assert scales_px(VARIANTS["nano"], DataConfig(height_px=32, width_px=32, multi_scale_repeat=1))[0] != (0, 0)


def test_pictures_are_not_antialiased():
    assert preprocess(VARIANTS["nano"], DataConfig(resize="letterbox")).to_dict() == {
        "height_px": 640,
        "width_px": 640,
        "resize": "letterbox",
        "interpolation": "bilinear",
        "channels": "RGB",
        "scale": 1 / 255,
    }
    asked = DataConfig(interpolation="bilinear_antialias")
    assert preprocess(VARIANTS["nano"], asked).interpolation == "bilinear_antialias"


@pytest.mark.parametrize("size", [(48, 48), (96, 80)])
def test_batches_are_resized_as_torch_does(size):
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    masks = np.random.default_rng(1).integers(0, 5, (2, 3, 64, 64), dtype=np.uint8)
    labels, boxes, valid = np.zeros((2, 3), np.int32), np.full((2, 3, 4), 0.5, np.float32), np.ones((2, 3), bool)
    batch = Batch(images, labels, boxes, valid, masks, valid)
    got, targets = images_and_targets(batch, size, "bilinear")
    assert got.dtype == jnp.uint8 and targets.masks is not None

    def theirs(planes: np.ndarray) -> np.ndarray:
        return torch.nn.functional.interpolate(torch.from_numpy(planes).double(), size, mode="bilinear").numpy()

    np.testing.assert_allclose(got, theirs(images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1), rtol=0, atol=0.501)
    np.testing.assert_allclose(targets.masks, theirs(masks), rtol=0, atol=0.501)
    same, _ = images_and_targets(batch, (64, 64), "bilinear")
    np.testing.assert_array_equal(same, images)
