"""RT-DETRv2's network: parameter counts, inference against the reference, operating points."""

from __future__ import annotations

import dataclasses
import math

import golden_fill
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rtdetr_golden
from golden_compare import query_order, reorder

from dfine_jax.families.rtdetr.model import RTDetr, init_variables
from dfine_jax.families.rtdetr.variants import VARIANTS

# With biases and scales of frozen batch norms left out, as the reference counts.
PARAMETERS = {
    "r18": 20_184_464, "r34": 31_441_668, "r50m": 36_593_772, "r50": 42_891_372, "r101": 76_556_268,
    "l": 32_925_036, "x": 67_374_188, "h": 125_584_348,
}  # fmt: skip
DEIM_PARAMETERS = {
    "r18": 20_183_440, "r34": 31_440_644, "r50m": 33_198_864, "r50": 42_943_596, "r101": 76_660_716,
}  # fmt: skip
# Measured: 640x640 6.6e-4, 1.0e-5; 320x512 4.5e-4, 7.6e-6.
LOGIT_LIMIT, BOX_LIMIT = 2e-3, 3e-5
FLOAT64_LIMIT = 2e-5  # measured 7.3e-6 and, on boxes, 9.5e-8: the reference's position embedding is float32


def count(config) -> int:
    """Parameters that are trained or could be."""
    leaves = jax.tree_util.tree_leaves_with_path(rtdetr_golden.shapes_of(config)["params"])
    total = 0
    for path, leaf in leaves:
        names = [part.key for part in path]
        frozen = config.backbone_frozen_bn and names[0] == "backbone" and names[-2] in ("norm", "bn")
        total += 0 if frozen else math.prod(leaf.shape)
    return total


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_of_the_published_variants(variant):
    assert count(VARIANTS[variant]) == PARAMETERS[variant]


@pytest.mark.parametrize("variant", DEIM_PARAMETERS)
def test_parameters_as_deim_trains_them(variant):
    config = dataclasses.replace(VARIANTS[variant], backbone_frozen_bn=False, query_position="deep")
    if variant == "r50m":
        config = dataclasses.replace(config, decoder_layers=3)
    assert count(config) == DEIM_PARAMETERS[variant]


def infer(config, variables, images, **fields):
    model = RTDetr(config, **fields)
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)


def golden_errors(golden, name, dtype, **changes):
    with np.load(golden(f"families/{name}.npz")) as file:
        want = {key: file[key] for key in file.files}
    height, width, batch = (int(n) for n in want["image_hwb"])
    variables = rtdetr_golden.variables(rtdetr_golden.state_dict(golden), dtype=dtype)
    images = golden_fill.image(height, width, batch).astype(dtype)
    out = infer(dataclasses.replace(VARIANTS["r18"], **changes), variables, images)
    assert out.logits.dtype == out.boxes_cxcywh.dtype == dtype and out.training is None
    order = query_order(out.topk_index, want["topk_index"])
    logits, boxes = reorder(out.logits, order), reorder(out.boxes_cxcywh, order)
    return np.abs(logits - want["pred_logits"]).max(), np.abs(boxes - want["pred_boxes"]).max()


@pytest.mark.parametrize(
    "name", ["eval_rtdetrv2_r18_320x512", pytest.param("eval_rtdetrv2_r18_640x640", marks=pytest.mark.slow)]
)
def test_float32(golden, name):
    logits, boxes = golden_errors(golden, name, np.float32)
    print(f"{name}: logits {logits:.1e}, boxes {boxes:.1e}")
    assert logits <= LOGIT_LIMIT and boxes <= BOX_LIMIT


@pytest.mark.slow
def test_float64(golden):
    with jax.enable_x64(True):
        logits, boxes = golden_errors(golden, "eval64_rtdetrv2_r18_640x640", np.float64)
    print(f"float64: logits {logits:.1e}, boxes {boxes:.1e}")
    assert logits <= FLOAT64_LIMIT and boxes <= FLOAT64_LIMIT


@pytest.mark.slow
def test_the_position_order_matters_for_rectangles_alone(golden):
    with pytest.raises(AssertionError):  # other tokens become queries
        golden_errors(golden, "eval_rtdetrv2_r18_320x512", np.float32, position_order="row_major")
    logits, _ = golden_errors(golden, "eval_rtdetrv2_r18_640x640", np.float32, position_order="row_major")
    assert logits <= LOGIT_LIMIT


TINY = dataclasses.replace(
    VARIANTS["r18"],
    encoder_width=32,
    encoder_ffn=32,
    decoder_width=32,
    decoder_ffn=32,
    decoder_layers=3,
    num_heads=4,
    num_points=(2, 2, 2),
    eval_layer=2,
    num_queries=20,
    num_classes=5,
)


@pytest.fixture(scope="module")
def tiny():
    """Variables with lively heads, and an image."""
    variables = init_variables(TINY, jax.random.key(0))
    stream = np.random.default_rng(0)
    lively = jax.tree.map(lambda x: x + 0.05 * stream.standard_normal(x.shape, np.float32), variables["params"])
    return {**variables, "params": lively}, stream.random((2, 64, 96, 3), np.float32)


def test_merged_bottlenecks_compute_the_same(tiny, monkeypatch):
    """Against the branches one by one, as in training but with stored statistics."""
    variables, images = tiny
    merged = infer(TINY, variables, images)
    monkeypatch.setattr("dfine_jax.nn.hybrid_encoder.Bottleneck.is_initializing", lambda self: True)
    branches = infer(TINY, variables, images)
    difference = np.abs(merged.logits - branches.logits).max()
    assert 0 < difference < 1e-4


def test_the_evaluated_layer_answers(tiny):
    variables, images = tiny
    training, _ = RTDetr(TINY).apply(variables, images, train=True, mutable=["batch_stats"])
    frozen = dataclasses.replace(TINY, backbone_frozen_bn=True)
    assert training.training.matching.logits.shape == (3, 2, 20, 5)
    outputs = [infer(dataclasses.replace(frozen, eval_layer=i), variables, images) for i in range(3)]
    assert len({float(out.logits.sum()) for out in outputs}) == 3
    shorter = dataclasses.replace(frozen, decoder_layers=2, eval_layer=1)
    np.testing.assert_array_equal(infer(shorter, variables, images).logits, outputs[1].logits)


def test_pruned_queries_are_the_best_of_the_layer_before(tiny):
    variables, images = tiny
    first = infer(dataclasses.replace(TINY, eval_layer=0), variables, images)
    pruned = infer(TINY, variables, images, keep_queries=(7,))
    assert pruned.logits.shape == (2, 7, 5)
    best = np.argsort(-np.asarray(first.logits).max(-1), 1)[:, :7]
    np.testing.assert_array_equal(pruned.topk_index, np.take_along_axis(np.asarray(first.topk_index), best, 1))


def test_look_forward_twice(tiny):
    """The loss of a layer's box reaches the box head of the layer before, and no earlier one."""
    variables, images = tiny
    model = RTDetr(TINY)

    def second(params):
        state = {**variables, "params": params}
        output, _ = model.apply(state, images, train=True, mutable=["batch_stats"])
        return jnp.sum(output.training.matching.boxes_cxcywh[2])

    grads = jax.jit(jax.grad(second))(variables["params"])["decoder"]
    norms = [float(jnp.abs(grads[f"dec_bbox_head_{i}"]["layers_2"]["kernel"]).max()) for i in range(3)]
    assert norms[0] == 0 and norms[1] > 0 and norms[2] > 0


def test_discrete_sampling_takes_single_pixels(tiny):
    variables, images = tiny
    discrete = dataclasses.replace(TINY, sampling="discrete")
    assert np.abs(infer(discrete, variables, images).logits - infer(TINY, variables, images).logits).max() > 1e-3

    def loss(params):
        state = {**variables, "params": params}
        output, _ = RTDetr(discrete).apply(state, images, train=True, mutable=["batch_stats"])
        return jnp.sum(output.logits)

    grads = jax.jit(jax.grad(loss))(variables["params"])["decoder"]["layers_2"]["cross_attn"]
    assert not np.any(grads["sampling_offsets"]["kernel"]) and np.any(grads["attention_weights"]["kernel"])


def test_initial_values():
    variables = init_variables(TINY, jax.random.key(0))
    decoder = variables["params"]["decoder"]
    for i in (1, 2):
        jax.tree.map(np.testing.assert_array_equal, decoder["layers_0"], decoder[f"layers_{i}"])
    np.testing.assert_allclose(decoder["dec_score_head_1"]["bias"], -np.log(99), rtol=1e-6)
    assert not np.any(decoder["dec_bbox_head_0"]["layers_2"]["kernel"])
    linear = variables["params"]["encoder"]["encoder_0"]["layers_0"]["linear1"]["kernel"]
    assert 0.9 / np.sqrt(32) < np.abs(linear).max() <= 1 / np.sqrt(32)  # PyTorch's default, unlike D-FINE's


@pytest.mark.parametrize("sizes", [(320, 330), (330, 320)])
def test_sides_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="multiples of 32"):
        jax.eval_shape(lambda x: RTDetr(TINY).init(jax.random.key(0), x, train=False), jnp.zeros((1, *sizes, 3)))
