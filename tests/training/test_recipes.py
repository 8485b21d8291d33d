"""Configurations for custom data: the reference's tables for long runs, shortened windows for short ones."""

from __future__ import annotations

import dataclasses

import pytest

from dfine_jax.config import validate
from dfine_jax.errors import UserError
from dfine_jax.training.recipes import default_config
from dfine_jax.training.schedule import make_schedule
from dfine_jax.training.tables import published
from dfine_jax.variants import VARIANTS


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize(
    ("options", "table"),
    [
        ({"start": "detector"}, "dfine_obj2coco"),
        ({"start": "backbone"}, "dfine_custom"),
        ({"start": "backbone", "method": "deim"}, "deim_coco"),
    ],
)
def test_the_table_is_kept_when_the_run_is_long(variant, options, table):
    config, notes = default_config(variant, 7, 400_000, accelerator=True, **options)
    row = published(table, variant)
    assert config.optim == row.optim and config.data == row.data and config.loss == row.loss
    assert config.model == dataclasses.replace(row.model, num_classes=7)
    assert dataclasses.replace(config.train, eval_batch_size=row.train.eval_batch_size) == row.train
    assert len(notes) == 1


def test_a_short_run_shortens_its_windows_and_says_so():
    config, notes = default_config("n", 3, 205, batch_size=8, epochs=40, size_px=(320, 320))
    total = 40 * 25
    assert config.optim.warmup_steps == config.optim.ema_warmup_steps == total // 10
    assert config.optim.ema_decay == config.optim.ema_restart_decay == 1 - 10 / total
    assert config.optim.ema_restart_step == pytest.approx(10 / total)
    assert config.optim.lr == pytest.approx(8e-4 / 4)
    assert config.data.stop_augment_epoch == config.train.stage2_epoch == 36
    assert (config.data.height_px, config.data.width_px) == (320, 320)
    for key in ("optim.lr", "optim.warmup_steps", "optim.ema_decay", "train.stage2_epoch", "model.precision"):
        assert any(note.startswith(f"{key} = ") for note in notes)


def test_a_short_deim_run_keeps_the_shares_of_its_phases():
    config, _ = default_config("s", 3, 800, method="deim", batch_size=8, epochs=33)
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
        config, _ = default_config(variant, 3, images, method=method, batch_size=batch, epochs=epochs)
        validate(config)
        steps = max(1, images // config.train.batch_size)
        schedule = make_schedule(config, steps)
        last = float(schedule(epochs * steps - 1))
        assert 0 <= last <= 1


def test_the_batch_size_that_was_given_is_kept():
    """The loader repeats images when there are fewer, and says so."""
    config, _ = default_config("n", 3, 5, batch_size=8)
    assert config.train.batch_size == 8
    config, _ = default_config("n", 3, 5)
    assert config.train.batch_size == 5
    config, _ = default_config("n", 3, 5, batch_multiple=2)
    assert config.train.batch_size == 4


def test_without_an_accelerator_there_is_one_input_size():
    assert default_config("s", 3, 100)[0].data.multi_scale_repeat == 0
    assert default_config("s", 3, 100, accelerator=True)[0].data.multi_scale_repeat == 20


def test_a_fresh_backbone_learns_whole_and_at_half_the_full_rate_at_least():
    fresh, notes = default_config("l", 3, 120_000)
    tuned, _ = default_config("l", 3, 120_000, start="backbone")
    assert fresh.optim.backbone_lr == fresh.optim.lr / 2
    assert tuned.optim.backbone_lr == 1.25e-5
    assert tuned.model.backbone_frozen_bn and not fresh.model.backbone_frozen_bn
    assert "model.backbone_frozen_bn = False (table: True)" in notes


def test_tiny_data_still_gives_a_run():
    config, _ = default_config("s", 1, 1, epochs=1)
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
