"""Records as shared arrays: the same records, and nothing of them in the private memory of a worker."""

from __future__ import annotations

import dataclasses
import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from pool_memory import made_up, measure

from dfine_jax.config import DataConfig
from dfine_jax.data.load import workers
from dfine_jax.data.load.columns import RecordColumns
from dfine_jax.data.load.pipeline import EvalLoader, TrainLoader
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.coco import read_coco, with_outlines
from dfine_jax.data.read.dataset import Record
from dfine_jax.data.read.layout import find_split
from dfine_jax.data.read.outlines import Polygons, RunLengths
from dfine_jax.data.read.synthetic import make_shapes_dataset


@dataclasses.dataclass(frozen=True)
class Inside:
    """A picture in a container (dataset.Stored)."""

    number: int

    def read(self):
        return bytes([self.number])


def record(number, count, **change):
    rng = np.random.default_rng(number)
    values = {
        "image_id": 10**12 + number,
        "path": Path(f"/data/{number}.jpg"),
        "width_px": 640 + number,
        "height_px": 480 + number,
        "boxes_xyxy_px": rng.random((count, 4), np.float32),
        "labels": rng.integers(80, size=count, dtype=np.int32),
        "areas_px": rng.random(count, np.float32),
        "annotation_ids": rng.integers(2**62, size=count),
    }
    return Record(**(values | change))


def outline(*points):
    return np.array(points, np.float64)


POLYGON = Polygons((outline((0, 0), (4, 0), (4, 3)), outline((5.5, 5), (6, 5), (6, 6.25), (5, 6))))
RUNS = RunLengths(6, 8, b"0123:;<`\\\0")

RECORDS = {
    "none": (),
    "boxes": (record(0, 3), record(1, 1)),
    "without objects": (record(0, 0), record(1, 2), record(2, 0)),
    "only without objects": (record(0, 0), record(1, 0)),
    "masks": (
        record(0, 3, outlines=(POLYGON, None, RUNS)),
        record(1, 0),
        record(2, 1, outlines=(RUNS,)),
        record(3, 2, outlines=(None, POLYGON)),
    ),
    "masks of some": (record(0, 2), record(1, 1, outlines=(POLYGON,)), record(2, 1)),
    "names": (
        record(0, 1, path=Path("daten/Größe/猫 и кот.jpg")),
        record(1, 1, path=Path(os.fsdecode(b"/data/\xff\xfe.jpg"))),
        record(2, 1, path=Path("b c\n.png")),
    ),
    "flags": (record(0, 1, upright=True), record(1, 1), record(2, 0, upright=True)),
    "containers": (record(0, 1, stored=Inside(3)), record(1, 2), record(2, 0, stored=Inside(4))),
}


def assert_equal(ours, theirs):
    for field in dataclasses.fields(Record):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        assert type(one) is type(other), field.name
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype and one.shape == other.shape, field.name
            np.testing.assert_array_equal(one, other)
        elif field.name == "outlines":
            assert list(map(type, one)) == list(map(type, other))
            for a, b in zip(one, other, strict=True):
                if isinstance(a, Polygons):
                    assert len(a.parts) == len(b.parts)
                    assert all(x.dtype == y.dtype for x, y in zip(a.parts, b.parts, strict=True))
                    assert all(np.array_equal(x, y) for x, y in zip(a.parts, b.parts, strict=True))
                else:
                    assert a == b
        else:
            assert one == other, field.name


@pytest.mark.parametrize("kind", RECORDS)
def test_records_come_back_equal(kind):
    columns = RecordColumns(RECORDS[kind])
    assert len(columns) == len(RECORDS[kind])
    for index, original in enumerate(RECORDS[kind]):
        assert_equal(columns[index], original)
        assert not columns[index].boxes_xyxy_px.flags.writeable
    with pytest.raises(IndexError):
        columns[len(columns)]


@dataclasses.dataclass(frozen=True)
class Comparing:
    """Compares in the worker; writes the process and 1 for equal."""

    records: RecordColumns
    originals: tuple[Record, ...]

    @property
    def layout(self):
        return (((len(self.originals), 2), "int64"),)

    def fill(self, step, row, out):
        assert_equal(self.records[row], self.originals[row])
        out[0][row] = os.getpid(), 1

    def finish(self, step, arrays):
        return tuple(array.copy() for array in arrays)

    def describe(self, step, row):
        return ""


def test_records_are_equal_in_the_workers_and_in_a_second_pool():
    originals = tuple(entry for entries in RECORDS.values() for entry in entries)
    source = Comparing(RecordColumns(originals), originals)
    for _ in range(2):
        (batch,) = workers.batches(source, [0], 2)
        assert batch[0][:, 1].all() and os.getpid() not in batch[0][:, 0]


def test_read_datasets_with_crowds_and_masks(tmp_path):
    import json

    root = make_shapes_dataset(tmp_path, num_train=12, num_val=1, size_px=64, seed=0)
    annotations, images = find_split(root, "train")
    content = json.loads(annotations.read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1].pop("segmentation")
    annotations.write_text(json.dumps(content))
    data = with_outlines(read_coco(annotations, images))
    assert data.changes.crowd == 1
    kinds = {type(outline) for entry in data.records for outline in entry.outlines}
    assert kinds == {Polygons, RunLengths, type(None)}
    columns = RecordColumns(data.records)
    for index, original in enumerate(data.records):
        assert_equal(columns[index], original)


def test_masks_are_the_same_from_workers(tmp_path):
    root = make_shapes_dataset(tmp_path, num_train=6, num_val=5, size_px=64, seed=0)

    def batches(count):
        data = read_coco(*find_split(root, "train"))
        config = DataConfig(height_px=32, width_px=32, augment="dense")
        loader = TrainLoader(data, config, batch_size=3, seed=0, workers=count, mask_stride=4)
        stream = loader.batches()
        out = [next(stream) for _ in range(4)]
        stream.close()
        val = read_coco(*find_split(root, "val"))
        return [*out, *EvalLoader(val, Preprocess(32, 32), batch_size=3, workers=count)]

    for own, others in zip(batches(0), batches(2), strict=True):
        for a, b in zip(own, others, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_descriptors_and_memory_go_with_the_columns():
    def held():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = held()
    columns = RecordColumns(RECORDS["boxes"])
    assert held() > before
    first = columns[0]
    del columns
    assert_equal(first, RECORDS["boxes"][0])  # what was taken out stays valid
    del first
    assert held() == before


@pytest.mark.skipif(sys.platform != "linux", reason="memory by kind from /proc")
def test_private_memory_of_workers_does_not_grow_with_the_records():
    few, many = made_up(200), made_up(20_000)
    grown_mib = measure(RecordColumns(many))["anonymous_mib"] - measure(RecordColumns(few))["anonymous_mib"]
    assert grown_mib < 3, f"{grown_mib:.1f} MiB"
    pickled_mib = measure(many[:4_000])["anonymous_mib"] - measure(few)["anonymous_mib"]
    assert pickled_mib > 6, f"{pickled_mib:.1f} MiB: the measurement does not see Python objects"
