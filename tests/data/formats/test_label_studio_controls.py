"""Label Studio: pairs of controls, flags of any type, and the picture that was annotated."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from PIL import Image

from dfine_jax.data.edit.items import Item, Items
from dfine_jax.data.formats.write import write
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.errors import UserError

PERCENT = {"x": 25, "y": 50, "width": 50, "height": 25, "rotation": 0}
BOX = ("cat", [16, 24, 48, 36])


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path_factory.mktemp("cache")))


def region(label="cat", **fields):
    size = {"original_width": 64, "original_height": 48, "image_rotation": 0}
    return {"id": "a", "type": "rectanglelabels", **size, "value": {**PERCENT, "rectanglelabels": [label]}, **fields}


def objects(root, *annotations, exif=None):
    options = {}
    if exif is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = exif
    Image.new("RGB", (64, 48)).save(root / "0.jpg", **options)
    (root / "tasks.json").write_text(json.dumps([{"id": 1, "data": {"image": "0.jpg"}, "annotations": annotations}]))
    data = read_dataset(root, "train")
    (record,) = data.records
    rounded = [[round(float(v), 3) for v in box] for box in record.boxes_xyxy_px]
    return [(data.names[label], box) for label, box in zip(record.labels, rounded, strict=True)]


def pair(number, label):
    return [
        {"id": number, "type": "rectangle", "value": PERCENT},
        {"id": number, "type": "labels", "value": {**PERCENT, "labels": [label]}},
    ]


def test_rectangles_and_labels_of_one_id_are_one_object(tmp_path):
    one, other = pair("a", "cat"), pair("b", "dog")
    polygon = [{"id": "c", "type": "polygon", "value": {"points": [[0, 0], [50, 0], [50, 50]]}}]
    polygon += [{"id": "c", "type": "labels", "value": {"labels": ["cow"]}}]
    found = objects(tmp_path, {"result": [one[1], *other, one[0], *polygon]})
    assert found == [("dog", BOX[1]), BOX, ("cow", [0, 0, 32, 24])]
    with pytest.raises(UserError, match="result 0 is a rectangle without label"):
        objects(tmp_path, {"result": [one[0], other[1]]})
    assert objects(tmp_path, {"result": [region(), one[1]]}) == [BOX]  # labelled by its own control


def test_written_results_name_the_controls_of_the_written_interface(tmp_path):
    """Boxes and outlines have one each, as no two controls may share a name; pictures are named from the new folder."""
    Image.new("RGB", (64, 48)).save(tmp_path / "a b#1.jpg")
    box = {"bbox": [0, 0, 8, 8], "category_id": 1, "id": 1, "iscrowd": 0, "area": 64}
    polygon = {**box, "id": 2, "segmentation": [[0, 0, 8, 0, 8, 8]], "category_id": 2}
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog & co"}]
    for number, shapes in enumerate(([box], [polygon], [box, polygon])):
        out = tmp_path / str(number)
        items = {"train": [Item(tmp_path / "a b#1.jpg", (64, 48), shapes, {})]}
        write(Items("", items, categories, Notes()), "labelstudio", out, None)
        (task,) = json.loads((out / "train" / "tasks.json").read_text())
        assert task["data"]["image"] == "/data/local-files/?d=train/images/a%20b%231.jpg"
        assert (out / "train" / "images" / "a b#1.jpg").samefile(tmp_path / "a b#1.jpg")
        controls = {one.get("name"): one for one in ElementTree.parse(out / "label_config.xml").getroot()[1:]}
        assert list(controls) == (["label", "polygon"] if len(shapes) == 2 else ["label"])
        for result in task["annotations"][0]["result"]:
            control = controls[result["from_name"]]
            assert (control.tag.lower(), control.get("toName")) == (result["type"], result["to_name"])
            (name,) = result["value"][result["type"]]
            assert name in [label.get("value") for label in control]
        assert len(read_dataset(out, "train").records[0].labels) == len(shapes)


@pytest.mark.parametrize("no", ["false", "False", False, 0, None, "0"])
@pytest.mark.parametrize("yes", ["true", True, 1, "1"])
def test_flags_of_any_type(tmp_path, no, yes):
    assert objects(tmp_path, {"was_cancelled": no, "result": [region()]}) == [BOX]
    old = {"ground_truth": no, "updated_at": "1", "result": [region("old")]}
    assert objects(tmp_path, old, {"ground_truth": no, "updated_at": "2", "result": [region()]}) == [BOX]
    assert objects(tmp_path, {**old, "ground_truth": yes}, {"updated_at": "2", "result": [region()]})[0][0] == "old"
    assert objects(tmp_path, {"was_cancelled": yes, "result": [region("old")]}, {"result": [region()]}) == [BOX]


def test_a_flag_that_means_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="task 1 has was_cancelled 'perhaps'; it must be true or false"):
        objects(tmp_path, {"was_cancelled": "perhaps", "result": [region()]})


def test_another_picture_than_the_annotated_one_is_refused(tmp_path):
    with pytest.raises(UserError, match="task 1 was annotated on the picture turned by 90 degrees"):
        objects(tmp_path, {"result": [region(image_rotation=90)]})
    with pytest.raises(UserError, match="task 1 is of a picture of 1000x10 pixels, .* has 64x48"):
        objects(tmp_path, {"result": [region(original_width=1000, original_height="10.0")]})
    with pytest.raises(UserError, match="regions of pictures of 2 sizes"):
        objects(tmp_path, {"result": [region(), region(original_width=65)]})


def test_percents_are_of_the_annotated_picture(tmp_path):
    upright = {"original_width": 48, "original_height": 64}
    assert objects(tmp_path, {"result": [region(**upright)]}, exif=6) == [("cat", [12, 32, 36, 48])]
    # of the stored pixels: 16 24 48 36 of 64x48, turned clockwise
    assert objects(tmp_path, {"result": [region()]}, exif=6) == [("cat", [12, 16, 24, 48])]
