"""Files in other programs' layouts are read back as exactly what was written; what the layout lacks is told."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from dfine_jax.cli import main
from dfine_jax.config import Config, DataConfig
from dfine_jax.converters.torch import torch_pickle
from dfine_jax.converters.torch.description import describe, read_described
from dfine_jax.converters.torch.exporter import export_weights, not_held
from dfine_jax.converters.torch.importer import import_weights
from dfine_jax.errors import UserError
from dfine_jax.families import of
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.families.rtdetr.config import RTDetrLossConfig
from dfine_jax.families.rtdetr.recipes import deim_model
from dfine_jax.families.rtdetr.variants import VARIANTS
from dfine_jax.families.state_dict import leaf_shapes
from dfine_jax.training.run.checkpoint import Metadata, load_metadata, save_weights

HEADS = {"num_heads": 4, "num_points": (4, 4, 4)}
SILU = {"decoder_activation": "silu", "mlp_activation": "silu"}
# Changes of an architecture, and those of them that a reader of tensors alone misses.
OF_RTDETR = [
    ({"sampling": "discrete"}, "sampling=discrete (taken for bilinear)"),
    ({"decoder_layers": 2, "eval_layer": 0}, "eval_layer=0 (taken for 1)"),
    ({"eval_layer": 1}, "eval_layer=1 (taken for 2)"),
    ({"num_queries": 100}, "num_queries=100 (taken for 300)"),
    ({"position_order": "row_major"}, "position_order=row_major (taken for transposed)"),
    (SILU, "decoder_activation=silu (taken for relu), model.mlp_activation=silu (taken for relu)"),
    ({"decoder_activation": "silu"}, "decoder_activation=silu (taken for relu)"),
    ({"query_position": "deep"} | SILU, ""),
    ({"num_points": (2, 3, 2)}, ""),
    (HEADS, ""),
    ({"backbone_frozen_bn": True, "backbone_frozen_stem": True, "precision": "bfloat16"}, ""),
]
OF_DFINE = [
    ({"num_queries": 100}, "num_queries=100 (taken for 300)"),
    (SILU, "decoder_activation=silu (taken for relu), model.mlp_activation=silu (taken for relu)"),
    ({"up": 0.3, "reg_scale": 4.1, "num_heads": 4, "num_points": (3, 5)}, ""),
    ({"up": 0.123456789012}, "up=0.123456789012 (taken for 0.12345679)"),
    ({"encoder_width": 96, "decoder_layers": 2}, "whole architecture (not a state dict of"),
]


def described(model):
    loss = LossConfig() if model.family == "dfine" else RTDetrLossConfig()
    names = tuple(f"kind {i}" for i in range(model.num_classes))
    config = Config(model, loss, data=DataConfig(height_px=320, width_px=448))
    return Metadata(config, names, tuple(range(3, 3 + model.num_classes)), epoch=4, ap=0.25, licence="MIT")


def zeros(model):
    leaves = {path: np.broadcast_to(np.float32(0), shape) for path, shape in leaf_shapes(model).items()}
    return traverse_util.unflatten_dict(leaves, sep="/")


def written(model, layout="official"):
    """Metadata, format, tensors and config.json."""
    form = next(form for form in of(model).formats if form.name == layout)
    metadata = described(model)
    settings = None if form.settings is None else form.settings(model, metadata.class_names)
    return metadata, form, form.write(model, zeros(model), (320, 448)), settings


@pytest.mark.parametrize(
    ("model", "missed"),
    [
        *((dataclasses.replace(VARIANTS["r18"], num_classes=3, **changes), missed) for changes, missed in OF_RTDETR),
        *((model_config("n", num_classes=3, **changes), missed) for changes, missed in OF_DFINE),
        *((variant, "") for variant in (VARIANTS["r50m"], VARIANTS["l"], deim_model("r50"))),
    ],
)
def test_architectures_come_back_exactly(model, missed):
    metadata, form, tensors, settings = written(model)
    _, found = read_described(tensors, describe(metadata, form))
    assert found == metadata
    told = not_held(tensors, settings, metadata)
    assert missed in told and bool(missed) == bool(told)
    square = dataclasses.replace(metadata.config, data=DataConfig())
    told = not_held(tensors, settings, dataclasses.replace(metadata, config=square))
    assert "position_order" not in told and bool(told) == bool(missed and "position_order" not in missed)


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"sampling": "discrete", "num_queries": 100, "position_order": "row_major"} | HEADS, ""),
        ({}, "position_order=transposed (taken for row_major)"),
    ],
)
def test_folders_hold_more(changes, missed):
    metadata, form, tensors, settings = written(dataclasses.replace(VARIANTS["r18"], **changes), "huggingface")
    assert read_described(tensors, describe(metadata, form))[1] == metadata
    told = not_held(tensors, settings, metadata)
    assert missed in told and bool(missed) == bool(told)


@pytest.fixture(scope="module")
def discrete(tmp_path_factory):
    """Folder with a checkpoint of what no layout holds, and its description."""
    model = dataclasses.replace(VARIANTS["r18"], sampling="discrete", num_queries=100, mlp_activation="silu")
    metadata, folder = described(model), tmp_path_factory.mktemp("discrete")
    save_weights(folder / "best", zeros(model), metadata)
    return folder


@pytest.mark.parametrize("name", ["r18.pth", "r18.safetensors"])
def test_files_carry_what_the_layout_lacks(discrete, tmp_path, caplog, name):
    assert main(["convert", str(discrete / "best"), str(tmp_path / name)]) == 0
    (line,) = [line for line in caplog.messages if "layout" in line]
    assert (
        "does not hold model.sampling=discrete (taken for bilinear), model.mlp_activation=silu (taken for relu), "
        in line
    )
    _, found = import_weights(tmp_path / name)
    own = load_metadata(discrete / "best")
    origin = {"source_file": name, "source_sha256": found.source_sha256, "source_entry": found.source_entry}
    assert found == dataclasses.replace(own, **origin) and found.source_sha256
    assert import_weights(tmp_path / name, activation="relu", class_names=own.class_names)[1] == found
    with pytest.raises(UserError, match=f"{name}: the weights know their activation .relu.; leave silu out"):
        import_weights(tmp_path / name, activation="silu")
    with pytest.raises(UserError, match="the weights know their classes"):
        import_weights(tmp_path / name, class_names=["a"] * 80)
    assert main(["convert", str(tmp_path / name), str(tmp_path / "back")]) == 0
    assert load_metadata(tmp_path / "back").config == own.config


def test_what_a_foreign_file_does_not_say_can_be_said(discrete, tmp_path, capsys):
    own = load_metadata(discrete / "best").config.model
    torch_pickle.save(tmp_path / "best.pth", {"model": written(own)[2]})
    convert = ["convert", str(tmp_path / "best.pth"), str(tmp_path / "out")]
    said = ["model.sampling=discrete", "model.num_queries=100", "model.mlp_activation=silu"]
    assert main([*convert, *said]) == 0 and load_metadata(tmp_path / "out").config.model == own
    errors = {
        "data.height_px=64": "only fields of the model",
        "model.encoder_ffn=64": "not of this shape",
        "model.x=1": "model.x",
    }
    for text, message in errors.items():
        assert main([*convert, "--force", text]) == 2
        assert message in capsys.readouterr().err


def test_a_folder_is_followed_as_it_stands(tmp_path, caplog):
    """By its description, until somebody changes its config.json; other programs write no description."""
    model = dataclasses.replace(VARIANTS["r18"], num_queries=100)
    metadata = described(model)
    export_weights(tmp_path / "folder", "huggingface", zeros(model), metadata)
    assert import_weights(tmp_path / "folder")[1].config == metadata.config
    place = tmp_path / "folder" / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"num_queries": 50}))
    _, found = import_weights(tmp_path / "folder")
    assert (found.config.model.num_queries, found.config.model.position_order) == (50, "row_major")
    assert "config.json was changed since it was written" in caplog.messages[-1]
    caplog.clear()
    save_file(load_file(tmp_path / "folder" / "model.safetensors"), tmp_path / "folder" / "model.safetensors")
    assert import_weights(tmp_path / "folder")[1].config.model.num_queries == 50 and not caplog.messages


def test_descriptions_that_cannot_be_followed(tmp_path):
    metadata, form, tensors, _ = written(model_config("n", num_classes=3))
    values = json.loads(describe(metadata, form))
    model, config = values["config"]["model"], values["config"]
    cases = {
        "{": "its description is damaged",
        "[]": "its description is not a description",
        json.dumps(values | {"format": 99}): "its description was written by a newer dfine_jax",
        json.dumps(values | {"layout": "other"}): "its description has no layout of D-FINE: 'other'",
        json.dumps(values | {"class_names": ["a"]}): "its description has 1 class names for 3 classes",
        json.dumps(values | {"config": config | {"model": model | {"num_queries": 0}}}): "num_queries",
        json.dumps(
            values | {"config": config | {"model": model | {"up": 0.25}}}
        ): "says model.up=0.25, their tensors 0.5",
        json.dumps(values | {"config": config | {"model": model | {"encoder_ffn": 64}}}): "do not fit D-FINE-N",
        json.dumps(
            values | {"config": config | {"model": model | {"num_points": [4, 8]}}}
        ): "sampling points per level",
    }
    for text, message in cases.items():
        with pytest.raises(UserError, match=message):
            read_described(tensors, text)
    torch_pickle.save(tmp_path / "a.pth", {"model": tensors, "dfine_jax": "{"})
    with pytest.raises(UserError, match="a.pth: its description is damaged"):
        import_weights(tmp_path / "a.pth")


def test_what_reads_back_as_another_architecture_is_not_written(tmp_path, monkeypatch):
    model = model_config("n", num_classes=3)
    form, *others = of(model).formats
    other = dataclasses.replace(form, read=lambda tensors, model: (dataclasses.replace(model, up=0.25), {}))
    monkeypatch.setattr(
        "dfine_jax.families.dfine.family.DFINE", dataclasses.replace(of(model), formats=(other, *others))
    )
    with pytest.raises(UserError, match="says model.up=0.5, their tensors 0.25"):
        export_weights(tmp_path / "a.pth", "official", zeros(model), described(model))
    assert not (tmp_path / "a.pth").exists()


@pytest.mark.parity
def test_torch_reads_the_file_without_its_description(tmp_path):
    torch = pytest.importorskip("torch")
    model = model_config("n", num_classes=3)
    export_weights(tmp_path / "a.pth", "official", zeros(model), described(model))
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(content) == ["model", "dfine_jax"] and isinstance(content["dfine_jax"], str)
    assert {key: tuple(value.shape) for key, value in content["model"].items()} == {
        key: value.shape for key, value in written(model)[2].items()
    }
