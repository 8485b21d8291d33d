"""Selection of detections: NumPy and JAX agree with a full sort, boxes land in the original image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfine_jax.ops.postprocess import Answer, select, to_pixels


def _outputs(seed=0, batch=2, queries=7, classes=5):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((batch, queries, classes)).astype(np.float32)
    return logits, rng.random((batch, queries, 4), np.float32)


@pytest.mark.parametrize("num_top", [1, 6, 35, 300])
def test_both_kinds_of_arrays_equal_a_full_sort(num_top):
    logits, boxes = _outputs()
    logits[1, :, 2] = logits[1, 0, 0]  # ties
    flat = 1 / (1 + np.exp(-logits.reshape(2, -1)))
    order = np.argsort(-flat, axis=1, kind="stable")[:, :num_top]
    answer = Answer(logits, boxes)
    for got in (select(answer, num_top), jax.jit(select, static_argnums=1)(answer, num_top)):
        np.testing.assert_allclose(got[0], np.take_along_axis(flat, order, 1), rtol=1e-6)
        np.testing.assert_array_equal(got[1], order % 5)
        np.testing.assert_array_equal(got[2], np.take_along_axis(boxes, (order // 5)[..., None], 1))


def test_pixels_of_the_original_image_are_not_clipped():
    boxes = np.array([[[0.5, 0.5, 0.5, 1.5]]], np.float32)
    size = np.array([[640.0, 480.0]], np.float32)
    expected = [[[160.0, -120.0, 480.0, 600.0]]]
    np.testing.assert_allclose(to_pixels(boxes, size), expected)
    np.testing.assert_allclose(to_pixels(jnp.asarray(boxes), jnp.asarray(size)), expected)


def test_scores_that_are_not_numbers_come_last():
    logits, boxes = _outputs(2)
    logits[0, 0, 0] = np.nan
    scores, *_ = select(Answer(logits, boxes), 34)
    assert np.isfinite(scores).all()
