"""Weights in every usual wrapping are found; what is no D-FINE is called what it is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from flax import traverse_util

from dfine_jax.converters.torch import torch_pickle
from dfine_jax.converters.torch.importer import import_weights
from dfine_jax.converters.torch.state_dicts import select_state_dict
from dfine_jax.errors import UserError
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.families.dfine.weights import BACKBONE_ANCHORS, write_official
from dfine_jax.families.state_dict import leaf_shapes

STEM, ENCODER, DECODER = (
    "backbone.stem.stem1.conv.weight",
    "encoder.encoder.0.layers.0.norm1.weight",
    "decoder.decoder.up",
)
PLAIN = {key: np.full(2, i, np.float32) for i, key in enumerate((STEM, ENCODER, DECODER))}
OTHER = {key: value + 100 for key, value in PLAIN.items()}
HUGGING = {
    name: np.full(2, i, np.float32)
    for i, name in enumerate(
        (
            "model.backbone.model.embedder.stem1.convolution.weight",
            "model.decoder.class_embed.0.weight",
            "class_embed.0.weight",
        )
    )
}


def prefixed(prefix, tensors=None):
    return {prefix + key: value for key, value in (PLAIN if tensors is None else tensors).items()}


def same(found, expected):
    assert list(found) == list(expected)
    assert all(found[key] is expected[key] for key in expected)


WRAPPERS = (
    "_orig_mod.",
    "module.",
    "model.",
    "net.",
    "ema_model.",
    "detector.model.",
    "_forward_module.",
    "self.decoder.",
)


@pytest.mark.parametrize(
    "prefix", ["".join(parts) for n in range(4) for parts in itertools.permutations(WRAPPERS, n)][:250]
)
def test_prefixes_in_any_order(prefix):
    same(select_state_dict(prefixed(prefix), np.ndarray).tensors, PLAIN)
    same(select_state_dict(prefixed(prefix, HUGGING), np.ndarray).tensors, HUGGING)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "_fsdp_wrapped_module"])
def test_wrappers_inside_of_names(wrapper):
    names = (
        f"backbone.{wrapper}.stem.stem1.conv.weight",
        f"encoder.encoder.0.{wrapper}.layers.0.norm1.weight",
        DECODER,
    )
    for prefix in ("", f"{wrapper}.", f"model.{wrapper}."):
        wrapped = {prefix + name: value for name, value in zip(names, PLAIN.values(), strict=True)}
        same(select_state_dict(wrapped, np.ndarray).tensors, PLAIN)


CONTAINERS = [
    ("state_dict",), ("model_state_dict",), ("model",), ("net",), ("weights",), ("params",), ("module",), ("ema",),
    ("ema", "module"), ("ema", "state_dict"), ("ema_state_dict",), ("state_dict_ema",), ("model_ema",), ("params_ema",),
    ("swa_state_dict",),
    ("checkpoint", "model", "state_dict"), ("a", "b", "c", "d", "e"),
]  # fmt: skip
TRAINING = {
    "epoch": 3,
    "optimizer": {"state": {0: {"exp_avg": np.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
    "best": 0.4,
    "args": None,
}


def nested(place, tensors):
    for name in reversed(place):
        tensors = {name: tensors}
    return tensors


@pytest.mark.parametrize("place", CONTAINERS, ids=".".join)
@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_containers(place, prefix):
    selected = select_state_dict(TRAINING | nested(place, prefixed(prefix)), np.ndarray)
    same(selected.tensors, PLAIN)
    assert selected.place.startswith(".".join(place)) and selected.others == ()


AVERAGED = [place for place in CONTAINERS if "ema" in ".".join(place) or "swa" in place[0]]


@pytest.mark.parametrize("averaged", AVERAGED, ids=".".join)
@pytest.mark.parametrize("plain", [("model",), ("state_dict",), ("model_state_dict",), ("net", "module")], ids=".".join)
@pytest.mark.parametrize("first", ["averaged", "plain"])
def test_averaged_weights_are_preferred_wherever_they_are(averaged, plain, first):
    parts = [nested(averaged, dict(PLAIN)), nested(plain, dict(OTHER))]
    content = {}
    for part in parts if first == "averaged" else reversed(parts):
        content |= part
    selected = select_state_dict(TRAINING | content, np.ndarray)
    same(selected.tensors, PLAIN)
    assert selected.averaged and selected.place == ".".join(averaged) and selected.others == (".".join(plain),)


@pytest.mark.parametrize(
    ("averaged", "plain"),
    [
        ("ema_model.", "model."),
        ("ema.module.", "net."),
        ("model_ema.module.", "model."),
        ("averaged_model.module.", "model."),
    ]
    + [("ema.", ""), ("swa_model.module._orig_mod.", "model._orig_mod.")],
)
def test_averaged_and_plain_in_one_state_dict(averaged, plain):
    """Lightning stores the modules of a run beside each other."""
    for both in (prefixed(averaged) | prefixed(plain, OTHER), prefixed(plain, OTHER) | prefixed(averaged)):
        both |= {"criterion.weight": np.zeros(3), "ema_model.n_averaged": np.ones(())} if plain else {}
        selected = select_state_dict({"state_dict": both}, np.ndarray)
        found = {key: selected.tensors[key] for key in PLAIN}
        same(found, PLAIN)
        assert selected.averaged and len(selected.others) == 1
    same(select_state_dict(prefixed("model.", OTHER), np.ndarray).tensors, OTHER)


def test_averages_of_torch_are_known_by_their_count():
    selected = select_state_dict(
        {"model": OTHER, "other": {"n_averaged": np.ones(()), **prefixed("module.")}}, np.ndarray
    )
    same(selected.tensors, PLAIN)
    assert selected.averaged


@pytest.mark.parametrize("name", ["emanet", "schema", "cinema", "swallow", "Emanuel", "steam"])
def test_other_words_are_no_averages(name):
    selected = select_state_dict({"first": OTHER, name: PLAIN}, np.ndarray)
    same(selected.tensors, OTHER)
    assert selected.others


def test_what_was_taken_is_said_and_kept(tmp_path, caplog):
    caplog.set_level("INFO")
    config = model_config("n", num_classes=3)
    leaves = {path: np.full(shape, 0.5, np.float32) for path, shape in leaf_shapes(config).items()}
    state = write_official(config, traverse_util.unflatten_dict(leaves, sep="/"))
    other = {key: value * 0 for key, value in state.items()}
    wrapped = {f"model._orig_mod.{key}": value for key, value in other.items()}
    wrapped |= {f"ema_model.module.{key}": value for key, value in state.items()}
    torch_pickle.save(tmp_path / "dfine.pth", {"state_dict": wrapped})
    variables, metadata = import_weights(tmp_path / "dfine.pth", activation="relu")
    assert all((leaf == 0.5).all() for leaf in traverse_util.flatten_dict(variables).values())
    assert metadata.source_entry == "state_dict.ema_model.module"
    line = "averaged weights taken (state_dict.ema_model.module), not those of state_dict.model"
    assert any(line in message for message in caplog.messages)


def test_backbones_alone_and_of_detectors():
    backbone = {"stem.stem1.conv.weight": np.zeros(1), "stages.0.blocks.0.weight": np.zeros(1)}
    for prefix in ("", "backbone.", "module.backbone.", "model._orig_mod."):
        same(select_state_dict(prefixed(prefix, backbone), np.ndarray, BACKBONE_ANCHORS).tensors, backbone)
    detector = prefixed("backbone.", backbone) | {"decoder.up": np.zeros(1)}
    same(select_state_dict({"model": detector}, np.ndarray, BACKBONE_ANCHORS).tensors, backbone)


W = np.zeros((2, 2), np.float32)
OPTIMISER = {"state": {0: {"exp_avg": W, "step": W}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (W, "holds a single tensor"),
        ([1, 2], "holds a list and no state dict"),
        ({}, "is an empty dictionary"),
        (OPTIMISER, "holds the state of an optimiser .state, param_groups. without the weights"),
        (
            {"epoch": 3, "optimizer": OPTIMISER},
            "holds the state of an optimiser .epoch, optimizer. without the weights",
        ),
        ({"epoch": 3, "args": None}, "holds no state dict, only epoch, args"),
        ({"model": {}}, "holds no state dict"),
        ({"w": W, "epoch": 3}, "is not a state dict: 'epoch' is not a tensor"),
        ({"shadow_params": [W, W], "decay": 0.9}, "tensors without names .in shadow_params."),
        (
            {"generator": {"w": W}, "discriminator": {"w": W}},
            "several state dicts .generator, discriminator., none of them",
        ),
    ],
)
def test_files_without_a_model(content, message):
    with pytest.raises(UserError, match=message):
        select_state_dict(content, np.ndarray)


def test_two_tensors_of_one_name():
    both = {f"module.{STEM}": W, f"module._orig_mod.{STEM}": W}
    selected = select_state_dict(both, np.ndarray)  # two models beside each other
    assert len(selected.tensors) == 1 and len(selected.others) == 1
    inner = {STEM: W, "encoder.module.a": W, "encoder.a": W}
    with pytest.raises(UserError, match="holds two tensors for encoder.a"):
        select_state_dict(inner, np.ndarray)


def test_containers_that_never_end():
    deep: dict = {}
    inner = deep
    for _ in range(100_000):
        inner["x"] = {}
        inner = inner["x"]
    loop: dict = {"self": None}
    loop["self"] = loop
    wide = {"x": [PLAIN] * 5}
    for _ in range(40):
        wide = {"left": wide, "right": wide}
    for content in (deep, loop, wide):
        with pytest.raises(UserError, match="holds no state dict"):
            select_state_dict(content, np.ndarray)
    loop["model"] = PLAIN
    same(select_state_dict(loop, np.ndarray).tensors, PLAIN)


def test_very_many_models_are_refused_at_once():
    tensors = {f"m{i}.backbone.stem.stem1.conv.weight": np.zeros(1) for i in range(5000)}
    with pytest.raises(UserError, match="the file itself holds 5000 models; save one of them alone"):
        select_state_dict(tensors, np.ndarray)


@pytest.mark.parametrize(
    "name",
    ["modelEMA", "emaModel", "EMAModel", "ema-model", "model-ema", "teacher", "mean_teacher", "meanTeacher", "ema2"],
)
def test_averaged_weights_by_any_spelling(name):
    for content in ({"model": OTHER, name: PLAIN}, {name: {"module": PLAIN}, "model": OTHER}):
        selected = select_state_dict(content, np.ndarray)
        same(selected.tensors, PLAIN)
        assert selected.averaged and selected.others == ("model",)


def test_a_part_of_the_averages_is_left_for_the_whole_model():
    damaged = {STEM: PLAIN[STEM]}
    counted = {**OTHER, "backbone.norm.num_batches_tracked": np.zeros(()), "criterion.weight": np.ones(3)}
    whole = select_state_dict({"model": counted, "ema": {"module": PLAIN}}, np.ndarray)
    assert whole.averaged  # of which a count and a loss are no part
    selected = select_state_dict({"ema": {"module": damaged}, "model": OTHER}, np.ndarray)
    assert not selected.averaged and selected.place == "model"
    same(selected.tensors, OTHER)
    larger = {**PLAIN, ENCODER: np.zeros((3, 3), np.float32)}
    same(select_state_dict({"student": OTHER, "teacher": larger}, np.ndarray).tensors, OTHER)
    same(select_state_dict({"ema": damaged}, np.ndarray).tensors, damaged)
