"""Columns kept for the next start: the same records, noticed changes, and nothing lost where nothing can be kept."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
from PIL import Image

from dfine_jax.config import DataConfig
from dfine_jax.data.load.pipeline import EvalLoader, TrainLoader
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read import coco, index, pictures
from dfine_jax.data.read.coco import read_coco
from dfine_jax.errors import UserError

IMAGES, OBJECTS = 6, 4


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "WORTH_BYTES", 0)
    (tmp_path / "train").mkdir()
    for i in range(IMAGES):
        Image.new("RGB", (40, 30), (9 * i, 90, 30)).save(tmp_path / "train" / f"é{i}.png")
    write(tmp_path)
    return tmp_path


def write(folder, shift=0):
    rng = np.random.default_rng(0)
    boxes = rng.integers(0, 15, (IMAGES * OBJECTS, 4)) + [shift, 0, 3, 3]
    content = {
        "images": [{"id": 10 * i, "file_name": f"é{i}.png", "width": 40, "height": 30} for i in range(IMAGES)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 4, "name": "dög"}],
        "annotations": [
            {
                "id": n,
                "image_id": 10 * (n % IMAGES),
                "category_id": 1 + 3 * (n % 2),
                "bbox": box,
                "iscrowd": int(n == 5),
            }
            for n, box in enumerate(boxes.tolist())
        ],
    }
    (folder / "a.json").write_text(json.dumps(content))


def read(folder):
    return read_coco(folder / "a.json", folder / "train")


def aged(folder, seconds=60):
    """As if the file had been read so long after it was written."""
    (note,) = (folder / "cache" / "annotations").glob("*.json")
    entry = json.loads(note.read_text())
    note.write_text(json.dumps(entry | {"read_ns": entry["read_ns"] + seconds * 10**9}))


def boxes(data):
    return np.concatenate([record.boxes_xyxy_px for record in data.records])


def assert_same(a, b):
    assert (a.classes, a.changes) == (b.classes, b.changes) and len(a) == len(b)
    for ours, theirs in zip(a.records, b.records, strict=True):
        assert (ours.image_id, ours.path, ours.width_px) == (theirs.image_id, theirs.path, theirs.width_px)
        for name in ("boxes_xyxy_px", "labels", "areas_px", "annotation_ids"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def never(*_):
    raise AssertionError("decoded again")


def test_the_second_reading_decodes_nothing(folder, monkeypatch):
    first = read(folder)
    monkeypatch.setattr(index, "decode", never)
    assert_same(read(folder), first)  # as young as its entry: the content decides
    aged(folder)
    monkeypatch.setattr(index, "file_content", never)
    assert_same(read(folder), first)
    assert boxes(first).any() and first.changes.crowd == 1


@pytest.mark.parametrize("age", [0, 60])
def test_any_change_is_noticed(folder, age):
    before = boxes(read(folder))
    if age:
        aged(folder)
    state = os.stat(folder / "a.json")
    write(folder, shift=1)
    os.utime(folder / "a.json", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert os.stat(folder / "a.json").st_mtime_ns == state.st_mtime_ns
    after = boxes(read(folder))
    assert after.shape == before.shape and not np.array_equal(before, after)
    assert len(list((folder / "cache" / "annotations").iterdir())) == 2  # the entry before is gone


def test_a_touched_or_copied_file_is_known_by_its_content(folder, monkeypatch):
    first = read(folder)
    text = (folder / "a.json").read_bytes()
    (folder / "a.json").unlink()
    (folder / "a.json").write_bytes(text)
    monkeypatch.setattr(index, "decode", never)
    assert_same(read(folder), first)


@pytest.mark.parametrize("damage", ["cut", "empty", "words", "note", "format"])
def test_damaged_entries_are_made_anew(folder, damage):
    first = read(folder)
    aged(folder)
    (columns,) = (folder / "cache" / "annotations").glob("*.columns")
    (note,) = (folder / "cache" / "annotations").glob("*.json")
    content = columns.read_bytes()
    columns.unlink()  # the first reading has it mapped
    columns.write_bytes(content)
    if damage == "cut":
        columns.write_bytes(content[:200] + content[300:])
    elif damage == "empty":
        columns.write_bytes(b"")
    elif damage == "words":
        columns.write_bytes(b"x" * len(content))
    elif damage == "note":
        note.write_text("{")
    else:
        note.write_text(json.dumps(json.loads(note.read_text()) | {"format": 0}))
    assert_same(read(folder), first)
    assert columns.read_bytes() == content


@pytest.mark.parametrize("place", ["/proc/nowhere", "/dev/null", ""])
def test_without_a_usable_cache_everything_works(folder, monkeypatch, place):
    first = read(folder)
    monkeypatch.setenv("DFINE_CACHE", place or str(folder / "a.json"))
    assert_same(read(folder), first)


def test_small_files_are_not_kept(folder, monkeypatch):
    monkeypatch.setattr(index, "WORTH_BYTES", 1 << 22)
    read(folder)
    assert not (folder / "cache").exists()


def test_loader_processes_map_the_same_file(folder):
    """The columns travel as a descriptor: what is sent does not grow with them."""
    from dfine_jax.data.load.shared import dumps

    read(folder)
    data = read(folder)
    sent, descriptors = dumps(data.records)
    assert len(sent) < 4000 and len(descriptors) == 1
    assert (
        os.readlink(f"/proc/self/fd/{descriptors[0]}").endswith(".columns") if os.path.isdir("/proc/self/fd") else True
    )

    def batches(count):
        loader = TrainLoader(data, DataConfig(height_px=32, width_px=32), batch_size=2, seed=0, workers=count)
        stream = loader.batches()
        out = [next(stream) for _ in range(4)]
        stream.close()
        return [*out, *EvalLoader(data, Preprocess(32, 32), batch_size=2, workers=count)]

    for own, others in zip(batches(0), batches(2), strict=True):
        for a, b in zip(own, others, strict=True):
            np.testing.assert_array_equal(a, b)


def test_records_are_a_sequence(folder):
    records = read(folder).records
    ids = [record.image_id for record in records]
    assert [r.image_id for r in records[1::2]] == ids[1::2] and records[-1].image_id == ids[-1]
    assert [r.image_id for r in (records[::-1] * 2)] == ids[::-1] * 2
    assert records[1:3] == records[1:3] and records[1:3] != records[2:4] and records != tuple(records)
    for wrong in (len(records), -len(records) - 1):
        with pytest.raises(IndexError):
            records[wrong]


@pytest.mark.parametrize("rows_at_once", [3, 1 << 15])
def test_counts_over_columns_are_those_over_records(folder, monkeypatch, rows_at_once):
    from dfine_jax.data.read import records as of

    monkeypatch.setattr(of, "_ROWS_AT_ONCE", rows_at_once)
    lazy = read(folder).records[::-1][:5]
    plain = tuple(lazy)
    assert of.objects_per_image(lazy).tolist() == of.objects_per_image(plain).tolist()
    assert of.objects_and_images(lazy) == of.objects_and_images(plain)
    assert of.sizes_px(lazy).tolist() == of.sizes_px(plain).tolist()
    assert of.image_ids(lazy).tolist() == of.image_ids(plain).tolist()
    scale = np.full((5, 2), 0.15)
    assert of.thin_objects(lazy, scale) == of.thin_objects(plain, scale) > 0


def test_the_clock_of_the_entry_is_that_of_reading(folder):
    read(folder)
    (note,) = (folder / "cache" / "annotations").glob("*.json")
    assert abs(json.loads(note.read_text())["read_ns"] - time.time_ns()) < 60 * 10**9


def test_mapped_files_are_read_like_others(folder, monkeypatch):
    """Large files are mapped instead of read, and their pages given back in between."""
    from dfine_jax.data.read import coco_pieces

    first = read(folder)
    for entry in (folder / "cache" / "annotations").iterdir():
        entry.unlink()
    monkeypatch.setattr(index, "_MAPPED_BYTES", 0)
    monkeypatch.setattr(coco_pieces, "_PIECE_BYTES", 300)
    assert_same(read(folder), first)


@pytest.mark.parametrize("place", [0.05, 0.3, 0.5, 0.7, 0.97])
def test_a_damaged_entry_is_not_believed(folder, place):
    before = read(folder)
    aged(folder)
    (stored,) = (folder / "cache" / "annotations").glob("*.columns")
    content = bytearray(stored.read_bytes())
    start = int(place * len(content))
    content[start : start + 16] = bytes(value ^ 0xFF for value in content[start : start + 16])
    stored.unlink()  # what was read has it mapped
    stored.write_bytes(content)
    after = read(folder)
    for one, other in zip(before.records, after.records, strict=True):
        np.testing.assert_array_equal(one.boxes_xyxy_px, other.boxes_xyxy_px)
        assert one.labels.tolist() == other.labels.tolist() and one.path == other.path
    assert stored.read_bytes() != bytes(content)  # written anew


def test_from_the_index_no_box_and_no_name_is_looked_at_by_itself(folder, monkeypatch):
    first = read(folder)
    aged(folder)
    for module, name in ((index, "decode"), (index, "find_usable"), (coco, "find_usable"), (pictures, "all_names")):
        monkeypatch.setattr(module, name, never)
    assert_same(read(folder), first)


def test_from_the_index_pictures_are_looked_for_all_the_same(folder):
    read(folder)
    aged(folder)
    (folder / "train" / "é1.png").unlink()
    with pytest.raises(UserError, match=rf"1 of {IMAGES} images of .* \(first: é1.png\)"):
        read(folder)
    with pytest.raises(UserError, match="elsewhere does not exist"):
        read_coco(folder / "a.json", folder / "elsewhere")
    Image.new("RGB", (40, 30)).save(folder / "train" / "é1.png")
    assert len(read(folder)) == IMAGES


def renamed(folder, names):
    """The annotation file with other names of its pictures."""
    content = json.loads((folder / "a.json").read_text())
    for image, name in zip(content["images"], names, strict=True):
        image["file_name"] = name
    (folder / "a.json").write_text(json.dumps(content))


def test_pictures_in_many_folders_are_the_same_from_the_index(folder):
    """Some below folders of the names, one beside them, with backslashes, or spelled with composed letters."""
    names = ["a/é0.png", "b/c/é1.png", "b\\c\\é2.png", "a/é3.png", "é4.png", "b/e\u03015.png"]
    for i, place in enumerate(["a", "b/c", "b/c", "a", "", "b"]):
        (folder / "train" / place).mkdir(parents=True, exist_ok=True)
        (folder / "train" / f"é{i}.png").rename(folder / "train" / place / f"é{i}.png")
    for last in (names[5], "b/é5.png"):
        renamed(folder, [*names[:5], last])
        first = read(folder)
        aged(folder)
        again = read(folder)
        assert_same(again, first)
        for i, record in enumerate(again.records):
            assert record.path.name == f"é{i}.png" and record.path.is_file()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("é0.png", "images number 0 and 1 list é0.png twice"),
        ("./é0.png", "mean one picture"),
        ("é\0.png", "1 of 6 images"),
        ("é\ud800.png", "1 of 6 images"),
    ],
    ids=["twice", "one picture", "no name of a file", "half a letter"],
)
def test_names_are_refused_alike_from_the_index(folder, name, told):
    renamed(folder, ["é0.png", name, *(f"é{i}.png" for i in range(2, IMAGES))])
    messages = []
    for _ in range(2):
        with pytest.raises(UserError) as error:
            read(folder)
        messages.append(str(error.value))
        aged(folder)
    assert messages[0] == messages[1] and told in messages[0]


def test_sizes_that_only_pictures_say_are_asked_of_them_each_time(folder):
    """Boxes are cut to the pictures as they are now, not as they were when the index was written."""
    content = json.loads((folder / "a.json").read_text())
    del content["images"][0]["width"]
    (folder / "a.json").write_text(json.dumps(content))
    assert read(folder).records[0].width_px == 40
    aged(folder)
    Image.new("RGB", (9, 30)).save(folder / "train" / "é0.png")
    record = read(folder).records[0]
    assert record.width_px == 9 and record.boxes_xyxy_px[:, 2].max() == 9


def test_a_file_without_images_is_read_from_the_index(folder):
    (folder / "a.json").write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}')
    assert len(read(folder)) == 0
    aged(folder)
    assert len(read(folder)) == 0
