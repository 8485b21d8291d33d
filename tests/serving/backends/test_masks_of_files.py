"""Exported files with masks in their runtimes: those of the detections, of every batch, in the order of the scores."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import onnx
import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "tests"))
import onnx_models as tiny

from dfine_jax.converters.onnx.export import export_onnx, save
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.picture.object_masks import MapMasks
from dfine_jax.errors import UserError
from dfine_jax.prediction.detector import Detector
from dfine_jax.serving.artefact import KEY, from_json
from dfine_jax.serving.backends.base import ArtefactBackend
from dfine_jax.serving.backends.jax_model import JaxBackend
from dfine_jax.serving.backends.registry import open_artefact

RUNTIMES = ["onnxruntime", "openvino"]
FORMS = {
    "raw": {"batch": None},
    "pairs": {"batch": 2, "input_dtype": "uint8"},
    "complete": {"batch": None, "graph": "complete"},
    "complete pairs": {"batch": 2, "graph": "complete", "input_dtype": "uint8"},
}
IMAGES = np.random.default_rng(1).integers(0, 256, (3, *tiny.SIZE_HW, 3)).astype(np.uint8)
VIEWS_PX = np.array([[0, 0, 640, 480], [-10, 5, 97, 51], [0, 0, 7, 900]], np.float64)


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model("segment")


@pytest.fixture(scope="module")
def in_jax(model):
    return JaxBackend(*model).detect(IMAGES, VIEWS_PX, num_top=12)


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    for name, given in FORMS.items():
        save(export_onnx(*model, tiny.META, size_hw=tiny.SIZE_HW, **given), folder / f"{name}.onnx")
    return folder


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("form", FORMS)
def test_masks_of_the_detections(files, in_jax, form, runtime):
    pytest.importorskip(runtime)
    found = open_artefact(files / f"{form}.onnx", runtime=runtime).detect(IMAGES, VIEWS_PX, num_top=12)
    assert found.masks_logit is not None and found.masks_logit.shape == (3, 12, 16, 24)
    np.testing.assert_array_equal(found.labels, in_jax.labels)
    np.testing.assert_allclose(found.scores, in_jax.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes_xyxy_px, in_jax.boxes_xyxy_px, atol=2e-3)
    np.testing.assert_allclose(found.masks_logit, in_jax.masks_logit, atol=1e-3)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_masks_in_the_pictures_are_those_of_the_model(files, model, runtime):
    """Whole, because random boxes are small. A pixel next to the threshold may fall either way."""
    pytest.importorskip(runtime)
    picture = np.random.default_rng(2).integers(0, 256, (51, 97, 3)).astype(np.uint8)
    masks = Detector(files / "complete.onnx", threshold=0.0, num_top=12, runtime=runtime)(picture).object_masks
    view_px, images = np.array([[0, 0, 97, 51]]), Preprocess(*tiny.SIZE_HW)(picture)[None]
    want = JaxBackend(*model).detect(images, view_px, 12)
    assert want.masks_logit is not None and isinstance(masks, MapMasks)
    found = dataclasses.replace(masks, cut_to_boxes=False).all()
    ours = MapMasks(want.masks_logit[0], want.boxes_xyxy_px[0], (0, 0, 97, 51), (97, 51), cut_to_boxes=False).all()
    assert found.shape == ours.shape == (12, 51, 97) and 0.01 < ours.mean() < 0.95
    assert np.count_nonzero(found != ours) <= 1e-4 * ours.size


def relabelled(file, target, **changes):
    proto = onnx.load(file)
    values = json.loads({entry.key: entry.value for entry in proto.metadata_props}[KEY])
    onnx.helper.set_model_props(proto, {KEY: json.dumps({**values, **changes})})
    onnx.save(proto, target)
    return target


@pytest.mark.parametrize("form", ["raw", "complete"])
def test_masks_of_another_size_than_described(files, tmp_path, form):
    backend = open_artefact(relabelled(files / f"{form}.onnx", tmp_path / "wrong.onnx", mask_stride=8))
    with pytest.raises(UserError, match=r"output masks has shape \[3, \d+, 16, 24\], expected \[3, \d+, 8, 12\]"):
        backend.detect(IMAGES, VIEWS_PX)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_stride": None}, "task 'segment' with mask stride None"),
        ({"mask_stride": 0}, "task 'segment' with mask stride 0"),
        ({"task": "detect"}, "outputs logits, boxes, masks; task 'detect' with mask stride 4"),
        ({"task": "paint"}, "task 'paint' is none of detect, segment"),
        ({"outputs": ["logits", "boxes"]}, "outputs logits, boxes"),
        ({"interpolated": "colour"}, "masks interpolated as 'colour'"),
        ({"num_top": 0}, "0 detections"),
    ],
    ids=str,
)
def test_descriptions_that_contradict_themselves(files, tmp_path, changes, message):
    file = relabelled(files / "raw.onnx", tmp_path / "wrong.onnx", **changes)
    with pytest.raises(UserError, match=f"contradicts itself: .*{message}"):
        open_artefact(file)


def test_a_graph_without_the_output_it_declares(files):
    proto = onnx.load(files / "raw.onnx")
    text = {entry.key: entry.value for entry in proto.metadata_props}[KEY]

    class Lacking:
        artefact = from_json(text, "file")
        input_dtypes = {"images": np.dtype(np.float32)}
        max_batch = None

        def run(self, feeds):
            count = len(feeds["images"])
            return {"logits": np.zeros((count, 10, 3), np.float32), "boxes": np.zeros((count, 10, 4), np.float32)}

        def describe(self):
            return {}

    with pytest.raises(UserError, match="the graph has no output 'masks'"):
        ArtefactBackend(Lacking()).predict(IMAGES)
