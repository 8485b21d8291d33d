"""Initial values have the reference's distributions."""

import jax
import numpy as np

from dfine_jax.models import initializers

KEY = jax.random.key(0)


def test_fan_in_uniform_counts_the_inputs_of_one_output():
    for shape, fan_in in (((400, 30), 400), ((3, 3, 64, 8), 576), ((5, 5, 1, 256), 25)):
        values = initializers.fan_in_uniform(KEY, shape)
        bound = 1 / np.sqrt(fan_in)
        assert 0.99 * bound < np.abs(values).max() <= bound
        np.testing.assert_allclose(np.std(values), bound / np.sqrt(3), rtol=0.03)


def test_prior_bias():
    np.testing.assert_allclose(initializers.prior_bias()(KEY, (3,)), -4.59512, atol=1e-5)


def test_sampling_offsets_point_around_the_clock():
    values = np.asarray(initializers.sampling_offsets_bias(8, (3, 6, 3))(KEY, (192,))).reshape(8, 12, 2)
    np.testing.assert_allclose(values[0, :3], [[1, 0], [2, 0], [3, 0]], atol=1e-6)
    np.testing.assert_allclose(values[1, 3:9], np.arange(1, 7)[:, None] * [1, 1], atol=1e-6)
    np.testing.assert_allclose(values[6, 9:], [[0, -1], [0, -2], [0, -3]], atol=1e-6)


def test_class_embedding():
    values = np.asarray(initializers.class_embedding(KEY, (81, 256)))
    assert not values[-1].any()
    np.testing.assert_allclose(values[:-1].std(), 1, rtol=0.02)
