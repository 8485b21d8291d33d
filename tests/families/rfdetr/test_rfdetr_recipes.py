"""The published recipe, and which rows class heads have."""

from __future__ import annotations

import dataclasses

import pytest

from dfine_jax.data.read.coco_names import COCO_NAMES
from dfine_jax.errors import UserError
from dfine_jax.families.rfdetr.config import check
from dfine_jax.families.rfdetr.recipes import TABLES, published, recipe, with_classes
from dfine_jax.families.rfdetr.variants import SIZES, VARIANTS


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("variant", list(SIZES))
def test_defaults_of_the_package(table, variant):
    config = published(table, variant)
    check(config.model, config.loss)
    optim, data, train = config.optim, config.data, config.train
    assert (optim.lr, optim.backbone_lr, optim.layer_decay, optim.component_decay) == (1e-4, 1.5e-4, 0.8, 0.7)
    assert (optim.weight_decay, optim.clip_norm, optim.beta1, optim.beta2) == (1e-4, 0.1, 0.9, 0.999)
    assert (optim.schedule, optim.drop_epoch, optim.min_lr_ratio, optim.warmup_steps) == ("drop", 100, 0.1, 0)
    assert (optim.ema_decay, optim.ema_warmup_steps, optim.ema_first) == (0.993, 100, "copy")
    assert (train.epochs, train.batch_size, train.stage2_epoch) == (100, 16, 0)
    off = {name: getattr(data, name) for name in vars(data) if name.endswith("_prob") and not name.startswith("m")}
    assert off.pop("flip_prob") == off.pop("square_crop_prob") == 0.5 and not any(off.values())
    assert (data.square_crop_short_px, data.square_crop_px) == ((400, 500, 600), (384, 600))
    assert (data.augment, data.start_augment_epoch, data.stop_augment_epoch) == ("standard", 0, 100)
    assert data.multi_scale_repeat == 1 and data.height_px == data.width_px == SIZES[variant].size_px
    assert config.model.num_logits == (91 if table == "rfdetr_coco" else 81)
    assert dataclasses.replace(config.model, precision="float32", head_rows="spare") == VARIANTS[variant]


@pytest.mark.parametrize(
    ("variant", "task", "trained"),
    [("nano", "detect", "nano"), ("nano", "segment", "seg-nano"), ("seg-nano", "detect", "nano"),
     ("base", "segment", "seg-medium"), ("seg-2xlarge", "segment", "seg-2xlarge")],
)  # fmt: skip
def test_the_task_decides_the_variant_and_its_size(variant, task, trained):
    name, config = recipe(variant, "nothing", "rfdetr", task)
    assert name == "rfdetr_custom" and config.model.variant == trained
    assert config.data.height_px == SIZES[trained].size_px


def test_unknown_recipes_name_the_known_ones():
    with pytest.raises(UserError, match="rfdetr_coco and rfdetr_custom"):
        published("rfdetr_voc", "nano")


def test_rows_of_coco_ids_stay_for_coco_alone():
    coco = published("rfdetr_coco", "nano").model
    assert with_classes(coco, 80, COCO_NAMES) == coco and coco.num_logits == 91
    for names in (None, tuple(reversed(COCO_NAMES)), tuple(map(str, range(80)))):
        assert with_classes(coco, 80, names).num_logits == 81
    assert with_classes(coco, 3, ("a", "b", "c")).num_logits == 4
    assert with_classes(VARIANTS["nano"], 80, COCO_NAMES).num_logits == 81
