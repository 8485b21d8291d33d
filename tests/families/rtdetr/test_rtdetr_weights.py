"""RT-DETRv2's weight files: recognised from shapes, read, written back with identical tensors, in both formats."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import rtdetr_golden
from flax import traverse_util

from dfine_jax.cli import main
from dfine_jax.converters.torch import torch_pickle
from dfine_jax.converters.torch.importer import import_weights, recognise
from dfine_jax.errors import UserError
from dfine_jax.families.family import Origin, Reduction
from dfine_jax.families.rtdetr import names, weights
from dfine_jax.families.rtdetr.family import RTDETR
from dfine_jax.families.rtdetr.model import RTDetr
from dfine_jax.families.rtdetr.recipes import deim_model
from dfine_jax.families.rtdetr.variants import VARIANTS
from dfine_jax.families.state_dict import leaf_shapes, read_backbone, tensor_shape

OFFICIAL, _, HUGGINGFACE = weights.FORMATS
SETTINGS = {"model_type": "rt_detr_v2", "decoder_layers": 3}


def shapes(config):
    """An official file of an architecture, without values that take space."""
    out = {
        key: np.broadcast_to(np.float32(0), tensor_shape(path, leaf_shapes(config)[path]))
        for path, key in weights.official_keys(config).items()
    }
    return out | {key: make(640, 640) for key, make in weights.constants(config).items()}


@pytest.fixture(scope="module")
def state(golden):
    """Official file of R18 with drawn values, in an order of its own."""
    drawn = rtdetr_golden.state_dict(golden, statistics=False)
    stream = np.random.default_rng(0)
    for key in [key for key in drawn if key.endswith("num_batches_tracked")]:
        width = drawn[key.replace("num_batches_tracked", "bias")].shape
        drawn[key.replace("num_batches_tracked", "running_mean")] = stream.normal(size=width).astype(np.float32)
        drawn[key.replace("num_batches_tracked", "running_var")] = stream.uniform(1, 2, width).astype(np.float32)
    scale = {f"decoder.decoder.layers.{i}.cross_attn.num_points_scale": np.full(12, 0.25, np.float32) for i in range(3)}
    return drawn | scale


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_recognised(variant):
    config = VARIANTS[variant]
    assert OFFICIAL.recognise(shapes(config), None) == config
    assert OFFICIAL.recognise(shapes(config), {}) is None  # a folder is not of this format


@pytest.mark.parametrize("variant", ["r18", "r50m", "r50"])
def test_weights_of_deim_are_recognised(variant):
    config = deim_model(variant)
    found = OFFICIAL.recognise(shapes(config), None)
    assert found is not None and found.query_position == "deep" and not found.backbone_frozen_bn
    described = RTDETR.described(found, Origin("x", "x.pth", "official", False, None, False))
    assert described.loss.class_loss == "mal" and described.train.method == "deim"
    model = dataclasses.replace(described.model, variant=config.variant, backbone_frozen_stem=False)
    assert model == config
    with pytest.raises(UserError, match="silu, not relu"):
        RTDETR.described(found, Origin("x", "x.pth", "official", False, "relu", False))


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_an_activation_that_nothing_states_is_what_was_asked_for(activation):
    described = RTDETR.described(VARIANTS["r18"], Origin("x", "x.pth", "official", False, activation, False))
    model = dataclasses.replace(VARIANTS["r18"], decoder_activation=activation, mlp_activation=activation)
    assert described.model == model and described.train.method == {"silu": "deim", "relu": "rtdetrv2"}[activation]
    if activation == "silu":
        with pytest.raises(UserError, match="the activation relu, not silu"):
            RTDETR.described(VARIANTS["r18"], Origin("x", "x", "huggingface", False, activation, True))


def test_what_tensors_do_not_show_comes_from_the_name():
    described = RTDETR.described(VARIANTS["r18"], Origin("x", "r18vd_dsp_3x.pth", "official", True, None, False))
    assert described.model.sampling == "discrete"


def test_other_architectures_are_not_recognised(state):
    assert OFFICIAL.recognise({k: v for k, v in state.items() if "value_proj" not in k}, None) is None
    assert OFFICIAL.recognise({"conv1.weight": np.zeros((64, 3, 7, 7))}, None) is None


@pytest.mark.parametrize(
    "changes", [{"num_points": (2, 2, 2), "encoder_ffn": 512}, {"num_heads": 4}, {"num_points": (2, 3, 2)}]
)
def test_points_heads_and_widths_are_seen(changes):
    config = dataclasses.replace(VARIANTS["r18"], num_classes=3, **changes)
    assert OFFICIAL.recognise(shapes(config), None) == config
    model, tree = OFFICIAL.read(shapes(config), config)
    leaves = traverse_util.flatten_dict(tree, sep="/")
    assert model == config and {path: leaf.shape for path, leaf in leaves.items()} == leaf_shapes(config)


def test_points_without_their_scale_are_the_same_on_all_levels():
    config = dataclasses.replace(VARIANTS["r18"], num_points=(2, 2, 2))
    bare = {key: tensor for key, tensor in shapes(config).items() if not key.endswith("num_points_scale")}
    assert OFFICIAL.recognise(bare, None) == config


def test_points_that_are_not_those_of_the_architecture_are_refused():
    with pytest.raises(UserError, match=r"the file has \(2, 3, 2\) sampling points per level, not \(4, 4, 4\)"):
        OFFICIAL.read(shapes(dataclasses.replace(VARIANTS["r18"], num_points=(2, 3, 2))), VARIANTS["r18"])


def test_the_first_version_is_called_what_it_is():
    place = {"proj": "0", "norm": "1"}
    files = {
        re.sub(r"enc_output\.(\w+)", lambda m: f"enc_output.{place[m[1]]}", k): v
        for k, v in shapes(VARIANTS["r18"]).items()
    }
    with pytest.raises(UserError, match="the names are those of RT-DETR's first version"):
        recognise(files)


def test_no_decoder_layers_are_refused():
    network = RTDetr(VARIANTS["r18"])
    with pytest.raises(UserError, match="0 decoder layers: the model has 3"):
        RTDETR.reduced(network, {}, Reduction(layers=0))


def test_reading_gives_the_variables_of_the_names(state):
    config, variables = OFFICIAL.read(state, VARIANTS["r18"])
    assert config == VARIANTS["r18"]
    wanted = rtdetr_golden.variables(state)
    assert jax.tree.structure(wanted) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, variables, wanted)


def test_round_trip_of_the_official_file(state, golden):
    config, variables = OFFICIAL.read(state, VARIANTS["r18"])
    written = OFFICIAL.write(config, variables, (640, 640))
    for key, value in state.items():
        np.testing.assert_array_equal(written[key], value, err_msg=key)
        assert written[key].dtype == value.dtype
    assert set(written) - set(state) == {"decoder.anchors", "decoder.valid_mask"}
    assert written["decoder.anchors"].shape == (1, 8400, 4) and len(written) == 538
    listed = json.loads(golden("families/manifest_rtdetrv2_r18.json").read_text())["random"]
    assert [key for key in written if key in listed] == list(listed)


@pytest.mark.parametrize("variant", ["r50", "h"])
def test_number_of_tensors(variant):
    count = len([key for key in shapes(VARIANTS[variant]) if key not in ("decoder.anchors", "decoder.valid_mask")])
    assert variant != "r50" or count == 742


def test_round_trip_through_transformers(state):
    """official -> ours -> transformers -> ours -> official."""
    config, variables = OFFICIAL.read(state, VARIANTS["r18"])
    file = HUGGINGFACE.write(config, variables, (640, 640))
    assert all(name.startswith("model.") for name in file)
    found = HUGGINGFACE.recognise(file, SETTINGS)
    assert found == dataclasses.replace(config, position_order="row_major")
    again, tree = HUGGINGFACE.read(file, found)
    jax.tree.map(np.testing.assert_array_equal, tree, variables)
    back = OFFICIAL.write(again, tree, (640, 640))
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_folders_for_transformers_by_the_command(tmp_path, state, capsys):
    """Written, read, replaced where asked; nothing is left of what transformers cannot compute."""
    torch_pickle.save(tmp_path / "r18.pth", {"model": state})
    names_file, folder = tmp_path / "names.txt", tmp_path / "folder"
    names_file.write_text("\n".join(f"kind {i}" for i in range(80)))
    write = ["convert", str(tmp_path / "r18.pth"), str(folder), "--huggingface"]
    assert main(write) == 0 and main(write) == 2
    assert main([*write, "--class-names", str(names_file), "--force"]) == 0
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    tree, metadata = import_weights(folder)
    assert metadata.class_names[79] == "kind 79" and metadata.config.model == VARIANTS["r18"]
    jax.tree.map(np.testing.assert_array_equal, tree, OFFICIAL.read(state, VARIANTS["r18"])[1])
    torch_pickle.save(tmp_path / "deim.pth", {"model": {k: v.copy() for k, v in shapes(deim_model("r18")).items()}})
    assert main(["convert", str(tmp_path / "deim.pth"), str(tmp_path / "none"), "--huggingface"]) == 2
    assert "has not SiLU in the decoder and not a query position head of three layers" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_names_of_modules_and_of_files_are_read(state):
    config, variables = OFFICIAL.read(state, VARIANTS["r18"])
    file = HUGGINGFACE.write(config, variables, (640, 640))
    renamed = {}
    for name, tensor in file.items():
        name = name.replace("model.encoder.encoder.", "model.encoder.aifi.").replace(".fc", ".mlp.fc")
        renamed[name.replace("out_proj", "o_proj") if "self_attn" in name else name] = tensor
        if "class_embed.0" in name:
            renamed[name.removeprefix("model.decoder.")] = tensor
    found = HUGGINGFACE.recognise(renamed, SETTINGS)
    assert found is not None
    jax.tree.map(np.testing.assert_array_equal, HUGGINGFACE.read(renamed, found)[1], variables)
    renamed["class_embed.0.bias"] = renamed["class_embed.0.bias"] + 1
    with pytest.raises(UserError, match="two different tensors"):
        HUGGINGFACE.read(renamed, found)


def test_a_drifted_scale_is_folded(state):
    key = "decoder.decoder.layers.1.cross_attn."
    drifted = {**state, f"{key}num_points_scale": state[f"{key}num_points_scale"] * np.float32(1.001)}
    _, variables = OFFICIAL.read(drifted, VARIANTS["r18"])
    bias = variables["params"]["decoder"]["layers_1"]["cross_attn"]["sampling_offsets"]["bias"]
    np.testing.assert_allclose(bias, state[f"{key}sampling_offsets.bias"] * 1.001, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder.enc_output.proj.bias": None}, "1 missing: decoder.enc_output.proj.bias"),
        ({"decoder.more.weight": np.zeros(3)}, "1 unexpected: decoder.more.weight"),
        ({"decoder.enc_output.proj.bias": np.zeros(3)}, "1 misshapen"),
        ({"decoder.enc_output.proj.bias": np.full(256, np.nan, np.float32)}, "decoder.enc_output.proj.bias"),
    ],
)
def test_what_does_not_fit_is_told(state, changes, message):
    file = {key: value for key, value in {**state, **changes}.items() if value is not None}
    with pytest.raises(UserError, match=message):
        OFFICIAL.read(file, VARIANTS["r18"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"learn_initial_query": True}, "learn_initial_query"),
        ({"decoder_method": "other"}, "decoder_method"),
        ({"decoder_activation_function": "silu"}, "decoder_activation_function"),
        ({"encoder_attention_heads": 4}, "encoder_attention_heads"),
    ],
)
def test_settings_that_compute_something_else_are_refused(state, setting, message):
    config, variables = OFFICIAL.read(state, VARIANTS["r18"])
    with pytest.raises(UserError, match=message):
        HUGGINGFACE.recognise(HUGGINGFACE.write(config, variables, (640, 640)), SETTINGS | setting)


def test_folders_of_other_models_are_left_to_others(state):
    config, variables = OFFICIAL.read(state, VARIANTS["r18"])
    file = HUGGINGFACE.write(config, variables, (640, 640))
    assert HUGGINGFACE.recognise(file, {"model_type": "rt_detr"}) is None
    assert HUGGINGFACE.recognise(state, None) is None


def test_transformers_has_no_hgnet():
    assert not names.has_huggingface("backbone.stem.stem1.conv.weight")


@pytest.mark.parametrize("variant", ["r18", "l"])
def test_backbones_are_read_alone(variant):
    config = VARIANTS[variant]
    whole = shapes(config)
    alone = {key.removeprefix("backbone."): value for key, value in whole.items() if key.startswith("backbone.")}
    tree = read_backbone(alone, config)
    wanted = rtdetr_golden.shapes_of(config)
    assert jax.tree.structure(tree["params"]) == jax.tree.structure(wanted["params"]["backbone"])
    assert RTDETR.backbone_of(config) in RTDETR.backbones
