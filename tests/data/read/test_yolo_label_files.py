"""Label files that no picture reads are told; a picture without labels is one whose labels nobody lost."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest
from PIL import Image

from dfine_jax.data.edit.items import read_items
from dfine_jax.data.formats.write import write
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.errors import UserError

LINE = "0 0.5 0.5 0.4 0.4\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))


def make(root, pictures, labels, text=LINE):
    for name in pictures:
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(root / "images" / name)
    for name in labels:
        (root / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "labels" / name).write_text(text)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    return root


@pytest.mark.parametrize(
    "pictures, labels, overlooked",
    [
        (["train/0.png", "train/1.png"], ["train/0.txt", "train/1.TXT"], ["train/1.TXT"]),
        (["train/camB/0.png", "train/1.png"], ["train/CamB/0.txt", "train/1.txt"], ["train/CamB/0.txt"]),
        (["train/cam1/1.png", "train/cam0/0.png"], ["train/cam0/0.txt", "train/1.txt"], ["train/1.txt"]),
        (["train/a/0.png"], ["train/a/0.txt", "train/b/7.txt", "a/0.txt"], ["a/0.txt", "train/b/7.txt"]),
        (["train/0.png", "val/1.png"], ["train/0.txt", "val/1.txt", "test/2.txt"], []),
    ],
)
def test_label_files_that_no_picture_reads_are_told(tmp_path, caplog, pictures, labels, overlooked):
    caplog.set_level(logging.WARNING)
    root = make(tmp_path, pictures, labels)
    read_dataset(root, "train")
    told = [line for line in caplog.messages if "label files have no picture of their name" in line]
    assert bool(told) == bool(overlooked)
    if overlooked:
        assert f"{len(overlooked)} label files" in told[0] and str(root / "labels" / overlooked[0]) in told[0]


def test_what_has_the_name_of_a_label_file_must_be_one(tmp_path):
    root = make(tmp_path, ["train/0.png", "train/1.png"], ["train/0.txt"])
    place = root / "labels/train/1.txt"
    place.mkdir()
    with pytest.raises(UserError, match=r"labels/train/1.txt, the labels of .*1.png, is no file; restore the file"):
        read_dataset(root, "train")
    place.rmdir()
    os.symlink("nowhere.txt", place)
    with pytest.raises(UserError, match="is a link that leads nowhere"):
        read_dataset(root, "train")


def test_a_folder_images_inside_keeps_its_labels_when_written(tmp_path):
    names = ["train/a/images/0.png", "train/1.png"]
    root = make(tmp_path / "data", names, ["train/1.txt"])
    (root / "images/train/a/labels").mkdir()
    (root / "images/train/a/labels/0.txt").write_text(LINE)
    (root / "data.yaml").write_text("train: images/train\nnames: [cat]\n")
    write(read_items(root), "yolo", tmp_path / "out", "copy")
    read = {record.path.name: len(record.labels) for record in read_dataset(tmp_path / "out", "train").records}
    assert read == {"0.png": 1, "1.png": 1}


def test_boxes_as_corners_are_refused(tmp_path):
    corners = "0 0.6 0.6 0.95 0.95\n0 0.3 0.2 0.9 0.9\n0 0.1 0.1 0.8 0.9\n"
    root = make(tmp_path, ["train/0.png"], ["train/0.txt"], corners)
    with pytest.raises(UserError, match=r"0.txt, line 1 and the other 2 boxes of this split look like corners"):
        read_dataset(root, "train")
    (root / "labels/train/0.txt").write_text(corners + LINE)  # one that cannot be corners
    assert len(read_dataset(root, "train").records[0].labels) == 4
    (root / "labels/train/0.txt").write_text("0 0.5 0.5 0.6 0.7\n0 0.4 0.5 0.8 1\n")  # large boxes in their picture
    expected = [[12.8, 7.2, 51.2, 40.8], [0, 0, 51.2, 48]]
    np.testing.assert_allclose(read_dataset(root, "train").records[0].boxes_xyxy_px, expected, atol=1e-4)
