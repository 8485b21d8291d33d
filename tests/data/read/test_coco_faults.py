"""Annotation files as tools write them: flags, areas, boxes and names that are nearly right."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dfine_jax.data.read import audit, coco_pieces
from dfine_jax.data.read.coco import read_coco
from dfine_jax.errors import UserError
from dfine_jax.evaluation.score import score
from dfine_jax.evaluation.truth import annotated
from dfine_jax.families.dfine.config import LossConfig

WIDTH, HEIGHT = 64, 48


def entry(number=1, image=1, category=1, bbox=(10, 10, 20, 10), **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), **more}


def content(*entries, names=("0.png",)):
    return {
        "images": [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(names, 1)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": list(entries),
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train").mkdir()
    picture(tmp_path / "train" / "0.png")
    return tmp_path


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def read(folder, data, **options):
    file = folder / "a.json"
    if isinstance(data, bytes):
        file.write_bytes(data)
    else:
        file.write_text(data if isinstance(data, str) else json.dumps(data))
    return read_coco(file, folder / "train", **options)


def refused(folder, data):
    with pytest.raises(UserError) as caught:
        read(folder, data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return str(caught.value)


# --- flags -----------------------------------------------------------------------------------------------------------

NO = [0, False, 0.0, "0", "0.0", "false", "False", "FALSE", "no", " 0 ", "", None]
YES = [1, True, 1.0, "1", "1.0", "true", "True", "TRUE", "yes"]


@pytest.mark.parametrize("value", NO, ids=repr)
def test_flags_that_say_no(folder, value):
    data = read(folder, content(entry(iscrowd=value)))
    assert len(data.records[0].labels) == 1 and data.changes.crowd == 0
    assert not data.columns.shared.arrays["crowd"].any()


@pytest.mark.parametrize("value", YES, ids=repr)
def test_flags_that_say_yes(folder, value):
    data = read(folder, content(entry(iscrowd=value), entry(2)))
    assert data.records[0].annotation_ids.tolist() == [2] and data.changes.crowd == 1
    assert data.columns.shared.arrays["crowd"].tolist() == [True, False]


@pytest.mark.parametrize("value", [2, -1, 0.5, "crowd", "2", [], [0], {}, 10**400, 2**70], ids=lambda v: repr(v)[:12])
def test_flags_that_are_neither_are_refused(folder, value):
    message = refused(folder, content(entry(7), entry(8, iscrowd=value)))
    assert f"{folder / 'a.json'}: annotation 8 has iscrowd {repr(value)[:20]}" in message


def test_flags_of_many_types_in_one_file(folder):
    values = NO + YES
    data = read(folder, content(*(entry(i, iscrowd=value) for i, value in enumerate(values))))
    assert data.records[0].annotation_ids.tolist() == list(range(len(NO))) and data.changes.crowd == len(YES)


# --- areas -----------------------------------------------------------------------------------------------------------

SQUARE = [[10, 10, 20, 10, 20, 20, 10, 20]]
RUNS = {"size": [HEIGHT, WIDTH], "counts": [100, 50, WIDTH * HEIGHT - 150]}


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-1", "0", "-0.0", '"big"', "true", "1e9", "1e400", "1" + "0" * 400, "[]"]
)
@pytest.mark.parametrize(("mask", "right"), [(None, 200.0), (SQUARE, 100.0), (RUNS, 50.0), ([], 200.0), ("x", 200.0)])
def test_areas_that_cannot_be_are_computed(folder, value, mask, right):
    text = json.dumps(content(entry(segmentation=mask, area="AREA"), entry(2, area=7)))
    data = read(folder, text.replace('"AREA"', value))
    assert data.records[0].areas_px.tolist() == [right, 7.0]
    assert data.changes.areas == 1 and "1 impossible areas" in str(data.changes)
    findings = [str(f) for f in audit.inspect_annotations(data)]
    assert any("1 impossible areas" in text and "--repair" in text for text in findings)


@pytest.mark.parametrize(("value", "right"), [(5.5, 5.5), ("190", 190.0), (" 30 ", 30.0), (None, 200.0), (300, 300.0)])
def test_areas_that_can_be_are_as_given(folder, value, right):
    data = read(folder, content(entry(area=value)))
    assert data.records[0].areas_px.tolist() == [right] and data.changes.areas == 0


def test_missing_areas_are_of_the_mask_where_there_is_one(folder):
    data = read(folder, content(entry(segmentation=SQUARE), entry(2)))
    assert data.records[0].areas_px.tolist() == [100.0, 200.0] and data.changes.areas == 0


@pytest.mark.parametrize("area", [-1, 0, float("nan"), "?", 1e12])
def test_ap_does_not_vanish_with_the_areas(folder, area):
    data = read(folder, content(entry(area=area), entry(2, category=2, bbox=[0, 0, 60, 40], area=area)))
    found = [
        {"image_id": 1, "category_id": c, "bbox": b, "score": 0.9}
        for c, b in ((1, [10, 10, 20, 10]), (2, [0, 0, 60, 40]))
    ]
    metrics = score(data, found, [1], data.classes)
    assert metrics.ap == pytest.approx(1.0) and metrics.ap_small == pytest.approx(1.0)
    assert metrics.ap_medium == pytest.approx(1.0)


# --- boxes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [[], None])
def test_boxes_that_mark_the_background_are_no_objects(folder, value):
    data = read(folder, content(entry() | {"bbox": value}, entry(2)))
    assert data.records[0].annotation_ids.tolist() == [2]
    assert data.changes.empty == 1 and "1 annotations without a box taken as no object" in str(data.changes)
    assert len(data.columns.shared.arrays["label"]) == 1


def without_box(value, **more):
    made = entry(**more) | {"bbox": value}
    return made if value != "absent" else {name: v for name, v in made.items() if name != "bbox"}


def disc():
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return coco_mask.encode(np.asfortranarray((x - 20) ** 2 + (y - 15) ** 2 < 64, np.uint8))


@pytest.mark.parametrize("value", [None, [], "absent"])
def test_objects_with_a_mask_alone_have_its_box(folder, value):
    counts = disc()["counts"]
    runs = {"size": [HEIGHT, WIDTH], "counts": counts.decode()}
    parts = [[5.5, 6, 9, 6, 9, 12.25], [30, 2, 33, 2, 33, 8]]
    nothing = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    damaged = {"size": [HEIGHT, WIDTH], "counts": [7]}
    marks = [without_box(None, number=n, segmentation=s) for n, s in ((6, nothing), (7, damaged), (8, [[1, 2]]))]
    masks = (3, parts), (4, runs)
    objects = [entry(2), *(without_box(value, number=n, segmentation=s, area=40) for n, s in masks)]
    data = read(folder, content(*objects, *marks))
    assert data.records[0].annotation_ids.tolist() == [2, 3, 4]
    assert data.records[0].boxes_xyxy_px.tolist() == [[10, 10, 30, 20], [5.5, 2, 33, 12.25], [12, 7, 28, 23]]
    assert data.records[0].areas_px.tolist() == [200, 40, 40]
    assert (data.changes.drawn, data.changes.empty) == (2, 3) and "2 boxes made from masks" in str(data.changes)
    (found,) = [str(f) for f in audit.inspect_annotations(data) if "mask is used" in str(f)]
    assert found.startswith("note: 2 objects without a box; that of their mask is used")
    assert annotated(data, masks=True).masks.exist.tolist() == [False, True, True]


def test_what_has_neither_box_nor_mask_is_refused_as_before(folder):
    for more in ({}, {"segmentation": []}, {"segmentation": [[1, 2]]}):
        assert "annotation 1 has no 'bbox'" in refused(folder, content(without_box("absent", **more)))
    assert "bbox [1, 2, 3]" in refused(folder, content(without_box([1, 2, 3], segmentation=[[1, 1, 9, 1, 9, 9]])))


@pytest.mark.parametrize(
    "value",
    ['[1, 2, 3]', '[1, 2, 3, 4, 5]', '["12.5", 1, 2, 3]', "[true, 1, 2, 3]", "[1, 2, 3, NaN]", "[1, 2, Infinity, 4]",
     "[1, 2, 3, null]", f"[1, 2, 3, 1{'0' * 400}]", "[1, 2, 3, 1e400]", '"1 2 3 4"', "7", "{}", "[[1, 2], [3, 4]]"],
)  # fmt: skip
def test_values_that_are_no_boxes_are_refused(folder, value):
    text = json.dumps(content(entry(3), entry(4) | {"bbox": "BOX"})).replace('"BOX"', value)
    message = refused(folder, text)
    assert message.startswith(f"{folder / 'a.json'}: annotation 4 has bbox ")
    assert "it must be [x, y, width, height] in pixels; dfine check --data" in message


def test_numbers_of_thousands_of_digits(folder):
    text = json.dumps(content(entry(3), entry(4) | {"bbox": "BOX"}))
    assert "is not JSON" in refused(folder, text.replace('"BOX"', f"[1, 2, 3, 1{'0' * 5000}]"))


def test_enormous_boxes_are_cut(folder):
    data = read(folder, content(entry(bbox=[-1e300, -1e300, 2e300, 2e300]), entry(2, bbox=[5, 5, 1e300, 10**300])))
    np.testing.assert_array_equal(data.records[0].boxes_xyxy_px, [[5, 5, WIDTH, HEIGHT]])
    assert (data.changes.clamped, data.changes.degenerate) == (1, 1)


# --- ids and sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.0, "1", True, None, 2**63, -(2**63) - 1, [1], 10**400], ids=lambda v: repr(v)[:12])
def test_annotation_ids_that_are_none(folder, value):
    data = content(entry(5), entry(6))
    data["annotations"][1]["id"] = value
    assert "annotation number 1 has no integer 'id' of at most 64 bits" in refused(folder, data)
    data = content(entry(5))
    data["images"][0]["id"] = value
    assert "needs an integer 'id' of at most 64 bits and a 'file_name'" in refused(folder, data)


@pytest.mark.parametrize("value", [2**60, -7, 0, 2**63 - 1, -(2**63)])
def test_any_integer_of_64_bits_is_an_id(folder, value):
    data = content(entry(value, image=value, category=value))
    data["images"][0]["id"] = data["categories"][0]["id"] = value
    record = read(folder, data).records[0]
    assert (record.image_id, record.annotation_ids.tolist()) == (value, [value])


@pytest.mark.parametrize("value", ["1", True, 1.5, None, 2**70, float("nan")], ids=repr)
def test_references_of_another_type_are_not_guessed(folder, value):
    assert f"annotation 1 refers to image {value!r}, which is not listed" in refused(
        folder, content(entry(image=value))
    )
    message = refused(folder, content(entry(category=value)))
    assert "1 of 1 annotations have a category_id that 'categories' does not list" in message
    assert f"such as {value!r} of annotation 1 in 0.png" in message


def test_whole_floats_refer_to_integers(folder):
    assert read(folder, content(entry(image=1.0, category=2.0))).records[0].labels.tolist() == [1]


@pytest.mark.parametrize("value", [None, "64", 64.0, True, 0, -64, 10**30, float("nan"), [64]], ids=repr)
def test_sizes_of_odd_types_come_from_the_picture(folder, value):
    data = content(entry())
    data["images"][0]["width"] = value
    record = read(folder, data).records[0]
    assert (record.width_px, record.height_px) == (WIDTH, HEIGHT)


def test_the_first_wrong_entry_of_many_is_named(folder, monkeypatch):
    """Whatever comes later in the file, and in whichever piece of it."""
    monkeypatch.setattr(coco_pieces, "_PIECE_BYTES", 500)
    entries = [entry(i) for i in range(300)]
    assert len(read(folder, content(*entries)).records[0].labels) == 300
    entries[250]["iscrowd"] = "x"
    entries[200]["bbox"] = [1]
    assert "annotation 200 has bbox [1]" in refused(folder, content(*entries))
    entries[150]["id"] = 20
    assert "annotation 20 occurs twice" in refused(folder, content(*entries))
    entries[120] = None
    assert "annotation number 120 has no integer 'id'" in refused(folder, content(*entries))


def test_pieces_are_cut_between_entries_only(folder, monkeypatch):
    monkeypatch.setattr(coco_pieces, "_PIECE_BYTES", 40)
    tricky = {"attributes": {"list": [{"a": "}, {"}, {"b": "\\"}, {"c": '"}, {"'}], "text": '},{ ]} " , {'}}
    entries = [entry(i, **tricky, iscrowd=0, segmentation=SQUARE) for i in range(40)]
    data = content(*entries)
    data["info"] = {"annotations": [{"no": 1}, {"no": 2}]}
    for text in (json.dumps(data), json.dumps(data, indent=2), json.dumps(data, separators=(",", ":"))):
        assert read(folder, text).records[0].annotation_ids.tolist() == list(range(40))


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_any_unicode_encoding_is_read_by_all_who_read(folder, encoding):
    data = content(entry(segmentation=SQUARE))
    data["categories"][0]["name"] = "Käse"
    dataset = read(folder, json.dumps(data, ensure_ascii=False).encode(encoding))
    assert dataset.names[0] == "Käse"
    from dfine_jax.data.read.coco import segmentations

    assert list(segmentations(dataset)) == [(1, 0, SQUARE)]
    assert score(dataset.annotation_file, [], [1], dataset.classes).ap == 0.0
    assert audit.inspect_annotations(dataset) == []


def test_other_encodings_are_one_line(folder):
    data = content(entry())
    data["categories"][0]["name"] = "Käse"
    assert "is not" in refused(folder, json.dumps(data, ensure_ascii=False).encode("latin-1"))


# --- pictures --------------------------------------------------------------------------------------------------------


def test_folders_do_not_stand_for_each_other(folder):
    two = content(names=("camA/0.png", "camB/0.png"))
    message = refused(folder, two)
    assert "images number 0 and 1 mean one picture" in message and "camA/0.png and camB/0.png" in message
    picture(folder / "train" / "camA" / "0.png")
    assert "1 of 2 images" in refused(folder, two) and "first: camB/0.png" in refused(folder, two)
    picture(folder / "train" / "camB" / "0.png")
    assert [r.path.parent.name for r in read(folder, two).records] == ["camA", "camB"]


@pytest.mark.parametrize("prefix", ["", "train/", "data/images/train/", "C:\\data\\train\\", "/home/me/train/", "./"])
def test_leading_folders_may_be_missing_for_all(folder, prefix):
    picture(folder / "train" / "1.png")
    data = read(folder, content(names=(f"{prefix}0.png", f"{prefix}1.png")))
    assert [r.path.name for r in data.records] == ["0.png", "1.png"]
    assert {r.path.parent for r in data.records} == {folder / "train"}


@pytest.mark.parametrize(
    "names", [("0.png", "0.png"), ("0.png", "./0.png"), ("0.png", "x/../0.png"), ("a/0.png", "0.png")]
)
def test_two_entries_never_share_a_picture(folder, names):
    (folder / "train" / "x").mkdir()
    assert "images number 0 and 1" in refused(folder, content(names=names))


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("place", ["été.png", "été/é.png"])
def test_letters_with_accents_are_found_however_they_are_spelled(folder, forms, place):
    listed, there = (unicodedata.normalize(form, place) for form in forms)
    picture(folder / "train" / there)
    (record,) = read(folder, content(names=(listed,))).records
    assert record.path == folder / "train" / there and record.path.is_file()


# --- nothing to learn ------------------------------------------------------------------------------------------------

NOTHING = {
    "its list 'annotations' is empty": content(),
    "crowd regions only": content(entry(iscrowd=1), entry(2, iscrowd=True)),
    "2 annotations, but none leaves an object to train on (2 boxes without area dropped)": content(
        entry(bbox=[70, 50, 5, 5]), entry(2, bbox=[1, 1, 0, 0])
    ),
    "1 annotations without a box taken as no object": content(entry() | {"bbox": []}),
    "2 boxes within 0 to 1: they are fractions": content(entry(bbox=[0.1, 0.2, 0.3, 0.4]), entry(2, bbox=[0, 0, 1, 1])),
    "lists no images": content(names=()),
}


@pytest.mark.parametrize("why", NOTHING)
def test_why_there_is_nothing_to_learn(folder, why):
    data = read(folder, NOTHING[why])
    assert why in (audit.why_nothing_to_learn(data) or "")
    assert any(f.level == "error" and why in str(f) for f in audit.inspect_content(data, (64, 64)))
    assert audit.summary(data)
    assert audit.why_nothing_to_learn(read(folder, content(entry()))) is None


@pytest.mark.parametrize("why", NOTHING)
def test_training_refuses_before_it_compiles(folder, why):
    from dfine_jax.config import Config
    from dfine_jax.families.dfine.variants import model_config
    from dfine_jax.training.run.setup import check

    with pytest.raises(UserError, match="nothing to train on") as caught:
        check(Config(model_config("n", num_classes=2), LossConfig()), read(folder, NOTHING[why]), None)
    assert why in str(caught.value)
