"""The decoder by itself on small maps: masks, gradient stops, which heads run, precision."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dfine_jax.families.dfine.decoder import decoder as make_decoder
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.nn.fdr_head import sharpness
from dfine_jax.nn.queries import ClassEmbedding, attention_blocked
from dfine_jax.typing import DenoisingQueries

CONFIG = dataclasses.replace(
    model_config("n"),
    decoder_layers=2,
    decoder_width=16,
    decoder_ffn=24,
    num_heads=2,
    num_points=(2, 1),
    num_queries=9,
    num_classes=5,
)
SIZES = ((4, 6), (2, 3))


def _features(dtype=np.float32):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, h, w, CONFIG.decoder_width)).astype(dtype) for h, w in SIZES]


@pytest.fixture(scope="module")
def params():
    """Random values everywhere, so that no head is degenerate."""
    shapes = jax.eval_shape(lambda k: make_decoder(CONFIG).init(k, _features(), train=True), jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32) * 0.3, shapes)


def _denoising(exists=(1, 1, 1, 1, 0, 0), labels=None) -> DenoisingQueries:
    rng = np.random.default_rng(2)
    slots = len(exists)
    return DenoisingQueries(
        labels=jnp.asarray(rng.integers(0, 6, (2, slots)) if labels is None else labels),
        boxes_logit=jnp.asarray(rng.standard_normal((2, slots, 4)), jnp.float32),
        group=jnp.arange(slots) // 2,
        exists=jnp.asarray(exists, bool),
        match=jnp.full((2, slots), -1),
        num_groups=jnp.asarray(2),
    )


@pytest.fixture(scope="module")
def run():
    return jax.jit(lambda p, f, d: make_decoder(CONFIG).apply(p, f, d, train=True))


@pytest.fixture(scope="module")
def alone(params, run):
    """Training outputs without denoising queries."""
    return run(params, _features(), None)


def test_attention_mask():
    blocked = np.asarray(attention_blocked(_denoising(), 3))
    assert blocked.shape == (6, 9)
    assert not blocked[:, 6:].any()  # they see the matching queries
    expected = np.ones((6, 6), bool)
    expected[:2, :2] = expected[2:4, 2:4] = False  # the third group does not exist, not even for itself
    np.testing.assert_array_equal(blocked[:, :6], expected)


def test_sharpness_is_top_four_and_mean():
    logits = np.random.default_rng(3).standard_normal((2, 3, 4, 33)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    top = -np.sort(-p, -1)[..., :4]
    expected = np.concatenate([top, top.mean(-1, keepdims=True)], -1).reshape(2, 3, 20)
    np.testing.assert_allclose(sharpness(jnp.asarray(logits)), expected, rtol=1e-5)


def test_matching_queries_do_not_see_denoising_ones(params, run, alone):
    together = run(params, _features(), _denoising())
    assert alone.training.denoising is None
    assert together.training.denoising.logits.shape == (2, 2, 6, 5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), alone.training.matching, together.training.matching
    )
    np.testing.assert_array_equal(alone.topk_index, together.topk_index)


def test_slots_that_do_not_exist_are_seen_by_nobody(params, run):
    one, other = _denoising(), _denoising()
    labels = np.array(other.labels)
    labels[:, 4:] = (labels[:, 4:] + 1) % 6
    other = other.replace(labels=jnp.asarray(labels), boxes_logit=other.boxes_logit.at[:, 4:].set(-11.5))
    a, b = (run(params, _features(), d).training for d in (one, other))
    np.testing.assert_array_equal(a.denoising.logits[:, :, :4], b.denoising.logits[:, :, :4])
    assert np.abs(a.denoising.logits[:, :, 4:] - b.denoising.logits[:, :, 4:]).max() > 1e-3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((a, b)))


def test_a_group_sees_only_itself(params, run):
    labels = np.zeros((2, 6), int)
    changed = labels.copy()
    changed[:, 0] = 3
    a, b = (run(params, _features(), _denoising(labels=x)).training.denoising.logits for x in (labels, changed))
    assert np.abs(a[:, :, 1] - b[:, :, 1]).max() > 1e-4  # partner in the group
    np.testing.assert_array_equal(a[:, :, 2:4], b[:, :, 2:4])


def test_evaluation_is_the_last_layer_and_needs_only_its_heads(params, alone):
    kept = {
        k: v
        for k, v in params["params"].items()
        if k not in ("dec_score_head_0", "lqe_layers_0", "denoising_class_embed")
    }
    out = jax.jit(lambda p: make_decoder(CONFIG).apply(p, _features(), train=False))({"params": kept})
    assert out.training is None and out.answer.masks_logit is None
    np.testing.assert_allclose(out.logits, alone.logits, atol=2e-5)
    np.testing.assert_allclose(out.boxes_cxcywh, alone.boxes_cxcywh, atol=2e-6)
    np.testing.assert_array_equal(out.topk_index, alone.topk_index)
    np.testing.assert_array_equal(alone.logits, alone.training.matching.logits[-1])


def test_queries_are_the_best_tokens_in_descending_order(params, alone):
    best = np.asarray(alone.training.encoder.logits).max(-1)
    assert np.all(np.diff(best) <= 0)
    many = make_decoder(dataclasses.replace(CONFIG, num_queries=300))
    every = jax.jit(lambda p: many.apply(p, _features(), train=False))(params)
    assert every.logits.shape == (2, 30, 5)
    np.testing.assert_array_equal(every.topk_index[:, :9], alone.topk_index)
    np.testing.assert_array_equal(np.sort(every.topk_index, 1), [np.arange(30)] * 2)


def _trained_modules(params, *parts) -> list[set[str]]:
    """Top-level modules (and "features") that receive a gradient from the sum of each of the given outputs."""

    @jax.jit
    def gradients(p, f, chosen):
        def chosen_sum(p, f):
            training = make_decoder(CONFIG).apply(p, f, _denoising(), train=True).training
            return chosen @ jnp.stack([part(training).sum() for part in parts])

        return jax.grad(chosen_sum, (0, 1))(p, f)

    found = []
    for chosen in np.eye(len(parts), dtype=np.float32):
        of_params, of_features = gradients(params, _features(), chosen)
        leaves = {**of_params["params"], "features": of_features}
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(leaves))
        found.append({k for k, tree in leaves.items() if any(np.any(g) for g in jax.tree.leaves(tree))})
    return found


def test_gradients_stop_where_the_reference_detaches(params):
    encoder_logits, encoder_boxes, before, reference, boxes, logits = _trained_modules(
        params,
        lambda t: t.encoder.logits,
        lambda t: t.encoder.boxes_cxcywh,
        lambda t: t.matching.fdr.pre.boxes_cxcywh,
        lambda t: t.matching.fdr.reference_cxcywh,
        lambda t: t.denoising.boxes_cxcywh[1],
        lambda t: t.denoising.logits[1],
    )
    assert encoder_logits == {"enc_output", "enc_score_head", "features"}
    assert encoder_boxes == {"enc_output", "enc_bbox_head", "features"}
    assert before == {"layers_0", "query_pos_head", "features", "pre_bbox_head"}
    assert reference == set()
    layers = {"layers_0", "layers_1", "query_pos_head", "denoising_class_embed", "features"}
    assert boxes == layers | {"dec_bbox_head_0", "dec_bbox_head_1"}
    assert logits == boxes | {"dec_score_head_1", "lqe_layers_1"}


def test_padding_row_of_the_embedding_has_no_gradient(params):
    module = ClassEmbedding(CONFIG.num_classes, CONFIG.decoder_width)
    own = {"params": params["params"]["denoising_class_embed"]}
    labels = jnp.asarray([[1, 5, 1]])
    rows = module.apply(own, labels)
    np.testing.assert_array_equal(rows[0, 1], own["params"]["embedding"][5])  # stored, not assumed to be zero
    gradient = jax.grad(lambda p: module.apply(p, labels).sum())(own)["params"]["embedding"]
    np.testing.assert_array_equal(gradient[:, 0], [0, 2, 0, 0, 0, 0])


def test_half_precision_returns_float32_and_stays_close(params, run):
    half = jax.jit(lambda p, f, d: make_decoder(CONFIG, dtype=jnp.bfloat16).apply(p, f, d, train=True))
    got, want = half(params, _features(), _denoising()), run(params, _features(), _denoising())
    assert {str(x.dtype) for x in jax.tree.leaves(got) if x.dtype != jnp.int32} == {"float32"}
    np.testing.assert_array_equal(got.topk_index[:, 0], want.topk_index[:, 0])
    np.testing.assert_allclose(got.logits[:, 0], want.logits[:, 0], atol=0.3)
    np.testing.assert_allclose(got.boxes_cxcywh[:, 0], want.boxes_cxcywh[:, 0], atol=0.03)


def test_float64_all_the_way(params):
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: x.astype(np.float64), params)
        evaluate = jax.jit(lambda p: make_decoder(CONFIG).apply(p, _features(np.float64), train=False))
        out = evaluate(double)
        assert out.logits.dtype == out.boxes_cxcywh.dtype == jnp.float64
        change = np.abs(evaluate(jax.tree.map(lambda x: x * (1 + 1e-13), double)).logits - out.logits).max()
    assert 0 < change < 1e-9  # float32 anywhere would give 0 or 1e-6


def test_wide_maps_are_projected():
    wide = dataclasses.replace(CONFIG, encoder_width=24)
    features = [np.zeros((1, h, w, 24), np.float32) for h, w in SIZES]
    shapes = jax.eval_shape(lambda k: make_decoder(wide).init(k, features, train=True), jax.random.key(0))
    names = {"/".join(k) for k in flatten_dict(shapes) if "input_proj_1" in k}
    assert names == {
        "params/input_proj_1/conv/kernel",
        "params/input_proj_1/norm/scale",
        "params/input_proj_1/norm/bias",
        "batch_stats/input_proj_1/norm/mean",
        "batch_stats/input_proj_1/norm/var",
    }


def test_heads_compute_in_float32_whatever_the_precision(params):
    """A box head in bfloat16 moves the edges of large boxes by pixels."""
    decoder = make_decoder(CONFIG, dtype=jnp.bfloat16)
    features = [jnp.asarray(x, jnp.bfloat16) for x in _features()]

    def heads(p):
        _, kept = decoder.apply(p, features, train=True, capture_intermediates=True, mutable=["intermediates"])
        return kept["intermediates"]

    kept = jax.eval_shape(heads, params)
    names = [name for name in kept if "bbox_head" in name or "score_head" in name]
    assert {"enc_bbox_head", "pre_bbox_head", "dec_bbox_head_0", "dec_score_head_0"} <= set(names)
    assert {leaf.dtype for name in names for leaf in jax.tree.leaves(kept[name])} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(kept["layers_0"]["linear1"])} == {jnp.dtype("bfloat16")}
