"""Official state dicts in and out: exact, complete, and refused when anything does not fit."""

import dataclasses
import functools
import hashlib

import jax
import numpy as np
import pytest
from flax import traverse_util
from golden_weights import golden_state_dict, hash_state_dict, variables_from_state_dict

from dfine_jax.converters.torch.importer import recognise
from dfine_jax.errors import UserError
from dfine_jax.families.dfine.model import init_variables
from dfine_jax.families.dfine.variants import VARIANTS, model_config
from dfine_jax.families.dfine.weights import constants, read_official, recognise_official, write_official
from dfine_jax.families.state_dict import leaf_shapes
from dfine_jax.ops.anchors import anchors

# SHA-256 of the official listing, one "key shape dtype" per line, and its length (COCO models).
LISTINGS = {
    "n": (674, "e35de3611c72697392b6234f95d1d537a17e321de2bfcfc0f5cd4b4fde4c7f8e"),
    "s": (794, "b3609f860a93a3db3b53f7ea634ba171d6ce1f8af55afd93cfb5ce58b1986eed"),
    "m": (1053, "19a0a357ec1d54e41896ad3df14b08fc5d2fa22582385e280a2e03b4272cc96e"),
    "l": (1173, "36be3f84766dc017c2f19af562fa21987b82047e83721cf5690ac5b76b82b644"),
    "x": (1441, "b6a97d0b673e1901f4638813826285e369b4dac1b299182d86554de91117d290"),
}


def random_variables(config, seed=0):
    rng = np.random.default_rng(seed)
    leaves = {path: rng.standard_normal(shape, np.float32) for path, shape in leaf_shapes(config).items()}
    return traverse_util.unflatten_dict(leaves, sep="/")


def read(state):
    return read_official(state, recognise(state).model)


@functools.cache
def state_n():
    return write_official(model_config("n"), random_variables(model_config("n")))


def assert_same(found, expected):
    found, expected = (traverse_util.flatten_dict(tree, sep="/") for tree in (found, expected))
    assert set(found) == set(expected)
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype and np.array_equal(found[path], leaf), path


@pytest.mark.parametrize(
    ("variant", "num_classes"),
    [*((v, 80) for v in VARIANTS), ("s", 366), ("n", 3)]
    + [
        pytest.param(v, k, marks=pytest.mark.slow)
        for v in VARIANTS
        for k in (3, 366)
        if (v, k) not in (("s", 366), ("n", 3))
    ],
)
def test_round_trip_is_exact_and_recognised(variant, num_classes):
    config = model_config(variant, num_classes=num_classes)
    variables = random_variables(config)
    state = write_official(config, variables)
    found, back = read(state)
    assert found == config
    assert_same(back, variables)
    listing = "\n".join(f"{key} {list(value.shape)} {value.dtype}" for key, value in state.items())
    if num_classes == 80:
        assert (len(state), hashlib.sha256(listing.encode()).hexdigest()) == LISTINGS[variant]
    assert state["decoder.denoising_class_embed.weight"].shape == (num_classes + 1, config.decoder_width)


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_variables_as_a_second_mapping(variant):
    state = hash_state_dict(variant)
    _, variables = read(state)
    assert_same(variables, variables_from_state_dict(state))


@pytest.mark.parametrize("variant", ["n", "s", "l"])
def test_reference_weights(golden, variant):
    state = golden_state_dict(golden, variant)
    config, variables = read(state)
    assert config == model_config(variant)
    back = write_official(config, variables)
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, key)


@pytest.mark.parametrize("variant", ["n", "l"])
def test_tree_is_the_one_of_training(variant):
    tree = jax.eval_shape(functools.partial(init_variables, model_config(variant)), jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}
    assert shapes == leaf_shapes(model_config(variant))


def test_regenerated_entries():
    config = model_config("x", num_classes=1)
    state = write_official(config, random_variables(config), (320, 480))
    expected, valid = anchors([(40, 60), (20, 30), (10, 15)])
    np.testing.assert_array_equal(state["decoder.anchors"], expected[None])
    np.testing.assert_array_equal(state["decoder.valid_mask"], valid[None, :, None])
    assert state["decoder.decoder.reg_scale"] == 8 and state["decoder.reg_scale"].dtype == np.int64
    assert state["decoder.up"] == np.float32(0.5)
    scale = state["decoder.decoder.layers.5.cross_attn.num_points_scale"]
    np.testing.assert_array_equal(scale, np.float32([1 / 3] * 3 + [1 / 6] * 6 + [1 / 3] * 3))
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    assert counters and not any(key.startswith("backbone") for key in counters)


def test_problems_are_reported_together():
    state = dict(state_n())
    del state["decoder.enc_output.proj.weight"], state["encoder.lateral_convs.0.norm.running_var"]
    state["decoder.mask_head.weight"] = np.zeros((3, 3), np.float32)
    state["decoder.query_pos_head.layers.0.bias"] = np.zeros(5, np.float32)
    with pytest.raises(UserError) as caught:
        read(state)
    text = str(caught.value)
    assert "D-FINE-N with 80 classes" in text and "\n" not in text
    assert "2 missing: " in text and "decoder.enc_output.proj.weight" in text
    assert "encoder.lateral_convs.0.norm.running_var" in text
    assert "1 unexpected: decoder.mask_head.weight" in text
    assert "1 misshapen: decoder.query_pos_head.layers.0.bias is [5], not [256]" in text


def test_long_lists_are_cut():
    state = {key: value for key, value in state_n().items() if "pan_blocks" not in key}
    with pytest.raises(UserError, match=r"\d\d missing: .* and \d+ more\)") as caught:
        read(state)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("key", sorted(name for name in LISTINGS))
def test_every_entry_matters(key):
    """Dropping or renaming any entry that is not ignored is an error, whichever it is."""
    state, rng = state_n(), np.random.default_rng(ord(key))
    needed = [name for name in state if name not in constants(model_config("n"))]
    for name in rng.choice(needed, 20, replace=False):
        without = {k: v for k, v in state.items() if k != name}
        with pytest.raises(UserError):
            read(without)
        with pytest.raises(UserError):
            read({**without, f"{name}x": state[name]})


def test_ignored_names_must_belong_to_something():
    state = {**state_n(), "backbone.stem.stem9.bn.num_batches_tracked": np.zeros((), np.int64)}
    with pytest.raises(UserError, match="1 unexpected: backbone.stem.stem9"):
        read(state)


def test_files_without_the_computed_entries():
    state = {key: value for key, value in state_n().items() if key not in constants(model_config("n"))}
    config, _ = read(state)
    assert config == model_config("n")


def test_number_types_are_widened():
    state = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in state_n().items()}
    state = {k: state_n()[k] if k in constants(model_config("n")) else v for k, v in state.items()}
    _, variables = read(state)
    leaf = variables["params"]["decoder"]["enc_output"]["proj"]["kernel"]
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf.T, state["decoder.enc_output.proj.weight"].astype(np.float32))


def test_scalars_come_from_the_file():
    state = dict(state_n())
    for prefix in ("decoder.", "decoder.decoder."):
        state[f"{prefix}reg_scale"] = np.asarray([5.5], np.float32)
        state[f"{prefix}up"] = np.asarray([0.25], np.float32)
    config, variables = read(state)
    assert (config.reg_scale, config.up) == (5.5, 0.25)
    np.testing.assert_array_equal(write_official(config, variables)["decoder.reg_scale"], np.float32([5.5]))


@pytest.mark.parametrize("value", [5, 0, -4, np.nan])
def test_contradicting_or_senseless_scalars(value):
    state = {**state_n(), "decoder.reg_scale": np.asarray([value], np.float32)}
    if value != 5:
        state["decoder.decoder.reg_scale"] = state["decoder.reg_scale"]
    with pytest.raises(UserError, match="reg_scale"):
        read(state)


def test_drifted_point_scale_moves_into_the_offsets():
    state, factor = dict(state_n()), np.float32(0.9998)
    prefix = "decoder.decoder.layers.1.cross_attn."
    state[f"{prefix}num_points_scale"] = state[f"{prefix}num_points_scale"] * factor
    _, drifted = read(state)
    _, plain = read(state_n())
    for layer, expected in ((0, 1.0), (1, factor)):
        for name in ("kernel", "bias"):
            found, before = (
                tree["params"]["decoder"][f"layers_{layer}"]["cross_attn"]["sampling_offsets"][name]
                for tree in (drifted, plain)
            )
            np.testing.assert_allclose(found, before * expected, rtol=2e-7)


def test_drift_of_single_points_reaches_the_right_rows():
    config = model_config("s")
    state = write_official(config, random_variables(config))
    prefix = "decoder.decoder.layers.0.cross_attn."
    scale = state[f"{prefix}num_points_scale"].copy()
    scale[4] *= 0.995
    before = state[f"{prefix}sampling_offsets.bias"].reshape(8, 12, 2)
    _, variables = read({**state, f"{prefix}num_points_scale": scale})
    after = variables["params"]["decoder"]["layers_0"]["cross_attn"]["sampling_offsets"]["bias"].reshape(8, 12, 2)
    ratio = np.ones((12, 1), np.float32)
    ratio[4] = 0.995
    np.testing.assert_allclose(after, before * ratio, rtol=3e-7)


def test_other_points_per_level_are_read_from_the_scale():
    state = dict(state_n())
    for key in state:
        if key.endswith("num_points_scale"):
            state[key] = np.float32([1 / 4] * 4 + [1 / 8] * 8)
    assert read(state)[0].num_points == (4, 8)
    for key in state:
        if key.endswith("num_points_scale"):
            state[key] = np.float32([0.3] * 12)
    with pytest.raises(UserError, match="num_points_scale"):
        read(state)


def test_batch_norm_of_the_backbone():
    frozen = {
        key: value
        for key, value in state_n().items()
        if not (key.startswith("backbone") and key.endswith("num_batches_tracked"))
    }
    assert recognise_official(frozen).backbone_frozen_bn and not recognise_official(state_n()).backbone_frozen_bn


def test_depth_and_classes():
    config = model_config("s", decoder_layers=2, num_classes=5)
    assert recognise_official(write_official(config, random_variables(config))) == config


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        (["stem.stem1.conv.weight"], "backbone alone"),
        (["model.backbone.model.embedder.stem1.convolution.weight"], "another model of transformers"),
        (["conv1.weight", "fc.weight"], "conv1.weight"),
    ],
)
def test_other_models(keys, hint):
    with pytest.raises(UserError, match=f"not a state dict of D-FINE.*{hint}"):
        read({key: np.zeros((2, 2), np.float32) for key in keys})


def test_export_refuses_foreign_variables():
    config = model_config("n")
    variables = random_variables(config)
    with pytest.raises(UserError, match="do not belong"):
        write_official(dataclasses.replace(config, num_classes=3), variables)
    del variables["params"]["decoder"]["enc_output"]
    with pytest.raises(UserError, match="enc_output"):
        write_official(config, variables)
