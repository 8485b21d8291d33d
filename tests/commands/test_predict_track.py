"""``dfine predict --track``: numbers in every file, counts at lines and zones, what is refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image
from rectangles import RectangleBackend, opened, scene
from videos import write_video

from dfine_jax import cli
from dfine_jax.commands import predict_follow
from dfine_jax.prediction import detector, tracking
from dfine_jax.prediction.video import VideoReader

pytest.importorskip("trackers")
pytest.importorskip("av")
LINE = "gate=0,0.5,1,0.5"


@pytest.fixture(autouse=True, params=[None, 4], ids=["boxes", "masks"])
def model(request, monkeypatch):
    monkeypatch.setattr(detector, "open_model", lambda *_, **__: opened(RectangleBackend(request.param), (160, 160)))
    monkeypatch.setattr("dfine_jax.commands.predict.require_model", lambda model: None)  # there is no file


def moving(count: int = 16) -> list[np.ndarray]:
    """Red goes up through the middle, green down, blue stays."""
    return [
        scene(320, 320, ("red", 40, 250 - 14 * i, 80, 290 - 14 * i), ("green", 200, 30 + 14 * i, 240, 70 + 14 * i),
              ("blue", 120, 140, 160, 160))
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture
def clip(tmp_path):
    write_video(tmp_path / "clip.mp4", moving())
    return tmp_path / "clip.mp4"


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, image in enumerate(moving()):  # 9 before 10
        Image.fromarray(image).save(folder / f"frame_{i}.png")
    return folder


def run(*arguments) -> int:
    return cli.main(["predict", "model", *map(str, arguments)])


def by_number(entries) -> dict[int, set[int]]:
    """Category ids of each object."""
    found: dict[int, set[int]] = {}
    for entry in entries:
        if "track_id" in entry:
            found.setdefault(entry["track_id"], set()).add(entry["category_id"])
    return found


def test_a_video(clip, tmp_path, capsys):
    outputs = ["--out", tmp_path / "out", "--json", tmp_path / "r.json", "--results", tmp_path / "r.csv"]
    zone = "--count-zone=0,160,320,160,320,320,0,320"
    assert run(clip, "--track", "--count-line", LINE, zone, "--counts", tmp_path / "c.json", *outputs) == 0
    printed = capsys.readouterr().out
    assert "16 frames" in printed and "3 objects followed (1 " in printed
    assert "  line gate: in 1 (1 red), out 1 (1 green)\n  zone zone 1: in 1 (1 green), out 1 (1 red)" in printed
    entries = json.loads((tmp_path / "r.json").read_text())
    assert sorted(map(sorted, by_number(entries).values())) == [[3], [7], [90]]  # each number is one object
    assert len(entries) == 48 and sum("track_id" not in entry for entry in entries) == 3  # the first frame
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["track_id"] for row in rows] == [str(entry.get("track_id", "")) for entry in entries]
    (counts,) = json.loads((tmp_path / "c.json").read_text())
    assert counts["objects"] == {"red": 1, "green": 1, "blue": 1}
    gate = counts["counts"][0]
    assert gate["classes"] == {"green": {"in": 0, "out": 1}, "red": {"in": 1, "out": 0}}
    assert all(0.4 < crossing["time_s"] < 1.3 for crossing in gate["crossings"])
    with VideoReader(str(tmp_path / "out" / "clip.mp4")) as reader:
        drawn = [frame.image for frame in reader]
    assert len(drawn) == 16 and drawn[0][160, 5].min() > 200  # the line


def test_a_folder_of_frames_and_a_table_of_counts(frames, tmp_path, capsys):
    counts = tmp_path / "c.csv"
    zones = ["--count-zone=low=0,200,320,200,320,320,0,320", "--count-line=edge=0,0,0,1"]
    results = ["--results", tmp_path / "r.jsonl"]
    assert run(frames, "--count-line", LINE, *zones, "--counts", counts, *results, "--track=sort") == 0
    said = capsys.readouterr()
    assert f"16 pictures of {frames} taken for frames of one video, frame_0.png to frame_15.png" in said.err
    assert f"{frames}: 16 frames: 3 objects followed" in said.out
    with counts.open(newline="") as file:
        rows = [tuple(row[key] for key in ("name", "class", "in", "out", "inside")) for row in csv.DictReader(file)]
    assert rows == [
        ("gate", "green", "0", "1", ""),
        ("gate", "red", "1", "0", ""),
        ("edge", "", "0", "0", ""),
        ("low", "green", "1", "0", "1"),
        ("low", "red", "0", "1", "0"),
    ]
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [f"frame_{i}.png" for i in range(16)]
    assert sorted(one["track_id"] for one in lines[-1]["objects"]) == [1, 2, 3]


def test_masks_and_annotation_files_go_along(frames, tmp_path, request):
    assert run(frames, "--track", "--results", tmp_path / "coco", "--crops", tmp_path / "crops") == 0
    content = json.loads((tmp_path / "coco" / "_annotations.coco.json").read_text())
    assert len(by_number(content["annotations"])) == 3
    if "masks" in request.node.callspec.id:
        assert all(annotation["segmentation"] for annotation in content["annotations"])


def test_what_is_no_video_is_refused(frames, tmp_path, capsys):
    single, mixed = tmp_path / "single", tmp_path / "mixed"
    for folder, sizes in ((single, [(64, 64)]), (mixed, [(64, 64), (64, 48)])):
        folder.mkdir()
        for i, size in enumerate(sizes):
            Image.new("RGB", size).save(folder / f"{i}.png")
    for arguments, problem in [
        ([single, "--track"], "is the only picture of"),
        ([mixed, "--track"], "is 64x64 and 1.png 64x48, so they are no frames of one video"),
        ([frames, "--track", "deepsort"], "--track deepsort: one of bytetrack, sort"),
        ([frames, "--count-line", "0,900,5,900", "--json", tmp_path / "r.json"], "lies outside of the picture"),
        ([frames, "--count-line", "a=0,0,1,1", "--count-zone", "a=0,0,1,1,1,0"], "named a; give each"),
        ([frames, "--track", "--counts", tmp_path], "is a folder"),
    ]:
        assert run(*arguments) == 2, arguments
        assert problem in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


def test_a_video_whose_line_lies_outside_leaves_nothing(clip, tmp_path, capsys):
    outputs = ["--out", tmp_path / "out", "--json", tmp_path / "r.json", "--counts", tmp_path / "c.json"]
    assert run(clip, "--count-line", "0,900,5,900", *outputs) == 2
    assert "lies outside of the picture, which is 320x320" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*")) and not (tmp_path / "r.json").exists()
    assert not (tmp_path / "c.json").exists()


def test_the_command_knows_the_trackers_without_loading_them():
    assert predict_follow._TRACKERS == tracking.TRACKERS
