"""Six optimiser steps of the reference: losses, gradient norms, parameters and their average."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from golden_train import golden_targets
from golden_weights import golden_image, golden_state_dict, variables_from_state_dict

from dfine_jax.config import Config, LossConfig, OptimConfig
from dfine_jax.training.optimizer import make_optimizer
from dfine_jax.training.state import create_state
from dfine_jax.training.step import make_train_step
from dfine_jax.typing import Batch
from dfine_jax.variants import model_config

PATHS = {
    "backbone.stem.stem1.conv.weight": "backbone/stem/stem1/conv/kernel",
    "encoder.input_proj.0.conv.weight": "encoder/input_proj_0/conv/kernel",
    "decoder.dec_score_head.0.weight": "decoder/dec_score_head_0/kernel",
    "decoder.dec_bbox_head.0.layers.2.weight": "decoder/dec_bbox_head_0/layers_2/kernel",
}


def first_values(params, path, count):
    """The first entries of a parameter in the official layout's order."""
    leaf = np.asarray(traverse_util.flatten_dict(params, sep="/")[path])
    return (leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T).ravel()[:count]


def test_six_steps_of_the_reference(golden_dir):
    golden = np.load(golden_dir / "trajectory_n.npz")
    config = Config(
        model=model_config("n"),
        loss=LossConfig(num_denoising=0),
        optim=OptimConfig(lr=8e-4, backbone_lr=4e-4, weight_decay=1e-4, warmup_steps=0),
    )
    tx = make_optimizer(config.model, config.optim)
    variables = jax.tree.map(jnp.asarray, variables_from_state_dict(golden_state_dict(golden_dir, "n")))
    state = create_state(variables, tx, jax.random.key(0))
    step = make_train_step(config, tx)
    targets = golden_targets(np.load(golden_dir / "train_n_dn0.npz"))
    labelled = [np.asarray(x)[None] for x in (targets.labels, targets.boxes_cxcywh, targets.valid)]
    for index in range(6):
        images = golden_image(golden_dir, 256, 256, 4, 50 + index % 3)
        state, metrics = step(state, Batch(images[None], *labelled))
        assert bool(metrics.finite)
        # measured: 3e-6 and 1e-5 at worst
        np.testing.assert_allclose(metrics.loss, golden["loss"][index], rtol=1e-3)
        np.testing.assert_allclose(metrics.grad_norm, golden["grad_norm"][index], rtol=1e-3)
    for official, path in PATHS.items():
        start = first_values(variables["params"], path, 256)
        for name, params in (("param", state.params), ("ema", state.ema_params)):
            expected = golden[f"{name}:{official}"]
            found = first_values(params, path, expected.size)
            # the distance moved is about 6 x lr; Adam turns noise in tiny gradients into steps of full length
            moved = np.abs(expected - start[: expected.size]).max()
            assert np.abs(found - expected).mean() < 0.02 * moved, (name, official)
    assert int(state.step) == 6
