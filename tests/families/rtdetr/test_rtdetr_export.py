"""A small RT-DETRv2 as an exported graph: the same answers, both ways of sampling, and no needless nodes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import rtdetr_golden

from dfine_jax.families.rtdetr.model import RTDetr
from dfine_jax.families.rtdetr.variants import VARIANTS

pytest.importorskip("onnx")
pytest.importorskip("jax2onnx")
import onnx_models

from dfine_jax.converters.onnx.export import export_onnx

SIZE_HW = (64, 96)
TINY = dataclasses.replace(
    VARIANTS["r18"],
    encoder_width=32,
    encoder_ffn=32,
    decoder_width=32,
    decoder_ffn=32,
    num_heads=4,
    num_points=(2, 1, 2),
    num_queries=20,
    num_classes=3,
)


def lively(config):
    """Variables whose leaves are all random."""
    stream = np.random.default_rng(0)

    def fill(path, leaf):
        noise, name = stream.standard_normal(leaf.shape), path[-1].key
        if name == "kernel":
            noise *= np.sqrt(1.5 / np.prod(leaf.shape[:-1]))
        elif name in ("var", "scale"):
            noise = 1 + 0.3 * np.abs(noise)
        else:
            noise *= 0.3
        return noise.astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, rtdetr_golden.shapes_of(config))


@pytest.mark.parametrize("sampling", ["bilinear", "discrete"])
@pytest.mark.parametrize("batch", [1, None])
def test_answers(sampling, batch):
    model, variables = RTDetr(dataclasses.replace(TINY, sampling=sampling)), lively(TINY)
    proto = export_onnx(model, variables, onnx_models.META, size_hw=SIZE_HW, batch=batch)
    images = np.random.default_rng(1).random((batch or 3, *SIZE_HW, 3), np.float32)
    want = onnx_models.answers(model, variables, images)
    got = onnx_models.run(proto, images=np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    logits, boxes = np.abs(got["logits"] - want.logits).max(), np.abs(got["boxes"] - want.boxes_cxcywh).max()
    print(f"{sampling}, batch {batch}: logits {logits:.1e}, boxes {boxes:.1e}")
    assert logits < 1e-3 and boxes < 1e-4


def test_every_convolution_is_one_node():
    """Batch norms and the two branches of bottlenecks are inside; pooling is one node each."""
    proto = export_onnx(RTDetr(TINY), lively(TINY), onnx_models.META, size_hw=SIZE_HW)
    backbone = 3 + 2 * 8 + 4
    encoder = 3 + 2 + 2 + 4 * (2 + 3 + 1)  # projections, laterals, halvings, fusion blocks
    assert onnx_models.count(proto, "Conv") == backbone + encoder + 3
    assert onnx_models.count(proto, "MaxPool") == 1 and onnx_models.count(proto, "AveragePool") == 3
    assert onnx_models.count(proto, "BatchNormalization") == 0


def test_bytes_are_scaled_in_the_first_convolution():
    model, variables = RTDetr(TINY), lively(TINY)
    proto = export_onnx(model, variables, onnx_models.META, size_hw=SIZE_HW, input_dtype="uint8")
    images = np.random.default_rng(1).integers(0, 256, (1, *SIZE_HW, 3), np.uint8)
    want = onnx_models.answers(model, variables, images / np.float32(255))
    assert np.abs(onnx_models.run(proto, images=images)["logits"] - want.logits).max() < 1e-3
