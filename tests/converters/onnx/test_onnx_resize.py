"""Resizing by matrix products against Pillow."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

sys.path.append(str(ROOT / "tests"))

from dfine_jax.converters.onnx.resize import resample  # noqa: E402
from dfine_jax.data.picture.resampling import resize_bilinear  # noqa: E402

SIZES = [(480, 640), (1080, 1920), (37, 10000), (1, 900), (97, 51), (333, 500), (640, 640)]


@pytest.mark.parametrize("source_hw", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_equals_pillow(source_hw):
    pixels = np.random.default_rng(0).integers(0, 256, (*source_hw, 3)).astype(np.uint8)
    want = np.asarray(Image.fromarray(pixels).resize((640, 640), Image.Resampling.BILINEAR)).astype(int)
    got = np.asarray(resample(pixels.transpose(2, 0, 1)[None].astype(np.float32), 640, 640))
    error = np.abs(got[0].transpose(1, 2, 0) - want)
    print(f"{source_hw}: largest error {error.max()}, {np.mean(error > 0):.1e} of the values")
    assert error.max() <= 1  # where 32 bits put a sum on the other side of a half
    assert np.mean(error > 0) < 5e-3


@pytest.mark.parametrize("source_hw", SIZES[:-1], ids=lambda size: "x".join(map(str, size)))
def test_equals_the_host_without_antialiasing(source_hw):
    pixels = np.random.default_rng(0).integers(0, 256, (*source_hw, 3)).astype(np.uint8)
    want = resize_bilinear(pixels, 384, 384).astype(int)
    got = np.asarray(resample(pixels.transpose(2, 0, 1)[None].astype(np.float32), 384, 384, "bilinear"))
    error = np.abs(got[0].transpose(1, 2, 0) - want)
    assert error.max() <= 1
    assert np.mean(error > 0) < 5e-3
