"""A picture that is not there is said to be missing; none of the same name in another folder takes its place."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from dfine_jax.data.edit.items import read_items
from dfine_jax.data.edit.repair import repair_dataset
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path_factory.mktemp("cache")))


def pictures(root, *names, **options):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(root / name, **options)


def put(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def coco(*names, size=(64, 48)):
    images = [{"id": i, "file_name": n, "width": size[0], "height": size[1]} for i, n in enumerate(names, 1)]
    objects = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [10, 5, 20 + i, 20]} for i in range(1, len(names) + 1)
    ]
    return {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}


def labelme(name):
    shape = {"label": "cat", "points": [[10, 5], [30, 25]], "shape_type": "rectangle"}
    return {"shapes": [shape], "imagePath": name, "imageHeight": 48, "imageWidth": 64}


def via(name):
    region = {"shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 5, "height": 6}}
    return {"k": {"filename": name, "size": 1, "regions": [region | {"region_attributes": {"class": "cat"}}]}}


def found(data):
    return {str(record.path.relative_to(data)): len(record.labels) for record in read_dataset(data, "train").records}


def test_repair_leaves_a_lost_picture_out_though_another_has_its_name(tmp_path):
    data = tmp_path / "data"
    pictures(data, "train/0.png", "train/camB/0.png")
    put(data / "train/_annotations.coco.json", coco("camA/0.png", "camB/0.png"))
    repairs, files = repair_dataset(data, tmp_path / "out")
    (image,) = json.loads(files["train"].read_text())["images"]
    (annotation,) = json.loads(files["train"].read_text())["annotations"]
    assert image["file_name"].endswith("train/camB/0.png") and annotation["bbox"] == [10, 5, 22, 20]
    assert repairs["train"].changes.places["images that do not exist were left out"] == ["camA/0.png"]


def test_repair_takes_the_folder_from_all_names_where_none_is_there(tmp_path):
    data = tmp_path / "data"
    pictures(data, "train/0.png", "train/1.png")
    put(data / "train/_annotations.coco.json", coco("old/0.png", "old/1.png", "old/lost.png"))
    repairs, files = repair_dataset(data, tmp_path / "out")
    images = json.loads(files["train"].read_text())["images"]
    assert [image["file_name"].rpartition("/")[2] for image in images] == ["0.png", "1.png"]
    assert repairs["train"].changes.places["images that do not exist were left out"] == ["old/lost.png"]


@pytest.mark.parametrize("file, make", [("ann/1.json", labelme), ("via.json", via), ("x.json", coco)])
@pytest.mark.parametrize("name", ["a/1.png", "x\\a\\1.png", "C:/data/a/1.png"])
def test_another_folder_does_not_stand_for_the_named_one(tmp_path, file, make, name):
    pictures(tmp_path, "b/1.png")
    put(tmp_path / file, make(name))
    with pytest.raises(UserError, match=r"1 of 1 .*first: "):
        read_dataset(tmp_path, "train")


@pytest.mark.parametrize("file, make", [("ann/1.json", labelme), ("via.json", via), ("x.json", coco)])
@pytest.mark.parametrize("place", ["1.png", "images/1.png", "a/1.png", "images/a/1.png"])
def test_a_folder_of_the_name_may_be_missing(tmp_path, file, make, place):
    pictures(tmp_path, place)
    put(tmp_path / file, make("x/a/1.png"))
    assert found(tmp_path) == {place: 1}


def test_the_last_folder_is_missing_in_all_names_or_in_none(tmp_path):
    data = tmp_path / "data"
    pictures(data, "0.png", "camB/1.png")
    put(data / "via.json", {"a": via("camA/0.png")["k"], "b": via("camB/1.png")["k"]})
    with pytest.raises(UserError, match="1 of 2 annotated pictures are not below .*first: camA/0.png"):
        read_dataset(data, "train")
    repairs, _ = repair_dataset(data, tmp_path / "out")
    assert [image["file_name"] for image in repairs["all"].content["images"]] == [str(data / "camB/1.png")]
    pictures(data, "1.png")
    (data / "camB/1.png").unlink()
    assert found(data) == {"0.png": 1, "1.png": 1}


@pytest.mark.parametrize("size", [(640.0, 48.0), ("640", "48"), (640, 48)])
def test_sizes_of_any_type_are_checked(tmp_path, size):
    pictures(tmp_path / "data", "train/0.png")
    put(tmp_path / "data/train/_annotations.coco.json", coco("0.png", size=size))
    (record,) = read_dataset(tmp_path / "data", "train").records
    assert (record.width_px, record.height_px) == (640, 48)
    with pytest.raises(UserError, match="has 64x48 pixels, its annotations say 640x48"):
        read_items(tmp_path / "data")
    repairs, _ = repair_dataset(tmp_path / "data", tmp_path / "out")
    assert not repairs["train"].content["images"]
    assert (
        "its annotations say 640x48" in repairs["train"].changes.places["pictures that cannot be used were left out"][0]
    )


@pytest.mark.parametrize("size", [(48.0, 64.0), ("48", "64.0"), (48, 64)])
def test_swapped_sizes_of_any_type_are_of_the_turned_picture(tmp_path, size):
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures(tmp_path / "data", "train/0.jpg", exif=exif)
    put(tmp_path / "data/train/_annotations.coco.json", coco("0.jpg", size=size))
    (item,) = read_items(tmp_path / "data").splits["train"]
    assert item.size_px == (48, 64) and item.annotations[0]["bbox"] == [10, 5, 21, 20]


def cvat(name):
    box = '<box label="cat" xtl="10" ytl="5" xbr="30" ybr="25"/>'
    return f'<annotations><meta/><image id="0" name="{name}" width="64" height="48">{box}</image></annotations>'


def labelstudio(name):
    value = {"x": 10, "y": 10, "width": 20, "height": 30, "rectanglelabels": ["cat"]}
    result = [{"type": "rectanglelabels", "value": value}]
    return [{"id": 1, "data": {"image": name}, "annotations": [{"result": result}]}]


@pytest.mark.parametrize(("make", "ending"), [(cvat, "xml"), (via, "json"), (labelstudio, "json"), (coco, "json")])
def test_a_damaged_file_among_others_is_named(tmp_path, make, ending):
    pictures(tmp_path, "0.png", "1.png")
    put(tmp_path / f"a.{ending}", make("0.png"))
    assert found(tmp_path) == {"0.png": 1}
    whole = make("1.png") if isinstance(make("1.png"), str) else json.dumps(make("1.png"))
    put(tmp_path / f"b.{ending}", whole[:-9])
    with pytest.raises(UserError, match=rf"b.{ending} is not (XML|JSON) \(.*(line|column) 1"):
        read_dataset(tmp_path, "train")
    if make is not coco:
        repairs, _ = repair_dataset(tmp_path, tmp_path / "out")
        assert len(repairs["all"].content["images"]) == 1
        assert f"b.{ending}" in str(repairs["all"].left)
