"""The gate compares masks: what is transposed, shifted, coarser or damaged is refused, whatever the boxes are."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import onnx
import pytest
from conftest import ROOT
from onnx import helper, numpy_helper
from PIL import Image

sys.path.append(str(ROOT / "tests"))
import onnx_models as tiny
import toy_artefact as toy

from dfine_jax.converters.gate import compare
from dfine_jax.converters.gate.compare import LIMITS, Rows
from dfine_jax.converters.gate.gate import check_artefact
from dfine_jax.converters.onnx.export import export_onnx, save
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.dataset import Classes
from dfine_jax.errors import UserError
from dfine_jax.serving.artefact import KEY
from dfine_jax.serving.backends.jax_model import JaxBackend

CLASSES = Classes(tiny.META["class_names"], tiny.META["category_ids"])
CELLS_HW = (16, 24)
_EVERY_SECOND = {"kernel_shape": [2, 2], "strides": [2, 2]}


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model("segment")


@pytest.fixture(scope="module")
def reference(model):
    return JaxBackend(*model).predict


@pytest.fixture(scope="module")
def protos(model):
    forms = {"raw": {}, "complete": {"graph": "complete", "input_dtype": "uint8"}, "half": {"precision": "fp16"}}
    return {
        name: export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW, batch=None, **given) for name, given in forms.items()
    }


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("form", ["raw", "complete", "half"])
def test_files_with_masks_pass(protos, model, reference, tmp_path, form, runtime):
    pytest.importorskip(runtime)
    save(protos[form], tmp_path / "file.onnx")
    report = check_artefact(tmp_path / "file.onnx", *model, classes=CLASSES, reference=reference, runtime=runtime)
    assert report.passed, report.table()
    assert all(c.mask_median is not None and c.mask_p95 is not None for c in report.comparisons)
    assert "batch 8: 1 - IoU of masks: median" in report.table()
    assert json.loads(json.dumps(report.to_dict()))["comparisons"][0]["mask_median"] <= LIMITS["fp16"].mask_median


RESIZES = {
    (51, 97): {},
    (128, 96): {"resize": "letterbox"},
    (32, 48): {"resize": "letterbox", "border": 114, "enlarge": False},
}


@pytest.mark.parametrize(
    "source_hw",
    [(32, 48), pytest.param((51, 97), marks=pytest.mark.slow), pytest.param((128, 96), marks=pytest.mark.slow)],
    ids=str,
)
def test_a_file_that_resizes_is_compared_on_what_its_masks_show(model, reference, tmp_path, source_hw):
    outside = Preprocess(*tiny.SIZE_HW, **RESIZES[source_hw])
    meta = {**tiny.META, "preprocess": outside}
    proto = export_onnx(*model, meta, size_hw=tiny.SIZE_HW, batch=None, source_hw=source_hw)
    save(proto, tmp_path / "file.onnx")
    report = check_artefact(tmp_path / "file.onnx", *model, classes=CLASSES, preprocess=outside, reference=reference)
    assert report.passed, report.table()


def shift(graph, masks):
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in {"zero": [0], "one": [1], "end": [CELLS_HW[1]], "across": [3]}.items()
    )
    return [
        helper.make_node("Slice", [masks, "one", "end", "across"], ["rest"]),
        helper.make_node("Slice", [masks, "zero", "one", "across"], ["first"]),
        helper.make_node("Concat", ["rest", "first"], ["masks"], axis=3),
    ]


def transpose(graph, masks):
    """In a shape that looks right."""
    graph.initializer.append(numpy_helper.from_array(np.array([0, 0, *CELLS_HW], np.int64), "sides"))
    return [
        helper.make_node("Transpose", [masks], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("Reshape", ["turned", "sides"], ["masks"]),
    ]


def halve(graph, masks):
    """Half the resolution, enlarged again."""
    graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "twice"))
    return [
        helper.make_node("AveragePool", [masks], ["coarse"], **_EVERY_SECOND),
        helper.make_node("Resize", ["coarse", "", "twice"], ["masks"], mode="linear"),
    ]


def half_as_it_is(graph, masks):
    return [helper.make_node("AveragePool", [masks], ["masks"], **_EVERY_SECOND)]


def mix_queries(graph, masks):
    order = numpy_helper.from_array(np.roll(np.arange(10), 1), "order")
    graph.initializer.append(order)
    return [helper.make_node("Gather", [masks, "order"], ["masks"], axis=1)]


def break_numbers(graph, masks):
    graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nan"))
    return [helper.make_node("Mul", [masks, "nan"], ["masks"])]


FAULTS = {
    shift: r"^batch 1: 1 - IoU of masks, median: 0\.\d+ > 0\.001$",
    transpose: r"^batch 1: 1 - IoU of masks, median: 0\.\d+ > 0\.001$",
    halve: r"^batch 1: 1 - IoU of masks, median: 0\.\d+ > 0\.001$",
    mix_queries: r"^batch 1: 1 - IoU of masks, median: 0\.\d+ > 0\.001$",
    half_as_it_is: r"^output masks has shape \[1, 10, 8, 12\], expected \[1, 10, 16, 24\]",
    break_numbers: r"^outputs of the file hold values that are not finite$",
}


def edited(proto, fault):
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    graph = changed.graph
    node = next(node for node in graph.node if "masks" in node.output)
    node.output[:] = ["right"]
    graph.node.extend(fault(graph, "right"))
    output = next(value for value in graph.output if value.name == "masks")
    output.type.tensor_type.ClearField("shape")
    return changed


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_wrong_masks_are_refused(protos, reference, tmp_path, fault):
    save(edited(protos["raw"], fault), tmp_path / "file.onnx")
    report = check_artefact(tmp_path / "file.onnx", None, None, reference=reference)
    assert not report.passed

    assert re.search(FAULTS[fault], report.failures[0]), report.failures


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_masks_of_half_the_resolution_are_refused_without_annotations(protos, reference, tmp_path, precision):
    save(edited(protos["raw"], halve), tmp_path / "file.onnx")
    report = check_artefact(tmp_path / "file.onnx", None, None, reference=reference, limits=LIMITS[precision])
    assert any(re.search(r"masks lack \d+% of what half their resolution loses", text) for text in report.failures)
    save(protos["raw"], tmp_path / "right.onnx")
    assert check_artefact(tmp_path / "right.onnx", None, None, reference=reference, limits=LIMITS[precision]).passed


def test_a_file_that_says_its_masks_are_coarser_is_refused(protos, reference, tmp_path):
    proto = edited(protos["raw"], half_as_it_is)
    values = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, {KEY: json.dumps({**json.loads(values[KEY]), "mask_stride": 8})})
    save(proto, tmp_path / "file.onnx")
    report = check_artefact(tmp_path / "file.onnx", None, None, reference=reference)
    assert report.failures == ("the file gives [10, 8, 12] masks, the model [10, 16, 24]",)


def ellipses(shift_cells: float = 0.0, seed: int = 0) -> Rows:
    """Forty objects of 15 to 60 cells with soft edges, one in three of them faint, as trained models make them."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:160, :160]
    centre, radius = rng.uniform(40, 120, (40, 2)), rng.uniform(7, 30, (40, 2))
    x, y = (columns - centre[:, None, None, 0] - shift_cells), (rows - centre[:, None, None, 1])
    away = np.hypot(x / radius[:, None, None, 0], y / radius[:, None, None, 1])
    logits = np.clip((1 - away) * radius.mean(1)[:, None, None], -8, 8).astype(np.float32)
    boxes = (np.concatenate([centre, 2 * radius], 1) / 160).astype(np.float32)
    return Rows(boxes, rng.uniform(0.01, 0.9, (40, 3)).astype(np.float32), logits)


def exceeded(changed: np.ndarray, precision: str) -> list[str]:
    reference = ellipses()
    errors = compare.compare_image(reference, reference._replace(masks_logit=changed), (640, 640))
    return compare.exceeded(compare.summarise(1, [errors], LIMITS[precision]), LIMITS[precision])


def enlarged(maps):
    return np.stack([np.array(Image.fromarray(each).resize((160, 160), Image.Resampling.BILINEAR)) for each in maps])


@pytest.mark.parametrize("scale", [0.8, 1.2])
@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0, 3.0])
def test_noise_and_another_contrast_are_not_coarse(scale, noise):
    masks = ellipses().masks_logit
    assert masks is not None
    changed = scale * masks + np.random.default_rng(3).normal(0, noise, masks.shape).astype(np.float32)
    assert compare.coarseness(masks, np.round(changed / 0.1) * 0.1) < 0.1
    assert compare.coarseness(masks, masks) < 1e-3 and compare.coarseness(masks[:, :3], changed[:, :3]) == 0


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_smooth_masks(precision):
    masks = ellipses().masks_logit
    assert masks is not None
    noise = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.3}[precision]
    assert not exceeded(masks + np.random.default_rng(1).normal(0, noise, masks.shape), precision)
    assert exceeded(masks.transpose(0, 2, 1), precision)
    assert exceeded(np.roll(masks, 2, 2), precision)
    assert exceeded(np.roll(masks, 1, 0), precision)
    # Half the resolution, repeated and enlarged, also beneath the noise of the precision.
    means = masks.reshape(40, 80, 2, 80, 2).mean((2, 4))
    for coarse in (masks[:, ::2, ::2].repeat(2, 1).repeat(2, 2), means.repeat(2, 1).repeat(2, 2), enlarged(means)):
        for added in (0, noise / 3):
            found = exceeded(coarse + np.random.default_rng(2).normal(0, added, masks.shape), precision)
            assert any("of what half their resolution loses" in text for text in found)
    if precision != "int8":
        shifted = ellipses(shift_cells=0.5).masks_logit  # half a cell: the wrong convention of a resize
        assert shifted is not None and exceeded(shifted, precision)


def test_specks_and_empty_masks_do_not_count():
    reference = ellipses()
    assert reference.masks_logit is not None
    empty, speck = np.full_like(reference.masks_logit, -5.0), np.full_like(reference.masks_logit, -5.0)
    speck[:, 3:6, 3:6] = 5.0
    errors = compare.compare_image(
        reference._replace(masks_logit=empty), reference._replace(masks_logit=speck), (640, 640)
    )
    assert errors.masks is not None and np.isnan(errors.masks).all()
    assert compare.summarise(1, [errors], LIMITS["fp32"]).mask_median == 0
    assert exceeded(empty, "int8")  # of masks that are there, nothing is left


def test_masks_on_one_side_only():
    reference = ellipses()
    with pytest.raises(UserError, match=r"the file gives no masks, the model \[40, 160, 160\]"):
        compare.compare_image(reference, reference._replace(masks_logit=None), (640, 640))


def test_the_precision_of_masks_stands_beside_that_of_boxes(protos, model, reference, tmp_path):
    save(protos["raw"], tmp_path / "file.onnx")
    data = toy.toy_dataset(tmp_path / "shapes", num_val=3, names=tiny.META["class_names"])
    given = {"reference": reference, "baseline": reference, "data": data, "operating_point": {"layers": 1}}
    report = check_artefact(tmp_path / "file.onnx", *model, **given)
    assert report.passed, report.table()
    assert report.mask_accuracy is not None and report.mask_accuracy.drop == pytest.approx(0, abs=1e-3)
    assert report.to_dict()["mask_accuracy"]["cost"] == report.mask_accuracy.cost
    assert "mask AP on 3 images: model 0." in report.table() and "layers 1; mask AP cost" in report.table()
    refused = check_artefact(tmp_path / "file.onnx", None, None, **given, max_ap_drop=-0.5)
    assert [failure.split()[:2] for failure in refused.failures[2:]] == [["mask", "AP"]] * 2
