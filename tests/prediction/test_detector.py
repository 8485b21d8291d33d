"""The detector around a network whose answer is known: preprocessing, batches, thresholds, results."""

from __future__ import annotations

import io
import json
import pickle
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from rectangles import RectangleBackend, opened, scene, with_disc

from dfine_jax.config import Config, DataConfig
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.picture.object_masks import MapMasks
from dfine_jax.errors import UserError
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.ops.postprocess import Answer, AnswerRules
from dfine_jax.prediction.class_filter import keep_classes
from dfine_jax.prediction.detector import Detector
from dfine_jax.serving.backends.base import Backend
from dfine_jax.training.run.checkpoint import Metadata
from dfine_jax.weights.load import LoadedModel

HEIGHT, WIDTH = 64, 96
CONFIG = Config(
    model=model_config("n", num_classes=3), loss=LossConfig(), data=DataConfig(height_px=HEIGHT, width_px=WIDTH)
)
METADATA = Metadata(config=CONFIG, class_names=("ant", "bee", "cat"), category_ids=(7, 3, 90))


class MeanColour:
    """Stands for the network: the score of class c is the mean of colour channel c; one box per query."""

    def apply(self, variables, images, *, train):
        assert not train
        mean = jnp.clip(images.mean((1, 2)), 1e-6, 1 - 1e-6)  # [b, 3]
        logits = jnp.log(mean / (1 - mean))[:, None] - variables["drop"][None, :, None]
        boxes = jnp.broadcast_to(variables["boxes"], (images.shape[0], 2, 4))
        return types.SimpleNamespace(answer=Answer(logits, boxes))


VARIABLES = {"drop": jnp.array([0.0, 30.0]), "boxes": jnp.array([[0.5, 0.5, 0.5, 1.0], [0.1, 0.1, 0.1, 0.1]])}
LOADED = LoadedModel(model=MeanColour(), variables=VARIABLES, metadata=METADATA)  # pyright: ignore


def picture(rgb, size=(200, 100)) -> Image.Image:
    return Image.new("RGB", size, rgb)


def test_boxes_are_pixels_of_the_original_and_names_come_from_the_data():
    result = Detector(LOADED, threshold=0.25)(picture((204, 51, 102)))
    assert result.names == ("ant", "cat")  # 0.8, 0.4; bee has 0.2
    assert result.category_ids == (7, 90)
    assert result.labels.tolist() == [0, 2]
    np.testing.assert_allclose(result.scores, [0.8, 0.4], atol=1e-5)
    np.testing.assert_allclose(result.boxes_xyxy_px, [[50, 0, 150, 100]] * 2, atol=1e-4)
    assert (len(result), result.size_px, result.masks) == (2, (200, 100), None)


def test_all_kinds_of_input_give_the_same(tmp_path):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (50, 70, 3), np.uint8)
    file = tmp_path / "a.png"
    Image.fromarray(array).save(file)
    detector = Detector(LOADED, threshold=0.0)
    expected = detector(array)
    assert isinstance(expected.scores, np.ndarray)
    for source in (file, str(file), Image.fromarray(array)):
        np.testing.assert_array_equal(detector(source).scores, expected.scores)
    listed = detector([file, array])
    assert [len(r) for r in listed] == [6, 6]
    np.testing.assert_array_equal(listed[1].boxes_xyxy_px, expected.boxes_xyxy_px)


def test_a_turned_photograph_is_the_same_in_every_form_and_can_be_drawn_from_each(tmp_path):
    file = tmp_path / "phone.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture((204, 51, 102), (80, 48)).save(file, exif=exif)
    content = file.read_bytes()
    detector = Detector(LOADED, threshold=0.25)
    expected = detector(file)
    assert expected.size_px == (48, 80)
    with open(file, "rb") as stream:
        for source in (str(file), content, io.BytesIO(content), stream, Image.open(file), Image.open(file).copy()):
            result = detector(source)
            assert result.size_px == (48, 80)
            np.testing.assert_array_equal(result.boxes_xyxy_px, expected.boxes_xyxy_px)
            np.testing.assert_array_equal(result.scores, expected.scores)
            assert result.draw(source).tobytes() == expected.draw(file).tobytes()
        assert [r.size_px for r in detector(source for source in (file, content, np.zeros((8, 9), np.uint8)))] == [
            (48, 80), (48, 80), (9, 8)
        ]  # fmt: skip


def test_tensors_are_one_picture_each():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    detector = Detector(LOADED, threshold=0.0)
    np.testing.assert_array_equal(detector(jnp.asarray(pixels)).scores, detector(pixels).scores)
    with pytest.raises(UserError, match=r"of type float32 and shape \[3, 20, 30\] is not an image; give uint8"):
        detector(jnp.zeros((3, 20, 30)))


@pytest.mark.parametrize("source", [None, 3, {"image": 1}, {1, 2}, [None], [["a.jpg"]], object()])
def test_what_is_no_image_is_one_clear_error(source):
    with pytest.raises(UserError, match="is not an image; give a path, the bytes of a picture file"):
        Detector(LOADED)(source)


def test_batches_have_one_size_and_are_preprocessed_like_everywhere():
    class Recorder(Backend):
        def __init__(self):
            self.batches = []

        def predict(self, images):
            self.batches.append(images.copy())
            logits = np.full((len(images), 2, 3), -1.0, np.float32)
            return Answer(logits, np.full((len(images), 2, 4), 0.5, np.float32))

    detector = Detector(LOADED, threshold=0.0, batch_size=2)
    detector._backend = recorder = Recorder()
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (40 + i, 60, 3), np.uint8) for i in range(3)]
    results = detector(images)
    assert [batch.shape for batch in recorder.batches] == [(2, HEIGHT, WIDTH, 3)] * 2
    assert [r.size_px for r in results] == [(60, 40), (60, 41), (60, 42)]
    np.testing.assert_array_equal(recorder.batches[1][0], Preprocess(HEIGHT, WIDTH)(images[2]))
    assert detector([]) == []


def test_coco_entries_have_original_ids_and_width_and_height():
    (entry,) = Detector(LOADED, threshold=0.5)(picture((10, 230, 20))).to_coco(image_id=12)
    assert entry == {"image_id": 12, "category_id": 3, "bbox": [50.0, 0.0, 100.0, 100.0], "score": 0.90196}


def test_masks_are_small_until_asked_for():
    image = scene(320, 200)
    disc = with_disc(image, "red", 100, 120, 60)
    with_disc(image, "blue", 260, 60, 40)
    model = opened(RectangleBackend(mask_stride=2), (160, 160))
    result = Detector(model)(image)
    assert result.names == ("red", "blue")
    assert isinstance(result.object_masks, MapMasks)
    assert result.object_masks.maps_logit.shape == (2, 80, 80)  # of the 20 that the network answers with
    masks = result.masks
    assert masks.shape == (2, 200, 320)
    assert (masks[0] & disc).sum() / (masks[0] | disc).sum() > 0.95
    (entry, _) = result.to_coco("a.png")
    assert json.loads(json.dumps(entry)) == entry
    assert entry["segmentation"]["size"] == [200, 320]
    np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), masks[0])
    lower = Detector(model, mask_threshold=0.01)(image)
    assert lower.object_masks.area_px(0) > result.object_masks.area_px(0)
    only = keep_classes(result, frozenset([2]))
    np.testing.assert_array_equal(only.masks, masks[1:])
    assert type(masks.data) is np.ndarray and masks.data.base is not None  # as Ultralytics' masks have it
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(masks)), masks.data)
    with pytest.raises(AttributeError, match="has no xy; outlines in pixels are result.object_masks.polygons"):
        _ = masks.xy
    assert Detector(model, threshold=1.0)(image).masks.shape == (0, 200, 320)
    with pytest.raises(UserError, match="mask_threshold=-1"):
        Detector(model, mask_threshold=-1)


def test_masks_of_a_letterbox_lie_where_the_object_does():
    image = scene(320, 100)
    disc = with_disc(image, "green", 200, 50, 40)
    wide = opened(RectangleBackend(mask_stride=2), (160, 160))
    result = Detector(wide._replace(preprocess=Preprocess(160, 160, resize="letterbox")))(image)
    (mask,) = result.masks
    assert (mask & disc).sum() / (mask | disc).sum() > 0.95


def test_nothing_found():
    result = Detector(LOADED, threshold=0.99)(picture((0, 0, 0)))
    assert (len(result), result.names, result.to_coco(1)) == (0, (), [])
    assert result.boxes_xyxy_px.shape == (0, 4)
    assert result.draw(picture((0, 0, 0))).size == (200, 100)
    assert result.draw(picture((0, 0, 0)), enlarge=True).size == (400, 200)  # for labels that can be read


def test_drawing_needs_the_same_picture():
    result = Detector(LOADED)(picture((250, 0, 0), (640, 400)))
    drawn = np.asarray(result.draw(picture((250, 0, 0), (640, 400))))
    assert tuple(drawn[200, 160]) != (250, 0, 0)  # left edge of the box
    with pytest.raises(UserError, match="is 64x40, the detections belong to one of 640x400"):
        result.draw(picture((250, 0, 0), (64, 40)))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8, 3), bool),
        np.zeros((8, 8), np.int64),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((2, 8, 3, 8), np.uint8),
        np.array(["a.jpg"]),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros(0, np.uint8),
    ],
)
def test_arrays_that_are_no_images_are_refused(array):
    with pytest.raises(UserError, match=r"give uint8 \[height, width, 3\] in RGB order"):
        Detector(LOADED)(array)


def test_wrong_options_are_refused():
    with pytest.raises(UserError, match="threshold=50"):
        Detector(LOADED, threshold=50)
    with pytest.raises(UserError, match="batch_size=0"):
        Detector(LOADED, batch_size=0)
    with pytest.raises(UserError, match="num_top=0"):
        Detector(LOADED, num_top=0)
    with pytest.raises(TypeError):
        Detector(LOADED, treshold=0.5)  # pyright: ignore


def test_supervision_takes_masks():
    sv = pytest.importorskip("supervision")
    image = scene(320, 200)
    with_disc(image, "red", 100, 120, 60)
    result = Detector(opened(RectangleBackend(mask_stride=2), (160, 160)))(image)
    converted = result.to_supervision()
    assert isinstance(converted, sv.Detections)
    np.testing.assert_array_equal(converted.mask, result.masks)


def test_supervision():
    sv = pytest.importorskip("supervision")
    result = Detector(LOADED, threshold=0.25)(picture((204, 51, 102)))
    converted = result.to_supervision()
    assert isinstance(converted, sv.Detections)
    assert converted.data["class_name"].tolist() == ["ant", "cat"]
    np.testing.assert_array_equal(converted.xyxy, result.boxes_xyxy_px)


def test_boxes_end_at_the_edges_where_the_backend_says_so():
    class Beyond(RectangleBackend):
        rules = AnswerRules(clip_boxes=True)

        def predict(self, images):
            found = super().predict(images)
            return Answer(found.logits, found.boxes_cxcywh * np.float32([1, 1, 1.5, 1.5]), None)

    picture = scene(128, 64, ("red", 0, 0, 64, 32))
    inside = Detector(opened(Beyond()))(picture)
    np.testing.assert_allclose(inside.boxes_xyxy_px, [[0, 0, 80, 40]], atol=1e-4)
    Beyond.rules = AnswerRules()
    np.testing.assert_allclose(Detector(opened(Beyond()))(picture).boxes_xyxy_px, [[-16, -8, 80, 40]], atol=1e-4)
