"""Masks from the loader to the terms of a step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config, tiny_segmenter

from dfine_jax import families
from dfine_jax.data.load.batch import batch_layout
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.families.dfine.family import DFINE
from dfine_jax.families.family import Build
from dfine_jax.losses import detection_loss
from dfine_jax.training.report.examples import save_batch
from dfine_jax.training.run import skipped
from dfine_jax.training.run.setup import make_loaders
from dfine_jax.training.step.gradient import split_parts
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.state import create_state
from dfine_jax.training.step.step import make_train_step, replicated, split_over_devices

STRIDE = 4
FAST = {"xla_backend_optimization_level": 0}  # to compile


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=1, size_px=64, seed=2)
    return read_coco(*find_split(root, "train"))


def first_batch(dataset, tiny=tiny_segmenter):
    config = tiny(
        model={"num_classes": len(dataset.names)},
        loss={"assignment": "device"},
        train={"batch_size": 8},
        data={"workers": 2, "augment": "dense", "start_augment_epoch": 0},
    )
    loader, _ = make_loaders(config, dataset, None)
    stream = loader.batches()
    batch = next(stream)
    stream.close()
    return config, batch


@pytest.mark.slow
def test_steps_on_masks_make_them_better(dataset):
    config, batch = first_batch(dataset)
    assert batch.masks.shape[2:] == (64 // STRIDE, 64 // STRIDE) and batch.masks.any() and batch.has_mask.any()
    tx = make_optimizer(config.model, config.optim)
    state = replicated(create_state(DFINE.init(config.model, jax.random.key(0)), tx, jax.random.key(1)))
    split = split_over_devices(batch)
    program = make_train_step(config, tx).lower(state, split).compile(FAST)
    seen = []
    for _ in range(30):
        state, metrics = program(state, split)
        assert metrics.finite and {name.split("/")[0] for name in metrics.terms} == set(
            DFINE.kinds(config.model, config.loss)
        )
        seen.append(float(metrics.terms["mask_bce/last"] + metrics.terms["mask_dice/last"]))
    assert seen[-1] < 0.9 * seen[0]


def test_objects_without_masks_train_boxes_alone(dataset):
    config, batch = first_batch(dataset)
    model = DFINE.build(config.model, Build())
    variables = DFINE.init(config.model, jax.random.key(0))
    queries = None

    def named(masks, has_mask):
        part = split_parts(batch._replace(masks=masks, has_mask=has_mask), jax.random.key(0), config, None, jnp.float32)
        images, targets = part.images[0], jax.tree.map(lambda x: x[0], part.targets)
        output, _ = model.apply(variables, images, queries, train=True, mutable=["batch_stats"])
        return detection_loss(output, targets, config.loss, config.model, queries)[1]

    named = jax.jit(named)
    boxes = named(np.zeros_like(batch.masks), np.zeros_like(batch.has_mask))
    masks = named(batch.masks, batch.has_mask)
    assert all(float(term) == 0 for name, term in boxes.items() if name.startswith("mask_"))
    assert all(float(term) > 0 for name, term in masks.items() if name.startswith("mask_"))
    first = np.arange(batch.valid.shape[1]) == 0
    mixed = named(batch.masks * first[:, None, None], batch.has_mask & first)
    assert all(np.isfinite(float(term)) for term in mixed.values())
    assert float(mixed["mask_bce/last"]) not in (0.0, float(masks["mask_bce/last"]))


@pytest.mark.slow
def test_masks_follow_the_size_of_the_input(dataset):
    config, batch = first_batch(dataset)
    middle = np.zeros_like(batch.masks)
    middle[:, :, 4:12, 6:10] = 4
    for height, width in ((96, 64), (32, 96), (64, 128)):
        part, plain = (
            split_parts(b, jax.random.key(0), config, (height, width), jnp.float32)
            for b in (batch._replace(masks=middle), batch)
        )
        masks = np.asarray(part.targets.masks[0])
        assert masks.dtype == np.uint8 and masks.shape[2:] == (height // STRIDE, width // STRIDE)
        np.testing.assert_array_equal(masks, masks[:, :, ::-1, ::-1])  # what is in the middle stays there
        np.testing.assert_allclose(masks.mean((2, 3)), middle.mean((2, 3)), rtol=0.2)
        resized = np.asarray(plain.targets.masks[0], np.float32)
        assert resized.max() == 4 and not resized[~batch.valid].any()
        np.testing.assert_allclose(resized.mean((2, 3)), batch.masks.mean((2, 3)), atol=0.25)
    same = split_parts(batch, jax.random.key(0), config, None, jnp.float32).targets
    np.testing.assert_array_equal(same.masks[0], batch.masks)
    np.testing.assert_array_equal(same.has_mask[0], batch.has_mask)


def test_batches_with_masks_are_kept_drawn_and_described(dataset, tmp_path):
    config, batch = first_batch(dataset)
    split = batch.each(lambda array: array.reshape(2, 4, *array.shape[1:]))
    file = skipped.keep_batch(tmp_path, 3, (64, 64), split)
    again, step, size_px = skipped.load_batch(file)
    assert (step, size_px) == (3, (64, 64))
    for ours, theirs in zip(again, batch, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    layout = batch_layout(8, 64, 64, batch.labels.shape[1], STRIDE)
    assert layout == tuple((array.shape, array.dtype.name) for array in batch)
    save_batch(batch, dataset.names, tmp_path / "with.png")
    save_batch(batch._replace(masks=None, has_mask=None), dataset.names, tmp_path / "without.png")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


def test_detectors_get_no_masks(dataset):
    for family in families.every():
        detectors = (model for name, model in family.variants.items() if "seg" not in name)
        assert all(family.mask_stride(model) is None for model in detectors)
    _, batch = first_batch(dataset, tiny_config)
    assert batch.masks is None and batch.has_mask is None and len(jax.tree.leaves(batch)) == 4
