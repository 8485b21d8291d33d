"""The head that refines edge distributions, by itself: its arithmetic by hand, its gradients, its parameters."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfine_jax.families.dfine.decoder import decoder as make_decoder
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.nn.fdr_head import FDRHead, FDRState
from dfine_jax.ops.fdr import EdgeBins
from dfine_jax.ops.tokens import gather_tokens

LAYERS, WIDTH, CLASSES = 3, 16, 5
BINS = EdgeBins(reg_max=8, up=0.5, reg_scale=4.0)


class Host(nn.Module):
    """Loop over given hidden states [s, b, n, d], as of a decoder."""

    head: FDRHead = FDRHead(BINS)

    @nn.compact
    def __call__(self, hidden, reference):
        pre, state = self.head.init(hidden[0], reference)
        results, logits = [], []
        for i, x in enumerate(hidden):
            results.append(self.head.step(state, x))
            state = results[-1].state
            logits.append(self.head.scored(nn.Dense(CLASSES, name=f"dec_score_head_{i}")(x), state))
        return pre, results, logits


def randomized(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: (rng.standard_normal(s.shape) * 0.5).astype(s.dtype), shapes)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    hidden = rng.standard_normal((LAYERS, 2, 6, WIDTH)).astype(np.float32)
    return hidden, rng.uniform(0.2, 0.6, (2, 6, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def params(inputs):
    return randomized(jax.eval_shape(Host().init, jax.random.key(0), *inputs))


def mlp(params, x):
    """Linear layers with ReLU between them, in NumPy."""
    layers = [params[f"layers_{i}"] for i in range(len(params))]
    for i, layer in enumerate(layers):
        x = x @ np.asarray(layer["kernel"], float) + np.asarray(layer["bias"], float)
        x = np.maximum(x, 0) if i < len(layers) - 1 else x
    return x


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def by_hand(params, hidden, reference, up, reg_scale):
    """Equations of the paper in float64: (pre boxes, boxes, corners, quality) with lists over the layers."""
    hidden, reference = np.asarray(hidden, float), np.asarray(reference, float)
    reg_max = params["dec_bbox_head_0"]["layers_2"]["bias"].size // 4 - 1
    steps = np.arange(reg_max + 1) - reg_max / 2
    position = np.sign(steps) * ((up * reg_scale + 1) ** (2 * np.abs(steps) / (reg_max - 2)) - 1)
    position[[0, -1]] = -2 * up * reg_scale, 2 * up * reg_scale
    logit = np.log(np.maximum(reference, 1e-5) / np.maximum(1 - reference, 1e-5))
    pre = 1 / (1 + np.exp(-mlp(params["pre_bbox_head"], hidden[0]) - logit))
    (x, y, w, h), total = np.moveaxis(pre, -1, 0), 0.0
    boxes, corners, quality = [], [], []
    for i, state in enumerate(hidden):
        summed = state + (hidden[i - 1] if i else 0)
        total = total + mlp(params[f"dec_bbox_head_{i}"], summed).reshape(*state.shape[:2], 4, reg_max + 1)
        left, top, right, bottom = np.moveaxis(softmax(total) @ position, -1, 0)
        x0, y0 = x - (reg_scale / 2 + left) * w / reg_scale, y - (reg_scale / 2 + top) * h / reg_scale
        x1, y1 = x + (reg_scale / 2 + right) * w / reg_scale, y + (reg_scale / 2 + bottom) * h / reg_scale
        boxes.append(np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], -1))
        corners.append(total)
        best = -np.sort(-softmax(total), -1)[..., :4]
        sharp = np.concatenate([best, best.mean(-1, keepdims=True)], -1).reshape(*state.shape[:2], 20)
        quality.append(mlp(params[f"lqe_layers_{i}"]["reg_conf"], sharp))
    return pre, boxes, corners, quality


def test_steps_by_hand(inputs, params):
    pre, results, logits = jax.jit(Host().apply)(params, *inputs)
    own = params["params"]
    want_pre, boxes, corners, quality = by_hand(own, *inputs, BINS.up, BINS.reg_scale)
    np.testing.assert_allclose(pre, want_pre, atol=1e-6)
    for i in range(LAYERS):
        np.testing.assert_allclose(results[i].corners_logit, corners[i], atol=2e-5)
        np.testing.assert_allclose(results[i].boxes_cxcywh, boxes[i], atol=2e-6)
        np.testing.assert_array_equal(results[i].reference_cxcywh, results[i].boxes_cxcywh)
        score = own[f"dec_score_head_{i}"]
        want = np.asarray(inputs[0][i], float) @ score["kernel"] + score["bias"] + quality[i]
        np.testing.assert_allclose(logits[i], want, atol=2e-5)


def test_the_decoder_is_these_steps():
    """Its own hidden states, stepped by hand in float64, give its outputs."""
    config = dataclasses.replace(
        model_config("n"),
        decoder_layers=LAYERS,
        decoder_width=WIDTH,
        decoder_ffn=24,
        num_heads=2,
        num_points=(2, 1),
        num_queries=9,
        num_classes=CLASSES,
    )
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((2, h, w, WIDTH)) for h, w in ((4, 6), (2, 3))]
    decoder = make_decoder(config)
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda k: decoder.init(k, features, train=True), jax.random.key(0))
        params = randomized(jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, np.float64), shapes))

        @jax.jit
        def forward(params):
            layers = lambda module, _: (module.name or "").startswith("layers_")  # noqa: E731
            return decoder.apply(params, features, train=True, capture_intermediates=layers, mutable="intermediates")

        output, kept = forward(params)
    hidden = np.stack([kept["intermediates"][f"layers_{i}"]["__call__"][0] for i in range(LAYERS)])
    matching, own = output.training.matching, params["params"]
    before = np.asarray(output.training.encoder.boxes_cxcywh)
    pre, boxes, corners, quality = by_hand(own, hidden, before, config.up, config.reg_scale)
    heads = [own[f"dec_score_head_{i}"] for i in range(LAYERS)]
    scores = [x @ head["kernel"] + head["bias"] for x, head in zip(hidden, heads, strict=True)]
    # Float32 rounding of the bins' positions; boxes and logits beyond them would differ by 1e-3 and more.
    np.testing.assert_allclose(matching.fdr.pre.boxes_cxcywh, pre, atol=1e-12)
    np.testing.assert_allclose(matching.fdr.pre.logits, scores[0], atol=1e-12)
    np.testing.assert_array_equal(matching.fdr.reference_cxcywh, matching.fdr.pre.boxes_cxcywh)
    np.testing.assert_allclose(matching.fdr.corners_logit, corners, atol=1e-12)
    np.testing.assert_allclose(matching.boxes_cxcywh, boxes, atol=1e-6)
    np.testing.assert_allclose(matching.logits, np.stack(scores) + quality, atol=1e-12)


def test_a_fresh_head_repeats_the_reference(inputs):
    hidden, reference = inputs
    pre, results, _ = Host().apply(Host().init(jax.random.key(0), hidden, reference), hidden, reference)
    np.testing.assert_allclose(pre, reference, atol=1e-6)
    np.testing.assert_allclose(results[-1].boxes_cxcywh, reference, atol=1e-6)


def test_gradients(inputs, params):
    """Later layers reach earlier hidden states through the sum of logits alone, and the first boxes not at all."""
    hidden, reference = inputs

    @jax.jit
    def gradients(hidden):
        corner = lambda hidden, layer: Host().apply(params, hidden, reference)[1][layer].corners_logit.sum()  # noqa: E731
        last = lambda hidden, what: jnp.sum(getattr(Host().apply(params, hidden, reference)[1][-1], what) ** 2)  # noqa: E731
        first, third = (jax.grad(corner)(hidden, layer) for layer in (0, LAYERS - 1))
        return first, third, jax.grad(last)(hidden, "reference_cxcywh"), jax.grad(last)(hidden, "boxes_cxcywh")

    first, third, reference_gradient, box_gradient = gradients(hidden)
    assert np.any(first[0]) and not np.any(first[1:])
    np.testing.assert_allclose(third[0], first[0], rtol=1e-5)  # nothing through the hidden states that are added
    assert not np.any(reference_gradient)
    assert all(np.any(of_layer) for of_layer in box_gradient)
    pre = lambda p: jnp.sum(Host().apply(p, hidden, reference)[1][-1].boxes_cxcywh)  # noqa: E731
    moved = jax.grad(pre)(params)["params"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(moved["pre_bbox_head"]))
    assert all(np.any(moved[f"dec_bbox_head_{i}"]["layers_2"]["kernel"]) for i in range(LAYERS))


def test_queries_can_be_chosen_between_layers(inputs, params):
    """A gather of the state and all that goes on, then a step, is a step, then a gather."""
    hidden, reference = inputs
    index = jnp.asarray([[4, 0, 3], [1, 5, 2]])

    class Pruned(nn.Module):
        @nn.compact
        def __call__(self, hidden, reference):
            head = FDRHead(BINS)
            state = head.step(head.init(hidden[0], reference)[1], hidden[0]).state
            state = jax.tree.map(lambda x: gather_tokens(x, index), state)
            return head.step(state, gather_tokens(hidden[1], index))

    got, whole = Pruned().apply(params, hidden, reference), Host().apply(params, hidden, reference)[1][1]
    assert got.state.layers == 2 and isinstance(got.state, FDRState)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, gather_tokens(b, index), atol=1e-6)


def test_without_quality_heads(inputs, params):
    bare = Host(FDRHead(BINS, quality=None))
    shapes = jax.eval_shape(bare.init, jax.random.key(0), *inputs)
    assert set(params["params"]) - set(shapes["params"]) == {f"lqe_layers_{i}" for i in range(LAYERS)}
    _, results, logits = bare.apply(params, *inputs)
    _, full, corrected = Host().apply(params, *inputs)
    jax.tree.map(np.testing.assert_array_equal, results, full)
    score = nn.Dense(CLASSES).apply({"params": params["params"]["dec_score_head_1"]}, inputs[0][1])
    np.testing.assert_array_equal(logits[1], score)
    change = np.asarray(corrected[1] - logits[1])
    np.testing.assert_allclose(change, change[..., :1] * np.ones(CLASSES), atol=1e-5)
    assert np.abs(change).max() > 1e-2


def test_half_precision_stays_outside(inputs, params):
    hidden, reference = inputs
    _, results, _ = Host().apply(params, jnp.asarray(hidden, jnp.bfloat16), reference)
    assert {r.boxes_cxcywh.dtype for r in results} == {r.corners_logit.dtype for r in results} == {jnp.dtype("float32")}
