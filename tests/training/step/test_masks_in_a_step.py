"""A family that trains on masks gets them from the loader to its terms, however a step is cut up."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from dfine_jax import families
from dfine_jax.data.load.batch import batch_layout
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.families.dfine.family import DFINE
from dfine_jax.training.report.examples import save_batch
from dfine_jax.training.run import skipped
from dfine_jax.training.run.setup import make_loaders
from dfine_jax.training.step.gradient import split_parts
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.state import create_state
from dfine_jax.training.step.step import make_train_step, replicated, split_over_devices

STRIDE = 8
FAST = {"xla_backend_optimization_level": 0}  # to compile


def covered(masks, has_mask):
    """Share of the picture that masks cover, mean over the images."""
    quarters = (masks * has_mask[..., None, None]).astype("float32").sum((-3, -2, -1))
    return quarters.mean() / (4 * np.prod(masks.shape[-2:]))


@pytest.fixture
def toy(monkeypatch):
    """D-FINE that compares what masks cover with the area of the boxes; what its functions saw of the masks."""
    seen = []

    def match(output, targets, queries, config):
        seen.append(targets.masks.shape)
        return DFINE.match(output, targets, queries, config)

    def terms(output, targets, queries, matching, norm, model, config):
        own = DFINE.terms(output, targets, queries, matching, norm, model, config)
        share = covered(targets.masks, targets.has_mask)
        area = output.boxes_cxcywh[..., 2:].prod(-1).mean()
        known = targets.has_mask.astype(jnp.float32).sum(-1).mean()
        return own | {"covered/final": share, "area/final": jnp.abs(area - share), "known/final": known}

    family = dataclasses.replace(DFINE, mask_stride=lambda model: STRIDE, match=match, terms=terms)
    monkeypatch.setattr(families, "named", lambda name: family)
    return seen


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=1, size_px=64, seed=2)
    return read_coco(*find_split(root, "train"))


def first_batch(dataset, **train):
    config = tiny_config(
        model={"num_classes": len(dataset.names)},
        loss={"assignment": "device"},
        train={"batch_size": 8, **train},
        data={"workers": 2, "augment": "dense", "start_augment_epoch": 0},
    )
    loader, _ = make_loaders(config, dataset, None)
    stream = loader.batches()
    batch = next(stream)
    stream.close()
    return config, batch


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_trains_on_masks(toy, dataset, accumulate):
    config, batch = first_batch(dataset, accumulate=accumulate)
    assert batch.masks.shape[2:] == (64 // STRIDE, 64 // STRIDE) and batch.masks.any() and batch.has_mask.any()
    tx = make_optimizer(config.model, config.optim)
    variables = DFINE.init(config.model, jax.random.key(0))
    state = replicated(create_state(variables, tx, jax.random.key(1)))
    split = split_over_devices(batch)
    state, metrics = make_train_step(config, tx).lower(state, split).compile(FAST)(state, split)
    assert metrics.finite
    rows = 8 // accumulate // jax.local_device_count()
    assert set(toy) == {(rows, *batch.masks.shape[1:])}
    np.testing.assert_allclose(metrics.terms["covered/final"], covered(batch.masks, batch.has_mask), rtol=1e-5)
    np.testing.assert_allclose(metrics.terms["known/final"], batch.has_mask.sum(1).mean(), rtol=1e-6)
    assert 0 < metrics.terms["area/final"] < 1


def test_masks_follow_the_size_of_the_input(toy, dataset):
    config, batch = first_batch(dataset)
    middle = np.zeros_like(batch.masks)
    middle[:, :, 2:6, 3:5] = 4
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


def test_batches_with_masks_are_kept_drawn_and_described(toy, dataset, tmp_path):
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


def test_families_of_today_train_no_masks(dataset):
    for family in families.every():
        assert all(family.mask_stride(model) is None for model in family.variants.values())
    _, batch = first_batch(dataset)
    assert batch.masks is None and batch.has_mask is None and len(jax.tree.leaves(batch)) == 4
