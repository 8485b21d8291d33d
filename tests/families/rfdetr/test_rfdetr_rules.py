"""Rate and weight decay of every parameter of Nano against the reference's (param_groups_rfdetr_nano.json)."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from dfine_jax.config import Config, ConfigError, OptimConfig
from dfine_jax.families import validate
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.families.rfdetr.rules import rules
from dfine_jax.families.rfdetr.variants import VARIANTS

OPTIM = OptimConfig(lr=1e-4, backbone_lr=1.5e-4, layer_decay=0.8, component_decay=0.7)
# Official names to our paths, as far as rules look.
RENAMED = (
    (r"^backbone\.0\.encoder\.encoder\.(encoder\.)?(embeddings\.)?", "backbone/"),
    (r"^backbone\.0\.projector\.stages\.0\.", "projector/"),
    (r"^transformer\.(decoder\.)?", "decoder/"),
    (r"^(class_embed|bbox_embed|refpoint_embed|query_feat)", r"decoder/\1"),
    (r"layer\.(\d+)\.", r"layer_\1/"),
    (r"layers\.(\d+)\.", r"layers_\1/"),
    (r"(enc_\w+)\.(\d+)", r"\1_\2"),
    (r"\.lambda1$", ""),
    (r"\.", "/"),
    (r"/weight$", "/kernel"),
)


def our_path(official: str) -> str:
    for pattern, ours in RENAMED:
        official = re.sub(pattern, ours, official)
    return official


def test_every_parameter_has_the_reference_rate_and_decay(golden):
    reference = json.loads(golden("families/param_groups_rfdetr_nano.json").read_text())
    assert len(reference) == 465
    ordered = rules(VARIANTS["nano"], OPTIM)
    used = set()
    for official, (rate, decay) in reference.items():
        path = our_path(official)
        index = next(i for i, rule in enumerate(ordered) if re.search(rule.pattern, path))
        used.add(index)
        np.testing.assert_allclose(ordered[index].lr, rate, rtol=1e-12, err_msg=f"{official} as {path}")
        assert ordered[index].decay == (decay > 0), official
    assert used == set(range(len(ordered)))


def test_without_decay_by_layers_there_are_the_two_rates():
    plain = rules(VARIANTS["nano"], OptimConfig(lr=1e-4, backbone_lr=2e-5))
    assert {(rule.group, rule.lr) for rule in plain} == {("backbone", 2e-5), ("decoder", 1e-4), ("base", 1e-4)}


def test_only_adamw():
    with pytest.raises(ConfigError, match="optim.optimizer=muon"):
        rules(VARIANTS["nano"], OptimConfig(optimizer="muon"))


def test_families_without_such_rates_refuse_them():
    config = Config(model_config("n"), LossConfig(), optim=OptimConfig(layer_decay=0.8))
    with pytest.raises(ConfigError, match="optim.layer_decay: D-FINE has no such rates"):
        validate(config)
