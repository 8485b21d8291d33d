"""YOLO as it is found in the world: keypoints, numbers that are none, names that YAML would change, lists of paths."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfine_jax.data.read import annotation_cache
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.data.read.yolo import find_description, read_yolo
from dfine_jax.errors import UserError

KEYPOINTS = " ".join(f"{0.5 + 0.15 * np.cos(a):.3f} {0.5 + 0.15 * np.sin(a):.3f}" for a in np.arange(8) * 2.4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))


def make(root: Path, labels: dict[str, str | bytes], description: str = "names: [cat, dog]\n") -> Path:
    """A set whose pictures (64x48) are those of the labels, by path below images/."""
    for name, text in labels.items():
        picture = root / "images" / name
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (len(name) * 9 % 256, 99, 99)).save(picture)
        file = (root / "labels" / name).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    (root / "data.yaml").write_text(f"train: images/train\n{description}", encoding="utf-8")
    return root


def boxes(root: Path) -> np.ndarray:
    return np.concatenate([r.boxes_xyxy_px for r in read_dataset(root, "train").records])


def test_keypoints_are_left_out_where_the_description_says_so(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    labels = {"train/0.png": f"0 0.5 0.5 0.4 0.4 {KEYPOINTS}"}
    root = make(tmp_path, labels, "names: [cat, dog]\nkpt_shape: [8, 2]\n")
    np.testing.assert_allclose(boxes(root), [[19.2, 14.4, 44.8, 33.6]], atol=1e-4)
    assert "1 objects have keypoints beside their box" in caplog.text
    for line, message in (
        ("0 0.5 0.5 0.4 0.4", "line 1 has 5 columns; kpt_shape .8, 2. in data.yaml asks for 21"),
        (f"0 0.5 0.5 0.4 0.4 {KEYPOINTS} 0.5", "has 22 columns"),
    ):
        (root / "labels/train/0.txt").write_text(line)
        with pytest.raises(UserError, match=message):
            read_dataset(root, "train")
    (root / "labels/train/0.txt").write_text("0 0.5 0.5 0.4 0.4 0.45 0.5 2 0 0 0 0.55 0.45 1")
    (root / "data.yaml").write_text("train: images/train\nnames: [cat]\nkpt_shape: [3, 3]\n")
    np.testing.assert_allclose(boxes(root), [[19.2, 14.4, 44.8, 33.6]], atol=1e-4)
    for shape in ("8", "[8]", "[0, 2]", "[8, 4]", "[a, 2]"):
        (root / "data.yaml").write_text(f"train: images/train\nnames: [cat]\nkpt_shape: {shape}\n")
        with pytest.raises(UserError, match="kpt_shape is"):
            read_dataset(root, "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"0 0.5 0.5 0.4 0.4 {KEYPOINTS}", r"a box with 8 keypoints rather than a polygon.*'kpt_shape: \[8, 2\]'"),
        ("0 0.5 0.5 0.4 0.4 0.45 0.5 1 0.55 0.45 1", r"keypoints rather than a polygon.*'kpt_shape: \[2, 3\]'"),
        ("0 0.5 0.5 0.4 0.4 0.45 0.5 2 0.55 0.45 2", "a visibility of keypoints"),
        ("0 0.5 0.5 0.4 0.4 0.45 0.5 2", r"line 1 has 8 columns; a box and 1 keypoints\? .*'kpt_shape: \[1, 3\]'"),
        ("0 0.5 0.5 0.4 0.4 0.9", r"has 6 columns; one more than a box: a confidence or a track number\?"),
        ("0 0.5 0.5 0.4 0.4 0.9 17", "line 1: 17 is no fraction of the picture; it looks like pixels, a track number"),
        ("0 0.5 0.5 0.4 0.4 0.9 1", "a box with a confidence and a track number rather than a polygon"),
        ("0 0.1 0.1 1.2 0.1 0.2 0.2", "line 1: 1.2 is no fraction .* a point outside the picture"),
        ("0 32 24 20 20", "line 1: 32 is no fraction of the picture; it looks like pixels"),
        ("0 -0.6 0.5 0.4 0.4", "-0.6 is no fraction"),
        ("1.5 0.5 0.5 0.4 0.4", "line 1: class 1.5 is not a class number"),
        ("-1 0.5 0.5 0.4 0.4", "class -1 is not a class number"),
        ("0.5 0.5 0.4 0.4 0.1", "class 0.5 is not a class number .*is the class missing"),
        ("1e30 0.5 0.5 0.4 0.4", "class 1e30 is not a class number"),
        ("nan 0.5 0.5 0.4 0.4", "line 1: nan is not a number that can be used"),
        ("inf 0.5 0.5 0.4 0.4", "inf is not a number that can be used"),
        ("0 nan 0.5 0.4 0.4", "nan is not a number that can be used"),
        ("0 0.5 1e999 0.4 0.4", "1e999 is not a number that can be used"),
        ("0 0.5 1_0 0.4 0.4", "not all numbers"),
        ("0,0.5,0.5,0.4,0.4", "separate the columns by blanks"),
        ("cat 0.5 0.5 0.4 0.4", "not all numbers .'cat'.; write numbers only"),
    ],
)
def test_lines_that_are_no_box_and_no_polygon_are_named(tmp_path, line, message):
    root = make(tmp_path, {"train/0.png": line})
    with pytest.raises(UserError, match=message) as caught:
        read_dataset(root, "train")
    assert str(root / "labels" / "train" / "0.txt") in str(caught.value)
    assert "\n" not in str(caught.value) and "cache" not in str(caught.value).replace(str(tmp_path), "")
    notes = Notes(lenient=True)
    content = read_yolo(root / "data.yaml", "train", notes=notes)
    assert content is not None and content["annotations"] == [] and "line 1" in str(notes)


def test_polygons_stay_polygons(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    square = "0 0.4 0.4 0.6 0.4 0.6 0.6 0.4 0.6"
    root = make(tmp_path, {"train/0.png": f"{square}\n1 0.5 0.5 0.1 0.1", "train/1.png": "1.0 0.1 0.1 0.2 0.1 0.2 0.2"})
    found = read_dataset(root, "train")
    np.testing.assert_allclose(found.records[0].boxes_xyxy_px[0], [25.6, 19.2, 38.4, 28.8], atol=1e-4)
    assert found.records[1].labels.tolist() == [1]
    assert "1 objects with four corners, which are outlines for masks; boxes are the upright ones around" in caplog.text
    (root / "labels/train/0.txt").write_text(f"{square}\n0 0.5 0.2 0.8 0.5 0.5 0.8 0.2 0.5")
    (root / "labels/train/1.txt").write_text("0 0.1 0.5 0.4 0.5 0.2 1")  # a triangle that ends at the border
    assert read_dataset(root, "train").records[1].labels.tolist() == [0]
    (root / "labels/train/1.txt").write_text("")
    assert len(read_dataset(root, "train").records[0].labels) == 2  # a set of four corners only


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("names: [no, yes]", ("no", "yes")),
        ("names: [SE, NO, FI]", ("SE", "NO", "FI")),
        ("names:\n- 010\n- 1e3\n- 1_000\n- 0x1F", ("010", "1e3", "1_000", "0x1F")),
        ("names: [null, ~, on, 2024-01-01, 12:30:45, .inf]", ("null", "~", "on", "2024-01-01", "12:30:45", ".inf")),
        ("names: {0: off, 1: 'y'}", ("off", "y")),
        ("names:\n  '0': no\n  1: !!str 5", ("no", "5")),
        ("names: ['Größe', \"a: b\"]", ("Größe", "a: b")),
        ("names: [' cat ', dog]", ("cat", "dog")),
    ],
)
def test_names_are_as_written(tmp_path, written, names, caplog):
    caplog.set_level(logging.WARNING)
    root = make(tmp_path, {"train/0.png": "0 0.5 0.5 0.4 0.4"}, written + "\n")
    assert read_dataset(root, "train").names == names
    assert ("blanks around them" in caplog.text) == (" cat " in written)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("names: [cat, cat]", "two classes are called 'cat'"),
        ("names: [cat, ' cat']", "two classes are called 'cat'"),
        ("names: [cat, '']", "class 1 of 'names' is empty"),
        ("names: [cat, ]\nnames: [dog]", "'names' is given twice"),
        ("names: {0: cat, 0: dog}", "'0' is given twice"),
        ("names: {0: cat, '00': dog}", "gives class 0 twice"),
        ("names: {-1: cat}", "'-1' is no number"),
        ("names: {0.5: cat}", "'0.5' is no number"),
        ("names: {[a]: b}", "not YAML .a key is a list or mapping"),
        ("names: [[cat]]", "must list the classes"),
    ],
)
def test_wrong_names(tmp_path, written, message):
    with pytest.raises(UserError, match=message):
        read_dataset(make(tmp_path, {"train/0.png": "0 0.5 0.5 0.4 0.4"}, written + "\n"), "train")


def test_a_contradicting_number_of_classes_is_told(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    root = make(tmp_path, {"train/0.png": "0 0.5 0.5 0.4 0.4"}, "names: [cat, dog]\nnc: 3\n")
    assert len(read_dataset(root, "train").names) == 2
    assert "nc 3, 2 names" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig", "utf-32"])
def test_every_usual_encoding(tmp_path, encoding):
    root = make(tmp_path, {"train/0.png": "0 0.5 0.5 0.5 0.5\r\n1 0.5 0.5 0.25 0.25\r\n".encode(encoding)})
    (root / "list.txt").write_bytes("images/train/0.png\r\n".encode(encoding))
    (root / "data.yaml").write_bytes("train: list.txt\nnames: [Größe, b]\n".encode(encoding))
    assert read_dataset(root, "train").names == ("Größe", "b")
    assert len(boxes(root)) == 2


def test_other_encodings_are_named_with_file_and_line(tmp_path):
    root = make(tmp_path, {"train/0.png": "0 0.5 0.5 0.5 0.5\n# Gr\u00f6\u00dfe\n".encode("latin-1")})
    with pytest.raises(UserError, match=r"labels/train/0.txt, line 2: byte 0xf6 is not UTF-8 text"):
        read_dataset(root, "train")


def test_hidden_folders_are_left_out_and_links_followed(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    box = "0 0.5 0.5 0.4 0.4"
    root = make(tmp_path / "set", {"train/0.png": box, "train/.ipynb_checkpoints/0-checkpoint.png": box})
    other = make(tmp_path / "other", {"more/5.png": "1 0.5 0.5 0.4 0.4"})
    (root / "images/train/more").symlink_to(other / "images/more")
    (root / "labels/train/more").symlink_to(other / "labels/more")
    (root / "images/train/loop").symlink_to(root / "images/train")
    (root / "images/train/phone.heic").write_bytes(b"")
    found = read_dataset(root, "train")
    assert [r.path.name for r in found.records] == ["0.png", "5.png"]
    assert "1 pictures of kinds that cannot be read were left out; convert them to JPEG or PNG" in caplog.text
    assert [r.labels.tolist() for r in found.records] == [[0], [1]]
    assert "1 in hidden or housekeeping folders left out (first: .ipynb_checkpoints/0-checkpoint.png)" in caplog.text


def test_pictures_of_equal_names_share_nothing(tmp_path):
    root = make(tmp_path, {"train/a/0.png": "0 0.5 0.5 0.4 0.4", "train/b/0.png": "1 0.5 0.5 0.2 0.2"})
    found = read_dataset(root, "train").records
    assert [r.labels.tolist() for r in found] == [[0], [1]] and found[0].image_id != found[1].image_id
    Image.new("RGB", (64, 48)).save(root / "images/train/a/0.jpg")
    with pytest.raises(UserError, match=r"a/0.jpg and .*a/0.png share the label file .*a/0.txt; rename"):
        read_dataset(root, "train")
    (root / "images/train/a/0.jpg").unlink()
    (root / "list.txt").write_text("camA/train/a/0.png\ncamB/train/a/0.png\n")
    (root / "data.yaml").write_text("path: images\ntrain: ../list.txt\nnames: [cat, dog]\n")
    with pytest.raises(UserError, match="list.txt, line 2: camB/train/a/0.png and camA/train/a/0.png would both be"):
        read_dataset(root, "train")


@pytest.mark.parametrize(
    "written",
    [
        "data/images/train/0.png",
        "./images/train/0.png",
        "../set/images/train/0.png",
        r".\images\train\0.png",
        r"C:\Users\me\set\images\train\0.png",
        "/home/me/sets/images/train/0.png",
        "# written by a tool\n\nimages/train/0.png\n",
    ],
)
def test_paths_of_lists_written_elsewhere(tmp_path, written):
    root = make(tmp_path / "set", {"train/0.png": "0 0.5 0.5 0.4 0.4"})
    (root / "train.txt").write_text(written)
    (root / "data.yaml").write_text("train: train.txt\nnames: [cat]\n")
    assert [r.path.name for r in read_dataset(root, "train").records] == ["0.png"]
    assert len(boxes(root)) == 1


def test_listed_pictures_that_do_not_exist_are_named(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    root = make(tmp_path, {"train/0.png": "0 0.5 0.5 0.4 0.4"})
    (root / "data.yaml").write_text("train: train.txt\nnames: [cat]\n")
    (root / "train.txt").write_text("images/train/0.png\nimages/train/1.png\n")
    with pytest.raises(UserError, match=r"1 of 2 listed pictures do not exist \(first: .*train.txt, line 2: images"):
        read_dataset(root, "train")
    (root / "train.txt").write_text("a" * 5000)
    with pytest.raises(UserError, match="1 of 1 listed pictures do not exist"):
        read_dataset(root, "train")
    (root / "train.txt").write_text("images/train\n")
    with pytest.raises(UserError, match="train.txt, line 1: images/train is a folder"):
        read_dataset(root, "train")
    (root / "train.txt").write_text("images/train/0.png\n./images/train/0.png\n")
    assert len(read_dataset(root, "train")) == 1
    assert "1 pictures named twice; they are read once" in caplog.text
    (root / "data.yaml").write_text(r"train: C:\sets\images\train" + "\nnames: [cat]\n")
    assert len(read_dataset(root, "train")) == 1


@pytest.mark.parametrize(("on_disk", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_letters_with_accents_in_both_spellings(tmp_path, on_disk, written):
    name = unicodedata.normalize(on_disk, "\u00e9t\u00e9")
    root = make(tmp_path, {f"train/{name}.png": "0 0.5 0.5 0.4 0.4"})
    label = root / "labels" / "train" / f"{name}.txt"
    label.rename(label.with_name(unicodedata.normalize(written, label.name)))
    assert len(boxes(root)) == 1
    (root / "train.txt").write_text(unicodedata.normalize(written, f"images/train/{name}.png"), encoding="utf-8")
    (root / "data.yaml").write_text("train: train.txt\nnames: [cat]\n")
    assert len(boxes(root)) == 1


def test_labels_without_picture_are_counted(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    root = make(tmp_path, {"train/0.png": "0 0.5 0.5 0.4 0.4", "train/1.png": "0 0.5 0.5 0.4 0.4"})
    (root / "images/train/1.png").unlink()
    (root / "labels/train/classes.txt").write_text("cat\ndog\n")
    read_dataset(root, "train")
    assert (
        "1 label files have no picture of their name; they are not used" in caplog.text
        and "labels/train/1.txt" in caplog.text
    )


def test_several_descriptions(tmp_path):
    root = make(tmp_path, {"train/0.png": "0 0.5 0.5 0.4 0.4"})
    (root / "data.yaml").rename(root / "cats.yaml")
    (root / "docker.yaml").write_text("services: {}\n")
    assert find_description(root) == root / "cats.yaml"
    (root / "dogs.yaml").write_text((root / "cats.yaml").read_text())
    with pytest.raises(UserError, match=r"2 YOLO descriptions \(cats.yaml, dogs.yaml\); name one of them: --data "):
        read_dataset(root, "train")
    assert len(read_dataset(root / "dogs.yaml", "train")) == 1


def test_no_labels_at_all(tmp_path):
    root = make(tmp_path, {"train/0.png": ""})
    (root / "labels/train/0.txt").unlink()
    with pytest.raises(UserError, match="expected the labels of 0.png in .*labels/train/0.txt or .*images/train/0.txt"):
        read_dataset(root, "train")


@pytest.mark.parametrize("cache", ["file/cache", "/proc/nothing"])
def test_a_cache_that_cannot_be_written_is_replaced_and_told_once(tmp_path, monkeypatch, caplog, cache):
    caplog.set_level(logging.WARNING)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / cache))
    monkeypatch.setattr(annotation_cache, "_told", set())
    root = make(tmp_path / "set", {"train/0.png": "0 0.5 0.5 0.4 0.4"})
    first, second = read_dataset(root, "train"), read_dataset(root, "train")
    assert len(first) == len(second) == 1 and first.annotation_file == second.annotation_file
    assert first.annotation_file.is_file()
    assert caplog.text.count("annotations cannot be kept") == 1 and "DFINE_CACHE names a folder" in caplog.text


def test_the_temporary_folder_ends_with_the_program(tmp_path):
    root = make(tmp_path / "set", {"train/0.png": "0 0.5 0.5 0.4 0.4"})
    code = "import sys; from dfine_jax.data.read.sources import read_dataset; "
    code += "print(read_dataset(sys.argv[1], 'train').annotation_file)"
    environment = {**os.environ, "DFINE_CACHE": "/proc/nothing"}
    done = subprocess.run(
        [sys.executable, "-c", code, root], env=environment, capture_output=True, text=True, check=True
    )
    assert "dfine-annotations-" in done.stdout and not Path(done.stdout.strip()).exists()


def test_the_layout_of_dfine_seg_needs_names_alone(tmp_path):
    """Its splits are CSV files of names of pictures; the error says what to write, and that is read."""
    root = make(tmp_path, {f"{name}.png": "0 0.5 0.5 0.5 0.5" for name in "abc"})
    (root / "data.yaml").unlink()
    (root / "train.csv").write_text("a.png\nb.png,7\n")
    (root / "val.csv").write_text("c.png\n")
    with pytest.raises(UserError, match="but nothing names its classes: write .*data.yaml with") as e:
        read_dataset(root, "train")
    lines = [text for text in str(e.value).split("'") if ": " in text and ".csv" in text]
    (root / "data.yaml").write_text("\n".join([*lines, "names: [cat]"]))
    found = [[record.path.name for record in read_dataset(root, split).records] for split in ("train", "val")]
    assert found == [["a.png", "b.png"], ["c.png"]]
    np.testing.assert_allclose(boxes(root), [[16, 12, 48, 36]] * 2)
