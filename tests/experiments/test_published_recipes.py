"""Every experiments file resolves to exactly the published table."""

from __future__ import annotations

import dataclasses
import runpy

import pytest
from conftest import ROOT

from dfine_jax.data.augment.schedule import policy
from dfine_jax.families import task, validate
from dfine_jax.families.dfine.tables import dfine_seg, recipes
from dfine_jax.training.step.optimizer import parameter_rules
from dfine_jax.training.step.schedule import make_schedule

# lr, backbone lr, weight decay, batch, evaluation batch, epochs, stop epoch, restart decay, repeat, warm-ups (lr, EMA)
DFINE = """
coco n        8e-4   4e-4    1e-4    128 256 160 148 .9999 0  500 1000
coco s        2e-4   1e-4    1e-4    32  64  132 120 .9999 20 500 1000
coco m        2e-4   2e-5    1e-4    32  64  132 120 .9999 6  500 1000
coco l        2.5e-4 1.25e-5 1.25e-4 32  64  80  72  .9999 4  500 1000
coco x        2.5e-4 2.5e-6  1.25e-4 32  64  80  72  .9998 3  500 1000
objects365 n  8e-4   4e-4    1e-4    128 256 48  500 .9999 0  500 1000
objects365 s  2.5e-4 1.25e-4 1.25e-4 32  64  36  500 .9999 20 500 1000
objects365 m  2.5e-4 2.5e-5  1.25e-4 32  64  36  500 .9999 6  500 1000
objects365 l  2.5e-4 1.25e-5 1.25e-4 32  64  24  500 .9999 4  500 1000
objects365 x  2.5e-4 2.5e-6  1.25e-4 32  64  24  500 .9999 3  500 1000
obj2coco n    8e-4   4e-4    1e-4    128 256 64  56  .9999 0  0   0
obj2coco s    2.5e-4 1.25e-4 1.25e-4 32  64  64  56  .9999 10 0   0
obj2coco m    2.5e-4 2.5e-5  1.25e-4 32  64  56  48  .9999 6  0   0
obj2coco l    2.5e-4 1.25e-5 1.25e-4 32  64  36  30  .9999 4  0   0
obj2coco x    2.5e-4 2.5e-6  1.25e-4 32  64  36  30  .9999 3  0   0
custom n      8e-4   4e-4    1e-4    128 256 220 200 .9999 0  500 1000
custom s      4e-4   2e-4    1e-4    64  128 220 200 .9999 20 500 1000
custom m      2.5e-4 2.5e-5  1.25e-4 32  64  132 120 .9999 6  500 1000
custom l      2.5e-4 1.25e-5 1.25e-4 32  64  80  72  .9999 4  500 1000
custom x      2.5e-4 2.5e-6  1.25e-4 32  64  80  72  .9998 3  500 1000
crowdhuman n  8e-4   4e-4    1e-4    128 256 220 200 .9999 0  500 1000
crowdhuman s  4e-4   2e-4    1e-4    64  128 220 200 .9999 20 500 1000
crowdhuman m  2.5e-4 2.5e-5  1.25e-4 32  64  220 200 .9999 6  500 1000
crowdhuman l  2.5e-4 1.25e-5 1.25e-4 32  64  140 120 .9999 4  500 1000
crowdhuman x  2.5e-4 2.5e-6  1.25e-4 32  64  140 120 .9998 3  500 1000
"""
# the same columns, then smallest rate, flat epochs, last epochs without augmentation, e0, e1, e2
DEIM = """
coco n     8e-4   4e-4   1e-4    128 256 160 148 .9999 0  2000 1000 1.0 7800  12 4 78 148
coco s     4e-4   2e-4   1e-4    32  64  132 120 .9999 20 2000 1000 .5  64    12 4 64 120
coco m     4e-4   4e-5   1e-4    32  64  102 90  .9999 6  2000 1000 .5  49    12 4 49 90
coco l     5e-4   2.5e-5 1.25e-4 32  64  58  50  .9999 4  2000 1000 .5  29    8  4 29 50
coco x     5e-4   5e-6   1.25e-4 32  64  58  50  .9998 3  2000 1000 .5  29    8  4 29 50
obj2coco x 2.5e-4 2.5e-6 1.25e-4 32  64  24  20  .9999 3  0    0    1.0 12000 4  2 12 20
"""
# learning rates of backbone and rest, optimiser of the backbone in the default recipe
DFINE_SEG = """
custom n 4e-4 8e-4 adan
custom s 6e-5 2.5e-4 adan
custom m 2e-5 1.5e-4 adan
custom l 1e-5 1.6e-4 adamw
custom x 2e-6 2e-4 adamw
"""
CLASSES = {"coco": 80, "obj2coco": 80, "objects365": 366, "custom": 777, "crowdhuman": 1}


def rows(text):
    return [line.split() for line in text.strip().splitlines()]


def experiment(name):
    return runpy.run_path(str(ROOT / "experiments" / f"{name}.py"))


def resolved(method, data, variant):
    return experiment(f"{method}_{data}")["get_config"](variant)


def common(config):
    optim, train, data = config.optim, config.train, config.data
    return [
        *(optim.lr, optim.backbone_lr, optim.weight_decay, train.batch_size, train.eval_batch_size, train.epochs),
        *(train.stage2_epoch, optim.ema_restart_decay, data.multi_scale_repeat, optim.warmup_steps),
        optim.ema_warmup_steps,
    ]


def check_what_all_share(config, data):
    optim, loss = config.optim, config.loss
    validate(config)
    assert (optim.beta1, optim.beta2, optim.clip_norm, optim.ema_decay) == (0.9, 0.999, 0.1, 0.9999)
    assert (loss.cost_class, loss.cost_bbox, loss.cost_giou, loss.focal_alpha, loss.focal_gamma) == (2, 5, 2, 0.25, 2)
    weights = (loss.weight_class, loss.weight_bbox, loss.weight_giou, loss.weight_fgl, loss.weight_ddf)
    assert weights == (1, 5, 2, 0.15, 1.5) and loss.ddf_temperature == 5
    assert (loss.num_denoising, loss.label_noise_ratio, loss.box_noise_scale) == (100, 0.5, 1.0)
    pipeline = config.data
    assert (pipeline.height_px, pipeline.width_px, pipeline.resize) == (640, 640, "stretch")
    probabilities = (pipeline.photometric_prob, pipeline.zoom_out_prob, pipeline.iou_crop_prob, pipeline.flip_prob)
    assert probabilities == (0.5, 0.5, 0.8, 0.5)
    assert config.model.num_classes == CLASSES[data] and config.model.num_queries == 300


@pytest.mark.parametrize("row", rows(DFINE), ids=lambda row: "-".join(row[:2]))
def test_dfine(row):
    data, variant, *numbers = row
    config = resolved("dfine", data, variant)
    assert common(config) == [float(n) for n in numbers]
    check_what_all_share(config, data)
    assert config.data.augment == "standard" and config.data.stop_augment_epoch == config.train.stage2_epoch
    assert config.data.start_augment_epoch == 0 and config.train.method == "dfine"
    assert (config.loss.class_loss, config.loss.vfl_alpha, config.loss.vfl_gamma) == ("vfl", 0.75, 2.0)
    assert config.optim.schedule == "constant" and config.optim.backbone_bn == "backbone"
    assert config.optim.decay_bias == (variant in "lx")
    model = config.model
    assert (model.decoder_activation, model.mlp_activation) == ("relu", "relu")
    assert model.backbone_frozen_bn == model.backbone_frozen_stem == (variant in "lx")


@pytest.mark.parametrize("row", rows(DEIM), ids=lambda row: "-".join(row[:2]))
def test_deim(row):
    data, variant, *numbers = row
    config = resolved("deim", data, variant)
    optim, policy = config.optim, config.data
    dense = [optim.min_lr_ratio, optim.flat_epochs, optim.final_epochs]
    dense += [policy.start_augment_epoch, policy.stop_mosaic_epoch, policy.stop_augment_epoch]
    assert common(config) + dense == [float(n) for n in numbers]
    check_what_all_share(config, data)
    assert (policy.augment, policy.mosaic_prob, policy.mosaic_cache, policy.mixup_prob) == ("dense", 0.5, 0, 0.5)
    loss = config.loss
    assert (loss.class_loss, loss.mal_gamma, loss.mal_alpha) == ("mal", 1.5, 1.0) and config.train.method == "deim"
    assert optim.schedule == "flat_cosine" and optim.decay_bias == (variant != "n")
    assert optim.backbone_bn == ("base" if variant in "sm" else "backbone")
    model, tuned = config.model, data == "obj2coco"
    assert (model.decoder_activation, model.mlp_activation) == (("relu",) * 2 if tuned else ("silu",) * 2)
    assert model.backbone_frozen_bn == model.backbone_frozen_stem == tuned


@pytest.mark.parametrize("row", rows(DFINE_SEG), ids=lambda row: "-".join(row[:2]))
def test_dfine_seg(row):
    data, variant, backbone_lr, lr, backbone_optimizer = row
    config = resolved("dfineseg", data, variant)
    validate(config)
    optim, train, data = config.optim, config.train, config.data
    assert (optim.lr, optim.backbone_lr) == (2 * float(lr), 2 * float(backbone_lr))
    assert (optim.weight_decay, optim.clip_norm, optim.beta1, optim.beta2) == (1.25e-4, 0.1, 0.9, 0.999)
    assert (optim.schedule, optim.onecycle_rise, optim.ema_decay, optim.ema_warmup_steps) == (
        "onecycle", 0.1, 0.9998, 2000
    )  # fmt: skip
    assert (train.epochs, train.stage2_epoch, train.method) == (55, 0, "dfine-seg")
    check_rates_of_dfine_seg(config, float(backbone_lr), float(lr), backbone_optimizer)
    assert (data.augment, data.mosaic_layout, data.mosaic_prob) == ("dense", "random_centre", 0.5)
    shape = (data.mosaic_scale, data.mosaic_rotation_deg, data.mosaic_translation, data.mosaic_shear_deg)
    assert shape == ((0.5, 1.5), 0, 0.2, 2.0)
    assert (data.rotation_deg, data.rotation_prob, data.flip_prob, data.flip_vertical_prob) == (10, 0.05, 0.3, 0)
    assert (data.grey_prob, data.blur_prob, data.gamma_prob) == (0.01, 0.01, 0.02)
    assert (data.brightness_prob, data.noise_prob, data.dropout_prob, data.turn_90_prob) == (0.02, 0.01, 0, 0)
    assert not any((data.photometric_prob, data.zoom_out_prob, data.iou_crop_prob, data.mixup_prob))
    assert (data.multi_scale_repeat, data.interpolation) == (0, "bilinear")
    epochs = [policy(data, epoch) for epoch in range(55)]
    assert all(p.strong and p.flip for p in epochs) and [p.dense for p in epochs] == [True] * 50 + [False] * 5
    assert task(config.model) == "segment" and task(dfine_seg(variant, "detect").model) == "detect"
    assert dfine_seg(variant, "detect").data == dataclasses.replace(data, mosaic_prob=0.8)


def check_rates_of_dfine_seg(config, backbone_lr, lr, backbone_optimizer):
    def full(**changes):
        optim = dataclasses.replace(config.optim, **changes)
        rules = parameter_rules(config.model, optim)
        return {(rule.group, rule.optimizer): pytest.approx(rule.lr) for rule in rules if rule.lr}

    backbone = 2 * backbone_lr * (5 if backbone_optimizer == "adan" else 1)
    by_default = {("base", "adan"): 10 * lr, ("muon", "muon"): 20 * lr, ("backbone", backbone_optimizer): backbone}
    assert full() == by_default
    assert full(optimizer="adamw") == {("base", "adamw"): 2 * lr, ("backbone", "adamw"): 2 * backbone_lr}
    assert full(aux_optimizer="adamw")["base", "adamw"] == 2 * lr


_TABLES = (("dfine", DFINE), ("deim", DEIM), ("dfineseg", DFINE_SEG))


def test_no_table_is_missing_or_without_a_file():
    known = {f"{m}_{row[0]}": set() for m, text in _TABLES for row in rows(text)}
    for method, text in _TABLES:
        for data, variant, *_ in rows(text):
            known[f"{method}_{data}"].add(variant)
    assert {name: set(variants) for name, variants in recipes().items()} == known
    files = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert set(known) <= files


@pytest.mark.parametrize("name", sorted(recipes()))
def test_the_notes_name_their_command_and_a_default(name):
    values = experiment(name)
    assert f"dfine train experiments/{name}.py" in values["__doc__"]
    config = values["get_config"]()
    make_schedule(config, 100)
    assert config.model.variant in recipes()[name]
    with pytest.raises(ValueError, match="no published recipe"):
        values["get_config"]("q")
