"""Masks of the model in JAX are chosen on the device: what comes to the host, and that it is what it was."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "tests"))
import onnx_models as tiny

from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.picture.object_masks import MapMasks
from dfine_jax.data.read.dataset import Classes
from dfine_jax.ops.postprocess import Answer, select
from dfine_jax.prediction.detector import Detector, OpenedModel
from dfine_jax.serving.backends.base import Backend, in_view, rows_from
from dfine_jax.serving.backends.jax_model import JaxBackend

IMAGES = np.random.default_rng(1).integers(0, 256, (3, *tiny.SIZE_HW, 3)).astype(np.uint8)
VIEWS_PX = np.array([[0, 0, 640, 480], [-10, 5, 97, 51], [0, 0, 7, 900]], np.float64)


@pytest.fixture(scope="module")
def backend():
    return JaxBackend(*tiny.tiny_model("segment"))


@pytest.fixture
def fetched(backend, monkeypatch):
    """Shapes of the maps that came from the device."""
    shapes, taken = [], backend._taken

    def watched(maps, query):
        found = taken(maps, query)
        shapes.append(found.shape)
        return found

    monkeypatch.setattr(backend, "_taken", watched)
    return shapes


def test_rows_up_to_the_last_that_reaches_the_threshold():
    scores = np.array([[0.9, 0.5, 0.2], [0.6, 0.5, 0.5]], np.float32)
    assert [rows_from(threshold, scores) for threshold in (0.95, 0.9, 0.6, 0.5, 0.2)] == [0, 1, 1, 3, 3]
    assert rows_from(0.0, np.array([[0.5, np.nan]])) == 2


@pytest.mark.parametrize(("reached", "rows"), [(0, 0), (1, 1), (3, 4), (5, 8), (8, 8), (9, 10), (12, 12)])
def test_masks_are_those_of_the_whole_answer(backend, fetched, reached, rows):
    """In float16, of a power of two of rows or of all queries; boxes, scores and labels to the bit."""
    want = select(backend.predict(IMAGES), 20)
    descending = np.sort(np.asarray(want.scores).max(0))[::-1]
    threshold = float(descending[reached - 1]) if reached else 1.0
    found = backend.detect(IMAGES, VIEWS_PX, 20, threshold)
    np.testing.assert_array_equal(found.scores, want.scores)
    np.testing.assert_array_equal(found.labels, want.labels)
    np.testing.assert_array_equal(found.boxes_xyxy_px, in_view(np.asarray(want.boxes_cxcywh), VIEWS_PX))
    assert found.masks_logit is not None and want.masks_logit is not None
    assert found.masks_logit.dtype == np.float16 and found.masks_logit.shape == (3, reached, 16, 24)
    np.testing.assert_array_equal(found.masks_logit, np.float16(want.masks_logit[:, :reached]))
    assert fetched == ([(3, rows, 16, 24)] if rows else [])


def test_pictures_have_the_masks_that_they_had(backend):
    """A pixel next to the threshold may fall either way."""
    opened = OpenedModel(backend, Classes(tiny.META["class_names"], tuple(range(3))), Preprocess(*tiny.SIZE_HW), None)

    class Whole(Backend):
        def predict(self, images):
            return backend.predict(images)

    pictures = list(np.random.default_rng(2).integers(0, 256, (2, 90, 140, 3)).astype(np.uint8))
    scores = Detector(opened, 0.0)(pictures[0]).scores
    results = [
        Detector(opened._replace(backend=runs), float(scores[9]), batch_size=2)(pictures) for runs in (backend, Whole())
    ]
    for found, want in zip(*results, strict=True):
        assert isinstance(found.object_masks, MapMasks) and isinstance(want.object_masks, MapMasks)
        assert len(found) == len(want) == len(found.object_masks) > 0
        whole = [
            dataclasses.replace(masks, cut_to_boxes=False).all() for masks in (found.object_masks, want.object_masks)
        ]
        assert np.count_nonzero(whole[0] != whole[1]) <= 1e-3 * whole[0].size
    assert len(results[0][0]) >= 10


def test_a_detector_asks_for_the_masks_it_shows(backend, fetched):
    opened = OpenedModel(backend, Classes(tiny.META["class_names"], tuple(range(3))), Preprocess(*tiny.SIZE_HW), None)
    picture = IMAGES[0]
    third = float(Detector(opened, 0.0)(picture).scores[2])
    fetched.clear()
    assert len(Detector(opened, third)(picture)) == 3
    assert len(Detector(opened, 1.0)(picture)) == 0
    assert fetched == [(1, 4, 16, 24)]


def test_answers_without_masks_stay_without(backend):
    class Boxes(Backend):
        def predict(self, images):
            return Answer(np.zeros((len(images), 4, 3), np.float32), np.zeros((len(images), 4, 4), np.float32))

    assert Boxes().detect(IMAGES, VIEWS_PX, 5, 0.7).masks_logit is None
