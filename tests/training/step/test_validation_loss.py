"""The loss of validation images: that of the training criterion, whatever the batches and the devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_batch, tiny_config, tiny_rtdetr, tiny_segmenter, with_masks

from dfine_jax.families import of
from dfine_jax.training.step.step import make_eval_step, predict_function, validate_function
from dfine_jax.training.step.validation_loss import BatchLoss, LossTotals, mean_terms


def of_all(validate, batches, fill=()):
    """Mean terms over batches; ``fill``: rows of each that only fill it up."""
    totals, empty = LossTotals(), batches[0].each(np.zeros_like)
    for i, batch in enumerate(batches):
        share = fill[i] / len(batch.images) if fill else 0.0
        totals.add(validate(batch)[1], validate(empty)[1] if share else None, share)
    return mean_terms(*totals.values())


@pytest.fixture(scope="module")
def plain():
    """Without draws, whose number depends on the batch; and the step, which finds and judges."""
    config = tiny_config(loss={"num_denoising": 0, "assignment": "device"})
    variables = of(config.model).init(config.model, jax.random.key(0))
    return config, variables, validate_function(make_eval_step(config, with_loss=True), variables)


def test_it_is_the_criterion_with_norms_held(plain):
    config, variables, validate = plain
    batch = random_batch(0, 1, 4, [2, 0, 3, 1]).each(lambda x: x[0])
    found, _ = validate(batch)
    terms = of_all(validate, [batch])
    from dfine_jax.losses import detection_loss
    from dfine_jax.nn.held_norms import held_norms
    from dfine_jax.typing import Targets

    family = of(config.model)
    from dfine_jax.families.family import Build

    network = family.build(config.model, Build())
    targets = Targets(jnp.asarray(batch.labels), jnp.asarray(batch.boxes_cxcywh), jnp.asarray(batch.valid))
    with held_norms((".*",)):
        output, _ = network.apply(variables, batch.images / np.float32(255), None, train=True, mutable=["batch_stats"])
    total, named = detection_loss(output, targets, config.loss, config.model)
    assert set(named) == set(terms) - {"loss"}
    assert terms["loss"] == pytest.approx(float(total), rel=1e-4)
    alone = predict_function(make_eval_step(config), variables)(batch.images)
    np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-4, atol=1e-6)


def test_batches_and_rows_that_fill_them_change_nothing(plain):
    *_, validate = plain
    images = random_batch(1, 1, 6, [2, 0, 3, 1, 0, 4]).each(lambda x: x[0])
    rows = lambda part: images.each(lambda x: x[part])  # noqa: E731
    padded = rows(slice(4, 6)).each(lambda x: np.concatenate([x, np.zeros_like(x)]))
    filled = of_all(validate, [rows(slice(0, 4)), padded], fill=(0, 2))
    # Class terms and boxes are sums over images divided by their objects; the others have counts of their own.
    every = [images.each(lambda x, i=i: np.concatenate([x[i : i + 1]] * 4)) for i in range(6)]
    single = of_all(validate, every)
    for name in filled:
        if name.split("/")[0] in ("vfl", "bbox", "giou") and name.endswith(("enc_0", "aux_0")):
            assert filled[name] == pytest.approx(single[name], rel=1e-3), name


def test_totals_are_weighted_by_objects():
    totals = LossTotals()
    totals.add(BatchLoss({"a/last": np.array([3.0])}, np.array([2.0])))
    totals.add(BatchLoss({"a/last": np.array([5.0])}, np.array([0.0])))  # of no object: not divided
    names, sums = totals.values()
    assert mean_terms(names, sums) == {"loss": 5.5, "a/last": 5.5}
    assert mean_terms(names, sums + sums) == {"loss": 5.5, "a/last": 5.5}  # two hosts of the same


@pytest.mark.parametrize(
    "make", [*(pytest.param(make, marks=pytest.mark.slow) for make in (tiny_config, tiny_rtdetr)), tiny_segmenter]
)
def test_every_family_has_the_terms_of_its_training(make):
    config = make(loss={"assignment": "device"})
    variables = of(config.model).init(config.model, jax.random.key(0))
    batch = random_batch(2, 1, 4, [1, 2, 0, 3])
    batch = with_masks(batch) if of(config.model).mask_stride(config.model) else batch
    validate = validate_function(make_eval_step(config, with_loss=True), variables)
    terms = of_all(validate, [batch.each(lambda x: x[0])])
    kinds = {name.split("/")[0] for name in terms} - {"loss"}
    assert kinds == set(of(config.model).kinds(config.model, config.loss))
    assert any("/dn_" in name for name in terms)  # what is drawn while training is drawn here, from one key
    assert all(np.isfinite(value) for value in terms.values())
    assert of_all(validate, [batch.each(lambda x: x[0])]) == terms
