"""Mask numbers against pycocotools fed with the original file, to the last bit; what counts where masks are absent."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from dfine_jax.data.load.batch import EvalBatch
from dfine_jax.data.picture.object_masks import MapMasks
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.dataset import Classes
from dfine_jax.errors import UserError
from dfine_jax.evaluation.detections import Detections
from dfine_jax.evaluation.encoded_masks import EncodedMasks, areas_px
from dfine_jax.evaluation.evaluate import ClassMatch, evaluate_detections, pixel_results
from dfine_jax.evaluation.score import score
from dfine_jax.evaluation.truth import annotated
from dfine_jax.serving.backends.base import PixelPredictions

CLASSES = Classes(("bird", "cat", "dog", "eel"), (90, 5, 17, 2))  # of eels there are none
WIDTH, HEIGHT = 200, 150


def polygon(rng, centre, radii, corners=9):
    angles = np.sort(rng.random(corners)) * 2 * np.pi
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * radii + centre
    return points.round(2).ravel().tolist()


def plain_runs(bitmap):
    values = bitmap.ravel(order="F")
    edges = np.flatnonzero(np.diff(values)) + 1
    runs = np.diff([0, *edges, len(values)]).tolist()
    return {"size": list(bitmap.shape), "counts": [0, *runs] if values[0] else runs}


def encoded(bitmap):
    return coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))


def as_text(mask):
    return {"size": mask["size"], "counts": mask["counts"].decode()}


def segmentation(rng, kind):
    """Polygons of one or two parts, or run lengths, plain or compressed; partly outside of the picture."""
    centre, radii = rng.random(2) * [WIDTH, HEIGHT], rng.choice([3, 16, 30, 60], 2)
    if kind == "polygons":
        parts = [polygon(rng, centre, radii)]
        return parts + [polygon(rng, centre + radii * 1.5, radii / 2)] * int(rng.integers(0, 2))
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    bitmap = (((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2) < 1
    return plain_runs(bitmap.astype(np.uint8)) if kind == "plain" else as_text(encoded(bitmap))


def run_lengths(outline):
    """As ``COCO.annToRLE``."""
    if isinstance(outline, list):
        return coco_mask.merge(coco_mask.frPyObjects(outline, HEIGHT, WIDTH))
    return coco_mask.frPyObjects(outline, HEIGHT, WIDTH) if isinstance(outline["counts"], list) else outline


def made_up(seed, images=20):
    """Content and results: outlines of every kind, crowds, equal scores, masks moved, shrunk and empty."""
    rng = np.random.default_rng(seed)
    numbers = (rng.permutation(1000)[:images] - 300).tolist()
    annotations, results = [], []
    for image in numbers:
        masks, bitmaps = [], []
        for _ in range(rng.integers(0, 8)):
            crowd = int(rng.random() < 0.15)
            outline = segmentation(rng, "plain" if crowd else rng.choice(["polygons", "plain", "compressed"]))
            masks.append((outline, int(rng.choice([90, 5, 17], p=[0.2, 0.6, 0.2]))))
            mask = run_lengths(outline)
            bitmaps.append(coco_mask.decode([mask])[..., 0])
            annotations.append(
                {
                    "id": 7 * len(annotations) + 3,
                    "image_id": image,
                    "category_id": masks[-1][1],
                    "bbox": coco_mask.toBbox(mask).tolist(),
                    "area": float(coco_mask.area(mask)),
                    "iscrowd": crowd,
                    "segmentation": outline,
                }
            )
        for _ in range(rng.integers(0, 130) if masks else 3):
            bitmap, category = np.zeros((HEIGHT, WIDTH), np.uint8), 5
            if masks:
                number = rng.integers(len(masks))
                category = masks[number][1]
                shift = rng.integers(-5, 6, 2) * rng.integers(0, 2)
                bitmap = np.roll(bitmaps[number], shift, (0, 1))
            category = category if rng.random() < 0.8 else int(rng.choice(CLASSES.ids))
            result = {"image_id": image, "category_id": category, "score": float(rng.integers(0, 12) / 12)}
            mask = encoded(bitmap)
            results.append(result | {"bbox": coco_mask.toBbox(mask).tolist(), "segmentation": as_text(mask)})
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in numbers],
        "categories": [{"id": i, "name": n} for i, n in zip(CLASSES.ids, CLASSES.names, strict=True)],
        "annotations": annotations,
    }
    return content, results


def pycocotools(file, results, images, iou_type="segm", categories=None):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # With a box in the results pycocotools would take its area for that of the mask.
    dropped = "bbox" if iou_type == "segm" else "segmentation"
    results = [{key: value for key, value in result.items() if key != dropped} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        run = COCOeval(truth, truth.loadRes(results), iou_type)
        run.params.imgIds = images
        if categories:
            run.params.catIds = categories
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


@pytest.fixture
def stored(tmp_path):
    def store(content):
        for image in content["images"]:
            (tmp_path / image["file_name"]).touch()
        file = tmp_path / "truth.json"
        file.write_text(json.dumps(content))
        return file

    return store


@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_are_those_of_the_original_file(seed, stored):
    content, results = made_up(seed)
    file = stored(content)
    images = [image["id"] for image in content["images"]][: 20 if seed % 2 else 15]
    metrics = score(file, Detections.of_coco(results), images, CLASSES)
    assert metrics.masks is not None and metrics.without_mask == 0
    numbers = metrics.numbers()
    np.testing.assert_array_equal(list(numbers.values())[:12], pycocotools(file, results, images, "bbox"))
    np.testing.assert_array_equal(list(numbers.values())[12:], pycocotools(file, results, images))
    assert list(numbers)[12:15] == ["mask_ap", "mask_ap50", "mask_ap75"] and numbers["mask_ap"] == metrics.masks.ap
    assert 0 < metrics.masks.ap < 1 and metrics.masks.ap != metrics.ap and 0 < metrics.masks.ap_small < 1
    for name, category in zip(CLASSES.names, CLASSES.ids, strict=True):
        assert metrics.masks.per_class[name] == pycocotools(file, results, images, categories=[category])[0]
    assert metrics.masks.per_class["eel"] == -1.0


def test_every_source_of_the_annotations_gives_the_same_masks(stored):
    content, results = made_up(5)
    file = stored(content)
    expected = {a["id"]: run_lengths(a["segmentation"])["counts"] for a in content["annotations"]}
    ids = [a["id"] for image in content["images"] for a in content["annotations"] if a["image_id"] == image["id"]]
    made = [annotated(truth, masks=True) for truth in (file, str(file), content, read_coco(file, file.parent))]
    for objects in made:
        assert objects.masks is not None and objects.masks.exist.all()
        masks = objects.masks.coco(np.arange(len(objects.masks)))
        texts = [expected[number] for number in ids]
        assert [m["counts"] for m in masks] == [t.encode() if isinstance(t, str) else t for t in texts]
        assert all(mask["size"] == [HEIGHT, WIDTH] for mask in masks)
    file.unlink()
    images = [image["id"] for image in content["images"]]
    before, again = (score(truth, results, images, CLASSES).numbers() for truth in (content, made[-1]))
    assert before == again  # what was made once serves without the file
    assert annotated(content).masks is None


def one_picture(segmentations, **sizes):
    boxes = [[10, 10, 40, 30], [100, 20, 40, 30]]
    annotations = [
        {"id": n, "image_id": 1, "category_id": 5, "bbox": box, "area": 1200, "iscrowd": 0}
        | ({} if outline is None else {"segmentation": outline})
        for n, (box, outline) in enumerate(zip(boxes, segmentations, strict=True), 1)
    ]
    images = [{"id": 1, "file_name": "1.jpg"} | (sizes or {"width": WIDTH, "height": HEIGHT})]
    return {"images": images, "categories": [{"id": 5, "name": "cat"}], "annotations": annotations}


def filled(left, top, right, bottom):
    bitmap = np.zeros((HEIGHT, WIDTH), bool)
    bitmap[top:bottom, left:right] = True
    return as_text(encoded(bitmap))


CAT = Classes(("cat",), (5,))


def test_what_is_detected_on_objects_without_a_mask_counts_for_nothing():
    whole = [[10, 10, 50, 10, 50, 40, 10, 40]]
    cat = {"image_id": 1, "category_id": 5}
    found = [
        cat | {"bbox": [100, 20, 40, 30], "score": 0.9, "segmentation": filled(102, 22, 138, 48)},
        cat | {"bbox": [10, 10, 40, 30], "score": 0.8, "segmentation": filled(10, 10, 50, 40)},
    ]
    metrics = score(one_picture([whole, None]), found, [1], CAT)
    assert metrics.masks is not None and metrics.masks.ap == pytest.approx(1.0) and metrics.without_mask == 1
    best = metrics.masks.report.best
    assert (best.true_positives, best.false_positives, best.false_negatives) == (1, 0, 0)
    assert metrics.report.best.true_positives == 2
    assert "1 objects have no mask" in metrics.table() and metrics.to_dict()["objects_without_mask"] == 1
    elsewhere = [found[0] | {"segmentation": filled(150, 60, 190, 90)}, found[1]]
    below = score(one_picture([whole, None]), elsewhere, [1], CAT)
    assert below.masks is not None and below.masks.ap == pytest.approx(0.5)


def test_without_masks_there_are_no_mask_numbers():
    found = [{"image_id": 1, "category_id": 5, "bbox": [10, 10, 40, 30], "score": 0.8}]
    with_mask = [found[0] | {"segmentation": filled(10, 10, 50, 40)}]
    whole = [[10, 10, 50, 10, 50, 40, 10, 40]]
    for truth, results in ((one_picture([None, None]), with_mask), (one_picture([whole, whole]), found)):
        metrics = score(truth, results, [1], CAT)
        assert metrics.masks is None and len(metrics.numbers()) == 12 and "mask" not in metrics.table()
        assert not [name for name in metrics.to_dict() if "mask" in name]


def test_masks_that_cannot_be_drawn_are_named(tmp_path):
    short = {"size": [HEIGHT, WIDTH], "counts": "11"}
    with pytest.raises(UserError, match="the mask of annotation 1 in 1.jpg cannot be used .does not fill"):
        annotated(one_picture([short, None]), masks=True)
    with pytest.raises(UserError, match="image '1.jpg' has no width and height"):
        annotated(one_picture([[[1, 1, 9, 1, 9, 9]], None], note=""), masks=True)


def test_tables_and_json_show_boxes_and_masks():
    content, results = made_up(6)
    metrics = score(content, results, [image["id"] for image in content["images"]], CLASSES)
    assert metrics.masks is not None
    lines = metrics.table().splitlines()
    assert lines[0].split() == ["boxes", "masks"]
    assert lines[1].split() == ["AP", f"{metrics.ap:.3f}", f"{metrics.masks.ap:.3f}"]
    assert f"cat    {metrics.per_class['cat']:.3f}  {metrics.masks.per_class['cat']:.3f}" in metrics.table()
    values = json.loads(json.dumps(metrics.to_dict()))
    assert values["ap"] == metrics.ap and values["mask_ap"] == metrics.masks.ap
    assert values["mask_per_class"]["cat"] == metrics.masks.per_class["cat"] and values["mask_per_class"]["eel"] is None
    assert values["mask_report"]["f1"] == metrics.masks.report.best.f1 != values["report"]["f1"]


def test_run_lengths_lie_one_after_another():
    masks = [filled(0, 0, 9, 9), filled(5, 5, 100, 140), filled(0, 0, 0, 0)]
    packed = EncodedMasks.of_coco(masks)
    assert len(packed) == 3 and packed.exist.tolist() == [True] * 3
    assert [as_text(mask) for mask in packed.coco(np.arange(3))] == masks
    twice = EncodedMasks.joined([packed, packed.select(np.array([2, 0]))])
    assert [as_text(mask) for mask in twice.coco(np.array([3, 4, 1]))] == [masks[2], masks[0], masks[1]]
    nothing = EncodedMasks.of([b"", b"1"], (1, 1))
    assert nothing.exist.tolist() == [False, True] and len(EncodedMasks.joined([])) == 0


def test_detections_with_masks_iterate_as_coco_results():
    _, results = made_up(7)
    assert list(Detections.of_coco(results)) == results and len(results) > 100
    both = Detections.joined([Detections.of_coco(results[:7]), Detections.of_coco(results[7:])])
    assert list(both) == results and json.dumps(list(both))
    without = [{k: v for k, v in result.items() if k != "segmentation"} for result in results[:7]]
    assert Detections.joined([Detections.of_coco(without), both]).masks is None


def test_maps_of_a_network_become_run_lengths_over_the_picture():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, 4, 10, 12)).astype(np.float32)
    boxes = np.tile(np.array([[3, 2, 31, 28], [0, 0, 60, 40], [40, 1, 70, 39], [5, 5, 5, 9]], np.float32), (3, 1, 1))
    sizes = np.array([[60, 40], [50, 30], [1, 1]], np.float32)
    views = np.array([[0, 0, 60, 40], [0, -10, 50, 50], [0, 0, 1, 1]], np.float32)  # the second is letterboxed
    batch = EvalBatch(np.zeros((3, 1, 1, 3), np.uint8), np.array([7, 8, -1]), sizes, views)
    labels = np.array([[0, 1, 2, 0]] * 3)  # of the second class the data knows nothing
    found = pixel_results(PixelPredictions(np.full((3, 4), 0.5), labels, boxes, maps), batch, [90, None, 17])
    assert found.masks is not None and found.image_id.tolist() == [7, 7, 7, 8, 8, 8]
    got = [coco_mask.decode([mask])[..., 0] for mask in found.masks.coco(np.arange(6))]
    for bitmap, image, number in zip(got, [0, 0, 0, 1, 1, 1], [0, 2, 3] * 2, strict=True):
        width, height = sizes[image].astype(int).tolist()
        masks = MapMasks(maps[image], boxes[image], tuple(views[image].tolist()), (width, height))
        np.testing.assert_array_equal(bitmap, masks.full(number))
        assert bitmap.any() == (number != 3)  # whose box is empty
    whole = np.array([[[0, 0, 10, 10.0]]])
    coarse = PixelPredictions(np.array([[0.9]]), np.array([[0]]), whole, np.full((1, 1, 5, 5), 9.0))
    found = pixel_results(coarse, one_image(1, 10, 10), [5])
    assert found.masks is not None and areas_px(found.masks.coco(np.arange(1))) == [100]


def one_image(image_id, width, height):
    size_px = np.array([[width, height]], np.float32)
    return EvalBatch(np.zeros((1, 1, 1, 3), np.uint8), np.array([image_id]), size_px)


def test_masks_come_from_the_batch_they_belong_to(stored):
    """They are made in another thread while the next batch is predicted."""
    content, _ = made_up(8, images=7)
    boxes = {a["image_id"]: a["bbox"] for a in content["annotations"]}
    images = [image["id"] for image in content["images"] if image["id"] in boxes]
    batches = [one_image(i, WIDTH, HEIGHT) for i in images]
    numbers = iter(images)

    def detect(_, views):
        left, top, width, height = boxes[next(numbers)]
        corners = np.array([[[left, top, left + width, top + height]]])
        return PixelPredictions(np.array([[0.9]]), np.array([[0]]), corners, np.full((1, 1, 4, 4), 5.0))

    kept = []
    match = ClassMatch(CLASSES, CLASSES.ids)
    metrics = evaluate_detections(detect, batches, content, match, lambda found: kept.extend(found))
    assert metrics.masks is not None and [result["image_id"] for result in kept] == images
    for result in kept:
        left, top, width, height = np.array(coco_mask.toBbox(result["segmentation"]))
        x, y, w, h = boxes[result["image_id"]]
        assert (left, top, width, height) == pytest.approx((x, y, w, h), abs=1)


def crowded(rng, boxes, images=3, number=300):
    """Detections best first: most of one class, many below any threshold, with equal scores; some on objects."""
    labels = np.where(rng.random((images, number)) < 0.8, 0, rng.integers(0, 3, (images, number)))
    scores = -np.sort(-np.round(rng.random((images, number)) ** 4, 3).astype(np.float32), 1)
    corners = rng.uniform(0, 80, (images, number, 2))
    corners = np.concatenate([corners, corners + rng.uniform(5, 60, corners.shape)], -1)
    corners[:, ::7] = boxes[:, rng.integers(0, boxes.shape[1], len(corners[0, ::7]))]
    maps = rng.normal(1, 1, (images, number, 6, 8)).astype(np.float32)
    return PixelPredictions(scores, labels, corners, maps)


def test_what_scoring_does_not_look_at_is_not_kept():
    rng = np.random.default_rng(11)
    content, _ = made_up(12, images=3)
    boxes = [[a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]] for image in content["images"]]
    assert all(boxes)
    boxes = np.stack([np.resize(np.array(rows, float), (40, 4)) for rows in boxes])
    boxes[..., 2:] += boxes[..., :2]
    predictions = crowded(rng, boxes)
    ids = np.array([image["id"] for image in content["images"]])
    batch = EvalBatch(np.zeros((3, 1, 1, 3), np.uint8), ids, np.tile(np.array([WIDTH, HEIGHT], np.float32), (3, 1)))
    whole, kept = (pixel_results(predictions, batch, CLASSES.ids[:3], least) for least in (0.0, 0.01))
    assert len(whole) == 900 and len(kept) < 800
    low = kept.score < 0.01
    assert low.any() and (whole.score >= 0.01).sum() == (~low).sum()
    for image in ids.tolist():
        for category in CLASSES.ids[:3]:
            both = [(d.image_id == image) & (d.category_id == category) for d in (whole, kept)]
            counts = [int(rows.sum()) for rows in both]
            assert counts[1] >= min(counts[0], 100)
            np.testing.assert_array_equal(whole.score[both[0]][: counts[1]], kept.score[both[1]])
    assert (
        score(content, kept, ids.tolist(), CLASSES).to_dict() == score(content, whole, ids.tolist(), CLASSES).to_dict()
    )
