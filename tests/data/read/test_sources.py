"""Formats are recognised by looking, and the same pictures give the same dataset whatever format they come in."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from outlines import outlines_of
from PIL import Image

from dfine_jax.config import DataConfig
from dfine_jax.data.load.pipeline import TrainLoader
from dfine_jax.data.read.dataset import open_record
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return make_shapes_dataset(tmp_path_factory.mktemp("coco"), num_train=6, num_val=3, size_px=64, seed=0)


def as_yolo(coco, root, names="list", images="images/{}", labels="labels/{}", description="data.yaml", polygons=False):
    """The same dataset as YOLO text files."""
    ids = None
    for split in ("train", "val"):
        content = json.loads((coco / "annotations" / f"instances_{split}.json").read_text())
        ids = {c["id"]: (label, c["name"]) for label, c in enumerate(content["categories"])}
        for folder in (root / images.format(split), root / labels.format(split)):
            folder.mkdir(parents=True, exist_ok=True)
        for image in content["images"]:
            picture = root / images.format(split) / image["file_name"]
            picture.write_bytes((coco / split / image["file_name"]).read_bytes())
            lines = []
            for a in (a for a in content["annotations"] if a["image_id"] == image["id"]):
                x, y, w, h = (v / 64 for v in a["bbox"])
                values = [x + w / 2, y + h / 2, w, h]
                if polygons and isinstance(a["segmentation"], list):
                    values = [v / 64 for v in a["segmentation"][0]]
                lines.append(" ".join(map(str, [ids[a["category_id"]][0], *values])))
            (root / labels.format(split) / image["file_name"]).with_suffix(".txt").write_text("\n".join(lines))
    listed = [name for _, name in ids.values()]
    rows = [f"  {i}: {n}" for i, n in enumerate(listed)] if names == "dict" else [f"  - {n}" for n in listed]
    paths = [f"train: {images.format('train')}", f"val: {images.format('val')}"]
    (root / description).write_text("\n".join([*paths, f"nc: {len(listed)}", "names:", *rows]))
    return root


def assert_same_objects(a, b, atol=1e-3):
    assert a.names == b.names and len(a) == len(b)
    for first, second in zip(a.records, b.records, strict=True):
        assert (first.width_px, first.height_px) == (second.width_px, second.height_px)
        np.testing.assert_allclose(first.boxes_xyxy_px, second.boxes_xyxy_px, atol=atol)
        np.testing.assert_array_equal(first.labels, second.labels)
        np.testing.assert_array_equal(np.asarray(open_record(first)), np.asarray(open_record(second)))


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"names": "dict", "description": "shapes.yaml"},
        {"images": "{}/images", "labels": "{}/labels"},
        {"images": "{}", "labels": "{}"},
    ],
)
def test_yolo_equals_coco(coco, tmp_path, layout):
    root = as_yolo(coco, tmp_path / "yolo", **layout)
    for split in ("train", "val"):
        ours = read_dataset(root, split)
        assert_same_objects(ours, read_dataset(coco, split))
        assert ours.classes.ids == (0, 1, 2, 3)
    assert len(read_dataset(root / layout.get("description", "data.yaml"), "train")) == 6


def test_yolo_annotations_are_coco_json_for_evaluation(coco, tmp_path, cache):
    dataset = read_dataset(as_yolo(coco, tmp_path / "yolo"), "val")
    assert dataset.annotation_file.parent == cache / "annotations"
    content = json.loads(dataset.annotation_file.read_text())
    assert [image["id"] for image in content["images"]] == [r.image_id for r in dataset.records]
    before = dataset.annotation_file.stat().st_mtime_ns
    assert read_dataset(tmp_path / "yolo", "val").annotation_file.stat().st_mtime_ns == before
    (tmp_path / "yolo" / "labels" / "val" / "000001.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    changed = read_dataset(tmp_path / "yolo", "val")
    assert changed.annotation_file != dataset.annotation_file
    np.testing.assert_array_equal(changed.records[0].boxes_xyxy_px, [[24, 16, 40, 48]])


def test_yolo_polygons_give_boxes_and_areas(coco, tmp_path):
    ours = read_dataset(as_yolo(coco, tmp_path / "yolo", polygons=True), "train")
    theirs = read_dataset(coco, "train")
    assert_same_objects(ours, theirs, atol=1.0)  # the annotated box is of whole pixels
    shapes = outlines_of(ours)
    assert any(s is not None for s in shapes) and any(s is None for s in shapes)
    areas = np.concatenate([r.areas_px for r in ours.records]), np.concatenate([r.areas_px for r in theirs.records])
    has_polygon = np.array([s is not None for s in shapes])
    np.testing.assert_allclose(areas[0][has_polygon], areas[1][has_polygon], rtol=0.1, atol=4)


def test_yolo_paths_of_exports(coco, tmp_path):
    root = as_yolo(coco, tmp_path / "yolo", images="{}/images", labels="{}/labels")
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(text.replace("train: train", "train: ../train"))  # Roboflow
    assert len(read_dataset(root, "train")) == 6
    (root / "data.yaml").write_text("path: /nowhere/else\n" + text)
    assert len(read_dataset(root, "train")) == 6
    (root / "list.txt").write_text("train/images/000002.jpg\n./train/images/000001.jpg\n")
    (root / "data.yaml").write_text(text.replace("train: train/images", "train: list.txt"))
    assert [r.path.name for r in read_dataset(root, "train").records] == ["000002.jpg", "000001.jpg"]
    (root / "data.yaml").write_text(text.replace("train: train/images", "train: [train/images, val/images]"))
    assert len(read_dataset(root, "train")) == 9


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1", r"000001.txt, line 2 has 4 columns"),
        ("0 0.5 0.5 0.1 0.1 0.9", "line 2 has 6 columns"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.9", "line 2 has 8 columns"),
        ("cat 0.5 0.5 0.1 0.1", "not all numbers"),
    ],
)
def test_wrong_yolo_lines_are_named(coco, tmp_path, line, message):
    root = as_yolo(coco, tmp_path / "yolo")
    (root / "labels" / "train" / "000001.txt").write_text(f"# comment\n{line}\n")
    with pytest.raises(UserError, match=message):
        read_dataset(root, "train")


def test_yolo_labels_that_count_from_one_are_refused(coco, tmp_path):
    root = as_yolo(coco, tmp_path / "yolo")
    numbers = {}
    for file in sorted((root / "labels").rglob("*.txt")):
        rows = [line.split(maxsplit=1) for line in file.read_text().splitlines()]
        file.write_text("# by hand\n" + "\n".join(f"{int(category) + 1} {rest}" for category, rest in rows))
        if file.parent.name == "train":
            numbers[file] = [int(category) + 1 for category, _ in rows]
    file, line = next((file, rows.index(4) + 2) for file, rows in numbers.items() if 4 in rows)
    lost, total = sum(rows.count(4) for rows in numbers.values()), sum(map(len, numbers.values()))
    assert 0 < lost < total
    kept = read_dataset(root, "train", drop_unlisted=True)  # leaves its conversion in the cache
    assert kept.changes.unknown_category == lost == total - sum(len(r.labels) for r in kept.records)
    names = ", ".join(f"{number} {name}" for number, name in enumerate(kept.names))
    with pytest.raises(UserError) as caught:
        read_dataset(root, "train")
    assert str(caught.value) == (
        f"{root / 'data.yaml'}: {lost} of {total} objects of split train have a class number that 'names' does not "
        f"have, such as 4 in {file}, line {line}; it has {names}; YOLO counts classes from 0: correct the labels, add "
        "the class to 'names', or remove the lines (dfine check --data DIR reports all problems)"
    )
    with pytest.raises(UserError, match="objects of split val have a class number"):
        read_dataset(root, "val")


def test_coco_json_beside_a_description_is_told(coco, tmp_path, caplog):
    root = as_yolo(coco, tmp_path / "both")
    (root / "annotations").mkdir()
    file = coco / "annotations" / "instances_train.json"
    (root / "annotations" / file.name).write_bytes(file.read_bytes())
    assert read_dataset(root, "train").classes.ids == read_dataset(coco, "train").classes.ids
    assert f"--data {root / 'data.yaml'} reads YOLO" in caplog.text


def test_wrong_yolo_descriptions(coco, tmp_path):
    root = as_yolo(coco, tmp_path / "yolo")
    text = (root / "data.yaml").read_text()
    with pytest.raises(UserError, match="names no test images"):
        read_dataset(root, "test")
    for changed, message in (
        ("names: [a", "not YAML"),
        ("train: x", "needs 'names'"),
        (text.replace("images/train", "nothing"), "nothing does not exist"),
        (text.replace("- ", "a: "), "'a' is given twice"),
        ("train: x\nnames: cat", "must list the classes"),
        ("train: x\nnames: {cat: 0}", "must list the classes.*write the number first"),
    ):
        (root / "data.yaml").write_text(changed)
        with pytest.raises(UserError, match=message):
            read_dataset(root, "train")
    (root / "data.yaml").write_text(text)
    for file in (root / "labels" / "val").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no label files for the 3 images.*000001.txt"):
        read_dataset(root, "val")


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/train.json", "train"),
        ("train.json", "images"),
        ("train/new_zhiyuan_objv2_train.json", "train"),
        ("annotations/zhiyuan_objv2_train.json", "images/train"),
        ("zhiyuan_objv2_train.json", "train"),
    ],
)
def test_other_coco_layouts(coco, tmp_path, annotations, images):
    (tmp_path / images / "images" / "v1" / "patch0").mkdir(parents=True)
    content = json.loads((coco / "annotations" / "instances_train.json").read_text())
    for number, image in enumerate(content["images"]):
        target = tmp_path / images / ("patch3" if number % 2 else "images/v1/patch0") / image["file_name"]
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((coco / "train" / image["file_name"]).read_bytes())
        image["file_name"] = f"images/v1/{'patch3' if number % 2 else 'patch0'}/{image['file_name']}"  # as Objects365
    (tmp_path / annotations).parent.mkdir(exist_ok=True)
    (tmp_path / annotations).write_text(json.dumps(content))
    assert_same_objects(read_dataset(tmp_path, "train"), read_dataset(coco, "train"))


def test_nothing_recognised_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError) as caught:
        read_dataset(tmp_path, "train")
    for word in ("instances_train2017.json", "_annotations.coco.json", "objv2_train.json", "data.yaml", "tfds:coco"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="nothing does not exist"):
        read_dataset(tmp_path / "nothing", "train")


# --- TensorFlow Datasets ---------------------------------------------------------------------------------------------


def picture(number):
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((30 + number, 20)).save(file, "PNG")
    file.seek(0)
    return file


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A prepared dataset with the features of coco/2017, and a second one with those of voc/2007."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features
    label = features.ClassLabel(names=["cat", "dog"])
    box = features.BBox(ymin=0.1, xmin=0.2, ymax=0.5, xmax=0.6)

    def make(name, objects, entry):
        class TinyBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                parts = {"image": features.Image(encoding_format="png"), "image/filename": features.Text()}
                parts["objects"] = features.Sequence({"bbox": features.BBoxFeature(), "label": label, **objects})
                return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(parts))

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples(5), "validation": self._generate_examples(2)}

            def _generate_examples(self, count):
                for i in range(count):
                    own = [{"bbox": box, "label": "dog", **entry(False)}, {"bbox": box, "label": "cat", **entry(True)}]
                    example = {"image": picture(i), "image/filename": f"{i}.png", "objects": own[: i % 3]}
                    yield i, example

        TinyBuilder.name = name
        builder = TinyBuilder(data_dir=root)
        builder.download_and_prepare(file_format="array_record")

    root = tmp_path_factory.mktemp("tfds")
    numbers = {"area": np.int64, "id": np.int64, "is_crowd": np.bool_}
    make("tiny_coco", numbers, lambda crowd: {"area": 7, "id": 1, "is_crowd": crowd})
    make("tiny_voc", {"is_difficult": np.bool_}, lambda difficult: {"is_difficult": difficult})
    return root


@pytest.fixture
def prepared(tiny, monkeypatch):
    import tensorflow_datasets as tfds

    from dfine_jax.data.read import tfds as ours

    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny))
    builder = tfds.builder
    monkeypatch.setattr(tfds, "builder", lambda name: builder(name, data_dir=tiny))
    ours._builder.cache_clear()
    ours._open.cache_clear()


@pytest.mark.parametrize("name", ["tiny_coco", "tiny_voc"])
def test_tfds(prepared, name, cache):
    dataset = read_dataset(f"tfds:{name}", "train")
    assert dataset.names == ("cat", "dog") and len(dataset) == 5
    by_name = {record.path.name: record for record in dataset.records}
    assert len(by_name["0.png"].labels) == 0 and by_name["2.png"].labels.tolist() == [1]
    np.testing.assert_allclose(by_name["1.png"].boxes_xyxy_px, [[6.2, 2, 18.6, 10]], atol=1e-4)
    assert dataset.changes.crowd == 1  # kept in the file, to be ignored when evaluating
    content = json.loads(dataset.annotation_file.read_text())
    assert sum(a["iscrowd"] for a in content["annotations"]) == 1
    for number in range(5):
        image = np.asarray(open_record(by_name[f"{number}.png"]))
        np.testing.assert_array_equal(image, np.asarray(Image.open(picture(number)).convert("RGB")))
    assert len(read_dataset(f"tfds:{name}", "val")) == 2


def test_tfds_pictures_reach_worker_processes(tiny, tmp_path):
    code = """
import sys, numpy as np
from dfine_jax.config import DataConfig
from dfine_jax.data.load.pipeline import TrainLoader
from dfine_jax.data.read.sources import read_dataset
data = read_dataset("tfds:tiny_coco", "train")
def first(workers):
    stream = TrainLoader(data, DataConfig(height_px=32, width_px=32), batch_size=4, seed=0, workers=workers).batches()
    batches = [next(stream) for _ in range(2)]
    stream.close()
    return batches
for a, b in zip(first(0), first(2)):
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)
print("same", "tensorflow" in sys.modules, "jax" in sys.modules)
"""
    environment = {**os.environ, "TFDS_DATA_DIR": str(tiny), "DFINE_CACHE": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-3:] == ["same", "False", "False"]


def test_tfds_errors(prepared):
    with pytest.raises(UserError, match="tfds:tiny_coco has no test split, only train, validation"):
        read_dataset("tfds:tiny_coco", "test")
    with pytest.raises(UserError, match="tfds:no_such_thing is unknown"):
        read_dataset("tfds:no_such_thing", "train")


def test_tfds_without_the_package(monkeypatch):
    from dfine_jax.data.read import tfds as ours

    ours._builder.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"needs the extra tfds.*pip install"):
        read_dataset("tfds:coco/2017", "train")


def test_a_loader_takes_any_source(coco, tmp_path):
    data = read_dataset(as_yolo(coco, tmp_path / "yolo"), "train")
    loader = TrainLoader(data, DataConfig(height_px=32, width_px=32), batch_size=2, seed=0, workers=0)
    assert next(loader.batches()).images.shape == (2, 32, 32, 3)
