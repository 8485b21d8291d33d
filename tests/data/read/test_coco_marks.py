"""Marks of objects to be ignored, areas and repeated keys in COCO JSON mean the same to reading and to repair."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dfine_jax.data.edit.items import read_items
from dfine_jax.data.edit.repair import repair_dataset
from dfine_jax.data.read import annotation_cache, audit, coco_pieces
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data/train").mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(tmp_path / "data/train/0.png")
    return tmp_path / "data"


def put(data, *annotations, more=""):
    things = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": [10 * number, 5, 10, 10], **fields}
        for number, fields in enumerate(annotations, 1)
    ]
    images = [{"id": 1, "file_name": "0.png", "width": 64, "height": 48}]
    text = json.dumps({"images": images, "annotations": things, "categories": [{"id": 1, "name": "cat"}]})
    (data / "train/_annotations.coco.json").write_text(text[:-1] + more + "}")
    return data


@pytest.mark.parametrize("flag", ["ignore", "difficult"])
@pytest.mark.parametrize("value", [1, True, "1", 1.0, "yes"])
def test_objects_to_be_ignored_count_like_crowd_regions(data, tmp_path, flag, value):
    read = read_dataset(put(data, {flag: value}, {flag: 0}, {}), "train")
    assert read.records[0].boxes_xyxy_px[:, 0].tolist() == [20, 30]
    assert read.columns is not None and read.columns.shared.arrays["crowd"].tolist() == [True, False, False]
    assert str(read.changes) == "1 objects marked ignore or difficult dropped"
    told = [str(finding) for finding in audit.inspect_annotations(read)]
    assert any("1 objects marked ignore or difficult" in text for text in told)
    (item,) = read_items(data).splits["train"]
    assert [annotation["iscrowd"] for annotation in item.annotations if "iscrowd" in annotation] == [1]
    repair_dataset(data, tmp_path / "out")
    assert read_dataset(tmp_path / "out", "train").records[0].boxes_xyxy_px[:, 0].tolist() == [20, 30]


def test_a_mark_that_means_nothing_is_refused(data):
    with pytest.raises(UserError, match="annotation 1 has ignore 'maybe'; it must be 0 for an object or 1"):
        read_dataset(put(data, {"ignore": "maybe"}), "train")


@pytest.mark.parametrize("area", ["1e3", 1000, 152, "150", 150, 100, -1, "?", True, None, 0])
def test_reading_and_repair_agree_on_areas(data, tmp_path, area):
    read = read_dataset(put(data, {"area": area}), "train").records[0].areas_px.tolist()
    assert read == ([150.0] if area in ("150", 150) else [100.0])
    repairs, _ = repair_dataset(data, tmp_path / "out")
    assert [annotation["area"] for annotation in repairs["train"].content["annotations"]] == read


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", ["[]", '[{"id": 7}]', "null"])
def test_a_list_given_twice_is_refused(data, tmp_path, key, value, monkeypatch):
    put(data, {}, {}, more=f', "info": {{"annotations": 5, "title": "images"}}, "{key}": {value}')
    for mapped in (False, True):
        monkeypatch.setattr("dfine_jax.data.read.index._MAPPED_BYTES", 0 if mapped else 1 << 28)
        with pytest.raises(UserError, match=f"has the key '{key}' twice; keep one|no list '{key}'"):
            read_dataset(data, "train")
    with pytest.raises(UserError, match=f"has the key '{key}' twice"):
        repair_dataset(data, tmp_path / "out")


def test_keys_of_other_objects_are_no_lists_given_twice(data):
    put(data, {}, more=', "info": {"annotations": 5, "more": {"annotations": "images"}}')
    assert len(read_dataset(data, "train").records[0].labels) == 1
    text = (data / "train/_annotations.coco.json").read_text().replace('"bbox"', '"note": NaN, "bbox"')
    lists = coco_pieces.coco_lists(text.encode(), data)
    assert lists["annotations"][0]["bbox"] == [10, 5, 10, 10]


def test_a_damaged_file_of_the_cache_is_written_anew(tmp_path):
    made = []

    def make():
        made.append(1)
        return '{"a": "é"}'

    file = annotation_cache.keep("set", "train", "it", make)
    assert annotation_cache.keep("set", "train", "it", make) == file and len(made) == 1
    for content in (b"", file.read_bytes()[:-1], b"[" + file.read_bytes()[1:]):
        file.write_bytes(content)
        assert annotation_cache.keep("set", "train", "it", make) == file
        assert file.read_text(encoding="utf-8") == make()
    np.testing.assert_equal(len(list(file.parent.iterdir())), 2)
