"""Masks for data that have boxes alone: the ellipse inscribed in each box, as a polygon.

Round objects (cells, coins, balls) nearly fill theirs, so a model trained on them learns real outlines from few wrong
pixels. Pictures stay where they are: OUT gets links to them.

    python experiments/masks_from_boxes.py bccd bccd-masks
    dfine train n --task segment --data bccd-masks --out runs/cells-masks
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dfine_jax.data.formats.placing import check_new
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split
from dfine_jax.errors import UserError

CORNERS = 32  # of a polygon


def ellipse(box_xywh_px: list[float], corners: int = CORNERS) -> list[float]:
    """Polygon (x, y, x, y, ...) around the ellipse in a box (x, y, width, height)."""
    x, y, width, height = box_xywh_px
    angle = 2 * np.pi * np.arange(corners) / corners
    points = np.stack([x + width / 2 * (1 + np.cos(angle)), y + height / 2 * (1 + np.sin(angle))], -1)
    return points.round(2).ravel().tolist()


def with_ellipses(content: dict[str, Any]) -> dict[str, Any]:
    """COCO content with an ellipse as the mask of every object; crowd regions keep what they have."""
    objects = [
        one if one.get("iscrowd") else {**one, "segmentation": [ellipse(one["bbox"])]} for one in content["annotations"]
    ]
    return {**content, "annotations": objects}


def main() -> None:
    """Write OUT: annotations with masks, and a link to the pictures of each split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with COCO annotations")
    parser.add_argument("out", type=Path, help="new folder")
    options = parser.parse_args()
    check_new(options.out)
    for split in ("train", "val"):
        annotations, pictures = find_split(options.data, split)
        count = len(read_coco(annotations, pictures).records)  # refuses what is wrong
        folder = options.out / split
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(Path(pictures).resolve(), target_is_directory=True)
        target = options.out / "annotations" / f"instances_{split}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(with_ellipses(json.loads(Path(annotations).read_text()))))
        print(f"{target}: {count} images")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
