"""Each loss term: formula in PyTorch with autograd, numerical derivatives, stopped gradients, masked entries."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_train import pad_targets
from jax.test_util import check_grads

from dfine_jax.losses import fdr, terms
from dfine_jax.ops.fdr import decode, integral, weighting_function

A = 4.0
PROJECT = weighting_function(32, 0.5, A)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def case(seed=0, batch=2, queries=6, classes=5):
    """Random predictions [s=2, b, q, ..] in float64 with matches that repeat objects and leave queries free."""
    rng = np.random.default_rng(seed)
    targets = pad_targets(
        [rng.integers(0, classes, 3), rng.integers(0, classes, 1)],
        [rng.uniform(0.2, 0.6, (3, 4)), rng.uniform(0.2, 0.6, (1, 4))],
        4,
        np.float64,
    )
    match = np.array([[0, -1, 2, 2, 1, -1], [-1, -1, 0, -1, -1, 0]])
    reference = rng.uniform(0.2, 0.6, (batch, queries, 4))
    corners = rng.normal(size=(2, batch, queries, 4, 33))
    boxes = np.asarray(decode(reference, integral(jnp.asarray(corners), PROJECT), A))
    return {
        "targets": targets,
        "match": jnp.asarray(match),
        "reference": jnp.asarray(reference),
        "corners": jnp.asarray(corners),
        "boxes": jnp.asarray(boxes),
        "logits": jnp.asarray(rng.normal(size=(2, batch, queries, classes))),
    }


def compute(c, name, logits, boxes, corners):
    truth = terms.gather_truth(c["targets"], c["match"])
    if name == "vfl":
        return terms.vfl_loss(logits, boxes, truth, 3.0)
    if name == "l1":
        return terms.l1_loss(boxes, truth, 3.0)
    if name == "giou":
        return terms.giou_loss(boxes, truth, 3.0)
    if name == "fgl":
        return fdr.fgl_loss(corners, boxes, c["reference"], truth, PROJECT, A, 3.0)
    return fdr.ddf_loss(corners[:1], boxes[:1], corners[1], logits[1], truth, fdr.ddf_sides(truth.matched))


def torch_terms(c, logits, boxes, corners):
    """The five terms for every layer, written pair by pair from the formulas of the specification."""
    import torch
    import torch.nn.functional as nnf

    target_boxes = torch.from_numpy(np.array(c["targets"].boxes_cxcywh))
    labels, match = np.array(c["targets"].labels), np.array(c["match"])
    pairs = [(b, q, match[b, q]) for b, q in np.ndindex(*match.shape) if match[b, q] >= 0]

    def xyxy(box):
        x, y, w, h = box.unbind(-1)
        w, h = w.clamp(min=0), h.clamp(min=0)
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2

    def iou_giou(p, t):
        (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = xyxy(p), xyxy(t)
        inter = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0) * (
            torch.minimum(ay2, by2) - torch.maximum(ay1, by1)
        ).clamp(min=0)
        union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
        hull = (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)) * (torch.maximum(ay2, by2) - torch.minimum(ay1, by1))
        return inter / union, inter / union - (hull - union) / hull

    W = torch.from_numpy(PROJECT.astype(np.float64))
    out = {"vfl": [], "l1": [], "giou": [], "fgl": [], "ddf": []}
    for s in range(logits.shape[0]):
        overlap = {(b, q): iou_giou(boxes[s, b, q], target_boxes[b, g]) for b, q, g in pairs}
        one_hot, soft = torch.zeros_like(logits[s]), torch.zeros_like(logits[s])
        for b, q, g in pairs:
            one_hot[b, q, labels[b, g]] = 1
            soft[b, q, labels[b, g]] = overlap[b, q][0].detach()
        p = logits[s].sigmoid().detach()
        weight = 0.75 * p**2 * (1 - one_hot) + soft
        out["vfl"].append(nnf.binary_cross_entropy_with_logits(logits[s], soft, weight=weight, reduction="sum") / 3)
        out["l1"].append(sum((boxes[s, b, q] - target_boxes[b, g]).abs().sum() for b, q, g in pairs) / 3)
        out["giou"].append(sum(1 - overlap[b, q][1] for b, q, g in pairs) / 3)
        fgl = 0.0
        for b, q, g in pairs:
            cx, cy, w, h = torch.from_numpy(np.array(c["reference"][b, q]))
            x1, y1, x2, y2 = xyxy(target_boxes[b, g])
            unit = (w / A + 1e-16, h / A + 1e-16)
            offsets = ((cx - x1) / unit[0], (cy - y1) / unit[1], (x2 - cx) / unit[0], (y2 - cy) / unit[1])
            for edge, offset in enumerate(offsets):
                d = offset - A / 2
                k = int((d >= W).sum()) - 1
                if k < 0:
                    k, right = 0, 0.0
                elif k >= 32:
                    k, right = 31, 1.0
                else:
                    right = float((d - W[k]).abs() / ((d - W[k]).abs() + (W[k + 1] - d).abs()))
                row = corners[s, b, q, edge][None]
                left_entropy, right_entropy = (nnf.cross_entropy(row, torch.tensor([i])) for i in (k, k + 1))
                fgl = fgl + overlap[b, q][0].detach() * ((1 - right) * left_entropy + right * right_entropy)
        out["fgl"].append(fgl / 3)
        teacher = nnf.softmax(corners[-1].detach() / 5, -1)
        kl = nnf.kl_div(nnf.log_softmax(corners[s] / 5, -1), teacher, reduction="none").sum(-1)  # [b, q, 4]
        omega = logits[-1].sigmoid().max(-1).values.detach().clone()
        mask = torch.zeros(omega.shape, dtype=torch.bool)
        for b, q, _ in pairs:
            omega[b, q], mask[b, q] = overlap[b, q][0].detach(), True
        value = omega[..., None] * 25 * kl
        edges = mask[..., None].expand_as(value)
        pos, neg = (edges.sum() * 8 / 2) ** 0.5, ((~edges).sum() * 8 / 2) ** 0.5
        out["ddf"].append((value[edges].mean() * pos + value[~edges].mean() * neg) / (pos + neg))
    return {k: torch.stack(v) for k, v in out.items()}


def _total(function):
    return lambda *x: function(*x).sum()


@pytest.mark.parity
@pytest.mark.parametrize("name", ["vfl", "l1", "giou", "fgl", "ddf"])
def test_values_and_gradients_equal_autograd(name):
    torch = pytest.importorskip("torch")
    for seed in range(3):
        c = case(seed)
        inputs = [c["logits"], c["boxes"], c["corners"]]
        tensors = [torch.tensor(np.array(x), requires_grad=True) for x in inputs]
        want = torch_terms(c, *tensors)[name]
        run = functools.partial(compute, c, name)
        got = jax.jit(run)(*inputs)
        np.testing.assert_allclose(got, want.detach().numpy()[: got.shape[0]], rtol=1e-12)
        want[: got.shape[0]].sum().backward()
        grads = jax.jit(jax.grad(_total(run), (0, 1, 2)))(*inputs)
        for ours, tensor in zip(grads, tensors, strict=True):
            theirs = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-13)


def test_gradients_equal_numerical_differences():
    """Where nothing is stopped: boxes for l1 and giou, corners for fgl and ddf, logits for vfl of exponent 0."""
    c = case(1)
    truth = terms.gather_truth(c["targets"], c["match"])
    sides = fdr.ddf_sides(truth.matched)
    functions = [
        (lambda x: terms.l1_loss(x, truth, 3.0), c["boxes"][0]),
        (lambda x: terms.giou_loss(x, truth, 3.0), c["boxes"][0]),
        (lambda x: terms.vfl_loss(x, c["boxes"][0], truth, 3.0, gamma=0.0), c["logits"][0]),
        (lambda x: fdr.fgl_loss(x, c["boxes"][0], c["reference"], truth, PROJECT, A, 3.0), c["corners"][0]),
        (
            lambda x: fdr.ddf_loss(x, c["boxes"][0], c["corners"][1], c["logits"][1], truth, sides),
            c["corners"][0],
        ),
    ]
    for function, x in functions:
        assert function(x).shape == ()
        check_grads(jax.jit(function), (x,), order=1, modes=["rev"], rtol=1e-6, atol=1e-6)


def test_weights_teachers_and_targets_carry_no_gradient():
    c = case(2)
    truth = terms.gather_truth(c["targets"], c["match"])
    sides = fdr.ddf_sides(truth.matched)
    boxes, corners, logits = c["boxes"][0], c["corners"], c["logits"]
    stopped = [
        jax.grad(lambda x: terms.vfl_loss(logits[0], x, truth, 1.0))(boxes),
        jax.grad(lambda x: fdr.fgl_loss(corners[0], x, c["reference"], truth, PROJECT, A, 1.0))(boxes),
        jax.grad(lambda x: fdr.fgl_loss(corners[0], boxes, x, truth, PROJECT, A, 1.0))(c["reference"]),
        *jax.grad(lambda *x: fdr.ddf_loss(corners[0], *x, truth, sides), (0, 1, 2))(boxes, corners[1], logits[1]),
    ]
    assert all(not np.any(g) for g in stopped)


@pytest.mark.parametrize("empty", [False, True])
def test_unmatched_rows_never_reach_a_value_or_a_gradient(empty):
    """Zero-area, infinite or NaN predictions of queries without an object must not matter for box terms."""
    c = case(3)
    match = jnp.full_like(c["match"], -1) if empty else c["match"]
    truth = terms.gather_truth(c["targets"], match)
    free = (match < 0)[..., None]
    for poison in (0.0, np.nan, np.inf):
        boxes = jnp.where(free, poison, c["boxes"][0])
        corners = jnp.where(free[..., None], poison, c["corners"][0])
        reference = jnp.where(free, poison, c["reference"])
        for function, x in (
            (lambda x: terms.l1_loss(x, truth, 1.0), boxes),
            (lambda x: terms.giou_loss(x, truth, 1.0), boxes),
            (lambda x, b=boxes, r=reference: fdr.fgl_loss(x, b, r, truth, PROJECT, A, 1.0), corners),
            (lambda x, b=boxes: terms.vfl_loss(x, b, truth, 1.0), c["logits"][0]),
        ):
            value, grad = jax.jit(jax.value_and_grad(function))(x)
            assert np.isfinite(value) and np.isfinite(grad).all()
            if empty and x.shape[-1] != 5:
                assert value == 0 and not np.any(grad)


def test_rows_that_do_not_exist_never_reach_a_value_or_a_gradient():
    c = case(4)
    exists = jnp.array([True, True, True, True, False, False])
    match = jnp.where(exists, c["match"], -1)
    truth = terms.gather_truth(c["targets"], match)
    short = terms.gather_truth(c["targets"], match[:, :4])
    sides = fdr.ddf_sides(truth.matched)
    poison = lambda x: jnp.where(exists.reshape(-1, *[1] * (x.ndim - 2)), x, np.nan)  # noqa: E731
    boxes, logits, student, teacher = (
        poison(x) for x in (c["boxes"][0], c["logits"][0], c["corners"][0], c["corners"][1])
    )
    value, grad = jax.value_and_grad(lambda x: terms.vfl_loss(x, boxes, truth, 1.0, exists=exists))(logits)
    np.testing.assert_allclose(value, terms.vfl_loss(logits[:, :4], boxes[:, :4], short, 1.0), rtol=1e-12)
    assert np.isfinite(grad).all() and not grad[:, 4:].any()
    value, grad = jax.value_and_grad(lambda x: fdr.ddf_loss(x, boxes, teacher, logits, truth, sides, exists=exists))(
        student
    )
    expected = fdr.ddf_loss(student[:, :4], boxes[:, :4], teacher[:, :4], logits[:, :4], short, sides)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert np.isfinite(grad).all() and not grad[:, 4:].any()


def test_distillation_into_itself_is_exactly_zero():
    c = case(5)
    truth = terms.gather_truth(c["targets"], c["match"])
    sides = fdr.ddf_sides(truth.matched)
    corners = jnp.stack([c["corners"][1], c["corners"][0]])
    function = lambda x: fdr.ddf_loss(x, c["boxes"], c["corners"][1], c["logits"][1], truth, sides)  # noqa: E731
    value = function(corners)
    assert value[0] == 0 and value[1] > 0
    grad = jax.grad(lambda x: function(x).sum())(corners)
    assert not grad[0].any() and grad[1].any()


def test_distillation_without_matches_is_the_unmatched_mean():
    c = case(6)
    truth = terms.gather_truth(c["targets"], jnp.full_like(c["match"], -1))
    args = (c["boxes"][0], c["corners"][1], c["logits"][1], truth)
    value = fdr.ddf_loss(c["corners"][0], *args, fdr.ddf_sides(truth.matched))
    only = fdr.ddf_loss(c["corners"][0], *args, (jnp.zeros(()), jnp.ones(())))
    np.testing.assert_allclose(value, only, rtol=1e-12)


def test_no_object_slots_and_low_precision():
    targets = pad_targets([[], []], [[], []], 0, np.float32)
    truth = terms.gather_truth(targets, jnp.full((2, 6), -1))
    assert truth.boxes_cxcywh.shape == (2, 6, 4) and not truth.matched.any()
    c = case(0)
    truth = terms.gather_truth(c["targets"], c["match"])
    truth = truth.replace(boxes_cxcywh=truth.boxes_cxcywh.astype(jnp.float32))
    low = [c[k][0].astype(jnp.bfloat16) for k in ("logits", "boxes", "corners")]
    project = PROJECT
    for value in (
        terms.vfl_loss(low[0], low[1], truth, 1.0),
        terms.l1_loss(low[1], truth, 1.0),
        fdr.fgl_loss(low[2], low[1], c["reference"].astype(jnp.float32), truth, project, A, 1.0),
    ):
        assert value.dtype == jnp.float32
