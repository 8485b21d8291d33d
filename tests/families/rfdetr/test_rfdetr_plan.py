"""What is derived from RF-DETR's recipe for data of one's own, and its experiment files."""

from __future__ import annotations

import runpy

import pytest
from conftest import ROOT

from dfine_jax.errors import UserError
from dfine_jax.families import validate
from dfine_jax.families.rfdetr.recipes import published
from dfine_jax.families.rfdetr.variants import SIZES
from dfine_jax.training.plan.plan_text import plan_lines
from dfine_jax.training.plan.recipes import default_config
from dfine_jax.training.step.schedule import make_schedule


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_data_of_ones_own_gets_the_table_fitted_to_it(task):
    """Rates by the root of the batch, the drop at the end of the run, the size of the variant for the task."""
    recipe = default_config("rfdetr-nano", 3, 2000, start="detector", task=task)
    config = recipe.config
    validate(config)
    assert (config.model.num_classes, config.model.num_logits, config.model.precision) == (3, 4, "float32")
    assert config.data.height_px == (384 if task == "detect" else 312) and config.data.multi_scale_repeat == 0
    assert config.train.batch_size == 8 and config.train.epochs == 100 == config.optim.drop_epoch
    assert config.optim.lr == pytest.approx(1e-4 / 2**0.5)
    assert config.optim.backbone_lr == pytest.approx(1.5e-4 / 2**0.5) and config.optim.layer_decay == 0.8
    assert config.optim.ema_decay == pytest.approx(1 - 0.007 / 2) and config.optim.ema_warmup_steps == 200
    text = "\n".join(plan_lines(recipe))
    for part in ("optim.layer_decay=0.8", "optim.component_decay=0.7", "optim.schedule=drop", "optim.drop_epoch=100"):
        assert part in text
    assert f"task:         {task}" in text


def test_on_an_accelerator_the_table_stands():
    config = default_config("rfdetr-medium", 3, 118_287, start="backbone", accelerator=True).config
    assert (config.train.batch_size, config.train.epochs, config.data.multi_scale_repeat) == (16, 100, 1)
    assert config.optim == published("rfdetr_custom", "medium").optim and config.model.precision == "bfloat16"
    assert (config.data.height_px, config.data.stop_augment_epoch) == (576, 100)


def test_from_nothing_all_layers_learn_alike():
    optim = default_config("rfdetr-nano", 3, 118_287, batch_size=16).config.optim
    assert (optim.backbone_lr, optim.layer_decay, optim.component_decay) == (1.5e-4, 1.0, 1.0)


def test_shorter_runs_drop_where_they_end():
    config = default_config("rfdetr-nano", 3, 118_287, start="backbone", epochs=12).config
    assert config.optim.drop_epoch == config.data.stop_augment_epoch == 12


def test_sizes_that_do_not_fit_are_told_with_ones_that_do():
    with pytest.raises(UserError, match="input size 640x400 must be multiples of 32, for example 640x384"):
        default_config("rfdetr-nano", 3, 100, size_px=(640, 400))
    with pytest.raises(UserError, match="multiples of 56, for example 616x616"):
        default_config("rfdetr-base", 3, 100, size_px=(640, 640))


@pytest.mark.parametrize("file", ["rfdetr_coco", "rfdetr_custom"])
def test_experiments_are_the_tables(file):
    get_config = runpy.run_path(str(ROOT / "experiments" / f"{file}.py"))["get_config"]
    for variant in SIZES:
        config = get_config(variant)
        assert config == published(file, variant)
        validate(config)
        make_schedule(config, 100)
