"""Configuration: strict overrides, ranges, round trip, and no field that nothing reads."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from conftest import ROOT

from dfine_jax.config import Config, ConfigError
from dfine_jax.errors import UserError
from dfine_jax.families import sections, validate
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.variants import VARIANTS, model_config
from dfine_jax.system.config_values import from_dict, keys, override

CONFIG = Config(model_config("n"), LossConfig())


def test_override_sets_values_of_the_right_type():
    changed = override(
        CONFIG, ["optim.lr=2e-4", "data.augment=none", "model.num_points=[4,4]", "optim.decay_bias=true"]
    )
    assert changed.optim.lr == 2e-4 and changed.data.augment == "none" and changed.model.num_points == (4, 4)
    assert changed.optim.decay_bias is True and changed.train == CONFIG.train
    assert override(CONFIG, ["optim.lr=1"]).optim.lr == 1.0


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.lrr=1", "optim.lr"),
        ("lr=1", "optim.lr"),
        ("optim=1", "section"),
        ("optim.lr.x=1", "not a section"),
        ("model.family=rtdetr", "is not one of"),
        ("optim.lr", "section.key=value"),
        ("optim.lr=fast", "type float"),
        ("train.epochs=1.5", "type int"),
        ("train.epochs=true", "type int"),
        ("data.augment=all", "'standard'"),
        ("model.num_points=3", "list"),
    ],
)
def test_override_refuses(assignment, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        override(CONFIG, [assignment])


@pytest.mark.parametrize(
    "assignment",
    [
        "train.epochs=0",
        "train.log_every=0",
        "train.eval_every=0",
        "train.checkpoint_every=0",
        "train.seed=-1",
        "optim.lr=-1",
        "optim.lr=NaN",
        "optim.clip_norm=0",
        "optim.ema_decay=2",
        "data.flip_prob=7",
        "data.noise_prob=1.5",
        "data.rotation_deg=-1",
        "data.mosaic_rotation_deg=181",
        "data.mosaic_shear_deg=60",
        "data.mosaic_translation=2",
        "data.mosaic_scale=[1]",
        "data.mosaic_scale=[2,1]",
        "data.mosaic_scale=[0,1]",
        "data.height_px=333",
        "data.workers=-2",
        "loss.weight_giou=-2",
        "loss.cost_bbox=-1",
        "loss.vfl_alpha=1.5",
        "loss.focal_gamma=-1",
        "model.num_heads=7",
        "model.decoder_layers=0",
        "model.reg_scale=-1",
        "model.reg_scale=NaN",
        "model.up=0",
        "model.num_points=[3,6,3]",
        "model.encoder_ffn=0",
        'train.remat=["neck"]',
    ],
)
def test_validate_names_the_key(assignment):
    validate(CONFIG)
    with pytest.raises(ConfigError, match=re.escape(assignment.partition("=")[0])):
        validate(override(CONFIG, [assignment]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_json_round_trip(variant):
    config = Config(model_config(variant), LossConfig())
    assert from_dict(Config, json.loads(json.dumps(dataclasses.asdict(config))), sections=sections) == config


def test_unknown_missing_and_mistyped_keys_of_stored_configurations():
    stored, read = json.loads(json.dumps(dataclasses.asdict(CONFIG))), lambda v: from_dict(Config, v, sections=sections)
    with pytest.raises(ConfigError, match="optim.speed"):
        read({**stored, "optim": {**stored["optim"], "speed": 1}})
    with pytest.raises(ConfigError, match="model.backbone"):
        read({**stored, "model": {k: v for k, v in stored["model"].items() if k != "backbone"}})
    with pytest.raises(ConfigError, match="model"):
        read({**stored, "model": 3})
    with pytest.raises(UserError, match="unknown family 'yolo'; there are dfine"):
        read({**stored, "model": {**stored["model"], "family": "yolo"}})
    assert read({"model": stored["model"]}) == CONFIG


def test_every_field_is_read_outside_the_configuration():
    files = [f for folder in ("dfine_jax", "converters") for f in (ROOT / folder).rglob("*.py")]
    files = [f for f in files if f.name not in ("config.py", "variants.py")]
    source = "\n".join(f.read_text() for f in files)
    names = {key.rsplit(".", 1)[-1] for key in keys(CONFIG)}
    assert len(names) > 40
    unread = {name for name in names if not re.search(rf"\.{name}\b", source)}
    assert not unread


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.model.num_classes = 3  # pyright: ignore[reportAttributeAccessIssue]
