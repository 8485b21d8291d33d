"""Findings about masks: one fault of each kind among good ones, in every form that outlines have."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dfine_jax.cli import main
from dfine_jax.data.read.audit_masks import inspect_masks
from dfine_jax.data.read.coco import segmentations, with_outlines
from dfine_jax.data.read.outlines import Polygons, RunLengths, crosses_itself, drawable
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.data.read.synthetic import make_shapes_dataset, uncompressed_run_lengths

WIDTH, HEIGHT = 120, 90
HOLED = [10, 10, 60, 10, 60, 60, 10, 60, 10, 10, 20, 20, 20, 50, 50, 50, 50, 20, 20, 20]  # with a bridge to its hole
CROSSED = [10, 10, 60, 60, 60, 10, 10, 60]


def rectangle(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def filled(x0, y0, x1, y1):
    bits = np.zeros((HEIGHT, WIDTH), bool)
    bits[y0:y1, x0:x1] = True
    return uncompressed_run_lengths(bits)


def compressed(*box):
    encoded = coco_mask.encode(np.asfortranarray(coco_mask.decode(coco_mask.frPyObjects(filled(*box), HEIGHT, WIDTH))))
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}


@pytest.fixture
def write(tmp_path):
    """Writes a dataset of one picture from (bbox, segmentation)."""

    def dataset(objects, crowd=()):
        folder = tmp_path / "set"
        for part in ("annotations", "train"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (9, 90, 200)).save(folder / "train" / "one.png")
        annotations = [
            {"id": 11 + i, "image_id": 1, "category_id": 1, "bbox": box, "area": 50, "iscrowd": int(i in crowd)}
            | ({} if outline is None else {"segmentation": outline})
            for i, (box, outline) in enumerate(objects)
        ]
        image = {"id": 1, "file_name": "one.png", "width": WIDTH, "height": HEIGHT}
        content = {"images": [image], "categories": [{"id": 1, "name": "a"}], "annotations": annotations}
        (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
        return folder

    return dataset


GOOD = [
    ([10, 10, 50, 50], [HOLED]),
    ([10, 10, 90, 60], [rectangle(10, 10, 40, 40), rectangle(60, 50, 100, 70)]),
    ([20, 10, 50, 30], filled(20, 10, 70, 40)),
    ([20, 10, 50, 30], compressed(20, 10, 70, 40)),
    ([20, 10, 51.5, 31.5], filled(20, 10, 70, 40)),
]


def found(folder, size_px=(90, 120)):
    audit = inspect_masks(read_dataset(folder, "train"), size_px)
    return audit, {f.text: (f.level, f.count, f.examples) for f in audit.findings}


def test_good_masks_have_no_findings(write):
    audit, findings = found(write(GOOD))
    assert audit.objects == len(GOOD) and audit.can_be_trained_on and not findings


def test_a_dataset_without_masks_has_none(write):
    audit, findings = found(write([([1, 2, 30, 40], None), ([5, 5, 9, 9], [])]))
    assert audit.objects == 0 and not audit.can_be_trained_on and not findings


@pytest.mark.parametrize(
    ("box", "outline", "text", "example"),
    [
        ([5, 5, 20, 20], {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, "have no pixel", ""),
        ([5, 5, 20, 20], [[5, 5, 5, 5, 5, 5]], "have no pixel", ""),
        ([5, 5, 20, 20], {"size": [9, 9], "counts": [81]}, "cannot be drawn", ": is 9x9, its picture 120x90"),
        ([5, 5, 20, 20], {"size": [HEIGHT, WIDTH], "counts": "0P"}, "cannot be drawn", ": does not fill"),
        ([5, 5, 20, 20], [[5, 5, 25, 25]], "fewer than three points; their objects train boxes alone", ""),
        ([5, 5, 20, 20], [rectangle(50, 50, 70, 70)], "outside their box", ", 0% of it inside"),
        ([5, 5, 20, 20], compressed(5, 15, 25, 50), "outside their box", ", 29% of it inside"),
        ([5, 5, 60, 60], [rectangle(5, 5, 45, 45)], "fit their mask badly", ", IoU 0.44"),
        ([5, 5, 20, 20], filled(5, 5, 25, 40), "fit their mask badly", ", IoU 0.57"),
        ([5, 5, 3, 3], [rectangle(5, 5, 8, 8)], "smaller than 4x4 pixels at 90x120", ", 9 px"),
        ([10, 10, 50, 50], [CROSSED], "cross themselves", ""),
    ],
)
def test_each_fault_names_its_place(write, tmp_path, box, outline, text, example):
    audit, findings = found(write([*GOOD, (box, outline)]))
    ((full, (level, count, examples)),) = [item for item in findings.items() if "have no mask" not in item[0]]
    assert text in full and level == "warning" and count == 1
    assert examples[0].startswith(f"one.png, annotation {11 + len(GOOD)}{example}")
    assert audit.can_be_trained_on == ("cannot be drawn" not in text)
    if audit.can_be_trained_on:
        assert len(with_outlines(read_dataset(tmp_path / "set", "train")).records[0].outlines) == len(GOOD) + 1


def test_size_decides_what_is_tiny_and_the_worst_come_first(write):
    several = [([5, 5, 20, 20], filled(5, 5, 25, y)) for y in (42, 36, 44, 34)]
    small = [([5, 5, 7, 7], filled(5, 5, 12, 12))]
    assert len(found(write([*GOOD, *small]))[1]) == 0
    _, findings = found(write([*GOOD, *several, *small]), (45, 60))
    assert any("smaller than 4x4 pixels at 45x60" in text for text in findings)
    ((level, count, shown),) = [item for text, item in findings.items() if "fit their mask badly" in text]
    assert count == 4 and [e.rpartition(" ")[2] for e in shown] == ["0.51", "0.54", "0.65"]


def test_objects_without_a_mask_beside_others_and_crowds(write):
    folder = write([*GOOD, ([5, 5, 20, 20], None), ([0, 0, 50, 50], filled(60, 60, 70, 70))], crowd=(6,))
    audit, findings = found(folder)
    assert list(findings) == [f"objects have no mask, beside {len(GOOD)} with one; they train boxes alone"]
    assert findings[next(iter(findings))][:2] == ("note", 1) and audit.can_be_trained_on
    assert [number for number, *_ in segmentations(read_dataset(folder, "train"))] == [11, 12, 13, 14, 15]


def test_the_repair_removes_what_has_no_pixel_and_leaves_what_needs_a_decision(write, tmp_path, capsys):
    faults = [
        ([5, 5, 20, 20], {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}),
        ([6, 5, 20, 20], [[5, 5, 5, 5, 5, 5]]),
        ([7, 5, 20, 20], {"size": [9, 9], "counts": [81]}),
        ([8, 5, 20, 20], [rectangle(50, 50, 70, 70)]),
        ([10, 10, 50, 50], [CROSSED]),
    ]
    folder = write([*GOOD, *faults])
    assert main(["check", "--data", str(folder), "--repair", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    assert "cured: 2 masks without a pixel were removed" in out
    dataset = with_outlines(read_dataset(tmp_path / "new", "train"))
    (record,) = dataset.records
    kinds = [type(outline) for outline in record.outlines[len(GOOD) :]]
    assert len(record.labels) == len(GOOD) + 5 and kinds == [type(None)] * 3 + [Polygons, Polygons]
    assert isinstance(record.outlines[2], RunLengths)
    _, findings = found(tmp_path / "new")
    assert sorted(count for _, count, _ in findings.values()) == [1, 1, 3]


def test_the_command_tells_masks_and_shows_them(tmp_path, capsys):
    folder = make_shapes_dataset(tmp_path / "shapes", num_train=4, num_val=1, size_px=96, seed=3)
    pictures = {}
    for name in ("with", "without"):
        if name == "without":
            for file in (folder / "annotations").iterdir():
                content = json.loads(file.read_text())
                for entry in content["annotations"]:
                    del entry["segmentation"]
                file.write_text(json.dumps(content))
        out = tmp_path / name
        assert main(["check", "--data", str(folder), "--out", str(out), "--size", "96x96", "data.augment=none"]) == 0
        assert ("masks    " in capsys.readouterr().out) == (name == "with")
        pictures[name] = [
            np.asarray(Image.open(out / f"{kind}.jpg")).astype(int) for kind in ("annotated", "augmented")
        ]
    for shown, plain in zip(pictures["with"], pictures["without"], strict=True):
        changed = (np.abs(shown - plain).max(2) > 25).mean()
        assert 0.02 < changed < 0.6


# --- outlines --------------------------------------------------------------------------------------------------------


def brute(points):
    """Whether inner points are common, by solving for the intersection of every pair of edges."""
    ends = np.roll(points, -1, axis=0)
    for i in range(len(points)):
        for j in range(i):
            matrix = np.column_stack([ends[i] - points[i], points[j] - ends[j]])
            if abs(np.linalg.det(matrix)) > 1e-12:
                t = np.linalg.solve(matrix, points[j] - points[i])
                if (t > 1e-9).all() and (t < 1 - 1e-9).all():
                    return True
    return False


def test_crossing_edges_are_found_and_touching_ones_are_not():
    rng = np.random.default_rng(0)
    results = []
    for _ in range(300):
        points = rng.integers(0, 9, (rng.integers(3, 8), 2)).astype(float)
        results.append(crosses_itself(points))
        assert results[-1] == brute(points), points
    assert 0.2 < np.mean(results) < 0.9
    assert not crosses_itself(np.reshape(HOLED, (-1, 2)).astype(float))
    angle = np.linspace(0, 2 * np.pi, 3000, endpoint=False)  # more edges than are looked at at once
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    assert not crosses_itself(circle)
    circle[[2900, 2902]] = circle[[2902, 2900]]
    assert crosses_itself(circle)


def test_drawable_says_why_not():
    with pytest.raises(ValueError, match="could not convert"):
        drawable([["a"] * 6], 10, 10)
    with pytest.raises(ValueError, match="is 3x2, its picture 10x10"):
        drawable({"size": [2, 3], "counts": [6]}, 10, 10)
    assert drawable([], 10, 10) is None
