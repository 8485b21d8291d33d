"""Inference of the whole model against outputs of the reference implementation."""

from __future__ import annotations

import json

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_compare import query_order, reorder

from dfine_jax.families.dfine.model import DFine
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.ops.postprocess import Answer, select, to_pixels

# Limits on logits and boxes: five times the difference of the reference in float32 and float64 (README of the reference
# numbers; s has the depth of n but a third level and is not listed there).
# Measured: n 6.8e-5, 3.0e-6; s 2.4e-4, 1.8e-6; l 4.6e-2, 1.3e-4.
FLOAT32_LIMITS = {"n": (3.5e-4, 7.5e-6), "s": (3.5e-4, 7.5e-6), "l": (1.5e-1, 7e-4)}
FLOAT64_LIMIT = 1e-5  # measured: n 9.6e-7, l 7.9e-6
# The second set gives means and single queries of float32 runs, whose noise is 1e-4 on logits and 7e-6 on boxes.
# Measured, worst of all: n 3.7e-6, 1.2e-7; s 1.6e-5, 8.3e-7; m 1.1e-5, 4.8e-7; l 1.3e-5, 2.4e-7; x 2.6e-4, 7.7e-7.
HASH_LOGIT_LIMIT = 5e-4
HASH_BOX_LIMIT = 3.5e-5


def infer(variant: str, variables, images):
    model = DFine(model_config(variant))
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)


def golden_errors(golden, variant: str, name: str, dtype) -> tuple[float, float]:
    """Largest differences of logits and boxes."""
    with np.load(golden(f"{name}.npz")) as file:
        want = {k: file[k] for k in file.files}
    h, w, b = (int(v) for v in want["image_hwb"])
    state = golden_weights.golden_state_dict(golden, variant)
    variables = golden_weights.variables_from_state_dict(state, dtype)
    images = golden_weights.golden_image(h, w, b).astype(dtype)
    out = infer(variant, variables, images)
    assert out.logits.dtype == out.boxes_cxcywh.dtype == dtype
    assert out.answer.masks_logit is None and out.training is None
    order = query_order(out.topk_index, want["topk_index"])
    stored = want["pred_logits"].shape[1]  # the best queries, or all
    logits, boxes = (reorder(x, order)[:, :stored] for x in (out.logits, out.boxes_cxcywh))
    return np.abs(logits - want["pred_logits"]).max(), np.abs(boxes - want["pred_boxes"]).max()


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("n", "eval_n_320x512_best64"),
        pytest.param("n", "eval_n_640x640", marks=pytest.mark.slow),
        pytest.param("s", "eval_s_640x640", marks=pytest.mark.slow),
        pytest.param("l", "eval_l_640x640", marks=pytest.mark.slow),
    ],
)
def test_float32(golden, variant, name):
    logits, boxes = golden_errors(golden, variant, name, np.float32)
    print(f"{name}: logits {logits:.1e}, boxes {boxes:.1e}")
    assert logits <= FLOAT32_LIMITS[variant][0] and boxes <= FLOAT32_LIMITS[variant][1]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["n", "l"])
def test_float64(golden, variant):
    with jax.enable_x64(True):
        logits, boxes = golden_errors(golden, variant, f"eval64_{variant}_640x640", np.float64)
    print(f"eval64_{variant}: logits {logits:.1e}, boxes {boxes:.1e}")
    assert logits <= FLOAT64_LIMIT and boxes <= FLOAT64_LIMIT


def _statistics(x) -> list[float]:
    """Mean, mean magnitude and unbiased standard deviation."""
    x = np.asarray(x, np.float64)
    return [x.mean(), np.abs(x).mean(), x.std(ddof=1)]


@pytest.mark.parametrize("variant", ["n", "s", *(pytest.param(v, marks=pytest.mark.slow) for v in "mlx")])
def test_second_set(golden, variant):
    """Feature maps of backbone and encoder, outputs, and the detections selected from them."""
    want = json.loads(golden("hash_golden.json").read_text())["eval"][variant]
    variables = golden_weights.variables_from_state_dict(golden_weights.hash_state_dict(variant))
    model = DFine(model_config(variant))
    keep = lambda module, _: module.name in ("backbone", "encoder")  # noqa: E731
    run = jax.jit(lambda v, x: model.apply(v, x, train=False, capture_intermediates=keep, mutable=["intermediates"]))
    out, kept = run(variables, golden_weights.hash_image(640))
    for name, stored in (("backbone", "bb"), ("encoder", "enc")):
        (maps,) = kept["intermediates"][name]["__call__"]
        for found, expected in zip(maps, want[stored], strict=True):
            np.testing.assert_allclose(_statistics(found), expected, rtol=0, atol=2e-6 * expected[2])  # measured 8e-7

    logits, boxes = np.asarray(out.logits), np.asarray(out.boxes_cxcywh)
    np.testing.assert_array_equal(out.topk_index[0, :4], want["top_idx_b0"][:4])
    # Neighbours deep in the ranking may swap: the reference's last query is looked up among our last ones.
    last = 290 + np.abs(logits[1, 290:, :3] - want["logit_b1_q299"]).max(-1).argmin()
    errors = {
        "logits": np.abs(np.subtract(_statistics(logits), want["logits"])).max(),
        "boxes": np.abs(np.subtract(_statistics(boxes), want["boxes"])).max(),
        "first logits": np.abs(logits[0, 0, :5] - want["logit_b0_q0_5"]).max(),
        "first box": np.abs(boxes[0, 0] - want["box_b0_q0"]).max(),
        "last logits": np.abs(logits[1, last, :3] - want["logit_b1_q299"]).max(),
        "last box": np.abs(boxes[1, last] - want["box_b1_q299"]).max(),
    }
    print(variant, {k: f"{v:.1e}" for k, v in errors.items()})
    assert all(v <= (HASH_BOX_LIMIT if "box" in k else HASH_LOGIT_LIMIT) for k, v in errors.items()), errors

    scores, labels, kept, _ = select(Answer(jnp.asarray(logits), jnp.asarray(boxes)), 300)
    pixels = to_pixels(kept, jnp.asarray([[640.0, 480.0]] * 2))
    np.testing.assert_array_equal(labels[0, :3], want["post"]["labels"])
    np.testing.assert_allclose(scores[0, :3], want["post"]["scores"], atol=1e-4)
    np.testing.assert_allclose(pixels[0, 0], want["post"]["boxes"], atol=0.05)
