"""The reference's float32 training steps, reproduced with its own arithmetic (see ``torch_step``).

Our own forward and backward pass is compared in float64, tests/losses/test_golden_training.py; here the losses, their
gradients, the optimiser and the averaging meet the stored numbers to rounding.
"""

from __future__ import annotations

import json

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from golden_train import golden_targets

from converters import torch_weights
from dfine_jax.config import OptimConfig
from dfine_jax.training.optimizer import clip_coefficient, make_optimizer
from dfine_jax.variants import model_config

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch_step  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def state(golden):
    return golden_weights.golden_state_dict(golden, "n")


def test_losses_and_gradient_norms(golden, state):
    arrays = dict(np.load(golden("step_n_dn0.npz")))
    want = json.loads(golden("step_n_dn0.json").read_text())
    model = torch_step.golden_model(state)
    images = torch_step.golden_images(50)
    total, terms, grads = torch_step.backward(model, images, golden_targets(arrays, 15))
    np.testing.assert_allclose(total, want["total"], rtol=1e-6)
    assert set(terms) == set(want["losses"])
    for key, value in want["losses"].items():
        np.testing.assert_allclose(terms[key], value, rtol=1e-4, err_msg=key)
    norms = dict(zip(want["grad_names"], arrays["grad_norms"], strict=True))
    # Scales and biases in front of a batch norm have no true gradient: theirs is rounding, below 1e-5.
    errors = {k: abs(np.linalg.norm(grads[k]) - w) / max(w, 1e-3) for k, w in norms.items()}
    worst = max(errors, key=errors.get)
    print(f"median {np.median(list(errors.values())):.1e}, worst {errors[worst]:.1e} ({worst})")
    assert np.median(list(errors.values())) < 1e-5
    assert errors[worst] < 5e-3


def test_two_optimiser_steps(golden, state):
    """Stored six-step trajectory, as far as its float32 arithmetic repeats on another processor.

    From the third step on, rounding decides which way Adam sends vanishing gradients: the bound is then that of the
    noise. Six steps without that noise are in test_trajectory.py.
    """
    stored = np.load(golden("trajectory_n.npz"))
    config = model_config("n")
    optim = OptimConfig(lr=8e-4, backbone_lr=4e-4, weight_decay=1e-4, warmup_steps=0)
    tx = make_optimizer(config, optim)
    variables = golden_weights.variables_from_state_dict(state)
    params = variables["params"]
    opt_state = tx.init(jax.tree.map(jnp.asarray, params))
    targets = golden_targets(np.load(golden("step_n_dn0.npz")))
    model = torch_step.golden_model(state)
    errors = []
    for index in range(3):
        total, _, official = torch_step.backward(model, torch_step.golden_images(50 + index), targets)
        found = traverse_util.flatten_dict(golden_weights.variables_from_state_dict(official)["params"])
        grads = traverse_util.unflatten_dict(
            {path: found.get(path, np.zeros_like(leaf)) for path, leaf in traverse_util.flatten_dict(params).items()}
        )
        norm = optax.tree.norm(grads)
        errors.append((abs(total / stored["loss"][index] - 1), abs(norm / stored["grad_norm"][index] - 1)))
        coefficient = clip_coefficient(norm, optim.clip_norm)
        updates, opt_state = tx.update(jax.tree.map(lambda g, c=coefficient: g * c, grads), opt_state, params)
        params = optax.apply_updates(params, updates)
        exported = torch_weights.export_state_dict(config, {**variables, "params": params})
        torch_step.load(model, {**state, **exported})
    print("relative errors of loss and gradient norm:", *(f"{x:.1e} {y:.1e}" for x, y in errors))
    assert errors[0][0] < 1e-6 and errors[0][1] < 1e-5
    assert errors[1][0] < 1e-5 and errors[1][1] < 1e-2
    assert errors[2][0] < 2e-2
