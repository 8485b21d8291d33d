"""RT-DETRv2's and DEIM's tables, and which parameters their optimiser groups take."""

from __future__ import annotations

import dataclasses
import re

import jax
import pytest
import rtdetr_golden

from dfine_jax.errors import UserError
from dfine_jax.families.rtdetr.config import RTDetrLossConfig, check
from dfine_jax.families.rtdetr.family import RTDETR
from dfine_jax.families.rtdetr.recipes import TABLES, published, recipe
from dfine_jax.families.rtdetr.rules import rules
from dfine_jax.families.rtdetr.variants import VARIANTS

# Backbone rate, epochs, end of strong augmentation; transcribed from the configurations and not from the code.
OWN = {
    "r18": (1e-4, 120, 117), "r34": (5e-5, 120, 117), "r50m": (1e-5, 84, 81), "r50": (1e-5, 72, 71),
    "r101": (1e-6, 72, 71), "l": (5e-6, 72, 71), "x": (1e-6, 72, 71), "h": (5e-6, 72, 71),
}  # fmt: skip
DEIM = {
    "r18": (2e-4, 120, 117, 64), "r34": (1e-4, 120, 117, 64), "r50m": (2e-5, 60, 58, 34), "r50": (2e-5, 60, 58, 34),
    "r101": (2e-6, 60, 58, 34),
}  # fmt: skip


@pytest.mark.parametrize("variant", OWN)
def test_own_table(variant):
    config = published("rtdetrv2_coco", variant)
    optim, data, train = config.optim, config.data, config.train
    assert (optim.backbone_lr, train.epochs, data.stop_augment_epoch) == OWN[variant]
    assert (optim.lr, optim.weight_decay, optim.clip_norm, optim.schedule) == (1e-4, 1e-4, 0.1, "constant")
    assert (optim.warmup_steps, optim.ema_warmup_steps, optim.ema_decay) == (2000, 2000, 0.9999)
    assert train.batch_size == 16 and train.stage2_epoch == 0
    assert data.multi_scale_repeat == (0 if variant == "r18" else 3)
    assert config.loss == RTDetrLossConfig()


@pytest.mark.parametrize("variant", DEIM)
def test_table_of_deim(variant):
    config = published("deim_rtdetrv2_coco", variant)
    optim, data, train = config.optim, config.data, config.train
    assert (optim.backbone_lr, train.epochs, data.stop_augment_epoch, optim.flat_epochs) == DEIM[variant]
    assert (optim.lr, optim.min_lr_ratio, optim.schedule) == (2e-4, 0.5, "flat_cosine")
    assert optim.final_epochs == train.epochs - data.stop_augment_epoch
    assert (data.start_augment_epoch, data.stop_mosaic_epoch) == (4, optim.flat_epochs)
    assert config.loss.class_loss == "mal" and not config.loss.denoise_without_objects
    assert config.model.decoder_activation == config.model.mlp_activation == "silu"
    assert config.model.decoder_layers == config.model.eval_layer + 1 == {"r18": 3, "r34": 4, "r50m": 3}.get(variant, 6)


def test_discrete_table():
    found = {v: published("rtdetrv2_discrete_coco", v) for v in TABLES["rtdetrv2_discrete_coco"]}
    epochs = {v: (config.train.epochs, config.data.stop_augment_epoch) for v, config in found.items()}
    assert epochs == {"r18": (36, 33), "r34": (12, 10), "r50m": (36, 33), "r50": (12, 10)}
    assert all(config.model.sampling == "discrete" for config in found.values())


def test_recipes_of_ones_own_data():
    assert recipe("r34", "backbone", "deim", "detect") == ("deim_rtdetrv2_coco", published("deim_rtdetrv2_coco", "r34"))
    assert recipe("l", "detector", "rtdetrv2", "detect")[0] == "rtdetrv2_coco"
    with pytest.raises(UserError, match="r101"):
        recipe("h", "backbone", "deim", "detect")


@pytest.mark.parametrize("table", TABLES)
def test_every_recipe_is_valid(table):
    for variant in TABLES[table]:
        config = published(table, variant)
        check(config.model, config.loss)
        assert config.train.method in RTDETR.methods


def groups(table: str, variant: str) -> dict[str, tuple[str, float, bool]]:
    """Group, rate and decay of every parameter by its official name."""
    config = published(table, variant)
    ordered = rules(config.model, config.optim)
    found, used = {}, set()
    for path, _ in jax.tree_util.tree_leaves_with_path(rtdetr_golden.shapes_of(config.model)["params"]):
        name = "/".join(part.key for part in path)
        index = next(i for i, rule in enumerate(ordered) if re.search(rule.pattern, name))
        used.add(index)
        rule = ordered[index]
        found[rtdetr_golden.official(f"params/{name}")] = rule.group, rule.lr, rule.decay
    assert used == set(range(len(ordered)))
    return found


def expected(variant: str, name: str) -> tuple[float, bool]:
    """Rate and decay by the expressions of the reference's configurations, of parameters that it trains."""
    if variant == "r18":
        return 1e-4, not re.search("norm|bn", name)
    backbone = {"r34": 5e-5, "r50": 1e-5, "l": 5e-6}[variant]
    if "backbone" in name:
        return backbone, "norm" not in name
    return 1e-4, not re.search("norm|bn|bias" if variant == "r34" else "norm|bn", name)


@pytest.mark.parametrize("variant", ["r18", "r34", "r50", "l"])
def test_groups_are_those_of_the_reference(variant):
    frozen = 0
    for name, (_, lr, decay) in groups("rtdetrv2_coco", variant).items():
        if lr == 0:
            assert re.search(r"backbone\.(conv1|stem)\.|backbone.*\.(norm|bn)\.", name) and variant in ("r50", "l")
            frozen += 1
        else:
            assert (lr, decay) == expected(variant, name), name
    assert (frozen > 0) == VARIANTS[variant].backbone_frozen_bn


def test_groups_of_deim_take_the_decay_off_norms_at_the_full_rate():
    for name, (_, lr, decay) in groups("deim_rtdetrv2_coco", "r50").items():
        norm = "norm" in name
        assert (lr, decay) == (2e-5 if "backbone" in name and not norm else 2e-4, not norm), name


def test_offsets_of_discrete_sampling_are_held():
    found = groups("rtdetrv2_discrete_coco", "r18")
    held = {name for name, (_, lr, _) in found.items() if lr == 0}
    assert held == {name for name in found if "sampling_offsets" in name} and len(held) == 6


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"eval_layer": 3}, "eval_layer"),
        ({"num_points": (4, 4)}, "num_points"),
        ({"num_heads": 7}, "num_heads"),
        ({"encoder_layers": 0}, "encoder_layers"),
    ],
)
def test_values_that_make_no_sense_are_named(changes, key):
    with pytest.raises(UserError, match=key):
        check(dataclasses.replace(VARIANTS["r18"], **changes), RTDetrLossConfig())
