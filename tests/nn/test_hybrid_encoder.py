"""Hybrid encoder: tree, position embedding. Values against the reference are in tests/parity/test_features.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import hash_state_dict, submodule, variables_from_state_dict

from dfine_jax.families.backbones.hgnetv2 import BACKBONES
from dfine_jax.families.dfine.variants import VARIANTS
from dfine_jax.nn.hybrid_encoder import HybridEncoder, depthwise_halving, position_embedding, split_and_chain

KEY = jax.random.key(0)


def encoder_of(variant, **changes):
    c = VARIANTS[variant]
    return HybridEncoder(
        c.encoder_width,
        c.encoder_ffn,
        split_and_chain(c.encoder_width, c.encoder_expansion, c.encoder_depth),
        depthwise_halving(c.encoder_width),
        c.num_heads,
        **changes,
    )


def features_of(variant, height=2, width=3, batch=1):
    c = VARIANTS[variant]
    top = c.return_stages[-1]
    return [
        jnp.zeros((batch, height << (top - i), width << (top - i), BACKBONES[c.backbone].stages[i].out))
        for i in c.return_stages
    ]


@pytest.mark.parametrize("variant", "nsmlx")
def test_tree_equals_the_official_names(variant):
    expected = submodule(variables_from_state_dict(hash_state_dict(variant)), "encoder")
    tree = jax.eval_shape(lambda: encoder_of(variant).init(KEY, features_of(variant), train=False))
    shapes = jax.tree.map(lambda leaf: leaf.shape, tree)
    assert shapes == jax.tree.map(np.shape, expected)


def test_shapes_of_a_non_square_batch():
    outputs = jax.eval_shape(lambda: encoder_of("s").init_with_output(KEY, features_of("s", batch=2), train=True))[0]
    assert [o.shape for o in outputs] == [(2, 8, 12, 256), (2, 4, 6, 256), (2, 2, 3, 256)]


def test_position_embedding_of_a_square_is_transposed():
    table = position_embedding(4, 4, 8).reshape(4, 4, 8)
    omega = np.array([1.0, 0.01])
    np.testing.assert_allclose(table[3, 1, :2], np.sin(3 * omega))
    np.testing.assert_allclose(table[3, 1, 2:4], np.cos(3 * omega))
    np.testing.assert_allclose(table[3, 1, 4:6], np.sin(omega))


def test_position_embedding_of_a_rectangle_follows_the_column_order():
    height, width = 2, 3
    table = position_embedding(height, width, 4)
    grid = [(column, row) for column in range(width) for row in range(height)]
    np.testing.assert_allclose(table[:, 0], [np.sin(column) for column, _ in grid])
    np.testing.assert_allclose(table[:, 3], [np.cos(row) for _, row in grid])


def test_initialisation_of_the_transformer():
    params = encoder_of("n").init(KEY, features_of("n"), train=False)["params"]["encoder_0"]["layers_0"]
    bound = np.sqrt(6 / (128 + 512))
    for name, fan_in in (("linear1", 128), ("linear2", 512)):
        assert 0.98 * bound < np.abs(params[name]["kernel"]).max() <= bound
        assert 0.9 / np.sqrt(fan_in) < np.abs(params[name]["bias"]).max() <= 1 / np.sqrt(fan_in)
