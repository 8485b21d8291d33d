"""Training steps of RF-DETR against the reference: pairs, terms, gradients, and the step that trains."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from rfdetr_step import Step

from dfine_jax.data.load.batch import Batch
from dfine_jax.families.rfdetr.config import RFDetrLossConfig
from dfine_jax.families.rfdetr.loss import loss_terms, match
from dfine_jax.families.rfdetr.model import RFDetr
from dfine_jax.families.rfdetr.recipes import published
from dfine_jax.families.rfdetr.weights import official_keys
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.state import create_state
from dfine_jax.training.step.step import make_train_step, replicated
from dfine_jax.typing import Norm

LOSS = RFDetrLossConfig()


def flat(tree):
    return {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict({"params": tree}, sep="/").items()}


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["nano", "seg-nano"])
def test_pairs_terms_and_gradients_of_the_reference(golden, monkeypatch, variant):
    step = Step.read(golden, variant)
    step.with_its_tokens(monkeypatch)
    targets, points = step.targets, step.points
    apply: Callable[..., Any] = RFDetr(step.model).apply

    def loss(params):
        output = apply({"params": params}, step.images, None, train=True)
        found = match(output, targets, None, LOSS, points)
        norm = Norm(found.counts, found.counts)
        terms = loss_terms(output, targets, None, found, norm, step.model, LOSS, points)
        return sum(terms.values()), (found.pairs, terms)

    (total, (pairs, terms)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(step.variables["params"])
    np.testing.assert_array_equal(pairs, step.pairs)
    assert set(terms) == set(step.terms)
    errors = {name: abs(float(terms[name]) / want - 1) for name, want in step.terms.items()}
    worst = max(errors, key=errors.__getitem__)
    print(f"{variant}: total {total:.6f} ({step.info['total']:.6f}), worst term {worst} {errors[worst]:.1e}")
    assert abs(total / step.info["total"] - 1) < 1e-6 and errors[worst] < TERMS[variant]

    keys = official_keys(step.model)
    norms = {keys[path]: float(np.linalg.norm(leaf.astype(np.float64))) for path, leaf in flat(grads).items()}
    wanted = dict(zip(step.info["grad_norm_names"], step.arrays["grad_norms"], strict=True))
    wanted = {name: want for name, want in wanted.items() if np.isfinite(want)}  # the mask token has none
    assert not any(norms[name] for name in set(norms) - set(wanted)) and set(wanted) <= set(norms)
    floor = 1e-6 * step.info["total_grad_norm"]
    errors = {name: abs(norms[name] - want) / max(want, floor) for name, want in wanted.items()}
    worst = max(errors, key=errors.__getitem__)
    whole = float(np.linalg.norm(list(norms.values()))) / step.info["total_grad_norm"] - 1
    print(f"gradients: whole {whole:.1e}, median {np.median(list(errors.values())):.1e}, {worst} {errors[worst]:.1e}")
    assert abs(whole) < 1e-5 and np.median(list(errors.values())) < 2e-5 and errors[worst] < 1e-3


TERMS = {"nano": 1e-5, "seg-nano": 1e-4}


@pytest.mark.slow
def test_two_steps_as_they_train(golden, monkeypatch):
    """The first has the reference's terms and is AdamW's by its groups of parameters; the second is reproducible."""
    step = Step.read(golden, "nano")
    step.with_its_tokens(monkeypatch)
    config = published("rfdetr_coco", "nano")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, precision="float32"))
    assert (config.data.height_px, config.data.width_px) == (384, 384) and config.model == step.model
    tx = make_optimizer(config.model, config.optim)
    state = replicated(create_state(step.variables, tx, jax.random.key(0)))
    targets = step.targets
    batch = Batch(*(np.asarray(x) for x in (step.images, targets.labels, targets.boxes_cxcywh, targets.valid)))
    batch = batch.each(lambda array: array[None])
    train = make_train_step(config, tx, steps_per_epoch=10, devices=jax.devices()[:1])

    state, first = train(state, batch)
    for name, want in step.terms.items():
        np.testing.assert_allclose(first.terms[name], want, rtol=TERMS["nano"], err_msg=name)
    np.testing.assert_allclose(first.loss, step.info["total"], rtol=1e-6)
    np.testing.assert_allclose(first.grad_norm, step.info["total_grad_norm"], rtol=1e-5)

    groups = json.loads(golden("families/param_groups_rfdetr_nano.json").read_text())
    moments = next(part for part in state.opt_state if hasattr(part, "mu"))
    clipped = {path: mean / (1 - 0.9) for path, mean in flat(moments.mu).items()}
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in clipped.values()))
    np.testing.assert_allclose(norm, 0.1, rtol=1e-5)
    before, after = flat(step.variables["params"]), flat(state.params)
    for path, key in official_keys(step.model).items():
        rate, decay = groups[key] if key in groups else (0.0, 0.0)
        grad = clipped[path].astype(np.float64)
        want = before[path] * (1 - rate * decay) - rate * grad / (np.abs(grad) + 1e-8)
        apart = np.abs(after[path] - want).max()
        assert apart <= 1e-3 * rate + 1e-7 * np.abs(want).max(), f"{path}: {apart:.1e} at a rate of {rate:.1e}"

    again = dataclasses.replace(state, arrays=jax.tree.map(jnp.copy, state.arrays))
    _, second = train(state, batch)
    _, same = train(again, batch)
    print(f"losses {float(first.loss):.6f}, {float(second.loss):.6f}")
    assert second.finite and np.isfinite(second.loss) and second.loss < first.loss
    assert float(second.loss) == float(same.loss) and float(second.grad_norm) == float(same.grad_norm)
