"""Denoising queries against a loop-by-loop reading of the reference, for every kind of object count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_train import golden_denoising, golden_targets, hash_noise, hash_targets, pad_targets

from dfine_jax.nn.denoising import make_denoising_queries, num_slots, sample_noise
from dfine_jax.nn.queries import attention_blocked

CLASSES = 80
PADDING = float(np.log(1e-5))


def random_targets(counts, slots, seed=0):
    rng = np.random.default_rng(seed)
    labels = [rng.integers(0, CLASSES, n) for n in counts]
    return pad_targets(labels, [rng.uniform(0.05, 0.9, (n, 4)) for n in counts], slots)


def assert_same_boxes(logits, expected_logits):
    """Compared as boxes: near 0 and 1 a rounding of the box is a visible step of its logit."""
    np.testing.assert_allclose(jax.nn.sigmoid(logits), 1 / (1 + np.exp(-expected_logits)), atol=1e-6)


def inverse_sigmoid(x):
    return np.log(max(x, 1e-5)) - np.log(max(1 - x, 1e-5))


def expected(targets, noise, num_denoising, ratio=0.5, scale=1.0):
    """Labels, boxes and matches [b, n] of the reference, slot by slot; n = 0 without objects."""
    counts = np.asarray(targets.valid).sum(-1)
    batch, most = len(counts), counts.max(initial=0)
    groups = 0 if most == 0 else max(1, num_denoising // most)
    total = 2 * most * groups
    labels, match = np.full((batch, total), CLASSES), np.full((batch, total), -1)
    boxes = np.full((batch, total, 4), PADDING)
    for b, group, negative in np.ndindex(batch, groups, 2):
        for place, j in enumerate(np.flatnonzero(targets.valid[b])):
            slot = group * 2 * most + negative * most + place
            flip = noise.label_mask[b, slot] < 0.5 * ratio
            labels[b, slot] = noise.new_label[b, slot] if flip else targets.labels[b, j]
            cx, cy, w, h = np.asarray(targets.boxes_cxcywh[b, j], np.float64)
            edges = []
            for edge, (centre, size, side) in enumerate([(cx, w, -1), (cy, h, -1), (cx, w, 1), (cy, h, 1)]):
                shift = (2 * noise.sign[b, slot, edge] - 1) * (noise.magnitude[b, slot, edge] + negative) * size / 2
                edges.append(np.clip(centre + side * size / 2 + scale * shift, 0, 1))
            x1, y1, x2, y2 = edges
            box = ((x1 + x2) / 2, (y1 + y2) / 2, abs(x2 - x1), abs(y2 - y1))
            boxes[b, slot] = [inverse_sigmoid(v) for v in box]
            match[b, slot] = -1 if negative else j
    return labels, boxes, match, groups


@pytest.mark.parametrize(
    ("counts", "slots", "num_denoising"),
    [
        ((7, 0, 3, 12), 12, 100),
        ((7, 0, 3, 12), 20, 100),
        ((1,), 4, 100),
        ((0, 0), 5, 100),
        ((100, 3), 100, 100),
        ((60, 51), 64, 100),
        ((130, 4), 130, 100),
        ((101, 4), 140, 100),
        ((2, 3), 3, 1),
    ],
)
def test_layout_and_values_equal_the_reference(counts, slots, num_denoising):
    targets = random_targets(counts, slots)
    total = num_slots(slots, num_denoising)
    draw = jax.jit(sample_noise, static_argnums=(1, 2, 3))
    noise = draw(jax.random.key(1), len(counts), total, CLASSES)
    queries = jax.jit(make_denoising_queries, static_argnums=(2, 3))(targets, noise, CLASSES, num_denoising)
    labels, boxes, match, groups = expected(targets, jax.tree.map(np.asarray, noise), num_denoising)
    used = labels.shape[1]
    assert used <= total
    assert int(queries.num_groups) == groups
    np.testing.assert_array_equal(queries.exists, np.arange(total) < used)
    np.testing.assert_array_equal(queries.labels[:, :used], labels)
    np.testing.assert_array_equal(queries.match[:, :used], match)
    assert_same_boxes(queries.boxes_logit[:, :used], boxes)
    np.testing.assert_array_equal(queries.labels[:, used:], CLASSES)
    np.testing.assert_array_equal(queries.match[:, used:], -1)
    assert np.all(np.isfinite(queries.boxes_logit))
    if groups:
        np.testing.assert_array_equal(queries.group[:used], np.arange(used) // (used // groups))


@pytest.mark.parametrize(("ratio", "scale"), [(0.0, 1.0), (1.0, 0.4), (0.5, 0.0)])
def test_noise_strength_is_honoured(ratio, scale):
    targets = random_targets((3, 5), 6)
    noise = sample_noise(jax.random.key(2), 2, 200, CLASSES)
    queries = make_denoising_queries(targets, noise, CLASSES, 100, ratio, scale)
    labels, boxes, _, _ = expected(targets, jax.tree.map(np.asarray, noise), 100, ratio, scale)
    np.testing.assert_array_equal(queries.labels, labels)
    # Without noise the reference does not clip boxes to the image, so sizes are compared where they are inside.
    if scale > 0:
        assert_same_boxes(queries.boxes_logit, boxes)
    else:
        filled = np.asarray(queries.match) >= 0
        truth = np.take_along_axis(
            np.asarray(targets.boxes_cxcywh), np.maximum(np.asarray(queries.match), 0)[..., None], 1
        )
        np.testing.assert_allclose(jax.nn.sigmoid(queries.boxes_logit)[filled], truth[filled], atol=1e-6)


def test_objects_need_not_fill_the_first_slots():
    dense = random_targets((3, 5), 5)
    noise = sample_noise(jax.random.key(3), 2, 200, CLASSES)
    spread = np.array([1, 3, 4, 6, 7])
    labels, boxes, valid = (np.zeros((2, 9, *shape), kind) for shape, kind in (((), "i4"), ((4,), "f4"), ((), bool)))
    labels[:, spread], boxes[:, spread], valid[:, spread] = dense.labels, dense.boxes_cxcywh, dense.valid
    sparse = dense.replace(labels=jnp.asarray(labels), boxes_cxcywh=jnp.asarray(boxes), valid=jnp.asarray(valid))
    one = make_denoising_queries(dense, noise, CLASSES, 100)
    other = make_denoising_queries(sparse, noise, CLASSES, 100)
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.boxes_logit, other.boxes_logit)
    np.testing.assert_array_equal(np.where(one.match < 0, -1, spread[one.match]), other.match)


def test_one_program_serves_every_count():
    traces = []

    @jax.jit
    def run(targets, noise):
        traces.append(1)
        return make_denoising_queries(targets, noise, CLASSES, 100).num_groups

    noise = sample_noise(jax.random.key(0), 1, num_slots(30, 100), CLASSES)
    groups = [int(run(random_targets((n,), 30), noise)) for n in (0, 1, 3, 7, 30)]
    assert groups == [0, 100, 33, 14, 3]
    assert len(traces) == 1


def test_slots_and_their_check():
    assert [num_slots(g, 100) for g in (0, 1, 100, 101)] == [0, 200, 200, 202]
    assert num_slots(10, 0) == 0
    noise = sample_noise(jax.random.key(0), 1, 100, CLASSES)
    with pytest.raises(ValueError, match="num_slots"):
        make_denoising_queries(random_targets((2,), 3), noise, CLASSES, 100)


def test_layout_of_the_golden_step(golden):
    arrays = dict(np.load(golden("step_n_dn100.npz")))
    noise = sample_noise(jax.random.key(0), 4, 200, CLASSES)
    ours = make_denoising_queries(golden_targets(arrays, 15), noise, CLASSES, 100)
    stored = golden_denoising(arrays, 200)
    for field in ("match", "exists", "num_groups"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(stored, field))
    used = arrays["dn_class"].shape[1]
    padding = np.asarray(ours.labels)[:, :used] == CLASSES
    np.testing.assert_array_equal(padding, arrays["dn_class"] == CLASSES)
    np.testing.assert_allclose(np.asarray(ours.boxes_logit)[:, :used][padding], arrays["dn_bbox_unact"][padding])
    blocked, expected = np.asarray(attention_blocked(ours, 300)), arrays["dn_attn_mask"]
    np.testing.assert_array_equal(blocked[:used, np.r_[:used, 200:500]], expected[:used])
    assert blocked[:used, used:200].all() and not blocked[used:, 200:].any()
    assert expected[used:, :used].all() and not expected[used:, used:].any()  # matching queries, which have no rows


def test_hash_draws_fill_all_slots():
    queries = make_denoising_queries(hash_targets(), hash_noise(), CLASSES, 100)
    labels, boxes, match, groups = expected(hash_targets(), jax.tree.map(np.asarray, hash_noise()), 100)
    assert int(queries.num_groups) == groups == 20 and bool(queries.exists.all())
    np.testing.assert_array_equal(queries.labels, labels)
    np.testing.assert_array_equal(queries.match, match)
    assert_same_boxes(queries.boxes_logit, boxes)


def test_draws_cover_their_ranges():
    noise = sample_noise(jax.random.key(5), 8, 500, 3)
    assert set(np.unique(noise.new_label)) == {0, 1, 2} and set(np.unique(noise.sign)) == {0, 1}
    for x in (noise.label_mask, noise.magnitude):
        assert 0 <= float(x.min()) < 0.02 and 0.98 < float(x.max()) < 1
        assert abs(float(x.mean()) - 0.5) < 0.02
