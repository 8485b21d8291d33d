"""The whole loss on the reference's own outputs, and what it does without objects, on replicas and with bad values."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_train import golden_denoising, golden_targets, pad_targets, reference_names

from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.loss import kinds, loss_terms, match
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.losses import detection_loss
from dfine_jax.nn.denoising import make_denoising_queries, sample_noise
from dfine_jax.ops.postprocess import Answer
from dfine_jax.typing import FDROutput, HeadOutput, ModelOutput, Norm, StageOutput, TrainingOutput

CONFIG = LossConfig()


def random_output(seed=0, layers=3, batch=2, queries=20, slots=0, classes=80, dtype=np.float32):
    rng = np.random.default_rng(seed)
    array = lambda x: jnp.asarray(x, dtype)  # noqa: E731

    def head(*shape):
        logits = array(rng.normal(-2, 1, (*shape, classes)))
        return HeadOutput(logits, array(rng.uniform(0.1, 0.9, (*shape, 4))))

    def stages(count):
        out = head(layers, batch, count)
        corners = array(rng.normal(size=(layers, batch, count, 4, 33)))
        reference = array(rng.uniform(0.1, 0.9, (batch, count, 4)))
        return StageOutput(out.logits, out.boxes_cxcywh, FDROutput(corners, reference, head(batch, count)))

    matching = stages(queries)
    training = TrainingOutput(matching, head(batch, queries), stages(slots) if slots else None)
    index = jnp.zeros((batch, queries), jnp.int32)
    return ModelOutput(Answer(matching.logits[-1], matching.boxes_cxcywh[-1]), index, training=training)


def random_targets(counts, slots, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return pad_targets(
        [rng.integers(0, 80, n) for n in counts], [rng.uniform(0.1, 0.7, (n, 4)) for n in counts], slots, dtype
    )


@jax.jit
def draw(targets):
    num_denoising = 20
    slots = 2 * max(num_denoising, targets.valid.shape[1])
    noise = sample_noise(jax.random.key(0), targets.valid.shape[0], slots, 80)
    return make_denoising_queries(targets, noise, 80, num_denoising)


@functools.partial(jax.jit, static_argnames="config")
def evaluate(output, targets, denoising=None, config=CONFIG):
    return detection_loss(output, targets, config, model_config("n"), denoising)


@jax.jit
def gradients(output, targets, denoising=None):
    return jax.grad(lambda out: evaluate(out, targets, denoising)[0], allow_int=True)(output).training


def stored_output(arrays):
    """The reference's outputs; what it did not store is zero (corners of earlier layers) or repeats the last layer."""
    heads = ("aux0", "aux1", "out")
    logits, boxes = (jnp.stack([arrays[f"{h}_pred_{kind}"] for h in heads]) for kind in ("logits", "boxes"))
    corners = jnp.asarray(arrays["out_pred_corners"]).reshape(4, 300, 4, 33)
    head = lambda name: HeadOutput(arrays[f"{name}_pred_logits"], arrays[f"{name}_pred_boxes"])  # noqa: E731
    stacked = jnp.stack([0 * corners, 0 * corners, corners])
    matching = StageOutput(logits, boxes, FDROutput(stacked, jnp.asarray(arrays["out_ref_points"]), head("pre")))
    denoising = None
    if "dn_class" in arrays:
        pad = lambda x: jnp.pad(x, ((0, 0), (0, 200 - x.shape[1]), (0, 0)), constant_values=jnp.nan)  # noqa: E731
        last = HeadOutput(pad(arrays["dnlast_pred_logits"]), pad(arrays["dnlast_pred_boxes"]))
        repeat = lambda x: jnp.stack([x] * 3)  # noqa: E731
        fdr = FDROutput(jnp.zeros((3, 4, 200, 4, 33)), last.boxes_cxcywh, last)
        denoising = StageOutput(repeat(last.logits), repeat(last.boxes_cxcywh), fdr)
    return ModelOutput(
        Answer(logits[-1], boxes[-1]), arrays["topk_index"], training=TrainingOutput(matching, head("enc"), denoising)
    )


@pytest.mark.parametrize("name", ["train_n_dn0", "train_n_dn100", "train_deim_n_dn100"])
def test_terms_of_the_stored_outputs(golden, name):
    """Measured: 1.5e-7. Slots that do not exist hold NaN here."""
    arrays = dict(np.load(golden(f"{name}.npz")))
    want = json.loads(golden(f"{name}.json").read_text())["losses"]
    denoising = golden_denoising(arrays, 200)
    config = LossConfig(class_loss="mal") if "deim" in name else CONFIG
    got = reference_names(evaluate(stored_output(arrays), golden_targets(arrays, 15), denoising, config)[1])
    if "deim" in name:  # the file does not list this one, which is always zero
        assert got.pop("loss_ddf_dn_2") == 0
    known = [k for k in want if k in got and not k.startswith(("loss_ddf", "loss_fgl_aux", "loss_fgl_dn"))]
    if denoising is None:  # the file lists only the matching terms that exist without denoising
        assert set(got) == {k for k in want if "_dn_" not in k}
        assert len(known) == 16
    else:
        assert set(got) == set(want)
        known = [k for k in known if "_dn_" not in k or k.endswith("_dn_2")]
        assert len(known) == 19
    for key in known:
        np.testing.assert_allclose(got[key], want[key], rtol=1e-6, err_msg=key)


@pytest.mark.parametrize(("variant", "count"), [("n", 38), ("m", 48), ("l", 68)])
def test_number_and_names_of_terms(variant, count):
    layers = model_config(variant).decoder_layers
    targets = random_targets((2, 1), 3)
    run = jax.eval_shape(
        lambda o, t, d: detection_loss(o, t, CONFIG, model_config(variant), d),
        random_output(layers=layers, slots=40),
        targets,
        draw(targets),
    )
    names = set(run[1])
    assert len(names) == count
    assert f"ddf/aux_{layers - 2}" in names and "ddf/last" not in names and "fgl/last" in names
    assert {"fgl/pre", "ddf/pre", "fgl/enc_0", "fgl/dn_pre"}.isdisjoint(names)
    assert {name.split("/")[0] for name in names} == set(kinds(model_config("n"), CONFIG))


def test_total_is_the_sum_of_weighted_terms():
    targets = random_targets((2, 1), 3)
    output, denoising = random_output(slots=40), draw(targets)
    total, named = evaluate(output, targets, denoising)
    np.testing.assert_allclose(total, sum(np.float64(v) for v in named.values()), rtol=1e-5)
    heavier = dataclasses.replace(CONFIG, weight_fgl=2 * CONFIG.weight_fgl, weight_ddf=0.0)
    _, other = jax.jit(lambda o, t, d: detection_loss(o, t, heavier, model_config("n"), d))(output, targets, denoising)
    for key, value in other.items():
        factor = {"fgl": 2.0, "ddf": 0.0}.get(key.split("/")[0], 1.0)
        np.testing.assert_allclose(value, factor * named[key], rtol=1e-5, err_msg=key)


def test_padding_changes_nothing():
    tight, wide = random_targets((3, 1), 3), random_targets((3, 1), 11)
    output = random_output(slots=44)
    shorter = output.training.denoising.of_queries(slice(40))
    noise = sample_noise(jax.random.key(0), 2, 44, 80)
    short_noise = jax.tree.map(lambda x: x[:, :40], noise)
    one = evaluate(
        output.replace(training=output.training.replace(denoising=shorter)),
        tight,
        make_denoising_queries(tight, short_noise, 80, 20),
    )
    other = evaluate(output, wide, make_denoising_queries(wide, noise, 80, 20))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("slots", [0, 4])
def test_batch_without_objects(slots):
    targets = random_targets((0, 0), slots)
    output, denoising = random_output(slots=40), draw(random_targets((0, 0), 4))
    total, named = evaluate(output, targets, denoising)
    for key, value in named.items():
        background = key.startswith(("vfl/", "ddf/aux")) and "/dn_" not in key
        assert value > 0 if background else value == 0, key
    grads = gradients(output, targets, denoising)
    assert np.isfinite(total) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert not any(g.any() for g in jax.tree.leaves(grads.denoising))


def test_image_without_objects_and_more_objects_than_queries():
    targets = random_targets((0, 25), 30)
    output = random_output(queries=20, slots=60)
    denoising = draw(targets)
    total, named = evaluate(output, targets, denoising)
    grads = gradients(output, targets, denoising)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((total, named, grads)))
    assert not grads.matching.boxes_cxcywh[:, 0].any() and grads.matching.boxes_cxcywh[:, 1].any()
    exists = np.asarray(denoising.exists)
    assert grads.denoising.logits[:, :, exists].any() and not grads.denoising.logits[:, :, ~exists].any()


def test_nan_is_not_hidden():
    targets = random_targets((2, 1), 3)
    output = random_output()
    logits = output.training.matching.logits.at[1, 0, 5, 7].set(jnp.nan)
    broken = output.replace(training=output.training.replace(matching=output.training.matching.replace(logits=logits)))
    total, named = evaluate(broken, targets)
    assert np.isnan(total) and np.isnan(named["vfl/aux_1"]) and np.isfinite(named["vfl/last"])


def test_counts_are_averaged_over_replicas():
    """Twice the objects elsewhere: matching terms shrink by that ratio, ddf and its gradient do not change."""
    targets = random_targets((4, 2), 5)
    output, denoising = random_output(slots=40), draw(targets)
    _, alone = evaluate(output, targets, denoising)

    @jax.jit
    def double(output, targets, denoising):
        matching = match(output, targets, denoising, CONFIG)
        norm = Norm(2.0 * matching.counts, matching.counts)
        return loss_terms(output, targets, denoising, matching, norm, model_config("n"), CONFIG)

    averaged = double(output, targets, denoising)
    for key, value in averaged.items():
        np.testing.assert_allclose(value, alone[key] / (1.0 if "ddf" in key else 2.0), rtol=1e-5, err_msg=key)


def test_types_follow_the_outputs():
    targets = random_targets((2, 1), 3)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, random_output(slots=40))
    assert {v.dtype for v in evaluate(low, targets, draw(targets))[1].values()} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        targets = random_targets((2, 1), 3, dtype=np.float64)
        double = random_output(slots=40, dtype=np.float64)
        assert {v.dtype for v in evaluate(double, targets, draw(targets))[1].values()} == {jnp.dtype("float64")}
        single = random_output(slots=40)
        assert {v.dtype for v in evaluate(single, random_targets((2, 1), 3), draw(targets))[1].values()} == {
            jnp.dtype("float32")
        }


def test_both_solvers_give_the_same_loss():
    targets = random_targets((4, 2), 5)
    output = random_output(seed=3)
    on_device = dataclasses.replace(CONFIG, assignment="device")
    total, _ = jax.jit(lambda o, t: detection_loss(o, t, on_device, model_config("n")))(output, targets)
    np.testing.assert_allclose(total, evaluate(output, targets)[0], rtol=1e-6)


def test_misuse_is_named():
    targets = random_targets((1, 1), 2)
    output = random_output()
    with pytest.raises(ValueError, match="train=True"):
        detection_loss(output.replace(training=None), targets, CONFIG, model_config("n"))
    with pytest.raises(ValueError, match="both"):
        detection_loss(output, targets, CONFIG, model_config("n"), draw(targets))


def test_the_mean_of_the_parts_is_the_loss_of_the_whole():
    """Counts of the whole batch divide the sums of each part; one part has no objects at all."""
    output, targets = random_output(batch=4, slots=40), random_targets((3, 1, 0, 0), 4)
    denoising = draw(targets)
    by_row = ("labels", "boxes_logit", "match")

    def part(index):
        rows = slice(2 * index, 2 * index + 2)
        cut = jax.tree.map(lambda x: x[:, rows] if x.ndim > 1 and x.shape[:2] == (3, 4) else x[rows], output)
        own = denoising.replace(**{name: getattr(denoising, name)[rows] for name in by_row})
        return cut, jax.tree.map(lambda x: x[rows], targets), own

    total, named = evaluate(output, targets, denoising)
    parts = [part(0), part(1)]
    counts = sum(jax.jit(lambda *p: match(*p, CONFIG).counts)(*p) for p in parts) / 2
    terms = jax.jit(lambda *p: loss_terms(*p, match(*p, CONFIG), Norm(counts, counts), model_config("n"), CONFIG))
    found = [terms(*p) for p in parts]
    np.testing.assert_allclose(sum(sum(part.values()) for part in found) / 2, total, rtol=1e-5)
    for name, value in named.items():
        np.testing.assert_allclose(sum(part[name] for part in found) / 2, value, rtol=1e-4, atol=1e-6, err_msg=name)
