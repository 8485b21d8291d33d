"""RT-DETRv2's loss: every term and gradient of a training step against the reference, denoising queries, MAL."""

from __future__ import annotations

import dataclasses
import json

import golden_fill
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rtdetr_golden
from golden_compare import query_order, reorder
from golden_train import golden_denoising, golden_targets, pad_targets, reference_names

from dfine_jax.families.rtdetr.config import RTDetrLossConfig
from dfine_jax.families.rtdetr.family import RTDETR
from dfine_jax.families.rtdetr.loss import kinds, loss_terms, match
from dfine_jax.families.rtdetr.model import RTDetr
from dfine_jax.families.rtdetr.variants import VARIANTS
from dfine_jax.typing import Norm

CONFIG, LOSS = VARIANTS["r18"], RTDetrLossConfig()


def total_and_terms(output, targets, denoising, loss=LOSS, config=CONFIG):
    matching = match(output, targets, denoising, loss)
    named = loss_terms(output, targets, denoising, matching, Norm(matching.counts, matching.counts), config, loss)
    return sum(named.values()), named


@pytest.fixture(scope="module")
def step(golden):
    """One training step of the reference numbers: output, terms, gradients."""
    arrays = dict(np.load(golden("families/step_rtdetrv2_r18.npz")))
    variables = rtdetr_golden.variables(rtdetr_golden.state_dict(golden, statistics=False))
    targets, denoising = golden_targets(arrays), golden_denoising(arrays, 200)
    images = golden_fill.image(256, 256, 3, seed=50)

    def loss(params):
        state = {**variables, "params": params}
        output, _ = RTDetr(CONFIG).apply(state, images, denoising, train=True, mutable=["batch_stats"])
        total, named = total_and_terms(output, targets, denoising)
        return total, (output, named)

    (total, (output, named)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    return arrays, float(total), output, named, grads


def test_outputs_of_the_last_layer(step):
    arrays, _, output, _, _ = step
    order = query_order(output.topk_index, arrays["topk_index"])
    boxes = np.abs(reorder(output.boxes_cxcywh, order) - arrays["pred_boxes"]).max()
    logits = np.abs(reorder(output.logits, order)[:, :8] - arrays["pred_logits_first8"]).max()
    print(f"logits {logits:.1e}, boxes {boxes:.1e}")
    assert logits < 2e-3 and boxes < 5e-5


def test_every_term(step, golden):
    want = json.loads(golden("families/step_rtdetrv2_r18.json").read_text())
    _, total, _, named, _ = step
    got = reference_names(named)
    assert set(got) == set(want["losses"])
    errors = {key: abs(float(got[key]) / value - 1) for key, value in want["losses"].items()}
    worst = max(errors, key=errors.__getitem__)
    print(f"total {total:.6f} ({want['total']:.6f}), worst term {worst} {errors[worst]:.1e}")
    assert abs(total / want["total"] - 1) < 1e-5 and errors[worst] < 1e-4


def test_every_gradient(step, golden):
    names = json.loads(golden("families/step_rtdetrv2_r18.json").read_text())["grad_norm_names"]
    arrays, _, _, _, grads = step
    leaves = jax.tree_util.tree_leaves_with_path({"params": grads})
    norms = {
        rtdetr_golden.official("/".join(part.key for part in path)): float(jnp.linalg.norm(leaf.ravel()))
        for path, leaf in leaves
    }
    wanted = dict(zip(names, arrays["grad_norms"], strict=True))
    assert set(norms) == set(wanted)
    errors = {name: abs(norms[name] - want) / max(want, 1e-3) for name, want in wanted.items()}
    worst = max(errors, key=errors.__getitem__)
    print(f"median {np.median(list(errors.values())):.1e}, worst {worst} {errors[worst]:.1e}")
    # Float32 with statistics of a batch; measured 6.4e-4 and 8.5e-3. In float64 test_rtdetr_transformers.py is sharp.
    assert np.median(list(errors.values())) < 2e-3 and errors[worst] < 4e-2


def test_terms_are_normalised_by_what_the_whole_batch_has(step):
    arrays, _, output, named, _ = step
    targets, denoising = golden_targets(arrays), golden_denoising(arrays, 200)
    matching = match(output, targets, denoising, LOSS)
    assert matching.counts.tolist() == [10.0]
    half = loss_terms(output, targets, denoising, matching, Norm(2 * matching.counts, matching.counts), CONFIG, LOSS)
    for name, value in named.items():
        np.testing.assert_allclose(half[name], value / 2, rtol=1e-5)


def test_deim_replaces_the_class_term_alone(step):
    arrays, _, output, named, _ = step
    deim = dataclasses.replace(LOSS, class_loss="mal")
    _, got = total_and_terms(output, golden_targets(arrays), golden_denoising(arrays, 200), deim)
    assert kinds(CONFIG, deim) == ("mal", "bbox", "giou") and set(got) == {name.replace("vfl", "mal") for name in named}
    for name, value in named.items():
        if not name.startswith("vfl"):
            np.testing.assert_allclose(got[name], value, rtol=1e-5)
    assert abs(got["mal/last"] / named["vfl/last"] - 1) > 0.1


def test_without_objects_two_queries_are_background():
    targets = pad_targets([[], []], [[], []], slots=3)
    drawn = RTDETR.queries(jax.random.key(1), targets, CONFIG, LOSS)
    assert drawn.exists.sum() == 2 and drawn.num_groups == 1 and np.all(drawn.match == -1)
    assert np.all(drawn.labels[:, :2] == CONFIG.num_classes)
    centres = jax.nn.sigmoid(drawn.boxes_logit[:, :2, :2])
    assert np.all(np.abs(centres - 0.5) <= 0.1) and np.any(centres != 0.5)  # noise moves an edge by a side at most
    none = RTDETR.queries(jax.random.key(1), targets, CONFIG, dataclasses.replace(LOSS, denoise_without_objects=False))
    assert not none.exists.any() and none.num_groups == 0


def test_boxes_turned_inside_out_are_unfolded_only_where_asked():
    targets = pad_targets([[1, 2]], [[[0.5, 0.5, 0.2, 0.2], [0.3, 0.4, 0.1, 0.3]]])
    folded = RTDETR.queries(jax.random.key(0), targets, CONFIG, LOSS)
    unfolded = RTDETR.queries(jax.random.key(0), targets, CONFIG, dataclasses.replace(LOSS, unfold_boxes=True))
    smallest = np.log(1e-5 / (1 - 1e-5))
    sides, mirrored = np.asarray(folded.boxes_logit[..., 2:]), np.asarray(unfolded.boxes_logit[..., 2:])
    inside_out = sides <= smallest + 1e-3
    assert inside_out.any() and np.all(mirrored[inside_out] >= sides[inside_out]) and np.any(mirrored > sides)
    np.testing.assert_array_equal(mirrored[~inside_out], sides[~inside_out])
    np.testing.assert_array_equal(folded.boxes_logit[..., :2], unfolded.boxes_logit[..., :2])


def test_no_denoising_without_slots_or_by_choice():
    targets = pad_targets([[1]], [[[0.5, 0.5, 0.2, 0.2]]])
    off = dataclasses.replace(LOSS, num_denoising=0)
    assert RTDETR.queries(jax.random.key(0), targets, CONFIG, off) is None


def test_queries_for_the_model_and_not_the_loss_are_refused(step):
    arrays, _, output, _, _ = step
    with pytest.raises(ValueError, match="both the model and the loss"):
        match(output, golden_targets(arrays), None, LOSS)
    with pytest.raises(ValueError, match="train=True"):
        match(output.replace(training=None), golden_targets(arrays), None, LOSS)
