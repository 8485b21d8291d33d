"""Which row is which class, from the head of 91 rows to data of three kinds.

| row of the 91 | is |
|---|---|
| COCO's category id: 1 person, 17 cat, 18 dog ... 90 toothbrush | row 0, 15, 16 ... 79 here, in the order of the ids |
| 0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83 | of no class; rows 80 to 90 here |

A run on other classes has a row for each of them, in the order of the ids in its files, and one of no class. Category 0
of a Roboflow export, which only names the group of the others, is none of them.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from dfine_jax.data.read.coco_names import COCO_CATEGORY_IDS, COCO_NAMES
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.families.rfdetr.family import RFDETR
from dfine_jax.families.rfdetr.model import RFDetr
from dfine_jax.families.rfdetr.names import class_rows
from dfine_jax.families.rfdetr.recipes import published
from dfine_jax.training.run.checkpoint import Metadata
from dfine_jax.weights.load import LoadedModel, transfer

COCO = published("rfdetr_coco", "nano")
ANEW = -1.0
# Row here, class, its id in the files, row of the 91 that it starts from.
TABLES = {
    "roboflow": [(0, "Cat", 1, 17), (1, "dog", 2, 18), (2, "robot", 3, ANEW), (3, None, None, 0)],
    "yolo": [(0, "dog", 0, 18), (1, "robot", 1, ANEW), (2, "traffic-light", 2, 10), (3, None, None, 0)],
    "raw coco": [(0, "cat", 17, 17), (1, "dog", 18, 18), (2, "robot", 100, ANEW), (3, None, None, 0)],
}


def _coco_json(path, image_folder, categories, used):
    image_folder.mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(image_folder / "a.jpg")
    boxes = [
        {"id": i, "image_id": 1, "category_id": used, "bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0}
        for i, used in enumerate(used, 1)
    ]
    images = [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": boxes}))


def _data(kind, root):
    if kind == "roboflow":
        listed = [{"id": 0, "name": "animals", "supercategory": "none"}]
        listed += [{"id": i, "name": n, "supercategory": "animals"} for i, n in enumerate(("Cat", "dog", "robot"), 1)]
        _coco_json(root / "train" / "_annotations.coco.json", root / "train", listed, (1, 2, 3))
    elif kind == "raw coco":
        listed = [{"id": i, "name": n} for i, n in ((100, "robot"), (18, "dog"), (17, "cat"))]
        _coco_json(root / "annotations" / "instances_train2017.json", root / "train2017", listed, (17, 18, 100))
    else:
        for part in ("images", "labels"):
            (root / "train" / part).mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(root / "train" / "images" / "a.jpg")
        lines = "".join(f"{label} .5 .5 .4 .4\n" for label in range(3))
        (root / "train" / "labels" / "a.txt").write_text(lines)
        (root / "data.yaml").write_text("train: train/images\nnc: 3\nnames: [dog, robot, traffic-light]\n")
    return read_dataset(root, "train")


def _variables(rows):
    """Class heads whose rows hold what is given, and a leaf that has no classes."""
    rows = np.asarray(rows, np.float32)
    head = {"kernel": np.tile(rows, (4, 1)), "bias": rows}
    heads = {"class_embed": head, "enc_out_class_embed_0": head, "enc_out_class_embed_12": head}
    return {"params": {"decoder": {**heads, "query_feat": np.ones((6, 4), np.float32)}}, "batch_stats": {}}


def test_rows_of_the_91_are_the_category_ids():
    rows = np.asarray(class_rows(COCO.model)).tolist()
    assert tuple(rows[:80]) == COCO_CATEGORY_IDS and COCO_NAMES[0] == "person"
    assert rows[80:] == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83] and len(rows) == COCO.model.num_logits == 91


@pytest.mark.parametrize("kind", list(TABLES))
def test_which_row_is_which_class(kind, tmp_path):
    data, table = _data(kind, tmp_path), TABLES[kind]
    assert list(zip(data.names, data.classes.ids, strict=True)) == [(name, key) for _, name, key, _ in table[:-1]]
    model = RFDETR.with_classes(COCO.model, len(data.names), data.names)
    assert model.head_rows == "spare" and model.num_logits == len(table)
    source = LoadedModel(
        RFDetr(COCO.model), _variables(class_rows(COCO.model)), Metadata(COCO, COCO_NAMES, COCO_CATEGORY_IDS)
    )
    moved = transfer(source, _variables([ANEW] * len(table)), data.names, model)
    for head in ("class_embed", "enc_out_class_embed_0", "enc_out_class_embed_12"):
        found = moved.variables["params"]["decoder"][head]
        np.testing.assert_array_equal(found["bias"], [row for *_, row in table])
        np.testing.assert_array_equal(found["kernel"], [[row for *_, row in table]] * 4)
    anew = [name for _, name, _, row in table[:-1] if row == ANEW]
    assert [name for name, origin in moved.origins.items() if origin is None] == anew


def test_from_one_set_of_classes_to_another_the_row_of_none_stays():
    ours = RFDETR.with_classes(COCO.model, 2, ("cat", "bus"))
    three = dataclasses.replace(COCO, model=RFDETR.with_classes(COCO.model, 3, None))
    described = Metadata(three, ("bus", "cat", "dog"), (0, 1, 2))
    source = LoadedModel(RFDetr(three.model), _variables([10, 11, 12, 13]), described)
    moved = transfer(source, _variables([ANEW] * 3), ("cat", "bus"), ours)
    assert moved.variables["params"]["decoder"]["class_embed"]["bias"].tolist() == [11, 10, 13]


def test_coco_on_coco_takes_every_row():
    model = RFDETR.with_classes(COCO.model, 80, COCO_NAMES)
    rows = class_rows(COCO.model)
    source = LoadedModel(RFDetr(COCO.model), _variables(rows), Metadata(COCO, COCO_NAMES, COCO_CATEGORY_IDS))
    moved = transfer(source, _variables([ANEW] * 91), COCO_NAMES, model)
    np.testing.assert_array_equal(moved.variables["params"]["decoder"]["class_embed"]["bias"], rows)
    spare = RFDETR.with_classes(COCO.model, 80, None)
    moved = transfer(source, _variables([ANEW] * 81), COCO_NAMES, spare)
    np.testing.assert_array_equal(moved.variables["params"]["decoder"]["class_embed"]["bias"], rows[:81])
