"""The same weights in transformers' RT-DETRv2: inference and training losses on squares, folders in both directions."""

from __future__ import annotations

import dataclasses

import golden_fill
import jax
import numpy as np
import pytest
from golden_train import pad_targets, reference_names

from dfine_jax.families.rtdetr import huggingface, weights
from dfine_jax.families.rtdetr.config import RTDetrLossConfig
from dfine_jax.families.rtdetr.loss import loss_terms, match
from dfine_jax.families.rtdetr.model import RTDetr
from dfine_jax.families.rtdetr.variants import VARIANTS
from dfine_jax.typing import Norm

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.parity
NAMES = [f"kind {i}" for i in range(80)]
LABELS = [[3, 17, 79], [5], []]
BOXES = [
    [[0.5, 0.5, 0.4, 0.6], [0.25, 0.3, 0.2, 0.2], [0.8, 0.75, 0.1, 0.3]],
    [[0.1, 0.1, 0.15, 0.12]],
    [],
]


def peer(config, dtype, **changes):
    """transformers' model with random weights, in evaluation mode."""
    from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection

    settings = huggingface.settings(config, NAMES)
    model = RTDetrV2ForObjectDetection(RTDetrV2Config.from_dict({**settings, "num_denoising": 0, **changes}))
    stream = np.random.default_rng(0)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or name.endswith("n_points_scale"):
            continue
        shape = tuple(tensor.shape)
        if tensor.ndim > 1:
            gain = 0.3 if "embed" in name or "enc_" in name else 1.5
            value = stream.standard_normal(shape) * np.sqrt(gain / np.prod(shape[1:]))
        elif name.endswith(("running_var", "weight")):
            value = stream.uniform(0.8, 1.2, shape)
        else:
            value = 0.1 * stream.standard_normal(shape)
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(value))
    return model.to(torch.float64 if dtype == np.float64 else torch.float32).eval()


def ours(model):
    """Architecture and variables of the peer."""
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    form = next(form for form in weights.FORMATS if form.name == "huggingface")
    config = form.recognise(tensors, model.config.to_dict())
    assert config is not None
    tensors.setdefault("model.denoising_class_embed.weight", np.zeros((81, 256), np.float32))
    if len(tensors["model.denoising_class_embed.weight"]) == 80:  # without denoising the peer has one row less
        table = tensors["model.denoising_class_embed.weight"]
        tensors["model.denoising_class_embed.weight"] = np.concatenate([table, np.zeros_like(table[:1])])
    return form.read(tensors, config)


def nearest_errors(output, theirs):
    """Largest differences of logits and boxes, each of our queries against the peer's nearest one."""
    logits, boxes = np.asarray(output.logits), np.asarray(output.boxes_cxcywh)
    want_logits, want_boxes = theirs.logits.detach().numpy(), theirs.pred_boxes.detach().numpy()
    worst = [0.0, 0.0]
    for i in range(len(logits)):
        distance = np.stack([np.abs(row - want_logits[i]).max(-1) for row in logits[i]])
        partner = distance.argmin(1)
        assert len(set(partner)) == len(partner)
        worst[0] = max(worst[0], distance.min(1).max())
        worst[1] = max(worst[1], np.abs(boxes[i] - want_boxes[i][partner]).max())
    return worst


CASES = [
    pytest.param("r18", np.float32, {}, 1e-4, 1e-5),  # measured 3.1e-6, 3.6e-7
    *(  # measured at most 7.3e-8, 3.0e-8
        pytest.param(variant, np.float64, {}, 1e-6, 1e-6, marks=pytest.mark.slow)
        for variant in ("r18", "r34", "r50", "r101")
    ),
    pytest.param("r18", np.float64, {"decoder_method": "discrete"}, 1e-6, 1e-6, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("variant", "dtype", "changes", "logit_limit", "box_limit"), CASES)
def test_inference(variant, dtype, changes, logit_limit, box_limit):
    model = peer(VARIANTS[variant], dtype, **changes)
    images = golden_fill.image(256, 256, 2, seed=3).astype(dtype)
    with torch.no_grad():
        theirs = model(pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    config, variables = ours(model)
    assert config.sampling == ("discrete" if changes else "bilinear") and config.position_order == "row_major"
    with jax.enable_x64(dtype == np.float64):
        variables = jax.tree.map(lambda x: x.astype(dtype), variables)
        network = RTDetr(config)
        output = jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, images)
        assert output.logits.dtype == dtype
        logits, boxes = nearest_errors(output, theirs)
    print(f"{variant} {np.dtype(dtype).name} {changes}: logits {logits:.1e}, boxes {boxes:.1e}")
    assert logits < logit_limit and boxes < box_limit


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["r18", "r50", "r101"])
def test_training_losses(variant):
    """Float64, batch statistics where they are trained, without denoising queries.

    Gradients differ: transformers' boxes do not look forward twice. Those of the reference are in test_rtdetr_loss.py.
    """
    model = peer(VARIANTS[variant], np.float64).train()
    images = golden_fill.image(256, 256, 3, seed=4).astype(np.float64)
    labels = [
        {"class_labels": torch.tensor(k, dtype=torch.int64), "boxes": torch.tensor(b, dtype=torch.float64).view(-1, 4)}
        for k, b in zip(LABELS, BOXES, strict=True)
    ]
    config, variables = ours(model)
    with torch.no_grad():
        theirs = model(pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), labels=labels)
    config = dataclasses.replace(config, backbone_frozen_bn=VARIANTS[variant].backbone_frozen_bn)
    loss = RTDetrLossConfig(num_denoising=0)
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda x: x.astype(np.float64), variables)
        targets = pad_targets(LABELS, BOXES, dtype=np.float64)

        def terms(variables):
            output, _ = RTDetr(config).apply(variables, images, train=True, mutable=["batch_stats"])
            found = match(output, targets, None, loss)
            return loss_terms(output, targets, None, found, Norm(found.counts, found.counts), config, loss)

        named = jax.jit(terms)(variables)
    got = reference_names({name: float(value) for name, value in named.items()})
    last = config.decoder_layers - 1  # what transformers names as one more layer is the encoder
    want = {key.replace(f"aux_{last}", "enc_0"): float(value) for key, value in theirs.loss_dict.items()}
    assert set(got) == set(want)
    errors = {key: abs(got[key] / value - 1) for key, value in want.items()}
    worst = max(errors, key=errors.__getitem__)
    print(f"{variant}: total {sum(got.values()):.6f} ({float(theirs.loss):.6f}), worst {worst} {errors[worst]:.1e}")
    assert errors[worst] < 1e-5 and abs(sum(got.values()) / float(theirs.loss) - 1) < 1e-6


def test_a_written_folder_is_read_by_transformers(tmp_path):
    """Tensors and configuration of ours make transformers build and fill its model without a word."""
    from transformers import RTDetrV2ForObjectDetection

    from dfine_jax.cli import main
    from dfine_jax.config import Config
    from dfine_jax.training.run.checkpoint import Metadata, save_weights

    model = peer(VARIANTS["r18"], np.float32, num_denoising=100)
    config, variables = ours(model)
    metadata = Metadata(Config(config, RTDetrLossConfig()), tuple(NAMES), tuple(range(80)))
    save_weights(tmp_path / "ours", variables, metadata)
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--huggingface"]) == 0
    again, report = RTDetrV2ForObjectDetection.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert list(again.config.id2label.values()) == NAMES
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    stored = model.state_dict()
    for name, tensor in again.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(tensor.numpy(), stored[name].numpy(), err_msg=name)
