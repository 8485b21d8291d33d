"""RT-DETRv2 with the head that refines edge distributions, with and without quality heads, union and distillation."""

from __future__ import annotations

import dataclasses
import re

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util
from golden_train import pad_targets

from dfine_jax.config import Config, ConfigError
from dfine_jax.errors import UserError
from dfine_jax.families import of
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.families.rtdetr.config import RTDetrLossConfig, check
from dfine_jax.families.rtdetr.decoder import decoder as make_decoder
from dfine_jax.families.rtdetr.loss import kinds, loss_terms, match
from dfine_jax.families.rtdetr.model import RTDetr, init_variables
from dfine_jax.families.rtdetr.variants import VARIANTS
from dfine_jax.families.rtdetr.weights import write_official
from dfine_jax.losses import detection_loss, fgl_loss, gather_truth
from dfine_jax.nn.denoising import make_denoising_queries, sample_noise
from dfine_jax.ops.fdr import EdgeBins
from dfine_jax.training.run.checkpoint import Metadata
from dfine_jax.typing import Norm
from dfine_jax.weights.load import LoadedModel, transfer

TINY = dataclasses.replace(
    VARIANTS["r18"],
    encoder_width=32,
    encoder_ffn=32,
    decoder_width=32,
    decoder_ffn=32,
    num_heads=4,
    num_points=(2, 2, 2),
    num_queries=20,
    num_classes=5,
    box_head="fdr",
)
BARE = dataclasses.replace(TINY, quality_head=False)
LOSS = RTDetrLossConfig(num_denoising=6)
SIZES = ((8, 12), (4, 6), (2, 3))
TARGETS = pad_targets(
    [np.array([1, 4, 2]), np.array([0])],
    [
        np.array([[0.3, 0.3, 0.2, 0.3], [0.7, 0.4, 0.3, 0.2], [0.5, 0.8, 0.6, 0.3]]),
        np.array([[0.6, 0.5, 0.4, 0.7]]),
    ],
    4,
)


def features(width=32):
    stream = np.random.default_rng(0)
    return [stream.standard_normal((2, h, w, width)).astype(np.float32) for h, w in SIZES]


def fresh(config):
    return jax.jit(lambda key: make_decoder(config).init(key, features(), train=True))(jax.random.key(1))


def lively(variables):
    stream = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.1 * stream.standard_normal(x.shape).astype(np.float32), variables)


def queries():
    return make_denoising_queries(TARGETS, sample_noise(jax.random.key(0), 2, 12, 5), 5, 6)


def outputs(config, params, statistics, denoising):
    state = {"params": params, "batch_stats": statistics}
    return make_decoder(config).apply(state, features(), denoising, train=True, mutable=["batch_stats"])[0]


def total_and_terms(config, output, denoising, loss=LOSS):
    matching = match(output, TARGETS, denoising, loss)
    named = loss_terms(output, TARGETS, denoising, matching, Norm(matching.counts, matching.counts), config, loss)
    return sum(named.values()), named


@pytest.mark.parametrize("config", [TINY, BARE], ids=["quality", "bare"])
def test_shapes_and_parameters(config):
    variables = fresh(config)
    decoder = variables["params"]
    assert decoder["dec_bbox_head_2"]["layers_2"]["kernel"].shape == (32, 4 * 33)
    assert decoder["pre_bbox_head"]["layers_2"]["kernel"].shape == (32, 4)
    assert ("lqe_layers_1" in decoder) == config.quality_head
    output = outputs(config, decoder, variables["batch_stats"], queries())
    for stages, count in ((output.training.matching, 20), (output.training.denoising, 12)):
        assert stages.logits.shape == (3, 2, count, 5) and stages.fdr.corners_logit.shape == (3, 2, count, 4, 33)
        assert stages.fdr.reference_cxcywh.shape == stages.fdr.pre.boxes_cxcywh.shape == (2, count, 4)
        assert stages.fdr.pre.logits.shape == (2, count, 5)
    last, before = output.training.matching.boxes_cxcywh[2], output.training.encoder.boxes_cxcywh
    np.testing.assert_allclose(last, before, atol=1e-5)  # fresh heads move nothing


@pytest.mark.parametrize("config", [TINY, BARE], ids=["quality", "bare"])
@pytest.mark.parametrize("go_lsd", [True, False])
def test_the_gradient_reaches_every_parameter(config, go_lsd):
    variables, loss = lively(fresh(config)), dataclasses.replace(LOSS, go_lsd=go_lsd)

    @jax.jit
    def gradients(params):
        def total(params):
            return total_and_terms(
                config, outputs(config, params, variables["batch_stats"], queries()), queries(), loss
            )

        return jax.grad(total, has_aux=True)(params)

    found, named = gradients(variables["params"])
    assert all(np.isfinite(value) for value in named.values())
    silent = [jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(found) if not np.any(leaf)]
    assert not silent
    assert {name.split("/")[0] for name in named} == set(kinds(config, loss))
    assert ("ddf/aux_0" in named) == ("ddf/dn_1" in named) == go_lsd and "ddf/last" not in named
    assert {"vfl/pre", "giou/dn_pre", "fgl/last", "fgl/dn_2"} <= set(named)


def test_the_terms_are_those_of_dfine():
    """The same outputs in both families' losses."""
    variables = lively(fresh(TINY))
    output = outputs(TINY, variables["params"], variables["batch_stats"], queries())
    other = dataclasses.replace(model_config("n"), num_classes=5)
    _, want = detection_loss(output, TARGETS, LossConfig(num_denoising=6), other, queries())
    _, got = total_and_terms(TINY, output, queries())
    assert set(want) == set(got)
    for name, value in got.items():
        np.testing.assert_allclose(value, want[name], rtol=1e-6, err_msg=name)
    assert got["ddf/aux_0"] > 0 and got["fgl/aux_1"] > 0


def test_without_union_every_layer_trains_its_own_pairs():
    variables, loss = lively(fresh(TINY)), dataclasses.replace(LOSS, go_lsd=False)
    output = outputs(TINY, variables["params"], variables["batch_stats"], None)
    stages, bins = output.training.matching, EdgeBins()
    _, named = total_and_terms(TINY, output, None, loss)
    truth = gather_truth(TARGETS, match(output, TARGETS, None, loss).pairs.outputs[1])
    reference, boxes = stages.fdr.reference_cxcywh, stages.boxes_cxcywh[1]
    fgl = fgl_loss(stages.fdr.corners_logit[1], boxes, reference, truth, bins.positions(), 4.0, 4.0)
    np.testing.assert_allclose(named["fgl/aux_1"], loss.weight_fgl * fgl, rtol=1e-6)
    assert not any(name.startswith("ddf") for name in named)


@pytest.mark.parametrize("config", [TINY, BARE], ids=["quality", "bare"])
def test_a_few_boxes_are_learned(config):
    """By every layer, whose boxes are those of the distributions; fgl itself grows with the overlap, its weight."""
    variables = fresh(config)
    rule = optax.adam(2e-3)

    @jax.jit
    def step(carry, _):
        params, state = carry

        def total(params):
            output = outputs(config, params, variables["batch_stats"], None)
            return total_and_terms(config, output, None, dataclasses.replace(LOSS, assignment="device"))

        (_, named), grads = jax.value_and_grad(total, has_aux=True)(params)
        updates, state = rule.update(grads, state)
        return (optax.apply_updates(params, updates), state), named

    params = variables["params"]
    _, named = jax.lax.scan(step, (params, rule.init(params)), length=120)
    parts = slice(10), slice(-10, None)
    early, late = (jax.tree.map(lambda x, part=part: float(x[part].mean()), named) for part in parts)
    print({name: (round(early[name], 4), round(late[name], 4)) for name in named})
    for name in ("giou/aux_0", "giou/last", "giou/pre", "bbox/aux_0", "bbox/last", "bbox/pre"):
        assert late[name] < 0.2 * early[name], name
    assert late["giou/last"] < 0.2


def test_inference_with_fewer_queries_and_layers():
    variables = lively(fresh(TINY))
    run = lambda config, keep=(): make_decoder(config, keep_queries=keep).apply(variables, features(), train=False)  # noqa: E731
    first, pruned = run(dataclasses.replace(TINY, eval_layer=0)), run(TINY, (7,))
    assert pruned.logits.shape == (2, 7, 5)
    best = np.argsort(-np.asarray(first.logits).max(-1), 1)[:, :7]
    np.testing.assert_array_equal(pruned.topk_index, np.take_along_axis(np.asarray(first.topk_index), best, 1))
    assert np.abs(run(TINY).boxes_cxcywh - first.boxes_cxcywh).max() > 1e-3


def test_plain_weights_are_trained_further_with_edge_distributions_and_back():
    """Box heads start anew, quality heads alone where only they are new; all else is taken over, and it is told."""

    def weights(config):
        variables = init_variables(config, jax.random.key(1))
        variables = jax.tree.map(lambda x: x + np.float32(0.5), variables)
        return LoadedModel(RTDetr(config), variables, Metadata(Config(config, LOSS), tuple("abcde"), (1, 2, 3, 4, 5)))

    plain = dataclasses.replace(TINY, box_head="plain")
    heads, quality = "pre_bbox_head|dec_bbox_head_0|dec_bbox_head_2|lqe_layers_1", "lqe_layers_0|lqe_layers_2"
    cases = (
        (plain, TINY, heads),
        (TINY, plain, "dec_bbox_head_0|dec_bbox_head_1"),
        (BARE, TINY, quality),
        (TINY, dataclasses.replace(TINY, reg_scale=8.0), heads),
        (TINY, BARE, None),
        (plain, dataclasses.replace(plain, sampling="discrete"), None),
    )
    for before, after, anew in cases:
        source, fresh = weights(before), init_variables(after, jax.random.key(0))
        moved = transfer(source, fresh, tuple("abcde"), after)
        assert jax.tree.structure(moved.variables) == jax.tree.structure(fresh)
        flat, old, new = (traverse_util.flatten_dict(t, sep="/") for t in (moved.variables, source.variables, fresh))
        renewed = {key for key, leaf in flat.items() if key not in old or not np.array_equal(leaf, old[key])}
        renewed -= {"params/decoder/denoising_class_embed/embedding"}  # its row of "no class" is new with other classes
        assert renewed == set(moved.renewed)
        assert all(np.array_equal(flat[key], new[key]) for key in renewed)
        if anew is None:
            assert not renewed
            continue
        assert all(any(f"/decoder/{part}/" in key for key in renewed) for part in anew.split("|"))
        assert all(re.search("pre_bbox|dec_bbox|lqe" if "bbox" in anew else "lqe", key) for key in renewed)
        assert "start anew" in moved.notes()[-2] + moved.notes()[-1]
    with pytest.raises(UserError, match=r"model\.decoder_ffn is 32 in the weights, not 64"):
        transfer(weights(plain), {}, tuple("abcde"), dataclasses.replace(TINY, decoder_ffn=64))


def test_options_of_the_head_need_it():
    with pytest.raises(ConfigError, match=r"model\.quality_head=False .* does nothing with plain; leave it at True"):
        check(dataclasses.replace(BARE, box_head="plain"), LOSS)


def test_the_whole_model_and_its_files():
    variables = init_variables(BARE, jax.random.key(0))
    images = np.random.default_rng(0).random((1, 64, 64, 3), np.float32)
    assert RTDetr(BARE).apply(variables, images, train=False).boxes_cxcywh.shape == (1, 20, 4)
    assert of(BARE).name == "rtdetrv2"
    with pytest.raises(UserError, match="box_head"):
        write_official(BARE, variables)
    with pytest.raises(ConfigError, match="reg_max"):
        check(dataclasses.replace(BARE, reg_max=7), LOSS)
