"""The same weights in transformers' D-FINE: inference and forward passes with batch statistics, float32 and float64."""

from __future__ import annotations

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfine_jax.families.dfine.model import DFine
from dfine_jax.families.dfine.variants import model_config

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from hf_models import build, from_official  # noqa: E402

pytestmark = pytest.mark.parity
SHAPE = (2, 256, 256, 3)  # square: on other maps transformers orders the position embedding unlike the reference


def peer(golden, variant: str, dtype):
    """transformers' model with the weights of the reference numbers, and our variables of the same."""
    state = golden_weights.golden_state_dict(golden, variant)
    model = build(variant, num_denoising=0)
    left = ("num_batches_tracked", "denoising_class_embed.weight")  # the peer without denoising has one row less
    values = from_official(state, [n for n in model.state_dict() if not n.endswith(left)])
    values = {k: torch.from_numpy(np.array(v)) for k, v in values.items()}
    report = model.load_state_dict(values, strict=False)
    assert not report.unexpected_keys and all(n.endswith(left) for n in report.missing_keys)
    variables = golden_weights.variables_from_state_dict(state, dtype)
    return model.to(torch.float64 if dtype == np.float64 else torch.float32), variables


def both(golden, variant: str, dtype, train: bool):
    """Outputs of the peer (tensors) and ours on one batch."""
    model, variables = peer(golden, variant, dtype)
    images = golden_weights.golden_image(*SHAPE[1:3], SHAPE[0]).astype(dtype)
    model.train(train)
    with torch.no_grad():
        theirs = model(pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    net = DFine(model_config(variant))
    mutable = ["batch_stats"] if train else False
    ours = jax.jit(lambda v, x: net.apply(v, x, train=train, mutable=mutable))(variables, images)
    return theirs, ours[0] if train else ours


def nearest_errors(ours, theirs) -> dict[str, float]:
    """Largest differences of logits and boxes, each of our queries against the peer's nearest one."""
    logits, boxes = np.asarray(ours.logits), np.asarray(ours.boxes_cxcywh)
    want_logits, want_boxes = theirs.logits.numpy(), theirs.pred_boxes.numpy()
    errors = {"logits": 0.0, "boxes": 0.0}
    for i in range(len(logits)):
        distance = np.stack([np.abs(row - want_logits[i]).max(-1) for row in logits[i]])
        partner = distance.argmin(1)
        assert len(set(partner)) == len(partner)
        errors["logits"] = max(errors["logits"], distance.min(1).max())
        errors["boxes"] = max(errors["boxes"], np.abs(boxes[i] - want_boxes[i][partner]).max())
    return errors


# Limits on logits and boxes. Measured: n 5.9e-5, 1.9e-6; n float64 with batch statistics 1.8e-7, 1.1e-8.
CASES = [
    pytest.param("n", np.float32, False, 3.5e-4, 7.5e-6),
    pytest.param("n", np.float64, True, 1e-5, 1e-6, marks=pytest.mark.slow),
    pytest.param("l", np.float32, False, 1.5e-1, 7e-4, marks=pytest.mark.slow),
    pytest.param("l", np.float64, False, 1e-5, 1e-6, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("variant", "dtype", "train", "logits", "boxes"), CASES)
def test_same_weights_same_outputs(golden, variant, dtype, train, logits, boxes):
    with jax.enable_x64(dtype == np.float64):
        theirs, ours = both(golden, variant, dtype, train)
        assert ours.logits.dtype == jnp.dtype(dtype)
    errors = nearest_errors(ours, theirs)
    print(variant, np.dtype(dtype).name, "train" if train else "eval", {k: f"{v:.1e}" for k, v in errors.items()})
    assert errors["logits"] <= logits and errors["boxes"] <= boxes
