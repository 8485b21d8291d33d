"""From the network's answers to detections and masks: the numbers of the reference's own post-processing."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny import tiny_rfdetr

from dfine_jax.data.read.dataset import Classes
from dfine_jax.families.rfdetr.config import COCO_ROWS
from dfine_jax.families.rfdetr.family import RFDETR
from dfine_jax.families.rfdetr.variants import VARIANTS
from dfine_jax.ops.postprocess import Answer, ranked
from dfine_jax.prediction.between import Chosen, Preprocessed, result_of
from dfine_jax.prediction.sources import given
from dfine_jax.serving.backends.base import Backend
from dfine_jax.training.step.step import make_eval_step

pytestmark = pytest.mark.usefixtures("small_backbone")

SIZE_PX = (640, 480)
ROWS = Classes(tuple(f"row {i}" for i in range(COCO_ROWS)), tuple(range(COCO_ROWS)))  # the reference ranks all of them


class Answering(Backend):
    """Says of every picture what it is given."""

    def __init__(self, answer, rules):
        self.answer, self.rules = answer, rules

    def predict(self, images):
        return self.answer


def detected(want, variant, masks_logit=None):
    """The result for a picture of ``SIZE_PX``."""
    answer = Answer(want["pred_logits"], want["pred_boxes"], masks_logit)
    backend, view_px = Answering(answer, RFDETR.answer_rules(VARIANTS[variant])), (0, 0, *SIZE_PX)
    found = backend.detect(np.zeros((1, 8, 8, 3), np.uint8), np.array([view_px]))
    blank = np.zeros((*SIZE_PX[::-1], 3), np.uint8)
    return result_of(found, 0, Preprocessed(blank, view_px, SIZE_PX, given(blank, False)), Chosen(0.0), ROWS, 0.5)


@pytest.mark.parametrize("name", ["rfdetr_nano_384x384", "rfdetr_seg_nano_312x312_part"])
def test_detections_are_those_of_the_reference(golden, name):
    with np.load(golden(f"families/eval_{name}.npz")) as file:
        want = dict(file)
    result = detected(want, "seg-nano" if "seg" in name else "nano")
    assert len(result) == want["post_labels"].shape[1]
    np.testing.assert_array_equal(result.labels, want["post_labels"][0])
    np.testing.assert_allclose(result.scores, want["post_scores"][0], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(result.boxes_xyxy_px, want["post_boxes"][0])
    assert (result.boxes_xyxy_px == [*SIZE_PX, *SIZE_PX]).any()  # some end at an edge


def test_masks_have_the_areas_of_the_reference(golden):
    """Logits are interpolated, beyond the boxes too; from probabilities, or within the boxes, areas are others."""
    with np.load(golden("families/eval_rfdetr_seg_nano_312x312_part.npz")) as file:
        want = dict(file)
    maps = np.zeros((1, *want["pred_boxes"].shape[1:2], *want["pred_masks"].shape[2:]), np.float32)
    maps[:, want["mask_queries"]] = want["pred_masks"]
    masks = detected(want, "seg-nano", maps).object_masks
    assert masks is not None
    query = ranked(want["pred_logits"], len(masks)).query[0]
    rows = np.flatnonzero(np.isin(query, want["mask_queries"])).tolist()
    areas = [masks.area_px(row) for row in rows]
    assert areas == want["post_mask_area"][0, rows].tolist() == [267522, 219293, 265995, 219293, 287738]


def test_evaluation_while_training_finds_as_many_as_there_are_queries():
    config = tiny_rfdetr(masks=True)
    queries = config.model.num_queries
    assert queries * config.model.num_classes > queries  # pairs of query and class
    variables = jax.eval_shape(lambda: RFDETR.init(config.model, jax.random.key(0)))
    images = jax.ShapeDtypeStruct((jax.local_device_count(), 1, 64, 64, 3), np.uint8)
    found = jax.eval_shape(make_eval_step(config), variables, images)
    assert found.scores.shape[1:] == (1, queries) and found.masks_logit.shape[1:3] == (1, queries)
