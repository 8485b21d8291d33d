"""D-FINE with masks against dfine-seg: inference, a training step, both structures of N, its weights."""

from __future__ import annotations

import dataclasses
import json
import math

import golden_fill
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_train import golden_denoising, golden_targets, reference_names

from dfine_jax import families
from dfine_jax.config import ConfigError
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.family import DFINE
from dfine_jax.families.dfine.model import DFine
from dfine_jax.families.dfine.variants import VARIANTS, mask_stride, segmenting
from dfine_jax.families.dfine.weights import read_official, recognise_official, write_official
from dfine_jax.families.state_dict import leaf_shapes
from dfine_jax.losses import detection_loss
from dfine_jax.ops.postprocess import sigmoid

NEW, OLD = "families/{}_dfineseg062_n", "{}_seg_n"  # dfine-seg since 0.6, and before


def stored(golden, name):
    with np.load(golden(name)) as file:
        return {key: file[key] for key in file.files}


def checkpoint(golden, name):
    """Architecture and variables of the reference's weights."""
    tensors = golden_fill.state_dict(golden(f"{name.format('manifest')}.json"), golden(f"{name.format('bnstats')}.npz"))
    return read_official(tensors, recognise_official(tensors))


def ellipses(boxes_cxcywh, size, stride):
    """Quarters of ellipses inscribed in boxes: of the four pixels at the middle of each cell."""
    centre = (np.arange(size) + 0.5) / size
    cx, cy, w, h = boxes_cxcywh.astype(np.float64).T[..., None]
    dx, dy = (centre - cx) / (w / 2), (centre - cy) / (h / 2)
    full = dx[:, None, :] ** 2 + dy[:, :, None] ** 2 <= 1
    middle = slice(stride // 2 - 1, stride // 2 + 1)
    cells = full.reshape(len(full), size // stride, stride, size // stride, stride)
    return cells[:, :, middle, :, middle].sum((2, 4)).astype(np.uint8)


def with_ellipses(targets, size, stride):
    valid = np.asarray(targets.valid)
    masks = np.zeros((*valid.shape, size // stride, size // stride), np.uint8)
    masks[valid] = ellipses(np.asarray(targets.boxes_cxcywh)[valid], size, stride)
    return dataclasses.replace(targets, masks=jnp.asarray(masks), has_mask=targets.valid)


def test_inference(golden):
    model, variables = checkpoint(golden, NEW)
    want = stored(golden, f"{NEW.format('eval')}_640x640_part.npz")
    images = golden_fill.image(640, 640, 1, seed=0)
    out = jax.jit(lambda v, x: DFine(model).apply(v, x, train=False))(variables, images)
    # The reference's queries by their boxes: neighbours in the ranking may have swapped.
    distance = np.abs(want["pred_boxes"][0][:, None] - np.asarray(out.boxes_cxcywh)[0]).sum(-1)
    order = distance.argmin(1)
    assert len(set(order.tolist())) == 300 and distance.min(1).max() < 1e-5
    masks = sigmoid(np.asarray(out.masks_logit)[0, order])
    errors = {
        "logits": np.abs(np.asarray(out.logits)[0, order[:16]] - want["pred_logits_best16"][0]).max(),
        "masks": np.abs(masks[:4, ::4, ::4] - want["pred_masks_first4_every4"][0]).max(),
        "means": np.abs(masks.mean((1, 2)) - want["pred_masks_mean"][0]).max(),
        "deviations": np.abs(masks.std((1, 2), ddof=1) - want["pred_masks_std"][0]).max(),
    }
    print({name: f"{error:.1e}" for name, error in errors.items()})
    assert out.masks_logit.shape == (1, 300, 160, 160) and max(errors.values()) < 3.5e-4


def test_inference_of_the_older_structure(golden):
    model, variables = checkpoint(golden, OLD)
    assert (model.mask_width, model.mask_stages, mask_stride(model)) == (256, (), 8)
    want = stored(golden, f"{OLD.format('eval')}_640x640.npz")
    out = jax.jit(lambda v, x: DFine(model).apply(v, x, train=False))(variables, golden_fill.image(640, 640, 1, seed=0))
    assert np.array_equal(out.topk_index[0, :8], want["topk_index"][0, :8])
    error = np.abs(sigmoid(np.asarray(out.masks_logit)[0, :8]) - want["pred_masks_first8"][0]).max()
    print(f"masks {error:.1e}")
    assert out.masks_logit.shape == (1, 300, 80, 80) and error < 3e-4


@pytest.mark.parametrize(
    ("name", "step", "losses"),
    [
        pytest.param(NEW, "families/step_dfineseg062_n", LossConfig(), marks=pytest.mark.slow),
        pytest.param(OLD, "train_seg_n", LossConfig(dn_last_layer=False), marks=pytest.mark.slow),
    ],
)
def test_a_training_step(golden, name, step, losses):
    model, variables = checkpoint(golden, name)
    want, listed = stored(golden, f"{step}.npz"), json.loads(golden(f"{step}.json").read_text())
    targets = with_ellipses(golden_targets(want), 256, mask_stride(model))
    denoising, images = golden_denoising(want, 200), golden_fill.image(256, 256, 3, seed=50)

    def loss(params):
        state = {"params": params, "batch_stats": variables["batch_stats"]}
        output, _ = DFine(model).apply(state, images, denoising, train=True, mutable=["batch_stats"])
        return detection_loss(output, targets, losses, model, denoising)

    (total, named), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    named = reference_names(named)
    if not losses.dn_last_layer:
        named = {n.replace("dn_2", "dn_final") if "mask" in n else n: value for n, value in named.items()}
    assert set(named) == set(listed["losses"])
    worst = max(abs(float(named[n]) - value) / max(abs(value), 1e-2) for n, value in listed["losses"].items())
    print(f"total {float(total):.6f} ({listed['total']:.6f}), worst term {worst:.1e}")
    assert worst < 1e-4 and abs(float(total) - listed["total"]) < 2e-5 * listed["total"]
    norms = dict(zip(listed.get("grad_norm_names") or listed["grad_names"], want["grad_norms"], strict=True))
    got = write_official(model, {"params": grads, "batch_stats": variables["batch_stats"]})
    masks = {n: abs(np.linalg.norm(got[n].astype(np.float64)) / w - 1) for n, w in norms.items() if "mask" in n}
    print(f"gradients of the mask head: worst {max(masks.values()):.1e} of {len(masks)}")
    assert len(masks) == 21 - 3 * (name == OLD) and max(masks.values()) < 5e-3
    errors = [abs(np.linalg.norm(got[n].astype(np.float64)) - w) / max(w, 1e-2) for n, w in norms.items()]
    assert np.median(errors) < 1e-3


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("n", 4193957), ("older n", 5095973), ("s", 11898069), ("m", 21166256), ("l", 32820344), ("x", 64296056)],
)
def test_parameter_counts(variant, parameters):
    """Of the training graph, which counts the two scalars of the box decoder, and no frozen batch norm."""
    model = segmenting(VARIANTS[variant.removeprefix("older ")])
    if variant == "older n":
        model = dataclasses.replace(model, mask_width=256, mask_stages=())
    shapes = {name: shape for name, shape in leaf_shapes(model).items() if name.startswith("params/")}
    counted = sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if not (model.backbone_frozen_bn and name.startswith("params/backbone/") and "/bn/" in name)
    )
    assert counted + 2 == parameters


def test_tasks():
    for variant, model in VARIANTS.items():
        segments = DFINE.tasks["segment"](model)
        assert (families.task(model), families.task(segments)) == ("detect", "segment")
        assert DFINE.tasks["detect"](segments) == model and DFINE.tasks["segment"](segments) == segments
        assert families.title(segments) == f"D-FINE-seg-{variant.upper()}" and mask_stride(segments) == 4


def test_weights_go_back_into_the_same_file(golden):
    manifest = golden(f"{NEW.format('manifest')}.json")
    tensors = golden_fill.state_dict(manifest, golden(f"{NEW.format('bnstats')}.npz"))
    model, variables = read_official(tensors, recognise_official(tensors))
    assert model.position_order == "row_major" and model.mask_stages == (1,)
    written = write_official(model, variables)
    for key in json.loads(manifest.read_text())["random"]:
        np.testing.assert_array_equal(written[key], tensors[key])


def test_positions_of_the_first_masks_have_the_order_of_the_detector(golden):
    """A16: dfine-seg before 0.6 is as D-FINE there, and of it N alone can be told from its masks."""
    model, _ = checkpoint(golden, OLD)
    assert (model.mask_width, model.mask_stages, model.position_order) == (256, (), "transposed")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_width": 100}, "multiple of 32"),
        ({"mask_stages": (1,)}, "model.mask_width too"),
        ({"mask_width": 128, "mask_stages": (2,)}, "finer than return_stages"),
    ],
)
def test_values_that_make_no_sense(values, message):
    with pytest.raises(ConfigError, match=message):
        DFINE.check(dataclasses.replace(VARIANTS["n"], **values), LossConfig())
