"""DINOv2's own weights: features of transformers' model, and patches and positions of other sizes."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, cast

import golden_fill
import jax
import numpy as np
import pytest
import rfdetr_golden

from dfine_jax.converters.torch.backbone import import_backbone
from dfine_jax.errors import UserError
from dfine_jax.families.backbones.dinov2 import BACKBONES, WindowedDINOv2
from dfine_jax.families.rfdetr import pretrained
from dfine_jax.families.rfdetr.family import RFDETR
from dfine_jax.families.rfdetr.variants import VARIANTS
from dfine_jax.weights.load import with_backbone

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """Random DINOv2-S, and its folder."""
    torch.manual_seed(0)
    settings = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**settings)).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "lambda" in name or name.endswith("bias") or "token" in name:
                tensor += 0.1 * torch.randn(tensor.shape)
    folder = tmp_path_factory.mktemp("dinov2")
    model.save_pretrained(folder)
    return model, folder / "model.safetensors"


def test_features_of_transformers(peer):
    model, file = peer
    base = dataclasses.replace(VARIANTS["base"], windows=1)
    variables = import_backbone(file, base)
    images = golden_fill.image(518, 518)
    images = (images - rfdetr_golden.MEAN) / rfdetr_golden.DEVIATION
    network = WindowedDINOv2(BACKBONES["dinov2-s"], 14, 1, 37, (2, 5, 8, 11))
    found = jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, images)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        states = model(pixels, output_hidden_states=True).hidden_states
        wanted = [model.layernorm(states[tap])[:, 1:].reshape(1, 37, 37, 384).numpy() for tap in (2, 5, 8, 11)]
    errors = [float(np.abs(got - want).max()) for got, want in zip(found, wanted, strict=True)]
    print(" ".join(f"{error:.1e}" for error in errors))
    assert max(errors) < 1e-4


def test_patches_and_positions_of_other_sizes(peer, caplog):
    model, file = peer
    nano = VARIANTS["nano"]
    with caplog.at_level(logging.INFO):
        found = import_backbone(file, nano)["params"]
    assert "patches are resized from 14 to 16 pixels, positions are resized from 37 to 24 to a side" in caplog.text
    kernel = found["patch_embeddings"]["kernel"]
    theirs = model.state_dict()["embeddings.patch_embeddings.projection.weight"].numpy()
    assert kernel.shape == (16, 16, 3, 384)
    np.testing.assert_allclose(kernel.sum((0, 1)), theirs.sum((2, 3)).T, atol=1e-5)
    grid = model.state_dict()["embeddings.position_embeddings"][:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(grid.double(), (24, 24), mode="bicubic", antialias=True)
    np.testing.assert_allclose(
        found["position_embeddings"][0, 1:], want.permute(0, 2, 3, 1).reshape(576, -1).numpy(), atol=1e-6
    )
    fresh = {"params": {"backbone": jax.tree.map(np.zeros_like, found), "decoder": {}}, "batch_stats": {}}
    assert with_backbone(fresh, {"params": found, "batch_stats": {}})["params"]["backbone"] is found


@pytest.mark.parametrize("side", [12, 14, 16, 20])
def test_a_wave_is_seen_alike_by_patches_of_any_size(side):
    """A smooth kernel answers to a smooth picture that is as much larger or smaller as itself."""
    wave = lambda n, phase: np.sin(np.outer((np.arange(n) + 0.5) / n * 3 + phase, np.ones(n)))  # noqa: E731
    kernel = wave(14, 0.3)[None, None] / 14**2
    resized = pretrained.resized_patches(kernel, side)
    answers = [float(np.sum(k[0, 0] * wave(n, 0.5))) for k, n in ((kernel, 14), (resized, side))]
    assert abs(answers[1] / answers[0] - 1) < 5e-3
    np.testing.assert_allclose(resized.sum(), kernel.sum(), rtol=1e-5)


def test_registers_are_left_out_and_other_widths_refused(peer, tmp_path):
    from safetensors.numpy import load_file, save_file

    _, file = peer
    tensors = load_file(file)
    assert "embeddings.cls_token" in tensors and "encoder.layer.0.attention.attention.query.weight" in tensors
    wrapped = {f"dinov2.{name}": tensor for name, tensor in tensors.items()}
    save_file(wrapped | {"dinov2.embeddings.register_tokens": np.zeros((1, 4, 384), np.float32)}, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "a.safetensors")
    found = import_backbone(tmp_path / "a.safetensors", VARIANTS["base"])["params"]
    np.testing.assert_array_equal(found["cls_token"], tensors["embeddings.cls_token"])
    with pytest.raises(UserError, match="do not fit DINOv2-B, the backbone of RF-DETR-XLARGE"):
        import_backbone(file, VARIANTS["xlarge"])


@pytest.mark.slow
def test_training_starts_from_the_published_file(peer, monkeypatch):
    from dfine_jax.commands.train import start_weights

    _, file = peer
    asked = []
    monkeypatch.setattr("dfine_jax.weights.hub._of_table", lambda published, progress: asked.append(published) or file)
    config, notes = RFDETR.recipe("nano", "backbone", "rfdetr", "detect")[1], []
    start = start_weights(config, None, "imagenet", cast(Any, None), notes)
    assert (
        start is not None and asked == [RFDETR.backbones["DINOv2-S"]] and notes == ["backbone from model.safetensors"]
    )
    found, stored = start.variables["params"], import_backbone(file, config.model)["params"]
    jax.tree.map(np.testing.assert_array_equal, found["backbone"], stored)
    assert not np.any(found["decoder"]["refpoint_embed"])


def test_published_backbones_are_those_of_the_variants():
    assert {RFDETR.backbone_of(model) for model in VARIANTS.values()} == set(RFDETR.backbones)
    files = [entry.file for entry in RFDETR.backbones.values()]
    assert len(set(files)) == 2 and not set(files) & {entry.file for entry in RFDETR.published.values()}
