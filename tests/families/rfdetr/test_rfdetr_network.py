"""RF-DETR's network: parameter counts, inference against the reference, few tokens, half precision."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rfdetr_golden
from flax import traverse_util

from dfine_jax.families.rfdetr.decoder import Decoder
from dfine_jax.families.rfdetr.model import RFDetr, init_variables
from dfine_jax.families.rfdetr.outputs import Draws
from dfine_jax.families.rfdetr.variants import VARIANTS
from dfine_jax.families.rfdetr.weights import official_keys, read_official, recognised, write_official
from dfine_jax.families.state_dict import leaf_shapes
from dfine_jax.ops.resize import bicubic_weights, resize_bicubic

# Of the training graph with 13 groups and 91 rows, of that with one group, and of tensors, the empty buffer included.
PUBLISHED = {
    "nano": (30_467_298, 26_863_662, 466), "small": (32_111_170, 28_507_534, 488),
    "medium": (33_687_458, 30_083_822, 510), "large": (33_933_218, 30_329_582, 510),
    "base": (32_174_530, 28_570_894, None), "seg-nano": (33_577_475, 30_597_839, 545),
    "seg-small": (33_711_107, 30_731_471, 545), "seg-medium": (35_694_259, 32_402_623, 573),
    "seg-large": (35_873_971, 32_582_335, 573), "seg-xlarge": (38_113_635, 34_509_999, 601),
    "seg-2xlarge": (38_648_163, 35_044_527, 601), "xlarge": (126_400_000, None, None),
    "2xlarge": (126_900_000, None, None),
}  # fmt: skip


def coco(variant, **changes):
    return dataclasses.replace(VARIANTS[variant], head_rows="coco", **changes)


def count(config) -> int:
    return sum(math.prod(shape) for shape in leaf_shapes(config).values())


@pytest.mark.parametrize("variant", PUBLISHED)
def test_parameters_and_tensors_of_the_published_sizes(variant):
    trained, of_one_group, tensors = PUBLISHED[variant]
    found = count(coco(variant))
    if of_one_group is None:  # published as a rounded number
        assert abs(found - trained) < 100_000
        return
    assert found == trained and count(coco(variant, groups=1)) == of_one_group
    assert tensors is None or len(official_keys(coco(variant))) + 1 == tensors


def test_the_preview_that_the_segmenting_sizes_replaced():
    """As recognised by its shapes; there is no recipe of it."""
    config = coco("seg-small", table=36, num_queries=200)
    assert (count(config), count(dataclasses.replace(config, groups=1))) == (34_153_555, 30_861_919)
    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    found = recognised(write_official(config, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)))
    assert found is not None and (found.table * found.patch_px, found.windows, found.num_queries) == (432, 2, 200)


def intermediate(module, _):
    return module.name in ("backbone", "projector") or isinstance(module, Decoder)


def compare(golden, name, dtype: Any = np.float32):
    """Largest errors by kind, of inference and of the training graph of the first group."""
    variant = "seg-nano" if "seg" in name else "nano"
    with np.load(golden(f"families/{name}.npz")) as file:
        want = {key: file[key] for key in file.files}
    state = rfdetr_golden.state_dict(golden(f"families/manifest_rfdetr_{variant.replace('-', '_')}.json"))
    config = coco(variant, groups=1)
    variables = jax.tree.map(lambda x: x.astype(dtype), read_official(state, config)[1])
    images = rfdetr_golden.images(*(int(n) for n in want["image_hwb"]), dtype=dtype)
    network = RFDetr(config)
    out, inner = jax.jit(lambda v, x: network.apply(v, x, train=False, capture_intermediates=intermediate))(
        variables, images
    )
    assert out.logits.dtype == out.boxes_cxcywh.dtype == dtype and out.training is None
    np.testing.assert_array_equal(out.topk_index, want["topk_index"])
    rows = rfdetr_golden.USED
    errors = {
        "logits": difference(out.logits, want["pred_logits"][..., rows]),
        "boxes": difference(out.boxes_cxcywh, want["pred_boxes"]),
    }
    inner = inner["intermediates"]
    maps = inner["backbone"]["__call__"][0]
    errors["taps"] = max(
        difference(x[:, :6, :6, :4], want[f"tap_{i}"]) for i, x in enumerate(maps) if f"tap_{i}" in want
    )
    errors["projector"] = difference(inner["projector"]["__call__"][0][:, :6, :6, :4], want["projector"])
    if out.masks_logit is not None:
        masks = np.asarray(out.masks_logit)
        errors["masks"] = difference(masks[:, :8], want["pred_masks_first8"])
        errors["mask means"] = max(
            difference(masks.mean((2, 3)), want["pred_masks_mean"]),
            difference(masks.std((2, 3)), want["pred_masks_std"]),
        )
    errors |= of_training(network, variables, images, want)
    print(name, {kind: f"{error:.1e}" for kind, error in errors.items()})
    return errors


def difference(got, want) -> float:
    got = np.asarray(got)
    assert got.shape == want.shape
    return float(np.abs(got - want).max())


def of_training(network, variables, images, want):
    """Of all layers and the proposals; dropping nothing, the training graph computes what inference does."""
    training = jax.jit(lambda v, x: network.apply(v, x, train=True).training)(variables, images)
    stages, encoder = training.stages, training.encoder
    order = np.argsort(rfdetr_golden.USED + rfdetr_golden.UNUSED)
    layers = len(stages.logits) - 1
    errors = {
        "enc boxes": difference(encoder.boxes_cxcywh, want["enc_boxes"]),
        "enc logits": difference(encoder.logits[:, :20][..., order], want["enc_logits_first20"]),
        "all rows": difference(stages.logits[-1][..., order], want["pred_logits"]),
        "aux boxes": max(difference(stages.boxes_cxcywh[i, :, :50], want[f"aux_{i}_boxes"]) for i in range(layers)),
        "aux logits": max(difference(stages.logits[i].mean(-1), want[f"aux_{i}_logits_mean"]) for i in range(layers)),
    }
    if training.pixels is not None:
        masks = jnp.einsum("sbqd,sbhwd->sbqhw", stages.mask_embedding, training.pixels[:-1]) + training.mask_bias
        errors["aux masks"] = max(difference(masks[i].mean((2, 3)), want[f"aux_{i}_masks_mean"]) for i in range(layers))
        of_proposals = jnp.einsum("bqd,bhwd->bqhw", training.encoder_mask_embedding[:, :2], training.pixels[-1])
        errors["enc masks"] = difference(of_proposals + training.mask_bias, want["enc_masks_first2"])
    return errors


# Of float32 measured: logits 1e-5, boxes 2e-6, maps 1e-5, masks 3e-4 (of values up to some hundreds).
LIMITS = {"masks": 1e-3, "mask means": 5e-4, "aux masks": 5e-4, "enc masks": 1e-3}


def check(errors, limit):
    wrong = {kind: error for kind, error in errors.items() if error > limit * LIMITS.get(kind, 5e-5) / 5e-5}
    assert not wrong


@pytest.mark.parametrize(
    "name",
    [
        "eval_rfdetr_nano_384x384",
        pytest.param("eval_rfdetr_nano_320x448", marks=pytest.mark.slow),
        pytest.param("eval_rfdetr_seg_nano_312x312", marks=pytest.mark.slow),
    ],
)
def test_rfdetr_in_float32(golden, name):
    check(compare(golden, name), 5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eval64_rfdetr_nano_384x384", "eval64_rfdetr_seg_nano_312x312"])
def test_rfdetr_in_float64(golden, name):
    with jax.enable_x64(True):
        check(compare(golden, name, np.float64), 2e-6)


SMALL = dataclasses.replace(
    VARIANTS["seg-small"],
    taps=(1, 2),
    decoder_layers=2,
    num_queries=20,
    groups=3,
    decoder_ffn=32,
    table=6,
    num_classes=4,
)


@pytest.fixture(scope="module")
def small():
    return init_variables(SMALL, jax.random.key(0))


def test_initial_values(small):
    decoder = small["params"]["decoder"]
    assert not np.any(decoder["refpoint_embed"]) and abs(float(decoder["query_feat"].std()) - 1) < 0.02
    assert not np.any(decoder["bbox_embed"]["layers_2"]["kernel"])
    np.testing.assert_allclose(decoder["class_embed"]["bias"], -np.log(99), rtol=1e-6)
    for group in range(SMALL.groups):
        jax.tree.map(np.testing.assert_array_equal, decoder[f"enc_out_class_embed_{group}"], decoder["class_embed"])
        jax.tree.map(np.testing.assert_array_equal, decoder[f"enc_out_bbox_embed_{group}"], decoder["bbox_embed"])
    flat = traverse_util.flatten_dict(small["params"]["backbone"], sep="/")
    assert all(np.all(leaf == 1) for path, leaf in flat.items() if "layer_scale" in path)
    assert abs(float(np.std(np.asarray(flat["layer_0/fc1/kernel"]))) - 0.02) < 1e-3 and not small["batch_stats"]


def apply(config, variables, images, *, train, draws=None, **fields):
    network = RFDetr(config, **fields)
    return jax.jit(lambda v, x: network.apply(v, x, draws, train=train))(variables, images)


@pytest.mark.slow
def test_groups_fill_their_own_places(small):
    """16 tokens, 20 queries: the last four of every group have no proposals; as the reference places them, of all."""
    images = rfdetr_golden.images(48, 48, 2)
    found = {}
    for few in ("pad", "shift"):
        config = dataclasses.replace(SMALL, few_tokens=few)
        training = apply(config, small, images, train=True).training
        assert training.encoder.boxes_cxcywh.shape == (2, 3 * 16, 4)
        found[few] = np.asarray(training.stages.boxes_cxcywh[-1])
        assert np.isfinite(found[few]).all()
    # Without a proposal the box is that of the query's own four numbers, which are zero.
    empty = {few: (boxes[..., 2:] == 0).all((0, 2)) for few, boxes in found.items()}
    np.testing.assert_array_equal(empty["pad"].reshape(3, 20), np.arange(20)[None].repeat(3, 0) >= 16)
    np.testing.assert_array_equal(empty["shift"], np.arange(60) >= 48)
    # At inference there is one group, and no difference.
    answers = [
        apply(dataclasses.replace(SMALL, few_tokens=few), small, images, train=False).logits for few in ("pad", "shift")
    ]
    np.testing.assert_array_equal(*answers)


def test_bfloat16_keeps_boxes_and_logits_in_float32(small):
    images = rfdetr_golden.images(96, 144, 1)
    exact = apply(SMALL, small, images, train=False)
    out = apply(SMALL, small, images, train=False, compute_dtype=jnp.bfloat16)
    assert out.logits.dtype == out.boxes_cxcywh.dtype == out.masks_logit.dtype == jnp.float32
    assert exact.masks_logit.shape == (1, 20, 24, 36)
    assert np.isfinite(np.asarray(out.masks_logit)).all()
    assert difference(out.logits.max(-1).mean(), np.asarray(exact.logits.max(-1).mean())) < 0.1


@pytest.mark.slow
def test_blocks_are_dropped_by_the_key_alone(small):
    images, config = rfdetr_golden.images(96, 96, 1), dataclasses.replace(SMALL, drop_path=0.9, taps=(6, 12))
    variables = init_variables(config, jax.random.key(0))
    draws = [None, Draws(jax.random.key(1)), Draws(jax.random.key(1)), Draws(jax.random.key(2))]
    none, first, again, other = (
        np.asarray(apply(config, variables, images, train=True, draws=d).logits) for d in draws
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - none).max() > 1e-4 and np.abs(first - other).max() > 1e-4


@pytest.mark.slow
def test_parts_computed_again_change_no_gradient(small):
    images = rfdetr_golden.images(96, 96, 2)

    def gradient(remat):
        def total(params):
            answer: Any = RFDetr(SMALL, remat).apply({"params": params}, images, train=True)
            out = answer.training
            return out.stages.logits.sum() + out.stages.boxes_cxcywh.sum() + out.pixels.mean()

        return jax.jit(jax.grad(total))(small["params"])

    kept, again = gradient(()), gradient(("backbone", "decoder"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), kept, again)
    assert not np.any(kept["backbone"]["mask_token"])


def test_fewer_queries_and_layers_are_the_first_of_them(small):
    images = rfdetr_golden.images(96, 144, 1)
    training = apply(SMALL, small, images, train=True).training
    out = apply(SMALL, small, images, train=False, layers=1)
    assert difference(out.logits, np.asarray(training.stages.logits[0, :, :20, :4])) < 1e-4
    few = apply(SMALL, small, images, train=False, queries=7)
    assert few.logits.shape == (1, 7, 4) and few.masks_logit.shape == (1, 7, 24, 36)


@pytest.mark.parametrize(("source", "height", "width"), [(24, 20, 28), (6, 14, 9), (37, 40, 24)])
def test_bicubic_with_antialias_is_torchs(source, height, width):
    torch = pytest.importorskip("torch")
    grid = np.random.default_rng(0).standard_normal((1, source, source, 3)).astype(np.float32)
    want = torch.nn.functional.interpolate(
        torch.from_numpy(grid).double().permute(0, 3, 1, 2), (height, width), mode="bicubic", antialias=True
    )
    got = resize_bicubic(jnp.asarray(grid), height, width)
    assert difference(got, want.permute(0, 2, 3, 1).numpy()) < 5e-6
    np.testing.assert_allclose(bicubic_weights(source, height).sum(1), 1)
