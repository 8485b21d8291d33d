"""Initial values have the reference's distributions."""

import time

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from tiny import tiny_config

from dfine_jax.families.dfine.model import DFine, init_variables
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.nn import initializers

KEY = jax.random.key(0)


def declared(config):
    """Leaves by path, each with the initializer and the shape it is declared with."""
    images = np.zeros((1, 128, 128, 3), np.float32)
    tree = initializers.declare_variables(lambda key: dict(DFine(config).init(key, images, train=True)))
    return flatten_dict(tree, sep="/")


def drawn(config, key=KEY):
    return {path: np.asarray(x) for path, x in flatten_dict(init_variables(config, key), sep="/").items()}


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


def check_spread(path, values, std):
    error = 5 / np.sqrt(values.size)
    assert abs(values.mean()) < error * std, path
    assert abs(values.std() / std - 1) < error, path


def test_every_leaf_has_the_distribution_of_its_initializer():
    """Constants are equal; uniform and normal values have the bounds, mean, deviation and lack of repeats."""
    values, kinds = drawn(model_config("n")), set()
    for path, leaf in declared(model_config("n")).items():
        got, maker = values[path], leaf.initializer
        assert got.shape == leaf.value.shape and got.dtype == np.float32, path
        kinds.add(type(maker))
        if isinstance(maker, initializers.Constant):
            np.testing.assert_array_equal(got, maker.on_device(None, got.shape, np.float32), path)
            continue
        if isinstance(maker, initializers.NormalRows):
            assert not got[-1].any()
            check_spread(path, got[:-1], 1.0)
        else:
            bound = maker.bound(got.shape)
            check_spread(path, got, bound / np.sqrt(3))
            assert np.abs(got).max() <= bound * (1 + 1e-6)
            edge = bound * (1 - 24 / got.size)
            assert got.max() > edge and got.min() < -edge, path
        assert len(np.unique(got)) > 0.95 * got.size, path
    assert kinds == {initializers.Constant, initializers.Uniform, initializers.NormalRows}


@pytest.mark.slow
def test_leaves_constants_and_spreads_are_those_of_flax():
    config = tiny_config().model
    images = np.zeros((1, 128, 128, 3), np.float32)
    want = flatten_dict(jax.jit(lambda key: DFine(config).init(key, images, train=True))(KEY), sep="/")
    got, makers = drawn(config), {path: leaf.initializer for path, leaf in declared(config).items()}
    assert {path: x.shape for path, x in got.items()} == {path: x.shape for path, x in want.items()}
    for path, maker in makers.items():
        if isinstance(maker, initializers.Constant):
            np.testing.assert_array_equal(got[path], want[path], path)
        elif isinstance(maker, initializers.Uniform):
            check_spread(path, np.asarray(want[path]), maker.bound(want[path].shape) / np.sqrt(3))


def test_values_follow_from_key_and_path_alone():
    config = tiny_config().model
    first, again, other = drawn(config), drawn(config), drawn(config, jax.random.key(1))
    random = [path for path, x in declared(config).items() if not isinstance(x.initializer, initializers.Constant)]
    for path in first:
        np.testing.assert_array_equal(first[path], again[path])
    assert all((first[path] != other[path]).any() for path in random)
    traced = flatten_dict(jax.jit(lambda key: init_variables(config, key))(KEY), sep="/")
    jax.tree.map(np.testing.assert_array_equal, first, dict(traced))
    different = {first[path].tobytes() for path in random if "decoder/layers_" not in path}
    assert len(different) == sum("decoder/layers_" not in path for path in random)


def test_the_stream_of_a_seed_never_changes():
    """Numbers written down once: seeds stay what they were."""
    kernel = drawn(model_config("n"))["params/decoder/dec_bbox_head_0/layers_0/kernel"]
    stream = [float.fromhex(x) for x in ("0x1.73ac32p-6", "0x1.58df28p-4", "-0x1.02f40ep-7", "-0x1.8958fap-5")]
    np.testing.assert_array_equal(kernel[0, :4], np.float32(stream))


@pytest.mark.parametrize("variant", "nx")
def test_no_variant_takes_five_seconds_nor_prints(variant, capfd):
    seconds = []
    for _ in range(2):  # the quicker one: what earlier tests left may be collected in between
        started = time.process_time()
        jax.block_until_ready(init_variables(model_config(variant), KEY))
        seconds.append(time.process_time() - started)
    assert min(seconds) < 5
    assert capfd.readouterr() == ("", "")


def test_another_function_in_the_place_of_an_initializer_is_told():
    module = nn.Dense(3)
    with pytest.raises(TypeError, match="params/bias, params/kernel"):
        initializers.draw_variables(lambda key: module.init(key, np.zeros((1, 2), np.float32)), KEY)
