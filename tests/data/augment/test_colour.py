"""Bytes of the colour operations against Pillow's own."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from dfine_jax.data.augment import colour


@pytest.mark.parametrize("factor", [0.5, 0.875, 0.99, 1.0, 1.0773, 1.5])
def test_tables_equal_image_enhance(factor):
    values = np.arange(768, dtype=np.int64) % 256
    image = Image.fromarray(np.random.default_rng(2).permutation(values).reshape(16, 16, 3).astype(np.uint8))
    brightness = ImageEnhance.Brightness(image).enhance(factor)
    assert colour.adjust_brightness(image, factor).tobytes() == brightness.tobytes()
    contrast = ImageEnhance.Contrast(image).enhance(factor)
    assert colour.adjust_contrast(image, factor, colour.mean_luma(image)).tobytes() == contrast.tobytes()


@pytest.mark.parametrize("fraction", [-0.05, -0.0039, 0.0, 0.003, 0.0399])
def test_hue_adds_a_truncated_byte(fraction):
    pixels = np.random.default_rng(0).integers(0, 256, (150, 130, 3), dtype=np.uint8)
    bands = list(Image.fromarray(pixels).convert("HSV").split())
    turned = (np.asarray(bands[0]).astype(int) + int(255 * fraction)) % 256
    bands[0] = Image.fromarray(turned.astype(np.uint8))
    expected = Image.merge("HSV", bands).convert("RGB")
    assert colour.shift_hue(Image.fromarray(pixels), fraction).tobytes() == expected.tobytes()


def test_hsv_tables_give_pillows_bytes_for_all_colours():
    tables = [table.reshape(256, 256) for table in colour._hsv_tables()]
    value = np.arange(256, dtype=np.float32)
    saturation_band = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 256, 1))
    value_band = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None], 256, 0))
    for hue in range(256):
        expected = Image.merge("HSV", (Image.new("L", (256, 256), hue), saturation_band, value_band)).convert("RGB")
        ours = np.stack([table[hue][:, None] * value + np.float32(0.5) for table in tables], -1).astype(np.uint8)
        assert ours.tobytes() == expected.tobytes(), hue
