"""Resizing without antialiasing: PyTorch's formula on bytes, in every place that makes input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from dfine_jax.config import DataConfig
from dfine_jax.data.augment.sample import make_sample
from dfine_jax.data.augment.transforms import augment, render
from dfine_jax.data.load.pipeline import EvalLoader, TrainLoader
from dfine_jax.data.picture.images import Preprocess, read_image
from dfine_jax.data.picture.resampling import resize_bilinear
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split

SIZES = [((480, 640), (384, 384)), ((37, 53), (384, 96)), ((500, 31), (64, 64)), ((1, 1), (8, 8)), ((7, 9), (7, 9))]


def _picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _torch(pixels: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    torch = pytest.importorskip("torch")
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    out = torch.nn.functional.interpolate(batch, size_hw, mode="bilinear", align_corners=False, antialias=False)
    return out[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_without_antialiasing_is_torch_rounded_once(source, target):
    pixels = _picture(*source)
    expected = _torch(pixels, target)
    np.testing.assert_allclose(resize_bilinear(pixels, *target), expected, rtol=0, atol=0.5 + 1e-4)
    spec = Preprocess(*target, interpolation="bilinear")
    np.testing.assert_array_equal(spec(pixels), resize_bilinear(pixels, *target))
    assert Preprocess.from_dict(spec.to_dict()) == spec


def test_reducing_differs_from_the_antialiased_filter_and_enlarging_does_not():
    pixels = _picture(200, 300)
    for size, most in ((64, 255), (600, 1)):
        plain, wide = (
            Preprocess(size, size, interpolation=kind)(pixels) for kind in ("bilinear", "bilinear_antialias")
        )
        difference = np.abs(plain.astype(int) - wide).max()
        assert (difference > 40) if most == 255 else (difference <= most)


@pytest.mark.parametrize("window", [(-40, -20, 100, 90), (10, 5, 50, 40), (-5, 30, 200, 60), (100, 100, 180, 180)])
def test_windows_beyond_the_picture_are_black_as_on_a_canvas(window):
    pixels = _picture(60, 80)
    left, top, right, bottom = window
    canvas = np.asarray(Image.fromarray(pixels).crop(window))
    assert canvas.shape[:2] == (bottom - top, right - left)
    np.testing.assert_array_equal(resize_bilinear(pixels, 48, 64, window), resize_bilinear(canvas, 48, 64))
    sample = make_sample(Image.fromarray(pixels), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    rendered = render(sample._replace(window_px=window), 48, 64, "bilinear")
    np.testing.assert_array_equal(np.asarray(rendered), resize_bilinear(canvas, 48, 64))


def test_training_and_evaluation_show_the_same_pixels(cells):
    """Without augmentation a training row is, byte for byte, the row of evaluation and what prediction makes."""
    dataset = read_coco(*find_split(cells, "val"))
    one = dataclasses.replace(dataset, records=dataset.records[:1])
    spec = Preprocess(96, 128, "letterbox", interpolation="bilinear")
    config = DataConfig(height_px=96, width_px=128, resize="letterbox", augment="none")
    train = next(TrainLoader(one, config, spec, batch_size=1, seed=0, workers=0).batches())
    evaluated = next(iter(EvalLoader(one, spec, batch_size=1)))
    np.testing.assert_array_equal(train.images, evaluated.images)
    np.testing.assert_array_equal(evaluated.images[0], spec(read_image(one.records[0].path)))
    assert (train.images != next(TrainLoader(one, config, batch_size=1, seed=0, workers=0).batches()).images).any()


def test_distorted_windows_are_resized_alike():
    """All strong operations at once, with and without antialiasing, show the same part of the picture."""
    config = DataConfig(height_px=64, width_px=64, stop_augment_epoch=9)
    smooth = Image.fromarray(_picture(5, 6)).resize((150, 120), Image.Resampling.BICUBIC)
    boxes, labels = np.array([[20, 20, 90, 80]], np.float32), np.zeros(1, np.int32)
    for seed in range(20):
        both = [
            augment(np.random.default_rng(seed), make_sample(smooth, boxes, labels), config, 0, interpolation=kind)
            for kind in ("bilinear", "bilinear_antialias")
        ]
        np.testing.assert_array_equal(both[0].boxes_xyxy_px, both[1].boxes_xyxy_px)
        levels = np.abs(np.asarray(both[0].image).astype(int) - np.asarray(both[1].image))
        assert np.median(levels) <= 2 and levels.mean() < 6
