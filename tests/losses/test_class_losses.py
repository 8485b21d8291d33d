"""MAL and focal loss: worked values, PyTorch's formula, rows that do not exist (the reference's: test_criterion)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_train import pad_targets
from test_criterion import random_output, random_targets

from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.losses import detection_loss, terms

# Logit, overlap with the object (None: background), MAL, its derivative, VFL (reference code, gamma 1.5; 0.75 and 2).
WORKED = [
    (0.0, 0.05, 0.693147, 0.488820, 0.034657),
    (0.0, 0.95, 0.693147, -0.425945, 0.658490),
    (2.0, 0.05, 2.104567, 0.869617, 0.101346),
    (2.0, 0.50, 1.419821, 0.527244, 0.563464),
    (-2.0, 0.50, 0.834035, -0.234350, 0.563464),
    (0.0, None, 0.245065, 0.176777, 0.129965),
    (2.0, None, 1.758193, 0.728098, 1.237559),
]


@pytest.mark.parametrize(("logit", "overlap", "mal", "derivative", "vfl"), WORKED)
def test_worked_values(logit, overlap, mal, derivative, vfl):
    targets = pad_targets([[0]], [[[0.5, 0.5, 0.4, 0.4]]])
    match = jnp.array([[-1 if overlap is None else 0]])
    truth = terms.gather_truth(targets, match)
    box = jnp.array([[[0.5, 0.5, 0.4 * (overlap or 1.0), 0.4]]])  # inside the object
    value, slope = jax.value_and_grad(lambda x: terms.mal_loss(x, box, truth, 1.0))(jnp.full((1, 1, 1), logit))
    np.testing.assert_allclose([value, slope[0, 0, 0]], [mal, derivative], atol=2e-6)
    np.testing.assert_allclose(terms.vfl_loss(jnp.full((1, 1, 1), logit), box, truth, 1.0), vfl, atol=2e-6)


def test_focal_loss_is_the_published_formula():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 2, 6, 5)).astype(np.float32)
    targets = pad_targets([[1, 4], [0]], [rng.uniform(0.2, 0.6, (2, 4)), rng.uniform(0.2, 0.6, (1, 4))])
    match = np.array([[0, -1, 1, -1, 1, -1], [-1, 0, -1, -1, -1, -1]])
    truth = terms.gather_truth(targets, jnp.asarray(match))
    x = torch.tensor(logits, requires_grad=True)
    one_hot = torch.zeros(2, 6, 5)
    for b, q in np.argwhere(match >= 0):
        one_hot[b, q, int(targets.labels[b, match[b, q]])] = 1.0
    p = x.sigmoid()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(x, one_hot.expand_as(x), reduction="none")
    p_t, alpha_t = p * one_hot + (1 - p) * (1 - one_hot), 0.75 * one_hot + 0.25 * (1 - one_hot)
    expected = (alpha_t * (1 - p_t) ** 2 * entropy).sum((1, 2, 3)) / 3
    expected.sum().backward()
    np.testing.assert_allclose(terms.focal_loss(logits, truth, 3.0), expected.detach(), rtol=1e-5)
    grads = jax.grad(lambda x: terms.focal_loss(x, truth, 3.0).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(grads, x.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["mal", "focal"])
def test_rows_that_do_not_exist_change_nothing(kind):
    output, targets = random_output(batch=2, queries=12), random_targets([3, 0], 4)
    truth = terms.gather_truth(targets, jnp.full((2, 12), -1).at[0, :3].set(jnp.arange(3)))
    exists = jnp.arange(12) < 8
    logits = output.logits.at[:, 8:].set(jnp.nan)

    def loss(x):
        if kind == "focal":
            return terms.focal_loss(x, truth, 2.0, exists=exists)
        return terms.mal_loss(x, output.boxes_cxcywh, truth, 2.0, exists=exists)

    value, grads = jax.value_and_grad(loss)(logits)
    short = terms.gather_truth(targets, jnp.full((2, 8), -1).at[0, :3].set(jnp.arange(3)))
    if kind == "focal":
        expected = terms.focal_loss(logits[:, :8], short, 2.0)
    else:
        expected = terms.mal_loss(logits[:, :8], output.boxes_cxcywh[:, :8], short, 2.0)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.isfinite(grads).all() and not np.any(grads[:, 8:])


@pytest.mark.parametrize("kind", ["vfl", "mal", "focal"])
def test_the_criterion_takes_the_configured_loss(kind):
    loss = lambda output, targets: detection_loss(  # noqa: E731
        output, targets, LossConfig(class_loss=kind), model_config("n")
    )
    terms = jax.eval_shape(loss, random_output(), random_targets([3, 1], 4))[1]
    names = {name for name in terms if name.split("/")[0] in ("vfl", "mal", "focal")}
    assert names == {f"{kind}/{where}" for where in ("last", "aux_0", "aux_1", "pre", "enc_0")}
