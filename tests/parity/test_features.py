"""Features of backbone and encoder against the reference; those of the second set are in test_golden_eval.py."""

import jax
import numpy as np
import pytest
from golden_weights import golden_image, golden_state_dict, submodule, variables_from_state_dict

from dfine_jax.families.backbones.hgnetv2 import HGNetV2
from dfine_jax.families.dfine.variants import VARIANTS
from dfine_jax.nn.hybrid_encoder import HybridEncoder, depthwise_halving, split_and_chain


def features(variant, variables, images):
    c = VARIANTS[variant]
    backbone = HGNetV2(c.backbone, c.backbone_lab, c.backbone_frozen_bn, c.backbone_frozen_stem, c.return_stages)
    encoder = HybridEncoder(
        c.encoder_width,
        c.encoder_ffn,
        split_and_chain(c.encoder_width, c.encoder_expansion, c.encoder_depth),
        depthwise_halving(c.encoder_width),
        c.num_heads,
    )

    @jax.jit
    def run(variables, images):
        maps = backbone.apply(submodule(variables, "backbone"), images, train=False)
        return maps, encoder.apply(submodule(variables, "encoder"), maps, train=False)

    return run(variables, images)


def compare(stored, outputs, tolerance):
    """Corner cells and moments; ``tolerance`` is relative to the largest value of the corner."""
    for name, maps in zip(("backbone", "encoder"), outputs, strict=True):
        for i, value in enumerate(np.asarray(m) for m in maps):
            corner = stored[f"{name}_{i}"]
            np.testing.assert_allclose(value[:, :6, :6, :4], corner, rtol=0, atol=tolerance * np.abs(corner).max())
            mean, std = stored[f"{name}_{i}_meanstd"]
            assert abs(value.mean() - mean) <= tolerance * std
            assert abs(value.std(ddof=1) - std) <= tolerance * std


@pytest.mark.parametrize(  # measured, float32: 1.1e-4 (n), 5.4e-5 (s), 5.4e-4 (l, against its own noise of that size)
    "variant,size,tolerance",
    [("n", "640x640", 2e-4), ("n", "320x512_best64", 2e-4), ("s", "640x640", 2e-4), ("l", "640x640", 2e-3)],
)
def test_float32(golden, variant, size, tolerance):
    variables = variables_from_state_dict(golden_state_dict(golden, variant))
    with np.load(golden(f"eval_{variant}_{size}.npz")) as stored:
        height, width, batch = stored["image_hwb"]
        compare(stored, features(variant, variables, golden_image(height, width, batch)), tolerance)


@pytest.mark.parametrize("variant", ["n", "l"])
def test_float64(golden, variant):
    with jax.enable_x64(True), np.load(golden(f"eval64_{variant}_640x640.npz")) as stored:
        variables = variables_from_state_dict(golden_state_dict(golden, variant), np.float64)
        images = golden_image(640, 640).astype(np.float64)
        outputs = features(variant, variables, images)
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(outputs))
        # Measured 3.4e-8: the reference rounds its position embedding to float32. The backbone alone agrees to 1e-13.
        compare(stored, outputs, 1e-6)
