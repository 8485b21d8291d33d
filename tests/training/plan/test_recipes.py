"""Configurations for custom data: the reference's tables for long runs, shortened windows for short ones."""

from __future__ import annotations

import dataclasses

import pytest

from dfine_jax.errors import UserError
from dfine_jax.families import validate
from dfine_jax.families.dfine.tables import published
from dfine_jax.families.dfine.variants import VARIANTS, segmenting
from dfine_jax.training.plan.plan_text import differing, plan_lines
from dfine_jax.training.plan.recipes import COCO_IMAGES, default_config, dense_windows, rescaled
from dfine_jax.training.step.schedule import make_schedule


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize(
    ("options", "table"),
    [
        ({"start": "detector"}, "dfine_obj2coco"),
        ({"start": "backbone"}, "dfine_custom"),
        ({"start": "backbone", "method": "deim"}, "deim_coco"),
        ({"start": "detector", "method": "dfine-seg", "task": "segment"}, "dfineseg_custom"),
    ],
)
def test_the_table_is_kept_for_as_many_images_as_coco_has(variant, options, table):
    recipe = default_config(variant, 7, COCO_IMAGES, accelerator=True, **options)
    config = recipe.config
    row = published(table, variant)
    assert config.optim == row.optim and config.data == row.data and config.loss == row.loss
    assert config.model == dataclasses.replace(row.model, num_classes=7)
    assert dataclasses.replace(config.train, eval_batch_size=row.train.eval_batch_size) == row.train
    assert not any("derived by" in line for line in shown(recipe))
    assert not recipe.reasons and not any("derived" in line for line in shown(recipe) if "eval_batch" not in line)


def shown(recipe, given=()):
    return plan_lines(recipe, given)


@pytest.mark.parametrize(
    ("images", "options", "epochs", "why"),
    [
        (100, {"start": "backbone"}, 500, "few images, 12 steps per epoch; the most there are"),
        (1000, {"start": "backbone"}, 132, None),  # in batches of 16 that is enough
        (1000, {"start": "backbone", "batch_size": 32}, 259, "few images, 31 steps per epoch; at least 8000 steps"),
        (1000, {"start": "detector"}, 97, "few images, 31 steps per epoch; at least 3000 steps"),
        (1000, {"start": "backbone", "batch_size": 8}, 132, None),
        (10_000, {"start": "backbone"}, 132, None),
        (118_000, {"start": "backbone"}, 132, None),
        (118_000, {"start": "detector"}, 56, None),
        (1_700_000, {"start": "backbone"}, 35, "14.4 times COCO's images"),  # Objects365: 36 in its published table
        (1_700_000, {"start": "backbone", "method": "deim"}, 27, "14.4 times COCO's images"),
    ],
)
def test_the_epochs_follow_from_the_number_of_images(images, options, epochs, why):
    recipe = default_config("m", 7, images, accelerator=True, **options)
    assert recipe.config.train.epochs == epochs and recipe.reasons.get("train.epochs") == why
    assert f"{epochs} epochs of" in recipe.headline
    if why:
        line = next(line for line in shown(recipe) if "train.epochs" in line)
        assert f"train.epochs={epochs} (derived: {why}; table: {recipe.table.train.epochs})" in line
        whole = recipe.table.train
        assert recipe.config.train.stage2_epoch == round(epochs * whole.stage2_epoch / whole.epochs)


def test_more_images_never_mean_fewer_steps():
    for batch in (8, 32, 64):
        steps = []
        for images in (1, 10, 100, 300, 1000, 3000, 10_000, 30_000, COCO_IMAGES, 300_000, 1_700_000):
            train = default_config("s", 3, images, batch_size=batch).config.train
            steps.append(train.epochs * max(1, images // batch))
        assert all(later >= 0.97 * earlier for earlier, later in zip(steps, steps[1:], strict=False))


def test_warm_ups_and_average_keep_their_number_of_images():
    """The reference's advice for twice the batch: 250 and 500 steps of warm-up, decay 0.9998."""
    table = published("dfine_coco", "m")
    twice = rescaled(table, COCO_IMAGES, batch_size=64).optim
    assert (twice.warmup_steps, twice.ema_warmup_steps) == (250, 500)
    assert twice.ema_decay == pytest.approx(0.9998) and twice.ema_restart_step == pytest.approx(2e-4)
    assert twice.lr == pytest.approx(2e-4 * 2**0.5) and twice.backbone_lr == pytest.approx(2e-5 * 2**0.5)
    quarter = rescaled(table, COCO_IMAGES, batch_size=8)
    assert (quarter.optim.warmup_steps, quarter.optim.ema_warmup_steps) == (2000, 4000)
    assert quarter.optim.ema_decay == pytest.approx(0.999975) and quarter.train.eval_batch_size == 16
    assert rescaled(table, COCO_IMAGES) == table


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("start", ["nothing", "backbone", "detector"])
@pytest.mark.parametrize("method", ["dfine", "deim", "dfine-seg"])
def test_every_recipe_trains_masks(variant, start, method):
    detects, segments = (
        default_config(variant, 7, 5000, method=method, start=start, task=which) for which in ("detect", "segment")
    )
    validate(segments.config)
    width, stages = (128, (1,)) if variant == "n" else (256, ())
    assert (segments.config.model.mask_width, segments.config.model.mask_stages) == (width, stages)
    with_masks = dataclasses.replace(segmenting(detects.config.model), position_order="row_major")
    assert segments.config.model == with_masks and segments.config.loss == detects.config.loss
    orders = ("row_major", "row_major") if method == "dfine-seg" else ("transposed", "row_major")
    assert (detects.config.model.position_order, segments.config.model.position_order) == orders
    assert segments.config.optim == detects.config.optim and segments.config.train == detects.config.train
    same = dataclasses.replace(segments.config.data, mosaic_prob=detects.config.data.mosaic_prob)
    assert same == detects.config.data and (segments.config.data == detects.config.data) == (method != "dfine-seg")
    lines = shown(segments)
    assert "-seg-" in segments.headline and lines[0] == "task:         segment" and shown(detects)[0].endswith("detect")
    masks = [line for line in lines if line.startswith("masks:")]
    assert len(masks) == 1 and f"model.mask_width={width}" in masks[0]
    assert not any(line.startswith("masks:") for line in shown(detects))


def test_the_plan_shows_what_the_optimiser_has():
    text = "\n".join(shown(default_config("l", 7, 5000, method="dfine-seg", start="detector")))
    for part in ("optim.optimizer=muon, optim.aux_optimizer=adan, optim.backbone_optimizer=adamw", "muon_lr_factor=10"):
        assert part in text
    assert "optim.onecycle_rise=0.1" in text and "warmup_steps=0" not in text.replace("ema_warmup_steps", "")
    text = "\n".join(shown(default_config("l", 7, 5000)))
    assert "optimiser:    optim.optimizer=adamw, optim.lr" in text and "muon" not in text and "onecycle" not in text


def test_a_family_without_masks_says_so():
    with pytest.raises(UserError, match="RT-DETRv2 does not segment; it can detect"):
        default_config("rtdetrv2-r18", 7, 5000, task="segment")


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_deim_from_a_detector_has_no_warm_up_and_tuned_rates(variant):
    config = default_config(variant, 7, COCO_IMAGES, method="deim", start="detector", accelerator=True).config
    tuned = published("dfine_obj2coco", variant)
    assert config.optim.warmup_steps == config.optim.ema_warmup_steps == 0
    assert (config.optim.lr, config.optim.backbone_lr) == (tuned.optim.lr, tuned.optim.backbone_lr)
    assert config.model == dataclasses.replace(tuned.model, num_classes=7)
    assert (config.train.method, config.loss.class_loss, config.data.augment) == ("deim", "mal", "dense")
    make_schedule(config, 100)
    if variant == "x":
        row = published("deim_obj2coco", "x")
        assert (config.optim, config.data, config.train.epochs) == (row.optim, row.data, 24)
        assert config.model.decoder_activation == "relu" and config.model.backbone_frozen_bn
    else:
        assert config.train.epochs == tuned.train.epochs and config.data.stop_mosaic_epoch < config.train.epochs


def test_mosaic_on_a_recipe_without_ends_at_half_of_the_run():
    windows = {}
    for epochs in (132, 24, 8):
        config = default_config("s", 3, 800, epochs=epochs).config
        windows[epochs] = tuple(dense_windows(config).values())
    assert windows == {132: (4, 66), 24: (2, 12), 8: (0, 4)}


def test_the_plan_shows_every_value_with_its_origin():
    recipe = default_config("s", 4, 800, batch_size=8, epochs=33, method="deim")
    text = "\n".join(shown(recipe, {"train.epochs", "log.wandb"}))
    for key in differing(recipe.config, recipe.table) - {"model.num_classes", "train.epochs"}:
        assert text.partition(f"{key}=")[2].partition(",")[0].partition("\n")[0].count("(derived; table: ") == 1
    assert "optim.lr=0.0002 (derived; table: 0.0004)" in text and "train.epochs=33 (given)" in text
    assert "loss.class_loss=mal, " in text and "log.wandb= (given)" in text
    assert all(len(line) <= 120 for line in text.splitlines())
    subjects = [line.split(":")[0] for line in text.splitlines() if not line.startswith(" ")]
    assert len(subjects) == 13 and "optim.flat_epochs=16" in text
    assert "batch 8 for 32: rates with its root" in text and "33 epochs for 132: changes keep their share" in text
    assert "optim.flat_epochs" not in "\n".join(shown(default_config("s", 4, 800)))


def test_a_short_run_shortens_its_windows_and_says_so():
    recipe = default_config("n", 3, 205, batch_size=8, epochs=40, size_px=(320, 320))
    config = recipe.config
    total = 40 * 25
    assert config.optim.warmup_steps == config.optim.ema_warmup_steps == total // 10
    assert config.optim.ema_decay == config.optim.ema_restart_decay == 1 - 10 / total
    assert config.optim.ema_restart_step == pytest.approx(10 / total)
    assert config.optim.lr == pytest.approx(8e-4 / 4)
    assert config.data.stop_augment_epoch == config.train.stage2_epoch == 36
    assert (config.data.height_px, config.data.width_px) == (320, 320)
    for key in ("optim.lr", "optim.warmup_steps", "optim.ema_decay", "train.stage2_epoch", "model.precision"):
        assert any(f"{key}=" in line and "derived" in line for line in shown(recipe))


def test_a_short_deim_run_keeps_the_shares_of_its_phases():
    config = default_config("s", 3, 800, method="deim", batch_size=8, epochs=33).config
    data, optim = config.data, config.optim
    assert (data.start_augment_epoch, data.stop_mosaic_epoch, data.stop_augment_epoch) == (1, 16, 30)
    assert (optim.flat_epochs, optim.final_epochs, optim.min_lr_ratio) == (16, 3, 0.5)
    assert config.train.stage2_epoch == 30 and config.train.method == "deim" and config.loss.class_loss == "mal"
    assert config.model.decoder_activation == config.model.mlp_activation == "silu"


@pytest.mark.parametrize("method", ["dfine", "deim"])
@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 12, 50, 500])
def test_every_length_gives_a_valid_schedule(method, variant, epochs):
    for images, batch in ((1, None), (9, 4), (5000, 16)):
        config = default_config(variant, 3, images, method=method, batch_size=batch, epochs=epochs).config
        validate(config)
        steps = max(1, images // config.train.batch_size)
        schedule = make_schedule(config, steps)
        last = float(schedule(epochs * steps - 1))
        assert 0 <= last <= 1


def test_the_batch_size_that_was_given_is_kept():
    """The loader repeats images when there are fewer, and says so."""
    assert default_config("n", 3, 5, batch_size=8).config.train.batch_size == 8
    assert default_config("n", 3, 5).config.train.batch_size == 5


@pytest.mark.parametrize(("images", "devices", "batch"), [(5, 2, 4), (99, 1, 8), (99, 3, 6), (99, 16, 16), (9, 16, 16)])
def test_without_an_accelerator_a_batch_of_eight_is_made_to_fit_the_devices(images, devices, batch):
    assert default_config("n", 3, images, batch_multiple=devices).config.train.batch_size == batch
    assert default_config("n", 3, COCO_IMAGES, accelerator=True, batch_multiple=devices).config.train.batch_size == (
        128 // devices * devices
    )


@pytest.mark.parametrize(
    ("variant", "start", "batch", "epochs", "evaluated_every"),
    [("n", "detector", 8, 120, 4), ("n", "nothing", 8, 320, 4), ("s", "detector", 8, 120, 4)],
)
def test_few_images_on_an_accelerator(variant, start, batch, epochs, evaluated_every):
    """The table's batch of 128 would leave 205 images one step per epoch."""
    recipe = default_config(variant, 3, 205, start=start, accelerator=True)
    train = recipe.config.train
    assert (train.batch_size, train.epochs) == (batch, epochs)
    assert train.eval_every == train.checkpoint_every == evaluated_every
    lines = "\n".join(shown(recipe))
    assert f"train.batch_size={batch} (derived: few images; table: " in lines
    assert f"train.eval_every={evaluated_every} (derived: short epochs; table: 1)" in lines
    many = default_config(variant, 3, 50_000, start=start, accelerator=True).config.train
    assert many.batch_size == recipe.table.train.batch_size and many.eval_every == 1


@pytest.mark.parametrize("images", [1, 7, 30, 205, 999, 5000])
@pytest.mark.parametrize("accelerator", [True, False])
def test_few_images_are_seen_in_enough_steps(images, accelerator):
    train = default_config("n", 3, images, accelerator=accelerator).config.train
    assert train.batch_size <= images and train.epochs // train.eval_every >= 10
    assert train.epochs == 500 or train.epochs * (images // train.batch_size) >= 8000
    assert accelerator or train.eval_every == 1


def test_without_an_accelerator_there_is_one_input_size():
    assert default_config("s", 3, 100).config.data.multi_scale_repeat == 0
    assert default_config("s", 3, 100, accelerator=True).config.data.multi_scale_repeat == 20


def test_a_fresh_backbone_learns_whole_and_at_half_the_full_rate_at_least():
    recipe = default_config("l", 3, COCO_IMAGES, accelerator=True)
    fresh = recipe.config
    tuned = default_config("l", 3, COCO_IMAGES, accelerator=True, start="backbone").config
    assert fresh.optim.backbone_lr == fresh.optim.lr / 2
    assert tuned.optim.backbone_lr == 1.25e-5
    assert tuned.model.backbone_frozen_bn and not fresh.model.backbone_frozen_bn
    assert "model.backbone_frozen_bn=False (derived; table: True)" in "\n".join(shown(recipe))


def test_tiny_data_still_gives_a_run():
    config = default_config("s", 1, 1, epochs=1).config
    assert config.train.batch_size == 1 and config.optim.warmup_steps == 0 and config.optim.ema_decay == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("q", 3, 10), "unknown recipe 'q'; choose one of n, s, m, l, x"),
        (("n", 3, 0), "no images"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        default_config(*arguments)
    with pytest.raises(UserError, match="multiples of 32"):
        default_config("n", 3, 10, size_px=(330, 320))
