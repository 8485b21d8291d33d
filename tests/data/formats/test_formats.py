"""Files as annotation tools write them, and the ways in which they are found to be wrong."""

from __future__ import annotations

import base64
import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfine_jax.data.read.coco import with_outlines
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.errors import UserError


@pytest.fixture(autouse=True)
def quiet_cache(tmp_path_factory, monkeypatch, caplog):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path_factory.mktemp("cache")))
    caplog.set_level(logging.WARNING)


def picture(file: Path, size=(64, 48), **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (len(file.name) * 7 % 256, 80, 80)).save(file, **options)
    return file


def put(file: Path, content) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def objects(data, split="train"):
    """{picture: [(class, box)]}"""
    dataset = read_dataset(data, split)
    return {
        record.path.name: [
            (dataset.names[label], [round(float(v), 3) for v in box])
            for label, box in zip(record.labels, record.boxes_xyxy_px, strict=True)
        ]
        for record in dataset.records
    }


# --- Pascal VOC -------------------------------------------------------------------------------------------------------

VOC = """<annotation>
  <folder>JPEGImages</folder><filename>{name}</filename><source><database>{database}</database></source>
  <size><width>{width}</width><height>48</height><depth>3</depth></size>
  <object><name>{first}</name><difficult>0</difficult>
    <bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>
  <object><name>cat</name><difficult>{difficult}</difficult>
    <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9.5</xmax><ymax>9</ymax></bndbox></object>
</annotation>"""


def voc(**changes) -> str:
    values = {"name": "a.jpg", "database": "Unknown", "width": 64, "first": "dog", "difficult": 0}
    return VOC.format(**(values | changes))


def test_voc_with_lists_of_splits(tmp_path, caplog):
    for stem in "abc":
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        put(tmp_path / "Annotations" / f"{stem}.xml", voc(name=f"{stem}.jpg", difficult=int(stem == "b")))
    put(tmp_path / "ImageSets" / "Main" / "train.txt", "a\nb\n")
    put(tmp_path / "ImageSets" / "Main" / "val.txt", "c\n")
    put(tmp_path / "ImageSets" / "Main" / "cat_train.txt", "a 1\nb -1\n")
    both = [("dog", [11, 6, 30, 40]), ("cat", [1, 1, 9.5, 9])]
    assert objects(tmp_path) == {"a.jpg": both, "b.jpg": both[:1]}
    assert "1 difficult objects; not trained on" in caplog.text
    assert objects(tmp_path, "val") == {"c.jpg": both}
    assert read_dataset(tmp_path, "train").names == read_dataset(tmp_path, "val").names == ("cat", "dog")
    with pytest.raises(UserError, match="has no test split; it has train, val"):
        read_dataset(tmp_path, "test")
    put(tmp_path / "ImageSets" / "Main" / "val.txt", "c\na\n")
    with pytest.raises(UserError, match="train.txt, line 1: a is also in .*val.txt, line 2"):
        read_dataset(tmp_path, "train")


def test_voc_of_the_challenges_counts_pixels_from_one(tmp_path, caplog):
    picture(tmp_path / "JPEGImages" / "a.jpg")
    put(tmp_path / "Annotations" / "a.xml", voc(database="The VOC2007 Database"))
    assert objects(tmp_path) == {"a.jpg": [("dog", [10, 5, 30, 40]), ("cat", [0, 0, 9.5, 9])]}
    assert "2 boxes of the VOC challenges, whose pixels count from 1" in caplog.text


def test_voc_with_a_polygon_beside_the_box(tmp_path, caplog):
    """Both are kept; what is no polygon leaves the box."""
    picture(tmp_path / "a.jpg")
    points = "".join(f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>" for i, (x, y) in enumerate([(11, 6), (30, 6), (30, 40)], 1))
    both = voc().replace("</bndbox>", f"</bndbox><polygon>{points}</polygon>", 1)
    put(tmp_path / "a.xml", both.replace("</bndbox></object>", "</bndbox><polygon/></object>"))
    assert objects(tmp_path) == {"a.jpg": [("dog", [11, 6, 30, 40]), ("cat", [1, 1, 9.5, 9])]}
    (record,) = with_outlines(read_dataset(tmp_path, "train")).records
    first, second = record.outlines
    assert first.parts[0].tolist() == [[11, 6], [30, 6], [30, 40]] and second is None
    assert "1 polygons beside a box cannot be used; the box is (first: " in caplog.text


def test_voc_beside_the_pictures(tmp_path):
    for split in ("train", "valid"):
        picture(tmp_path / split / "a.jpg")
        put(tmp_path / split / "a.xml", voc())
    assert len(objects(tmp_path)["a.jpg"]) == len(objects(tmp_path, "val")["a.jpg"]) == 2
    assert read_dataset(tmp_path, "val").records[0].path == tmp_path / "valid" / "a.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (voc().replace("<xmin>11", "<xmin>left"), "a.xml, object 1 has xmin 'left'; it must be a number"),
        (voc().replace("<xmin>11</xmin>", ""), "a.xml, object 1 has xmin None"),
        (voc(first=" "), "a.xml, object 1 has no class name"),
        (voc(difficult="perhaps"), "a.xml, object 2 has difficult 'perhaps'"),
        (voc(width=65), "a.xml is of a picture of 65x48 pixels, .*a.jpg has 64x48"),
        (voc()[:-20], r"a.xml is not XML \(.*: line \d+, column"),
        ('<!DOCTYPE x [<!ENTITY a "aaaa">]>' + voc(first="&a;"), "a.xml declares entities"),
    ],
)
def test_wrong_voc(tmp_path, text, message):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.jpg")
    put(tmp_path / "b.xml", voc(name="b.jpg"))
    put(tmp_path / "a.xml", text)
    with pytest.raises(UserError, match=message) as caught:
        read_dataset(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_voc_in_other_encodings(tmp_path):
    picture(tmp_path / "a.jpg")
    head = '<?xml version="1.0" encoding="{}"?>\n'
    for encoding in ("gb2312", "latin-1", "utf-16", "utf-8"):
        name = "猫" if encoding in ("gb2312", "utf-16") else "Größe"
        (tmp_path / "a.xml").write_bytes((head.format(encoding) + voc(first=name)).encode(encoding))
        assert objects(tmp_path)["a.jpg"][0][0] == name
    (tmp_path / "a.xml").write_bytes((head.format("ascii") + voc(first="Größe")).encode())
    with pytest.raises(UserError, match=r"a.xml is not in the encoding that it declares \(ascii\)"):
        read_dataset(tmp_path / "a.xml", "train")


def test_files_without_picture_and_pictures_without_file(tmp_path, caplog):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "c.jpg")
    put(tmp_path / "a.xml", voc())
    assert list(objects(tmp_path)) == ["a.jpg"]
    assert "1 pictures are not annotated; they are left out" in caplog.text
    put(tmp_path / "b.xml", voc(name="b.jpg"))
    with pytest.raises(UserError, match=r"1 of 1 annotated pictures are not below .* \(first: b.jpg of .*b.xml\)"):
        read_dataset(tmp_path, "train")
    put(tmp_path / "b.xml", voc(name="a.jpg"))
    with pytest.raises(UserError, match="b.xml and .*a.xml both annotate .*a.jpg"):
        read_dataset(tmp_path, "train")


def test_pictures_of_equal_names_are_not_exchanged(tmp_path):
    for folder in ("camA", "camB"):
        picture(tmp_path / folder / "0.jpg", (64, 48) if folder == "camA" else (32, 48))
    put(tmp_path / "xml" / "0.xml", voc(name="0.jpg"))
    with pytest.raises(UserError, match="names 0.jpg, which may be .*camA/0.jpg or .*camB/0.jpg; write the folder"):
        read_dataset(tmp_path, "train")
    put(tmp_path / "xml" / "0.xml", voc(name="camA/0.jpg"))
    assert read_dataset(tmp_path, "train").records[0].path == tmp_path / "camA" / "0.jpg"


@pytest.mark.parametrize("folder", ["train", "val", "cams/a"])
def test_a_lost_picture_is_not_replaced_by_one_of_another_folder(tmp_path, folder):
    for place in ("train", "val", "cams/a"):
        for name in ("1.jpg", "2.jpg"):
            picture(tmp_path / place / name)
        entries = via([region({"class": "cat"}, **RECT)], "1.jpg") | via([], "2.jpg")
        put(tmp_path / place / "via.json", entries)
    (tmp_path / folder / "1.jpg").unlink()
    with pytest.raises(
        UserError, match=f"1 of 6 annotated pictures are not below .*first: 1.jpg of .*{folder}/via.json"
    ):
        read_dataset(tmp_path, "train")


def test_two_lists_of_one_folder_of_pictures(tmp_path):
    picture(tmp_path / "pictures" / "1.jpg")
    for name in ("a", "b"):
        put(tmp_path / name / "via.json", via([region({"class": "cat"}, **RECT)], "1.jpg"))
    with pytest.raises(UserError, match="b/via.json.* and .*a/via.json.* both annotate .*pictures/1.jpg"):
        read_dataset(tmp_path, "train")


def test_annotations_of_the_stored_pixels_of_a_turned_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "a.jpg", exif=exif)  # a viewer shows 48x64
    put(tmp_path / "a.xml", voc())
    assert objects(tmp_path)["a.jpg"][0] == ("dog", [8, 11, 42, 30])


# --- LabelMe ----------------------------------------------------------------------------------------------------------


def labelme(*shapes, **changes) -> dict:
    content = {"version": "5.2.1", "flags": {}, "shapes": list(shapes), "imagePath": "a.png", "imageData": None}
    return content | {"imageWidth": 64, "imageHeight": 48} | changes


def shape(kind, points, label="cat", **more) -> dict:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def test_labelme(tmp_path, caplog):
    picture(tmp_path / "a.png")
    mask = io.BytesIO()
    Image.fromarray(np.array([[0, 255, 255], [0, 255, 255]], np.uint8)).save(mask, "PNG")
    shapes = (
        shape("rectangle", [[30, 40], [10, 5]]),
        shape("polygon", [[1, 1], [9, 1], [9, 9]], " dog "),
        shape("circle", [[30, 20], [30, 30]]),
        shape("mask", [[40, 10], [42, 11]], mask=base64.b64encode(mask.getvalue()).decode()),
        shape("polygon", [[1, 30], [5, 30], [5, 35]], group_id=4),
        shape("polygon", [[11, 30], [15, 30], [15, 38]], group_id=4),
        shape("point", [[1, 1]]),
        shape("linestrip", [[1, 1], [2, 2]]),
    )
    put(tmp_path / "a.json", labelme(*shapes))
    assert objects(tmp_path) == {
        "a.png": [
            ("cat", [10, 5, 30, 40]),
            ("dog", [1, 1, 9, 9]),
            ("cat", [20, 10, 40, 30]),
            ("cat", [41, 10, 43, 12]),
            ("cat", [1, 30, 15, 38]),
        ]
    }
    assert "2 points and lines, which have no area, were left out" in caplog.text
    assert "1 objects of several shapes with one group_id" in caplog.text
    areas = read_dataset(tmp_path, "train").records[0].areas_px
    np.testing.assert_allclose(areas, [700, 32, np.pi * 100, 4, 26], rtol=2e-3)


@pytest.mark.parametrize("named", ["..\\images\\a.png", "../images/a.png", "/home/me/images/a.png", "a.png"])
def test_labelme_in_a_folder_of_its_own(tmp_path, named):
    picture(tmp_path / "images" / "a.png")
    put(tmp_path / "labels" / "a.json", labelme(shape("rectangle", [[1, 2], [3, 4]]), imagePath=named))
    assert objects(tmp_path) == {"a.png": [("cat", [1, 2, 3, 4])]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (labelme(shape("star", [[1, 1]] * 3)), "a.json, shape 0 has shape_type 'star'; known are rectangle"),
        (labelme(shape("polygon", [[1, 1], [2, 2]])), "shape 0 is a polygon of 2 points; it needs three"),
        (labelme(shape("rectangle", [[1, 1]])), "shape 0 is a rectangle of 1 points"),
        (labelme(shape("polygon", [[1, None], [2, 2], [3, 3]])), "shape 0 has a coordinate None; it must be a number"),
        (labelme(shape("polygon", [[1, float("nan")], [2, 2], [3, 3]])), "has a coordinate nan"),
        (labelme(shape("rectangle", [[1, 1], [2, 2]], None)), "shape 0 has no class name"),
        (labelme(shape("mask", [[1, 1], [2, 2]], mask="!")), "shape 0 has a mask that is no picture in base64"),
        (labelme("x"), "shape 0 is 'x'; it must be a shape"),
        (labelme(imagePath=3), "has imagePath 3; it must name the picture"),
        ("{", "a.json is not JSON"),
    ],
)
def test_wrong_labelme(tmp_path, content, message):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    put(tmp_path / "b.json", labelme(shape("rectangle", [[1, 2], [3, 4]]), imagePath="b.png"))
    put(tmp_path / "a.json", content)
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path, "train")


def test_a_picture_of_a_train_is_in_no_split(tmp_path):
    picture(tmp_path / "train-01.png")
    picture(tmp_path / "dog.png")
    for stem in ("train-01", "dog"):
        put(tmp_path / f"{stem}.json", labelme(shape("rectangle", [[1, 2], [3, 4]]), imagePath=f"{stem}.png"))
    assert len(read_dataset(tmp_path, "val", whole=True)) == 2


# --- VIA --------------------------------------------------------------------------------------------------------------


def region(attributes, kind="rect", **shape) -> dict:
    return {"shape_attributes": {"name": kind, **shape}, "region_attributes": attributes}


RECT = {"x": 10, "y": 5, "width": 20, "height": 35}


def via(regions, name="a.png") -> dict:
    return {f"{name}123": {"filename": name, "size": 123, "regions": regions, "file_attributes": {}}}


@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: {"_via_settings": {}, "_via_img_metadata": e}])
def test_via_json(tmp_path, wrap):
    picture(tmp_path / "a.png")
    regions = [
        region({"class": "cat"}, **RECT),
        region({"class": "dog"}, "polygon", all_points_x=[1, 9, 9], all_points_y=[1, 1, 9]),
        region({"class": "dog"}, "circle", cx=30, cy=20, r=10),
        region({"class": "dog"}, "ellipse", cx=30, cy=20, rx=10, ry=5, theta=np.pi / 2),
        region({"class": "dog"}, "point", cx=30, cy=20),
    ]
    put(tmp_path / "via_region_data.json", wrap(via(regions)))
    expected = [
        ("cat", [10, 5, 30, 40]),
        ("dog", [1, 1, 9, 9]),
        ("dog", [20, 10, 40, 30]),
        ("dog", [25, 10, 35, 30]),
    ]
    assert objects(tmp_path) == objects(tmp_path / "via_region_data.json") == {"a.png": expected}


def test_via_of_old_versions_check_boxes_and_one_class(tmp_path, caplog):
    for split in ("train", "val"):
        picture(tmp_path / split / "a.png")
        put(tmp_path / split / "via_region_data.json", via({"0": region({}, **RECT)}))
    assert objects(tmp_path, "val") == {"a.png": [("object", [10, 5, 30, 40])]}
    assert "all their regions are called 'object'" in caplog.text
    for split in ("train", "val"):
        ticked = region({"kind": {"cat": True, "dog": False}}, **RECT)
        put(tmp_path / split / "via_region_data.json", via([ticked]))
    assert objects(tmp_path) == {"a.png": [("cat", [10, 5, 30, 40])]}


def test_via_csv(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    shape_text, attributes = json.dumps({"name": "rect", **RECT}), json.dumps({"type": "cat"})
    rows = [
        "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes",
        f'a.png,9,"{{}}",1,0,"{shape_text.replace(chr(34), chr(34) * 2)}","{attributes.replace(chr(34), chr(34) * 2)}"',
        'b.png,9,"{}",0,0,"{}","{}"',
    ]
    file = put(tmp_path / "via_export_csv.csv", "\n".join(rows))
    assert objects(tmp_path) == {"a.png": [("cat", [10, 5, 30, 40])], "b.png": []}
    file.write_text("\n".join(rows).replace('""rect""', '""rect'))
    with pytest.raises(UserError, match="csv, line 2 has attributes that are not JSON"):
        read_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([region({"colour": "red", "size": "big"}, **RECT)], "attributes colour, size; which is the class"),
        ([region({"class": "a", "label": "b"}, **RECT)], "attributes class, label; which is the class"),
        ([region({"class": {"cat": True, "dog": True}}, **RECT)], "region 0 has 2 classes ticked"),
        ([region({"class": "cat"}, "spline")], "region 0 has shape 'spline'"),
        ([region({"class": "cat"}, "rect", x=1)], "region 0 has y None"),
        ([region({"class": ""}, **RECT)], "region 0 has no class name"),
        ("x", "has regions that are no list"),
    ],
)
def test_wrong_via(tmp_path, regions, message):
    picture(tmp_path / "a.png")
    put(tmp_path / "via.json", via(regions))
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path, "train")


# --- CVAT -------------------------------------------------------------------------------------------------------------

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
  <label><name>dog</name><type>any</type></label><label><name>cat</name></label>
  <label><name>nose</name><parent>dog</parent></label></labels></task></meta>
  <image id="0" name="{name}" {subset} width="64" height="48">{shapes}</image>
</annotations>"""


def cvat(shapes="", name="a.png", subset="") -> str:
    return CVAT.format(shapes=shapes, name=name, subset=subset)


def test_cvat(tmp_path, caplog):
    picture(tmp_path / "images" / "a.png")
    shapes = (
        '<box label="cat" source="manual" occluded="1" xtl="10" ytl="5" xbr="30" ybr="40" z_order="0">'
        '<attribute name="x">y</attribute></box>'
        '<box label="dog" occluded="0" xtl="10" ytl="10" xbr="30" ybr="14" rotation="90" z_order="0"/>'
        '<polygon label="dog" points="1.5,1;9,1;9,9"/><ellipse label="cat" cx="30" cy="20" rx="10" ry="5"/>'
        '<mask label="cat" rle="1, 2, 3" left="40" top="10" width="3" height="2"/>'
        '<points label="cat" points="1,1"/><tag label="cat"/>'
    )
    put(tmp_path / "annotations.xml", cvat(shapes))
    assert read_dataset(tmp_path, "train").names == ("dog", "cat")  # in the order of the labels
    assert objects(tmp_path) == {
        "a.png": [
            ("cat", [10, 5, 30, 40]),
            ("dog", [18, 2, 22, 22]),
            ("dog", [1.5, 1, 9, 9]),
            ("cat", [20, 15, 40, 25]),
            ("cat", [41, 10, 43, 11]),
        ]
    }
    assert "1 rotated boxes; the upright box around them is used" in caplog.text
    assert "1 points, lines and skeletons" in caplog.text


def test_subsets_of_cvat(tmp_path):
    for name in ("a.png", "b.png"):
        picture(tmp_path / "images" / name)
    box = '<box label="cat" xtl="10" ytl="5" xbr="30" ybr="40"/>'
    text = cvat(box, subset='subset="Train"').replace("</annotations>", "")
    second = '<image id="1" name="b.png" subset="Validation" width="64" height="48"></image></annotations>'
    put(tmp_path / "annotations.xml", text + second)
    assert list(objects(tmp_path)) == ["a.png"] and objects(tmp_path, "val") == {"b.png": []}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (cvat('<box label="cat" xtl="1"/>'), "image a.png, box 0 has ytl None"),
        (cvat('<box xtl="1" ytl="1" xbr="2" ybr="2"/>'), "box 0 has no class name"),
        (cvat('<polygon label="cat" points="1,1;2,2"/>'), "polygon 0 is a polygon of 2 points"),
        (cvat('<mask label="cat" rle="1,2" left="0" top="0" width="9" height="9"/>'), "do not fill its rectangle"),
        (cvat('<cuboid label="cat" xtl1="1"/>'), "cuboid 0: shapes of this kind have no box"),
        (cvat().replace("<image", '<track id="0"></track><image'), "is 'CVAT for video'; export"),
        (cvat(name=""), "has no name; it must name the picture"),
    ],
)
def test_wrong_cvat(tmp_path, text, message):
    picture(tmp_path / "a.png")
    put(tmp_path / "annotations.xml", text)
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path, "train")


# --- Label Studio -----------------------------------------------------------------------------------------------------


def result(kind="rectanglelabels", label="cat", **value) -> dict:
    return {"type": kind, "original_width": 64, "original_height": 48, "value": {**value, kind: [label]}}


PERCENT = {"x": 25, "y": 50, "width": 50, "height": 25, "rotation": 0}


def task(*results, image="/data/upload/3/0a1b2c3d-a.png", **annotation) -> dict:
    return {"id": 7, "data": {"image": image}, "annotations": [{"result": list(results), **annotation}]}


@pytest.mark.parametrize(
    "image",
    [
        "/data/upload/3/0a1b2c3d-a.png",
        "/data/upload/a.png",
        "/data/local-files/?d=sets/images/a.png",
        "s3://bucket/images/a.png",
        "https://example.com/images/a.png?token=1",
        r"images\a.png",
    ],
)
def test_label_studio(tmp_path, image, caplog):
    picture(tmp_path / "images" / "a.png")
    results = (
        result(**PERCENT),
        result("polygonlabels", "dog", points=[[0, 0], [50, 0], [50, 50]]),
        result("ellipselabels", x=50, y=50, radiusX=25, radiusY=25),
        result(**{**PERCENT, "rotation": 90}),
        {"type": "choices", "value": {"choices": ["x"]}},
        result("keypointlabels", x=1, y=1),
    )
    put(tmp_path / "export.json", [task(*results, image=image)])
    assert objects(tmp_path) == {
        "a.png": [
            ("cat", [16, 24, 48, 36]),
            ("dog", [0, 0, 32, 24]),
            ("cat", [16, 12, 48, 36]),
            ("cat", [4, 24, 16, 48]),  # turned around its upper left corner, 56 px down, cut at the border
        ]
    }
    assert "1 rotated boxes" in caplog.text and "1 results that are no regions" in caplog.text


def test_label_studio_min_and_tasks_nobody_did(tmp_path, caplog):
    for name in "abcd":
        picture(tmp_path / f"{name}.png")
    flat = {**PERCENT, "rectanglelabels": ["cat"], "original_width": 64, "original_height": 48}
    put(tmp_path / "min.json", [{"image": "/data/upload/1/a.png", "id": 1, "label": [flat], "annotator": 1}])
    assert objects(tmp_path / "min.json") == {"a.png": [("cat", [16, 24, 48, 36])]}
    second = task(result(label="dog", **PERCENT), image="b.png")
    second["annotations"].append({"result": [], "updated_at": "2024-01-02"})
    second["annotations"][0]["ground_truth"] = True
    skipped = task(image="c.png", was_cancelled=True)
    put(tmp_path / "min.json", [task(image="a.png"), second, skipped, {**skipped, "annotations": []}])
    assert objects(tmp_path) == {"a.png": [], "b.png": [("dog", [16, 24, 48, 36])]}
    assert "2 tasks without annotation; they are left out" in caplog.text
    assert "1 tasks with several annotations" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (task(result("brushlabels", format="rle", rle=[1])), "task 7, result 0 is painted with a brush"),
        (
            task({**result(**PERCENT), "value": {**PERCENT, "rectanglelabels": ["a", "b"]}}),
            r"has the labels \['a', 'b'\]",
        ),
        (task({**result(), "type": "rectangle", "value": PERCENT}), "is a rectangle without label"),
        (task(result(x=1, y=2, width="wide", height=3)), "has width 'wide'; it must be a number"),
        (task(result("polygonlabels", points=[[1, 1], [2, 2]])), "is a polygon of 2 points"),
        (task(image=4), "names no picture"),
        (task(result(**PERCENT), image="x.png"), "first: x.png of .*task 7"),
    ],
)
def test_wrong_label_studio(tmp_path, wrong, message):
    picture(tmp_path / "a.png")
    put(tmp_path / "export.json", [wrong])
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path, "train")


# --- Recognising ------------------------------------------------------------------------------------------------------


def test_several_formats_in_one_folder(tmp_path):
    picture(tmp_path / "a.jpg")
    put(tmp_path / "a.xml", voc())
    put(tmp_path / "a.json", labelme(imagePath="a.jpg"))
    with pytest.raises(UserError, match=r"holds LabelMe \(a.json\) and Pascal VOC \(a.xml\); give a folder or file"):
        read_dataset(tmp_path, "train")
    assert len(read_dataset(tmp_path / "a.xml", "train")) == 1


def test_pictures_without_splits(tmp_path, caplog):
    picture(tmp_path / "a.jpg")
    put(tmp_path / "a.xml", voc())
    assert len(read_dataset(tmp_path, "train")) == 1
    command = f"dfine data split --data {tmp_path} --out DIR --val 0.2"
    assert "not divided into splits; all of it is for training" in caplog.text and command in caplog.text
    with pytest.raises(UserError, match="is not divided into splits; dfine data split"):
        read_dataset(tmp_path, "val")
    assert len(read_dataset(tmp_path, "val", whole=True)) == 1


def test_files_of_no_known_format(tmp_path):
    for name, text in (("a.json", '{"a": 1}'), ("a.xml", "<x/>"), ("a.csv", "a,b"), ("a.txt", "a")):
        with pytest.raises(UserError, match="is of no known format; known are COCO JSON, Pascal VOC"):
            read_dataset(put(tmp_path / name, text), "train")
    with pytest.raises(UserError, match="no train annotations recognised .*Pascal VOC, CVAT for images, LabelMe"):
        read_dataset(tmp_path, "train")


def test_coco_json_in_any_place(tmp_path):
    picture(tmp_path / "images" / "default" / "a.png")
    content = {"images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}]}
    content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]
    content["categories"] = [{"id": 1, "name": "cat"}]
    put(tmp_path / "annotations" / "instances_default.json", content)
    for data in (tmp_path, tmp_path / "annotations" / "instances_default.json"):
        assert objects(data) == {"a.png": [("cat", [1, 2, 4, 6])]}
    put(tmp_path / "annotations" / "other.json", content)
    with pytest.raises(UserError, match="holds several COCO JSON files .*; name one: --data "):
        read_dataset(tmp_path, "train")
    (tmp_path / "annotations" / "other.json").rename(tmp_path / "annotations" / "my_val.json")
    (tmp_path / "annotations" / "instances_default.json").rename(tmp_path / "annotations" / "my_train.json")
    assert len(read_dataset(tmp_path, "val")) == 1 and len(read_dataset(tmp_path, "train")) == 1


def test_hidden_copies_are_left_out(tmp_path):
    picture(tmp_path / "a.jpg")
    put(tmp_path / "a.xml", voc())
    picture(tmp_path / ".ipynb_checkpoints" / "a.jpg")
    put(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.xml", voc())
    assert list(objects(tmp_path)) == ["a.jpg"]


@pytest.mark.parametrize("name", ["a.xml", "a.json", "a.csv"])
def test_nothing_recognised_says_which_file_cannot_be_read(tmp_path, name):
    picture(tmp_path / "a.png")
    (tmp_path / name).write_bytes("<annotation> é".encode("latin-1"))
    with pytest.raises(UserError, match="1 files that may hold them cannot be read \\(first: .*a\\.(xml|json|csv)"):
        read_dataset(tmp_path, "train")
