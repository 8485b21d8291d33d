"""Configurations for custom data: the reference's table for long runs, shortened windows for short ones."""

from __future__ import annotations

import pytest

from dfine_jax.errors import UserError
from dfine_jax.training.recipes import CUSTOM, default_config


@pytest.mark.parametrize("variant", list(CUSTOM))
def test_the_table_is_kept_when_the_run_is_long(variant):
    config, notes = default_config(variant, 7, 120_000, from_scratch=False)
    row = CUSTOM[variant]
    optim, train = config.optim, config.train
    assert (optim.lr, optim.backbone_lr, optim.weight_decay) == (row.lr, row.backbone_lr, row.weight_decay)
    assert (optim.warmup_steps, optim.ema_warmup_steps, optim.ema_decay) == (500, 1000, 0.9999)
    assert (train.batch_size, train.epochs) == (row.batch_size, row.epochs)
    assert config.data.stop_augment_epoch == row.stop_augment_epoch
    assert optim.decay_bias == (variant in "lx")
    assert config.model.num_classes == 7 and config.model.variant == variant
    assert len(notes) == 1


def test_a_short_run_shortens_its_windows_and_says_so():
    config, notes = default_config("n", 3, 205, batch_size=8, epochs=40, size_px=(320, 320))
    total = 40 * 25
    assert config.optim.warmup_steps == config.optim.ema_warmup_steps == total // 10
    assert config.optim.ema_decay == 1 - 10 / total
    assert config.optim.lr == pytest.approx(8e-4 / 4)
    assert config.data.stop_augment_epoch == 36
    assert (config.data.height_px, config.data.width_px) == (320, 320)
    for key in ("optim.lr", "optim.warmup_steps", "optim.ema_decay", "optim.ema_warmup_steps"):
        assert any(note.startswith(f"{key} = ") for note in notes)


def test_a_fresh_backbone_learns_at_half_the_full_rate_at_least():
    fresh, _ = default_config("l", 3, 120_000)
    tuned, _ = default_config("l", 3, 120_000, from_scratch=False)
    assert fresh.optim.backbone_lr == fresh.optim.lr / 2
    assert tuned.optim.backbone_lr == 1.25e-5


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
