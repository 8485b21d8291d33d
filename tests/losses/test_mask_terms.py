"""Terms and costs of masks: published numbers, the written-out formulas of PyTorch, and what must not change them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_train import pad_targets

from dfine_jax.losses.masks import (
    MaskWeights,
    mask_cost,
    mask_terms,
    pair_costs,
    pair_losses,
    pairs_of_objects,
    pairs_of_queries,
)
from dfine_jax.ops.masks import masks_logit


def test_losses_of_one_pair():
    logits = jnp.arange(16.0).reshape(4, 4) / 4 - 2
    quarters = np.zeros((4, 4), np.uint8)
    quarters[1:3, 1:3] = [[4, 3], [2, 1]]
    box = np.array([1.9, 1.75, 2.6, 2.3], np.float32) / 4  # from (0.6, 0.6) to (3.2, 2.9)
    bce, dice = pair_losses(logits, quarters, box)
    np.testing.assert_allclose([bce, dice], [0.87772143, 0.62157083], rtol=2e-7)


def test_cross_entropy_is_divided_by_the_area_of_the_box_in_cells():
    """Three by three cells have their index in a box of 2.7 by 2.7."""
    box = np.array([1.35, 1.35, 2.7, 2.7], np.float32) / 8
    bce, _ = pair_losses(jnp.zeros((8, 8)), np.zeros((8, 8), np.uint8), box)
    np.testing.assert_allclose(bce, np.log(2) * 9 / 7.29, rtol=1e-6)


def test_costs_of_pairs():
    focal, dice = pair_costs(jnp.array([[[0.0, 1, -2, 3]]]), np.array([[[4, 0, 2, 4]], [[0, 0, 0, 4]]], np.uint8))
    np.testing.assert_allclose(focal, [[0.194172, 0.164437]], atol=1e-6)
    np.testing.assert_allclose(dice, [[0.370299, 0.423178]], atol=1e-6)


@pytest.mark.parametrize("size", [20.0, 100.0, 1e4])
def test_certain_masks_cost_a_number(size):
    """In a compiled program too, where 1 - p + tiny is no more than 1 - p, whose logarithm may be infinite."""
    logits = size * jnp.array([[[1.0, 1, -1, -1]]])
    focal, _ = jax.jit(pair_costs)(logits, np.array([[[4, 0, 4, 0]], [[4, 4, 0, 0]]], np.uint8))
    wrong = 0.25 * -np.log(1e-8) / 4 + 0.75 * -np.log(1e-8) / 4  # a cell for certain that is none, and the reverse
    np.testing.assert_allclose(focal, [[wrong, 0]], rtol=0.02, atol=1e-6)


@pytest.fixture(scope="module")
def batch():
    """Two layers, three images with 3, 0 and 2 objects in four slots, of which the first image's last has no mask."""
    stream = np.random.default_rng(0)
    boxes = [stream.uniform(0.2, 0.6, (n, 4)) for n in (3, 0, 2)]
    targets = pad_targets([np.arange(len(b)) for b in boxes], boxes, 4)
    has_mask = np.array(targets.valid)
    has_mask[0, 2] = False
    masks = stream.integers(0, 5, (3, 4, 6, 10)).astype(np.uint8) * has_mask[..., None, None]
    targets = dataclasses.replace(targets, masks=jnp.asarray(masks, jnp.uint8), has_mask=jnp.asarray(has_mask))
    embedding = jnp.asarray(stream.standard_normal((2, 3, 7, 5)), jnp.float32)
    pixels = jnp.asarray(stream.standard_normal((3, 6, 10, 5)), jnp.float32)
    match = np.full((2, 3, 7), -1)
    match[0, 0, [5, 1, 2]], match[1, 0, [0, 3, 6]] = [0, 1, 2], [2, 1, 0]
    match[0, 2, [4, 0]], match[1, 2, [1, 2]] = [0, 1], [1, 0]
    return embedding, pixels, targets, jnp.asarray(match)


def written_out(embedding, pixels, targets, match):
    """Means over the pairs of each layer, pair by pair, as the reference computes them in PyTorch."""
    torch = pytest.importorskip("torch")
    results = []
    for layer in range(len(embedding)):
        bce, dice = [], []
        for image, query in zip(*np.nonzero(np.asarray(match[layer]) >= 0), strict=True):
            slot = int(match[layer, image, query])
            if not targets.has_mask[image, slot]:
                continue
            e, f = (torch.tensor(np.asarray(x)) for x in (embedding[layer, image, query], pixels[image]))
            logits = torch.einsum("c,hwc->hw", e, f)
            truth = torch.tensor(np.asarray(targets.masks[image, slot]) / 4).float()
            height, width = logits.shape
            cx, cy, w, h = (float(v) for v in targets.boxes_cxcywh[image, slot])
            x1, x2 = np.clip((cx - w / 2) * width, 0, width - 1), np.clip((cx + w / 2) * width, 1, width)
            y1, y2 = np.clip((cy - h / 2) * height, 0, height - 1), np.clip((cy + h / 2) * height, 1, height)
            x, y = torch.arange(width), torch.arange(height)[:, None]
            inside = ((x >= x1) & (x < x2) & (y >= y1) & (y < y2)).float()
            entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            bce.append(float((entropy * inside).sum() / max((x2 - x1) * (y2 - y1), 1)))
            p, t = logits.sigmoid() * inside, truth * inside
            dice.append(float(1 - (2 * (p * t).sum() + 1e-6) / (p.sum() + t.sum() + 1e-6)))
        results.append((np.mean(bce), np.mean(dice)))
    return np.array(results)


@pytest.mark.parity
def test_terms_of_layers(batch):
    embedding, pixels, targets, match = batch
    pairs = pairs_of_objects(match, targets)
    got = jnp.stack(mask_terms(embedding, pixels, targets, pairs, pairs.exists.sum((-2, -1))), -1)
    assert pairs.exists.sum((-2, -1)).tolist() == [4, 4]
    np.testing.assert_allclose(got, written_out(embedding, pixels, targets, match), rtol=2e-6)


def test_gradient_reaches_only_matched_queries_and_is_that_of_whole_maps(batch):
    embedding, pixels, targets, match = batch
    pairs = pairs_of_objects(match, targets)

    def gathered(embedding, pixels):
        return sum(x.sum() for x in mask_terms(embedding, pixels, targets, pairs, 1.0))

    def whole(embedding, pixels):
        logits = masks_logit(embedding, jnp.broadcast_to(pixels, (2, *pixels.shape)))  # of all queries
        total = 0.0
        for layer, image, query in zip(*np.nonzero(np.asarray(match) >= 0), strict=True):
            slot = int(match[layer, image, query])
            one = pair_losses(
                logits[layer, image, query], targets.masks[image, slot], targets.boxes_cxcywh[image, slot]
            )
            total += sum(one) if targets.has_mask[image, slot] else 0.0
        return total

    got, want = (jax.grad(f, (0, 1))(embedding, pixels) for f in (gathered, whole))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=2e-6)
    moved = jnp.any(got[0] != 0, -1)
    assert moved.sum() == 8 and not jnp.any(moved & (match < 0))


def test_costs_are_those_of_pairs_and_objects_without_a_mask_cost_nothing(batch):
    embedding, pixels, targets, _ = batch
    got = mask_cost(embedding, pixels, targets, MaskWeights(2.0, 3.0, 0, 0))
    assert got.shape == (2, 3, 7, 4)
    for layer, image in np.ndindex(2, 3):
        focal, dice = pair_costs(masks_logit(embedding[layer, image], pixels[image]), targets.masks[image])
        want = jnp.where(targets.has_mask[image], 2 * focal + 3 * dice, 0)
        np.testing.assert_allclose(got[layer, image], want, rtol=1e-5)


def test_pairs_of_queries_that_share_objects(batch):
    """As denoising queries do: several groups, in any places."""
    embedding, pixels, targets, _ = batch
    match = np.full((3, 7), -1)
    match[0, [0, 1, 2]], match[0, [4, 6]] = [0, 1, 2], [0, 1]
    match[2, [1, 5]] = [1, 1]
    pairs = pairs_of_queries(jnp.asarray(match), targets, 5)
    assert pairs.exists.sum(-1).tolist() == [4, 0, 2]  # slot 2 of the first image has no mask
    layers = jnp.broadcast_to(jnp.asarray(match), (2, 3, 7))
    got = jnp.stack(mask_terms(embedding, pixels, targets, pairs, pairs.exists.sum()), -1)
    pytest.importorskip("torch")
    np.testing.assert_allclose(got, written_out(embedding, pixels, targets, layers), rtol=2e-6)


def test_nothing_matched_is_exactly_zero(batch):
    embedding, pixels, targets, match = batch
    pairs = pairs_of_objects(jnp.full_like(match, -1), targets)

    def total(embedding):
        return sum(x.sum() for x in mask_terms(embedding, pixels, targets, pairs, pairs.exists.sum((-2, -1))))

    value, grads = jax.value_and_grad(total)(embedding)
    assert value == 0 and not jnp.any(grads)


def test_no_object_slots_at_all(batch):
    embedding, pixels, _, match = batch
    empty = pad_targets([[], [], []], [[], [], []], 0)
    empty = dataclasses.replace(empty, masks=jnp.zeros((3, 0, 6, 10), jnp.uint8), has_mask=empty.valid)
    assert mask_cost(embedding, pixels, empty, MaskWeights(1.0, 1.0, 1.0, 1.0)).shape == (2, 3, 7, 0)
    pairs = pairs_of_objects(jnp.full_like(match, -1), empty)
    assert not any(term.any() for term in mask_terms(embedding, pixels, empty, pairs, pairs.exists.sum((-2, -1))))
