"""The whole model: sizes, errors, initial values."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dfine_jax.families.dfine.model import DFine, init_variables
from dfine_jax.families.dfine.variants import model_config

TOTALS = {"n": 3_782_693, "s": 10_321_877, "m": 19_590_064, "l": 31_244_152, "x": 62_621_560}


def _shapes(config, train=True, size=128):
    images = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(lambda k: DFine(config).init(k, images, train=train), jax.random.key(0))


def num_parameters(variables, config):
    """As the reference counts: with its two scalars, ``up`` and ``reg_scale``, without frozen batch norms."""
    leaves = flatten_dict(variables["params"])
    frozen = [p for p in leaves if config.backbone_frozen_bn and p[0] == "backbone" and p[-2] == "bn"]
    return 2 + sum(math.prod(leaf.shape) for path, leaf in leaves.items() if path not in frozen)


@pytest.mark.parametrize("variant", TOTALS)
def test_number_of_parameters(variant):
    config = model_config(variant)
    assert num_parameters(_shapes(config), config) == TOTALS[variant]


@pytest.mark.parametrize(("variant", "total"), [("n", 3_966_877), ("x", 63_209_290)])
def test_number_of_parameters_with_366_classes(variant, total):
    config = model_config(variant, num_classes=366)
    assert num_parameters(_shapes(config), config) == total


def test_variables_depend_on_neither_mode_nor_size():
    config = model_config("n")
    trees = [_shapes(config), _shapes(config, train=False), _shapes(config, size=192)]
    assert trees[0] == trees[1] == trees[2]


@pytest.mark.parametrize("shape", [(1, 100, 128, 3), (1, 128, 130, 3), (1, 3, 128, 128), (128, 128, 3)])
def test_sides_must_be_multiples_of_32(shape):
    with pytest.raises(ValueError, match="multiples of 32"):
        DFine(model_config("n")).init(jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32), train=False)


@pytest.mark.parametrize("size", [(96, 160), (320, 64)])
def test_any_size_and_batch(size):
    config = model_config("n")
    out = jax.eval_shape(lambda v, x: DFine(config).apply(v, x, train=False), _shapes(config), jnp.zeros((3, *size, 3)))
    tokens = size[0] * size[1] * 5 // 1024
    queries = min(tokens, config.num_queries)
    assert out.logits.shape == (3, queries, 80) and out.boxes_cxcywh.shape == (3, queries, 4)


@pytest.fixture(scope="module")
def fresh():
    return init_variables(model_config("n"), jax.random.key(0))


def test_decoder_layers_start_equal_and_heads_do_not(fresh):
    decoder = fresh["params"]["decoder"]
    for i in (1, 2):
        jax.tree.map(np.testing.assert_array_equal, decoder["layers_0"], decoder[f"layers_{i}"])
    for name, layer in (("dec_score_head", None), ("dec_bbox_head", "layers_0"), ("lqe_layers", "reg_conf")):
        first, second = decoder[f"{name}_0"], decoder[f"{name}_1"]
        first, second = (first, second) if layer is None else (first[layer], second[layer])
        first, second = (x["layers_0"] if layer == "reg_conf" else x for x in (first, second))
        assert np.abs(first["kernel"] - second["kernel"]).max() > 1e-3


def test_initial_values(fresh):
    decoder = fresh["params"]["decoder"]
    for name in ("enc_score_head", "dec_score_head_0", "dec_score_head_2"):
        np.testing.assert_allclose(decoder[name]["bias"], -np.log(99), rtol=1e-6)
    for head in ("enc_bbox_head", "pre_bbox_head", "dec_bbox_head_1"):
        assert not np.any(decoder[head]["layers_2"]["kernel"]) and not np.any(decoder[head]["layers_2"]["bias"])
    assert not np.any(decoder["lqe_layers_0"]["reg_conf"]["layers_1"]["kernel"])
    layer = decoder["layers_0"]
    assert not np.any(layer["gateway"]["gate"]["kernel"]) and not np.any(layer["gateway"]["gate"]["bias"])
    cross = layer["cross_attn"]
    assert not np.any(cross["attention_weights"]["kernel"]) and not np.any(cross["sampling_offsets"]["kernel"])
    offsets = np.asarray(cross["sampling_offsets"]["bias"]).reshape(8, 12, 2)
    np.testing.assert_allclose(offsets[0], [[j, 0] for j in (*range(1, 7), *range(1, 7))], atol=1e-6)
    np.testing.assert_allclose(offsets[3, 5], [-6, 6], rtol=1e-6)
    embedding = np.asarray(decoder["denoising_class_embed"]["embedding"])
    assert not np.any(embedding[-1]) and abs(embedding[:-1].std() - 1) < 0.05
    d, ffn = 128, 512
    bounds = {  # largest magnitude of a uniform distribution
        ("linear1", "kernel"): np.sqrt(6 / (d + ffn)),
        ("linear2", "kernel"): np.sqrt(6 / (d + ffn)),
        ("linear1", "bias"): 1 / np.sqrt(d),
        ("linear2", "bias"): 1 / np.sqrt(ffn),
    }
    for (name, leaf), bound in bounds.items():
        assert 0.9 * bound < np.abs(layer[name][leaf]).max() <= bound
    kernels = {
        ("query_pos_head", "layers_0"): np.sqrt(6 / (4 + 2 * d)),
        ("query_pos_head", "layers_1"): np.sqrt(6 / (2 * d + d)),
        ("enc_output", "proj"): np.sqrt(6 / (2 * d)),
        ("dec_bbox_head_0", "layers_0"): 1 / np.sqrt(d),
    }
    for (module, name), bound in kernels.items():
        assert 0.95 * bound < np.abs(decoder[module][name]["kernel"]).max() <= bound
