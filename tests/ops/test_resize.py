"""Nearest-neighbour resizing against PyTorch, rounding included."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from dfine_jax.ops.resize import nearest_index, resize_nearest


@pytest.mark.parametrize("target", [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800])
def test_cells_are_those_of_torch(target):
    torch = pytest.importorskip("torch")
    row = torch.arange(640, dtype=torch.float32)[None, None, None]
    expected = torch.nn.functional.interpolate(row, size=(1, target))[0, 0, 0].numpy()
    assert np.array_equal(nearest_index(640, target), expected)


def test_some_cells_differ_from_exact_arithmetic():
    exact = np.arange(736) * 640 // 736
    assert np.flatnonzero(nearest_index(640, 736) != exact).tolist() == [69, 138, 276, 552, 575]


def test_images_keep_their_type_and_channels():
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    out = resize_nearest(jnp.asarray(images), 32, 128)
    assert out.shape == (2, 32, 128, 3) and out.dtype == jnp.uint8
    assert np.array_equal(out, images[:, ::2][:, :, nearest_index(96, 128)])
