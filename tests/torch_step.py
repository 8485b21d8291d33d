"""A training step whose network runs in PyTorch (transformers' D-FINE) and whose losses are ours.

The stored float32 steps of the reference were computed from channels-last images, where PyTorch's batch norm is noisy
enough to move logits by 1e-4. Repeating its arithmetic takes the noise out of the comparison: what is left is ours to
get right (losses, their gradients, the optimiser).
"""

from __future__ import annotations

import re

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import torch
from hf_models import build, from_official

from dfine_jax.families.dfine import huggingface
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.losses import detection_loss
from dfine_jax.ops.postprocess import Answer
from dfine_jax.typing import FDROutput, HeadOutput, ModelOutput, StageOutput, TrainingOutput


def golden_model(state):
    """The peer's model N with the weights of an official state dict, in training mode."""
    model = build("n", num_denoising=0)
    load(model, state)
    return model.train()


def load(model, state):
    """Writes official entries into the peer's model; the rest of it stays."""
    names = [n for n in model.state_dict() if not n.endswith(("num_batches_tracked", "denoising_class_embed.weight"))]
    values = from_official(state, names)
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in values.items()}, strict=False)


def assemble(heads, reference):
    """Our output from the peer's: layers follow the head before refinement along its second axis."""
    logits, boxes, corners = (jnp.swapaxes(x, 0, 1) for x in heads[:3])
    corners = corners.reshape(*corners.shape[:3], 4, 33)
    matching = StageOutput(logits[1:], boxes[1:], FDROutput(corners, reference, HeadOutput(logits[0], boxes[0])))
    index = jnp.zeros(logits.shape[1:3], jnp.int32)
    return ModelOutput(
        Answer(logits[-1], boxes[-1]), index, training=TrainingOutput(matching, HeadOutput(*heads[3:]), None)
    )


@jax.jit
def loss_and_cotangents(heads, reference, targets):
    """((total, terms), gradient of each head output)."""

    def loss(heads):
        return detection_loss(assemble(heads, reference), targets, LossConfig(), model_config("n"))

    return jax.value_and_grad(loss, has_aux=True)(heads)


def backward(model, images, targets):
    """Total loss, terms, and the gradient of every parameter under its official name."""
    out = model(pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2))
    heads = [
        out.intermediate_logits,
        out.intermediate_reference_points,
        out.intermediate_predicted_corners,
        out.enc_topk_logits,
        out.enc_topk_bboxes,
    ]
    reference = jnp.asarray(out.initial_reference_points[:, 0].detach().numpy())
    ours = [jnp.asarray(x.detach().numpy()) for x in heads]
    (total, terms), cotangents = loss_and_cotangents(ours, reference, targets)
    model.zero_grad()
    torch.autograd.backward(heads, [torch.from_numpy(np.array(x)) for x in cotangents])
    grads = {n: p.grad.numpy().copy() for n, p in model.named_parameters() if p.grad is not None}
    return float(total), {k: float(v) for k, v in terms.items()}, huggingface.to_official(grads)


def official_groups(model):
    """Parameter groups of the reference's N, by its expressions on official names (dfine_hgnetv2_n_coco.yml)."""
    patterns = {
        r"^(?=.*backbone)(?!.*norm|bn).*$": {"lr": 4e-4},
        r"^(?=.*backbone)(?=.*norm|bn).*$": {"lr": 4e-4, "weight_decay": 0.0},
        r"^(?=.*(?:encoder|decoder))(?=.*(?:norm|bn|bias)).*$": {"weight_decay": 0.0},
    }
    groups = {pattern: [] for pattern in (*patterns, "")}
    for name, parameter in model.named_parameters():
        key = huggingface.official_place(name).key
        groups[next(p for p in groups if re.findall(p, key))].append(parameter)
    return [{"params": members, **patterns.get(p, {})} for p, members in groups.items() if members]


def golden_images(seed):
    """A batch of the stored training steps."""
    return golden_weights.golden_image(256, 256, 4, seed=seed)
