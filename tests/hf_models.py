"""transformers' D-FINE in the sizes of the published variants, with random weights and statistics."""

import sys

import numpy as np
from conftest import ROOT

from dfine_jax.families.dfine.huggingface import official_place
from dfine_jax.families.dfine.variants import model_config

sys.path.insert(0, str(ROOT))
from benchmarks.peers import transformers_config  # noqa: E402


def build(variant, num_classes=80, seed=0, **changes):
    """A model in evaluation mode."""
    import torch
    from transformers import DFineForObjectDetection

    config = transformers_config(model_config(variant, num_classes=num_classes), **changes)
    model = DFineForObjectDetection(config)
    rng = np.random.default_rng(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or name.endswith(("reg_scale", "up", "num_points_scale")):
            continue
        shape = tuple(tensor.shape)
        if tensor.ndim > 1:
            value = rng.standard_normal(shape) * np.sqrt(1.5 / np.prod(shape[1:]))
        elif name.endswith(("running_var", "weight", "scale")):
            value = rng.uniform(0.8, 1.2, shape)
        else:
            value = 0.1 * rng.standard_normal(shape)
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(value))
    return model.eval()


def from_official(tensors, names):
    """Values for the given Hugging Face names from an official state dict."""
    places = {name: official_place(name) for name in names}
    thirds = {name: np.split(tensors[place.key], 3) for name, place in places.items() if place.part is not None}
    return {name: thirds[name][place.part] if name in thirds else tensors[place.key] for name, place in places.items()}
