"""The script that gives data with boxes alone elliptic masks."""

from __future__ import annotations

import subprocess
import sys

from conftest import ROOT
from pycocotools import mask as coco_mask

from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split
from dfine_jax.data.read.synthetic import make_shapes_dataset
from experiments.masks_from_boxes import ellipse


def test_an_ellipse_fills_its_box_as_one_does():
    runs = coco_mask.merge(coco_mask.frPyObjects([ellipse([10, 20, 100, 60])], 120, 160))
    assert abs(float(coco_mask.area(runs)) / (3.1416 / 4 * 100 * 60) - 1) < 0.02
    x, y, width, height = coco_mask.toBbox(runs)
    assert abs(x - 10) <= 1 and abs(y - 20) <= 1 and abs(width - 100) <= 2 and abs(height - 60) <= 2


def test_a_dataset(tmp_path):
    make_shapes_dataset(tmp_path / "shapes", num_train=2, num_val=1, size_px=64, seed=0)
    command = [sys.executable, str(ROOT / "experiments" / "masks_from_boxes.py"), "shapes", "masks"]
    subprocess.run(command, cwd=tmp_path, check=True)
    data, before = (read_coco(*find_split(tmp_path / name, "train")) for name in ("masks", "shapes"))
    assert [len(record.labels) for record in data.records] == [len(record.labels) for record in before.records]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 1 and again.stderr.strip() == (
        "error: masks is not empty; choose another name, nothing is overwritten"
    )
