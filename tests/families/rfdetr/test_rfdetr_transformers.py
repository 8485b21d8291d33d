"""The same weights in transformers' RF-DETR: squares through folders that it writes, and folders of ours."""

from __future__ import annotations

import dataclasses

import golden_fill
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rfdetr_golden

from dfine_jax.converters.torch.exporter import export_weights
from dfine_jax.converters.torch.importer import import_weights
from dfine_jax.families.rfdetr import decoder, huggingface
from dfine_jax.families.rfdetr.model import RFDetr
from dfine_jax.families.rfdetr.variants import SIZES, VARIANTS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.parity, pytest.mark.slow]
NAMES = [f"kind {i}" for i in range(80)]


def architecture(model):
    """transformers' class."""
    kind = "RfDetrForInstanceSegmentation" if model.mask_width else "RfDetrForObjectDetection"
    return getattr(transformers, kind)


def peer(model):
    """transformers' model with random weights, in evaluation mode, normalised in the projector as the reference."""
    net = architecture(model)(transformers.RfDetrConfig.from_dict(huggingface.settings(model, NAMES))).eval()
    stream = np.random.default_rng(0)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            shape = tuple(tensor.shape)
            normal = stream.standard_normal(shape)
            if "embeddings" in name and "projection" not in name:  # tokens and positions
                value = 0.3 * normal
            elif "lambda" in name:
                value = stream.uniform(0.1, 0.4, shape)
            elif "query_feat" in name:
                value = normal
            elif tensor.ndim > 1:
                small = any(part in name for part in ("bbox_embed", "class_embed", "reference_point_embed"))
                value = normal * np.sqrt((0.2 if small else 1.0) / np.prod(shape[1:]))
            elif name.endswith("weight"):
                value = stream.uniform(0.8, 1.2, shape)
            else:
                value = (1.0 if "sampling_offsets" in name else 0.1) * normal
            tensor.copy_(torch.from_numpy(np.asarray(value)))
    return as_the_reference(net)


def as_the_reference(net):
    """Its projector has another epsilon in all norms but the last."""
    norms = [part for name, part in net.named_modules() if "projector." in name and hasattr(part, "eps")]
    assert len(norms) == 9
    for norm in norms:
        norm.eps = 1e-6
    return net


def outputs(net, images, dtype, monkeypatch):
    """Its answers, and the tokens that it chose."""
    chosen, real = [], torch.topk

    def recorded(*inputs, **options):
        found = real(*inputs, **options)
        chosen.append(found[1].numpy())
        return found

    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(torch, "topk", recorded)
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(dtype))
        found = net.to(torch.float64 if dtype == np.float64 else torch.float32)(pixel_values=pixels)
    return {name: np.asarray(tensor) for name, tensor in found.items() if name.startswith(("logits", "pred_"))}, *chosen


def difference(found, want) -> float:
    assert found.shape == want.shape and found.dtype == want.dtype
    return float(np.abs(np.asarray(found) - want).max())


@pytest.mark.parametrize("variant", ["nano", "small", "seg-nano"])
def test_answers_of_transformers(variant, tmp_path, monkeypatch):
    """Of its folder; in float32 for the tokens that it chose, in float64 for our own choice."""
    side = SIZES[variant].size_px
    model = dataclasses.replace(VARIANTS[variant], head_rows="coco" if variant == "nano" else "spare")
    net = peer(model)
    net.save_pretrained(tmp_path)
    variables, metadata = import_weights(tmp_path)
    assert metadata.config.model == model and metadata.class_names == tuple(NAMES)
    pictures, rows = golden_fill.image(side, side).astype(np.float64), np.arange(80)
    images = (pictures - rfdetr_golden.MEAN.astype(np.float64)) / rfdetr_golden.DEVIATION.astype(np.float64)
    if model.head_rows == "coco":
        rows = np.asarray(rfdetr_golden.USED)
    for dtype, limits in ((np.float64, (5e-6, 1e-6, 1e-5)), (np.float32, (5e-5, 5e-6, 1e-5))):
        want, chosen = outputs(net, images, dtype, monkeypatch)
        with jax.enable_x64(dtype == np.float64), monkeypatch.context() as patched:
            if dtype == np.float32:
                patched.setattr(decoder, "best_tokens", lambda logits, count, chosen=chosen: jnp.asarray(chosen))
            cast = jax.tree.map(lambda x, dtype=dtype: jnp.asarray(x, dtype), variables)
            network = RFDetr(model)
            found = jax.jit(lambda v, x, network=network: network.apply(v, x, train=False))(
                cast, pictures.astype(dtype)
            )
            found = jax.device_get(found)
        np.testing.assert_array_equal(found.topk_index, chosen)
        largest = np.abs(want["pred_masks"]).max() if model.mask_width else 1.0  # thousands, with random weights
        errors = [
            difference(found.logits, want["logits"][..., rows]),
            difference(found.boxes_cxcywh, want["pred_boxes"]),
            difference(found.masks_logit, want["pred_masks"]) / largest if model.mask_width else 0.0,
        ]
        scale = f"logits to {np.abs(want['logits']).max():.1f}, masks to {largest:.0f}"
        print(f"{variant} {np.dtype(dtype)}: {' '.join(f'{error:.1e}' for error in errors)} ({scale})")
        assert all(error < limit for error, limit in zip(errors, limits, strict=True))


@pytest.mark.parametrize("variant", ["nano", "seg-nano"])
def test_a_folder_of_ours_is_read_by_transformers(variant, tmp_path):
    """Tensors and configuration make transformers build and fill its model without a word."""
    given = dataclasses.replace(VARIANTS[variant], head_rows="coco" if variant == "nano" else "spare")
    net = peer(given)
    net.save_pretrained(tmp_path / "theirs")
    variables, metadata = import_weights(tmp_path / "theirs")
    export_weights(tmp_path / "ours", "huggingface", variables, metadata)
    again, report = architecture(given).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    labels = list(again.config.id2label.values())
    assert len(labels) == given.num_logits and set(NAMES) <= set(labels)
    assert again.config.backbone_config.window_block_indexes == net.config.backbone_config.window_block_indexes
    stored = net.state_dict()
    assert stored.keys() == again.state_dict().keys()
    for name, tensor in again.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), stored[name].numpy(), err_msg=name)
