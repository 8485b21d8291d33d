"""Numbers that objects keep from frame to frame, and what crosses a line or a zone, on boxes whose paths are known."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from rectangles import RectangleBackend, opened, scene
from videos import write_video

from dfine_jax.errors import UserError
from dfine_jax.prediction import counting, tracking
from dfine_jax.prediction.detector import Detector
from dfine_jax.prediction.result import DetectionResult
from dfine_jax.prediction.tracking import NO_TRACK, TRACKERS, Tracker

pytest.importorskip("trackers")
SIZE = (320, 160)


def result(*objects, size_px=SIZE) -> DetectionResult:
    """Of (class, score, centre x, centre y), boxes of 40 x 30 pixels."""
    objects = sorted(objects, key=lambda o: -o[1])
    boxes = np.array([(x - 20, y - 15, x + 20, y + 15) for _, _, x, y in objects], np.float32).reshape(-1, 4)
    labels = np.array(["car bus".split().index(name) for name, *_ in objects], np.int32)
    return DetectionResult(
        boxes_xyxy_px=boxes,
        scores=np.array([score for _, score, _, _ in objects], np.float32),
        labels=labels,
        names=tuple(name for name, *_ in objects),
        category_ids=tuple(int(label) + 1 for label in labels),
        size_px=size_px,
    )


def ids(found: DetectionResult) -> dict[str, int]:
    assert found.track_ids is not None
    return dict(zip(found.names, found.track_ids.tolist(), strict=True))


@pytest.mark.parametrize("name", TRACKERS)
def test_two_that_pass_each_other_keep_their_numbers(name):
    tracker = Tracker(name, 0.5, rate=10)
    image = np.zeros((160, 320, 3), np.uint8)
    seen = [
        ids(tracker.update(result(("car", 0.9, 40 + 6 * i, 60), ("bus", 0.8, 280 - 6 * i, 80)), i / 10, image))
        for i in range(40)
    ]
    assert {frozenset(one.items()) for one in seen[5:]} == {frozenset(seen[5].items())}
    assert sorted(seen[5].values()) == [1, 2]


def test_an_object_that_is_hidden_for_a_moment_comes_back_with_its_number():
    tracker = Tracker("bytetrack", 0.5, rate=10)
    seen = [
        ids(tracker.update(result(*[("car", 0.9, 40 + 4 * i, 60)] * (not 20 <= i < 26)), i / 10)) for i in range(40)
    ]
    assert seen[0] == {"car": NO_TRACK} and seen[1] == {"car": 1} == seen[39]
    assert seen[22] == {}
    late = ids(tracker.update(result(("car", 0.9, 200, 60)), 9.0))  # after more than a second it is another one
    assert late == {"car": NO_TRACK}


def test_low_scores_continue_a_track_and_start_none():
    found = {}
    for name in ("bytetrack", "sort"):
        tracker = Tracker(name, 0.5, rate=10)
        assert tracker.low_threshold == tracking.low_threshold_of(name, 0.5) == (0.1 if name == "bytetrack" else 0.5)
        for i in range(12):
            score = 0.2 if i in (7, 8) else 0.9
            update = tracker.update(result(("car", score, 40 + 4 * i, 60), ("bus", 0.3, 250, 100)))
            found.setdefault(name, []).append(ids(update))
    assert found["bytetrack"][7] == found["bytetrack"][8] == {"car": 1}  # the bus never reaches the threshold
    assert found["sort"][7] == {} and found["sort"][11] == {"car": 1}


def test_a_query_with_two_classes_is_one_object():
    tracker = Tracker("bytetrack", 0.5)
    for _ in range(3):
        found = tracker.update(result(("car", 0.7, 100, 60), ("bus", 0.6, 100, 60)))
    assert ids(found) == {"car": 1}


def test_results_carry_numbers_everywhere():
    tracker = Tracker("bytetrack", 0.5)
    tracker.update(result(("car", 0.9, 100, 60)))
    found = tracker.update(result(("car", 0.9, 100, 60), ("bus", 0.8, 250, 60)))
    assert [one.track_id for one in found] == [1, None]
    assert [entry.get("track_id") for entry in found.to_coco("a")] == [1, None]
    assert [entry.get("track_id") for entry in json.loads(found.to_json())["objects"]] == [1, None]
    assert found[1:].track_ids.tolist() == [NO_TRACK]
    assert found.to_supervision().tracker_id.tolist() == [1, NO_TRACK]
    assert found == found[:] and found != result(("car", 0.9, 100, 60), ("bus", 0.8, 250, 60))
    plain, numbered = (
        np.asarray(r.draw(np.zeros((160, 320, 3), np.uint8))) for r in (result(("car", 0.9, 100, 60)), found[:1])
    )
    assert not np.array_equal(plain, numbered)  # #1 on the label


def test_a_detector_follows_a_video(tmp_path):
    pytest.importorskip("av")
    frames = [
        scene(320, 160, ("red", 20 + 8 * i, 20, 60 + 8 * i, 60), ("green", 200, 100, 260, 140)) for i in range(10)
    ]
    write_video(tmp_path / "clip.mp4", frames)
    detector = Detector(opened(RectangleBackend(4), (160, 160)))
    found = list(detector.track(tmp_path / "clip.mp4"))
    assert [ids(one) for one in found[1:]] == [ids(found[1])] * 9
    assert sorted(ids(found[1]).values()) == [1, 2]
    assert found[5].masks is not None and found[5].masks.shape == (2, 160, 320)
    in_a_row = list(detector.track(frames, "sort", classes="red"))
    assert [one.track_ids.tolist() for one in in_a_row] == [[-1]] * 2 + [[1]] * 8
    with pytest.raises(UserError, match="'deepsort' is none of bytetrack, sort"):
        detector.track(frames, "deepsort")


def counts_of(shape, paths, size_px=SIZE) -> counting.Count:
    """The count of objects that are at these places, frame by frame; None where they are not seen."""
    count = counting.new_count(shape, size_px)
    for places in zip(*paths, strict=True):
        there = [(number, place) for number, place in enumerate(places, start=1) if place is not None]
        found = result(*[("car" if number % 2 else "bus", 1 - number / 100, *place) for number, place in there])
        count.update(DetectionResult(**{**vars(found), "track_ids": np.array([number for number, _ in there], int)}))
    return count


def along(x0, y0, x1, y1, frames=20):
    return [(x0 + (x1 - x0) * i / (frames - 1), y0 + (y1 - y0) * i / (frames - 1)) for i in range(frames)]


@pytest.mark.parametrize("text", ["0,80,320,80", "0,0.5,1,0.5", "road = 0,80,320,80"])
def test_a_line_tells_both_directions(text):
    up, down, beside = along(100, 140, 100, 20), along(200, 20, 200, 140), along(20, 20, 300, 60)
    count = counts_of(counting.line(text), [up, down, beside])
    assert (dict(count.entered), dict(count.left)) == ({"car": 1}, {"bus": 1})  # walking right, left is up
    (first, second) = sorted(count.crossings, key=lambda c: c.track_id)
    assert (first.track_id, first.inwards, second.track_id, second.inwards) == (1, True, 2, False)
    backwards = counts_of(counting.line("320,80,0,80"), [up, down, beside])
    assert (dict(backwards.entered), dict(backwards.left)) == ({"bus": 1}, {"car": 1})
    name = "road" if "=" in text else "line 1"
    assert str(count) == f"line {name}: in 1 (1 car), out 1 (1 bus)"


def test_only_the_part_between_the_ends_of_a_line_counts():
    short = counts_of(counting.line("0,80,150,80"), [along(100, 140, 100, 20), along(200, 140, 200, 20)])
    assert (short.entered.total(), short.left.total()) == (1, 0)


def test_trembling_on_a_line_is_not_counted_and_being_hidden_there_is():
    trembling = [(100.0, 80 + (3 if i % 2 else -3)) for i in range(20)]
    hidden = [place if not 6 <= i < 14 else None for i, place in enumerate(along(200, 140, 200, 20))]
    count = counts_of(counting.line("0,80,320,80"), [trembling, hidden])
    assert (dict(count.entered), dict(count.left)) == ({"bus": 1}, {})


def test_a_zone_tells_what_goes_in_and_out_and_is_there():
    through, stays, starts_there = along(20, 80, 300, 80), along(20, 80, 160, 80), along(150, 80, 160, 90)
    count = counts_of(counting.zone("yard=0.25,0.1,0.75,0.1,0.75,0.9,0.25,0.9"), [through, stays, starts_there])
    assert isinstance(count, counting.ZoneCount)
    assert (dict(count.entered), dict(count.left)) == ({"car": 1, "bus": 1}, {"car": 1})
    assert dict(count.inside) == {"bus": 1, "car": 1}
    plain = count.to_dict()
    assert plain["classes"] == {"bus": {"in": 1, "out": 0}, "car": {"in": 1, "out": 1}}
    assert plain["points_px"][2] == [240, 144]
    assert [c["direction"] for c in plain["crossings"] if c["track_id"] == 1] == ["in", "out"]


@pytest.mark.parametrize(
    ("make", "text", "problem"),
    [
        (counting.line, "0,80,320", "write x1,y1,x2,y2"),
        (counting.line, "a,b,c,d", "write x1,y1,x2,y2"),
        (counting.line, "5,5,5,5", "the two points are the same"),
        (counting.line, "0,0,1,1,2,2", "a line has two points"),
        (counting.zone, "0,0,9,9", "three corners or more"),
        (counting.zone, "0,0,5,5,9,9", "lie on one line"),
    ],
)
def test_lines_and_zones_that_cannot_be(make, text, problem):
    with pytest.raises(UserError, match=problem):
        make(text)


def test_a_line_outside_of_the_picture_is_refused():
    with pytest.raises(UserError, match="line 1 lies outside of the picture, which is 320x160"):
        counting.new_count(counting.line("0,900,1280,900"), SIZE)


def test_an_absent_package_and_an_opencv_that_cannot_be_loaded_have_their_cures(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(UserError, match="needs trackers, which is of the extra track and not installed: pip install"):
        Tracker("bytetrack", 0.5)

    def without_screen(module, purpose):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(tracking, "require", without_screen)
    with pytest.raises(UserError, match="libGL.*opencv-python-headless"):
        tracking.require_trackers()
