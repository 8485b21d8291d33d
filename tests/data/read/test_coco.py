from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from PIL import Image

from dfine_jax.data.read.coco import read_coco, segmentations
from dfine_jax.data.read.dataset import check_same_categories
from dfine_jax.data.read.layout import find_split
from dfine_jax.errors import UserError


def content():
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 20, "height": 10},
            {"id": 2, "file_name": "b.png", "width": 20, "height": 10},
        ],
        "categories": [{"id": 20, "name": "star"}, {"id": 3, "name": "circle"}],
        "annotations": [annotation(1, 7, 20, [1, 2, 3, 4], segmentation=[[1, 2, 4, 2, 4, 6]], area=5.5)],
    }


def annotation(number, image, category, bbox, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0, **more}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10)).save(tmp_path / "images" / name)
    return tmp_path


def read(folder, data, **options):
    path = folder / "data.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return read_coco(path, folder / "images", **options)


def test_ids_are_mapped_in_ascending_order_and_images_without_boxes_kept(folder):
    dataset = read(folder, content())
    assert dataset.classes.ids == (3, 20) and dataset.names == ("circle", "star")
    assert [r.image_id for r in dataset.records] == [7, 2]
    first, second = dataset.records
    np.testing.assert_array_equal(first.boxes_xyxy_px, [[1, 2, 4, 6]])
    assert first.labels.tolist() == [1] and first.areas_px.tolist() == [5.5]
    assert (first.boxes_xyxy_px.dtype, first.labels.dtype) == (np.float32, np.int32)
    assert second.boxes_xyxy_px.shape == (0, 4) and second.labels.shape == (0,)
    assert dataset.max_objects == 1 and str(dataset.changes) == ""


def test_drops_are_counted_and_said_once(folder, caplog):
    data = content()
    data["annotations"] += [
        annotation(2, 7, 3, [0, 0, 5, 5]) | {"iscrowd": 1},
        annotation(3, 7, 3, [5, 5, 0, 3]),  # no width
        annotation(4, 7, 3, [25, 2, 4, 4]),  # outside
        annotation(5, 7, 99, [1, 1, 2, 2]),
        annotation(6, 7, 3, [-2, -3, 40, 40]),
        annotation(7, 2, 3, [0, 0, 20.2, 10]),  # rounding
    ]
    with caplog.at_level(logging.WARNING):
        dataset = read(folder, data, drop_unlisted=True)
    report = dataset.changes
    assert (report.crowd, report.degenerate, report.unknown_category, report.clamped) == (1, 2, 1, 1)
    np.testing.assert_array_equal(dataset.records[0].boxes_xyxy_px, [[1, 2, 4, 6], [0, 0, 20, 10]])
    np.testing.assert_array_equal(dataset.records[1].boxes_xyxy_px, [[0, 0, 20, 10]])
    assert dataset.records[0].annotation_ids.tolist() == [1, 6]
    assert len(caplog.records) == 1 and "1 crowd regions" in caplog.text and "2 boxes without area" in caplog.text


def test_annotations_of_unlisted_classes_are_refused(folder):
    data = content()
    data["annotations"].append(annotation(4, 2, 99, [0, 0, 5, 5]) | {"iscrowd": 1})
    assert read(folder, data).changes.crowd == 1
    data["annotations"] += [annotation(5, 2, 0, [1, 1, 2, 2]), annotation(6, 7, 99, [1, 1, 2, 2])]
    with pytest.raises(UserError) as caught:
        read(folder, data)
    assert str(caught.value) == (
        f"{folder / 'data.json'}: 2 of 4 annotations have a category_id that 'categories' does not list, such as 0 of "
        "annotation 5 in b.png; listed are 3 circle, 20 star; add the class to 'categories', or remove the annotations "
        "(dfine check --data DIR reports all problems)"
    )
    data["categories"] += [{"id": number, "name": f"c{number}"} for number in range(30, 108)]
    with pytest.raises(UserError, match="3 circle, 20 star, 30 c30, 31 c31, 32 c32 and 75 more; add"):
        read(folder, data)


def test_segmentations_are_read_on_demand(folder):
    assert list(segmentations(read(folder, content()))) == [(1, 0, [[1, 2, 4, 2, 4, 6]])]


def test_missing_sizes_come_from_the_files(folder):
    data = content()
    data["images"] = [{"id": 7, "file_name": "images/a.png"}, {"id": 2, "file_name": "b.png", "width": 0, "height": 0}]
    dataset = read(folder, data)
    assert [(r.width_px, r.height_px) for r in dataset.records] == [(20, 10), (20, 10)]
    assert dataset.records[0].path == folder / "images" / "a.png"


def test_group_entry_of_roboflow_is_no_class(folder):
    data = content()
    data["categories"] = [
        {"id": 0, "name": "shapes", "supercategory": "none"},
        {"id": 3, "name": "circle", "supercategory": "shapes"},
        {"id": 20, "name": "star", "supercategory": "shapes"},
    ]
    assert read(folder, data).classes.ids == (3, 20)
    data["annotations"].append(annotation(2, 7, 0, [1, 1, 2, 2]))
    assert read(folder, data).classes.ids == (0, 3, 20)


def broken(change):
    data = content()
    change(data)
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "not COCO"),
        (broken(lambda d: d.pop("annotations")), "no list 'annotations'"),
        (broken(lambda d: d["images"].append(d["images"][0])), "image id 7 is listed twice"),
        (broken(lambda d: d["categories"].append({"id": 3, "name": "x"})), "category id 3 is listed twice"),
        (broken(lambda d: d["annotations"].append(d["annotations"][0])), "annotation 1 occurs twice"),
        (broken(lambda d: d["annotations"].append(annotation(2, 5, 3, [0, 0, 1, 1]))), "image 5, which is not listed"),
        (broken(lambda d: d["annotations"].append(annotation(2, 7, 3, [0, 0, 1]))), r"bbox \[0, 0, 1\]"),
        (broken(lambda d: d["annotations"].append(annotation(2, 7, 3, [0, 0, 1, None]))), "must be"),
        (broken(lambda d: [d["annotations"][0].pop(key) for key in ("bbox", "segmentation")]), "no 'bbox'"),
        (broken(lambda d: d["annotations"][0].pop("id")), "number 0 has no integer 'id'"),
        (broken(lambda d: d["annotations"][0].update(id=2**63)), "integer 'id' of at most 64 bits"),
        (broken(lambda d: d["images"][0].update(id=2**64)), "integer 'id' of at most 64 bits"),
        (broken(lambda d: d["annotations"][0].update(category_id=[3])), r"category_id \[3\]; it must be the number"),
        (broken(lambda d: d["categories"].clear()), "no categories"),
        (broken(lambda d: d["images"][0].pop("file_name")), "file_name"),
        (broken(lambda d: d["images"][1].update(file_name="x.png")), r"1 of 2 images.*first: x.png"),
    ],
)
def test_wrong_files_give_one_line_with_the_cure(folder, data, message):
    with pytest.raises(UserError, match=message) as caught:
        read(folder, data)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(folder):
    with pytest.raises(UserError, match="none.json does not exist"):
        read_coco(folder / "none.json", folder)
    read(folder, content())
    with pytest.raises(UserError, match="image folder .*nothing does not exist"):
        read_coco(folder / "data.json", folder / "nothing")


def test_categories_of_both_splits_must_agree(folder):
    train = read(folder, content())
    check_same_categories(train, read(folder, content()))
    other = content()
    other["categories"][0]["name"] = "sun"
    with pytest.raises(UserError, match="id 20 is 'star' in .* and 'sun'"):
        check_same_categories(train, read(folder, other))


@pytest.mark.parametrize(
    ("annotations", "images", "split"),
    [
        ("annotations/instances_train2017.json", "train2017", "train"),
        ("annotations/instances_val2017.json", "images/val2017", "val"),
        ("annotations/instances_train.json", "train", "train"),
        ("annotations/instances_val.json", "images", "val"),
        ("train/_annotations.coco.json", "train", "train"),
        ("valid/_annotations.coco.json", "valid", "val"),
        ("val/_annotations.coco.json", "val", "val"),
        ("test/_annotations.coco.json", "test", "test"),
        ("test/_annotations.coco.json", "test", "val"),
    ],
)
def test_layouts_are_recognised(tmp_path, annotations, images, split):
    (tmp_path / images).mkdir(parents=True)
    (tmp_path / annotations).parent.mkdir(exist_ok=True)
    (tmp_path / annotations).write_text("{}")
    assert find_split(tmp_path, split) == (tmp_path / annotations, tmp_path / images)


def test_unrecognised_layouts(tmp_path):
    with pytest.raises(UserError, match="nothing does not exist"):
        find_split(tmp_path / "nothing", "train")
    with pytest.raises(UserError, match="no train annotations.*instances_train.json"):
        find_split(tmp_path, "train")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text("{}")
    with pytest.raises(UserError, match="no image folder"):
        find_split(tmp_path, "val")


def test_real_annotations(cells):
    dataset = read_coco(*find_split(cells, "val"))
    assert dataset.names == ("RBC", "WBC", "Platelets")
    assert [np.bincount(record.labels).tolist() for record in dataset.records] == [[8, 1, 1], [5, 1, 2]]
    (white,) = dataset.records[1].boxes_xyxy_px[dataset.records[1].labels == 1]
    np.testing.assert_array_equal(white, [1, 11, 222, 221])


def test_real_data(real_data):
    blood = read_coco(*find_split(real_data("bccd/train").parent, "train"))
    assert (len(blood), blood.names, blood.changes.degenerate) == (205, ("RBC", "WBC", "Platelets"), 1)
    photos = read_coco(*find_split(real_data("coco_mini"), "val"))
    assert (len(photos), len(photos.names), photos.changes.crowd) == (40, 80, 4)
    assert photos.classes.ids[-1] == 90 and max(r.labels.max(initial=0) for r in photos.records) < 80
