"""Datasets that refer to pictures elsewhere are converted on, and names with blanks and letters with accents stay."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from dfine_jax.data.edit.items import read_items
from dfine_jax.data.formats.write import FORMATS, write
from dfine_jax.data.read.sources import read_dataset

NAMES = ("1.png", "sub dir/é 2.png", "a b 1.jpeg")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def coco(tmp_path):
    root = tmp_path / "in" / "coco"
    for seed, split in enumerate(("train", "val")):
        images, annotations = [], []
        for number, name in enumerate(NAMES, 1):
            file = root / split / name
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng((seed, number)).integers(0, 256, (48, 64, 3), np.uint8)
            Image.fromarray(pixels).save(file)
            images.append({"id": number, "file_name": name, "width": 64, "height": 48})
            box = [number, 8, 12, 10]
            annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": box, "iscrowd": 0})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cät <1>"}]}
        (root / split / "_annotations.coco.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def boxes(data):
    """{split: sorted (class, box)}; names may change on the way."""
    out = {}
    for split in ("train", "val"):
        dataset = read_dataset(data, split)
        out[split] = sorted(
            (dataset.names[label], *(round(float(v), 2) for v in box))
            for record in dataset.records
            for label, box in zip(record.labels, record.boxes_xyxy_px, strict=True)
        )
    return out


@pytest.mark.parametrize("pair", list(itertools.permutations(FORMATS, 2)), ids="-".join)
def test_there_and_on(coco, tmp_path, pair):
    first, second = pair
    expected = boxes(coco)
    assert all(len(found) == 3 for found in expected.values())
    write(read_items(coco), first, tmp_path / "one" / first, None)
    write(read_items(tmp_path / "one" / first), second, tmp_path / "two" / second, None)
    assert boxes(tmp_path / "one" / first) == expected
    assert boxes(tmp_path / "two" / second) == expected
    assert {path.name for path in (tmp_path / "one").iterdir()} == {first}
    assert {path.name for path in (tmp_path / "two").iterdir()} == {second}  # nothing beside the folder that was named


def test_voc_lists_with_blanks_endings_and_flags(coco, tmp_path):
    out = tmp_path / "voc"
    write(read_items(coco / "train"), "voc", out, "copy")
    lists = out / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("1.png\nsub dir_é 2  -1\n", encoding="utf-16")
    (lists / "val.txt").write_text("a b 1\n")
    names = {split: [r.path.name for r in read_dataset(out, split).records] for split in ("train", "val")}
    assert names == {"train": ["1.png", "sub dir_é 2.png"], "val": ["a b 1.jpeg"]}
