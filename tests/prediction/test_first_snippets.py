"""The first things that people write with a detector, each as they write it: it works, or says what to write."""

from __future__ import annotations

import ast
import copy
import io
import json
import pickle
import re
import shutil
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from rectangles import opened, scene

import dfine_jax
from dfine_jax.errors import UserError
from dfine_jax.prediction.detector import Detector
from dfine_jax.prediction.inputs import find_inputs
from dfine_jax.prediction.result import Detection, DetectionResult

COOKBOOK = ROOT / "docs" / "cookbook.md"
PIXELS = scene(240, 160, ("red", 20, 30, 80, 90), ("blue", 120, 40, 200, 130), ("red", 210, 100, 236, 150))
NAMES = ["blue", "red", "red"]  # by category id 90, 7, 7


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A detector, a picture in all forms, and where it lies on a server."""
    folder = tmp_path_factory.mktemp("shots")
    path = folder / "photo.png"
    Image.fromarray(PIXELS).save(path)
    Image.fromarray(PIXELS[:, ::-1]).save(folder / "second.png")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    detector = Detector(opened(), threshold=0.5)
    result = detector(path)
    yield SimpleNamespace(
        detector=detector, d=detector, result=result, r=result, folder=folder, path=path,
        url=f"http://127.0.0.1:{server.server_address[1]}/photo.png",
    )  # fmt: skip
    server.shutdown()


def same(result: Any) -> None:
    assert isinstance(result, DetectionResult)
    assert sorted(result.names) == NAMES


def all_same(results: Any, count: int) -> None:
    assert isinstance(results, list) and len(results) == count
    for result in results:
        same(result)


def with_alpha() -> np.ndarray:
    return np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])


def saved(w: Any) -> None:
    target = w.folder.parent / "drawn.jpg"
    assert w.r.save(target) == target
    assert Image.open(target).size == (240, 160)
    with pytest.raises(UserError, match="would replace"):
        w.r.save(w.path)
    with pytest.raises(UserError, match=r"does not end like a picture .*; for data there is to_json\(\)"):
        w.r.save("out.json")


def supervision(w: Any) -> None:
    sv = pytest.importorskip("supervision")
    drawn = sv.BoxAnnotator().annotate(PIXELS.copy(), w.r.to_supervision())
    assert (drawn != PIXELS).any()


def pandas(w: Any) -> None:
    pytest.importorskip("pandas")
    frame = w.r.to_pandas()
    assert list(frame.columns) == ["name", "category_id", "label", "score", "x0", "y0", "x1", "y1"]
    assert sorted(frame["name"]) == NAMES
    assert len(w.r[:0].to_pandas()) == 0


def in_threads(w: Any) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(w.d(w.path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    all_same(found, 4)


def threshold_set(w: Any) -> None:
    w.d.threshold = 0.999
    try:
        assert len(w.d(w.path)) == 0
    finally:
        w.d.threshold = 0.5


def shown(w: Any) -> None:
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "show", lambda self, title=None: seen.append((self.size, title)))
        w.r.show()
    assert seen == [((240, 160), "photo.png")]


def pickled(w: Any) -> None:
    again = pickle.loads(pickle.dumps(w.r))
    assert again == w.r
    assert again.draw().size == (240, 160)  # by its path
    array = w.d(PIXELS)
    assert len(pickle.dumps(array)) < 3000  # no pixels
    with pytest.raises(UserError, match="holds no picture; give the image that was detected in"):
        pickle.loads(pickle.dumps(array)).draw()


def generator(w: Any) -> None:
    results = w.d(PIXELS.copy() for _ in range(3))
    all_same(results, 3)
    assert [result.source for result in results] == [None] * 3  # frames are not kept alive
    assert results[0].draw(PIXELS).size == (240, 160)
    assert [result.name for result in w.d(p for p in [w.path])] == ["photo.png"]


def streamed(w: Any) -> None:
    read = []

    def frames():
        for i in range(3):
            read.append(i)
            yield PIXELS

    results = w.d.stream(frames())
    assert read == []
    same(next(results))
    assert read == [0]
    assert [result.draw().size for result in results] == [(240, 160)] * 2
    assert [result.name for result in w.d.stream(w.folder)] == ["photo.png", "second.png"]
    assert [sorted(result.names) for result in w.d.stream(w.path)] == [NAMES]


def video(w: Any) -> None:
    path = w.folder.parent / "clip.mp4"
    path.write_bytes(b"")
    refused(lambda: w.d(path), UserError, r"clip.mp4 is a video; for result in detector.stream\(path\) reads it")


def refused(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


class Tensor:
    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._array if dtype is None else self._array.astype(dtype)


def equal(w: Any) -> None:
    assert w.r == w.d(PIXELS)
    assert w.r != w.r[:1]
    assert w.r != "photo"
    assert copy.copy(w.r) == w.r


def objects(w: Any) -> None:
    found = list(w.r)
    assert all(isinstance(one, Detection) for one in found)
    assert sorted(one.name for one in found) == NAMES
    assert found == [w.r[i] for i in range(3)]
    for one in w.r:
        assert 0.5 <= one.score <= 1 and one.mask is None


def first(w: Any) -> None:
    one = w.r[0]
    assert (one.name, one.category_id) == (w.r.names[0], w.r.category_ids[0])
    assert one.box == pytest.approx(w.r.boxes_xyxy_px[0].tolist())
    assert w.r[-1] == w.r[2]
    refused(lambda: w.r[3], IndexError, "detection 3 of 3")


def chosen(w: Any) -> None:
    red = w.r[w.r.labels == 0]
    assert red.names == ("red", "red") and red.boxes_xyxy_px.shape == (2, 4)
    assert red.draw().size == (240, 160)
    assert len(w.r[:2]) == 2 and len(w.r[[2, 0]]) == 2 and len(w.r[[]]) == 0 and len(w.r[[True, False, False]]) == 1
    refused(lambda: w.r[np.array([True])], IndexError, "boolean index did not match")


def as_dict(w: Any) -> None:
    values = w.r.to_dict()
    assert (values["image"], values["width"], values["height"]) == ("photo.png", 240, 160)
    assert set(values["objects"][0]) == {"name", "category_id", "label", "score", "box"}
    assert json.loads(json.dumps(values)) == values


def yolo(w: Any) -> None:
    lines = w.r.to_yolo().splitlines()
    assert [len(line.split()) for line in lines] == [5] * 3
    assert [len(line.split()) for line in w.r.to_yolo(scores=True).splitlines()] == [6] * 3


FINE: dict[str, Callable[[Any], Any]] = {
    'detector("photo.png")': lambda w: same(w.d(str(w.path))),
    'detector(Path("photo.png"))': lambda w: same(w.d(Path(w.path))),
    'detector(Image.open("photo.png"))': lambda w: same(w.d(Image.open(w.path))),
    'detector(Image.open("photo.png").convert("RGBA"))': lambda w: same(w.d(Image.open(w.path).convert("RGBA"))),
    'detector(["photo.png", pixels])': lambda w: all_same(w.d([w.path, PIXELS]), 2),
    'detector(("photo.png", pixels))': lambda w: all_same(w.d((w.path, PIXELS)), 2),
    "detector([])": lambda w: all_same(w.d([]), 0),
    "detector(pixels)": lambda w: same(w.d(PIXELS)),
    "len(result)": lambda w: len(w.r) == 3 or pytest.fail(str(len(w.r))),
    "result.names": lambda w: sorted(w.r.names) == NAMES or pytest.fail(str(w.r.names)),
    "result.scores": lambda w: np.testing.assert_array_less(0.5, w.r.scores),
    "result.boxes_xyxy_px": lambda w: w.r.boxes_xyxy_px.shape == (3, 4) or pytest.fail("shape"),
    "result.size_px": lambda w: w.r.size_px == (240, 160) or pytest.fail("size"),
    'result.draw("photo.png").save("drawn.png")': lambda w: w.r.draw(w.path).save(w.folder.parent / "a.png"),
    "result.to_coco(5)": lambda w: {e["image_id"] for e in w.r.to_coco(5)} == {5} or pytest.fail("ids"),
    "json.dumps(result.to_coco())": lambda w: json.dumps(w.r.to_coco()).index("photo.png"),
    "result.to_supervision()": supervision,
    "supervision.BoxAnnotator().annotate(pixels.copy(), result.to_supervision())": supervision,
    "detector.threshold = 0.9": threshold_set,
    'for _ in range(4): threading.Thread(target=detector, args=("photo.png",)).start()': in_threads,
    "pickle.dumps(result)": pickled,
    "for detection in result: detection.name, detection.score, detection.box": objects,
    "result[0]": first,
    "result[result.scores > 0.8]": chosen,
    'detector("pictures")': lambda w: all_same(w.d(str(w.folder)), 2),
    'detector("pictures/*.png")': lambda w: all_same(w.d(f"{w.folder}/*.png"), 2),
    'detector("https://example.org/photo.png")': lambda w: same(w.d(w.url)),
    "detector(pixels[..., 0])": lambda w: len(w.d(PIXELS[..., 0])) == 0 or pytest.fail("grey has no colours"),
    "detector(np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]))": lambda w: same(w.d(with_alpha())),
    "detector(pixels / 255)": lambda w: same(w.d(PIXELS / 255)),
    "detector(np.stack([pixels, pixels]))": lambda w: all_same(w.d(np.stack([PIXELS, PIXELS])), 2),
    "detector(tensor)": lambda w: same(w.d(Tensor(PIXELS))),
    "detector(frame for frame in [pixels, pixels, pixels])": generator,
    'for found in detector.stream("pictures"): ...': streamed,
    'detector(Path("photo.png").read_bytes())': lambda w: same(w.d(w.path.read_bytes())),
    'detector(io.BytesIO(Path("photo.png").read_bytes()))': lambda w: same(w.d(io.BytesIO(w.path.read_bytes()))),
    'detector("photo.png", threshold=0.3)': lambda w: (
        len(w.d(w.path, threshold=0.999)) == 0 or pytest.fail("threshold")
    ),
    'detector("photo.png", classes=["red"])': lambda w: (
        {*w.d(w.path, classes=["red"]).names, *w.d(w.path, classes=7).names} == {"red"} or pytest.fail("classes")
    ),
    "detector(pixels[..., ::-1], bgr=True)": lambda w: same(w.d(PIXELS[..., ::-1], bgr=True)),
    'result.save("drawn.jpg")': saved,
    "result.draw()": lambda w: w.r.draw().size == (240, 160) or pytest.fail("enlarged"),
    "result.show()": shown,
    "result.to_json()": lambda w: json.loads(w.r.to_json(indent=1)) == w.r.to_dict() or pytest.fail("json"),
    "result.to_dict()": as_dict,
    "result.to_yolo()": yolo,
    "result.to_pandas()": pandas,
    "result._repr_html_()": lambda w: w.r._repr_html_().index("<td>red</td>") + w.r._repr_html_().index("image/jpeg"),
    "result._repr_png_()": lambda w: Image.open(io.BytesIO(w.r._repr_png_())).size == (240, 160) or pytest.fail("size"),
    'result == detector("photo.png")': equal,
    "print(result)": lambda w: (
        str(w.r) == f"<3 objects: 2 red {w.r.scores[w.r.labels == 0].max():.2f}, 1 blue 0.98 in photo.png>"
        or pytest.fail(str(w.r))
    ),
    "print(detector)": lambda w: str(w.d).index("boxes of 3 classes (red, green, blue), input 64x64, threshold 0.5"),
    "detector.names": lambda w: w.d.names == ("red", "green", "blue") or pytest.fail("names"),
    "detector.device": lambda w: isinstance(w.d.device, str) or pytest.fail("device"),
}

REFUSED: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "hash(result)": (lambda w: hash(w.r), TypeError, "unhashable type: 'DetectionResult'"),
    "result.draw(np.zeros((9, 9, 3), np.uint8))": (
        lambda w: w.r.draw(np.zeros((9, 9, 3), np.uint8)), UserError, "is 9x9, the detections belong to one of 240x160",
    ),
    "pickle.dumps(detector)": (
        lambda w: pickle.dumps(w.d), TypeError, "cannot be pickled .*; make one in each process",
    ),
    "detector(None)": (lambda w: w.d(None), UserError, "None is not an image; give a path"),
    "result.boxes": (lambda w: w.r.boxes, AttributeError, "has no boxes; the boxes are boxes_xyxy_px"),
    "result.plot()": (lambda w: w.r.plot(), AttributeError, "has no plot; call draw()"),
    'detector("photo.png", conf=0.3)': (
        lambda w: w.d(w.path, conf=0.3), TypeError, "argument 'conf'; here it is threshold",
    ),
    'detector.predict("photo.png")': (lambda w: w.d.predict(w.path), AttributeError, "has no predict; call it"),
}  # fmt: skip


def test_the_cookbook_has_them_all():
    blocks = re.findall(r"^```python\n(.*?)^```", COOKBOOK.read_text(), re.MULTILINE | re.DOTALL)
    typed = [ast.unparse(one) for block in blocks[1:] for one in ast.parse(block).body]  # of any layout
    rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", COOKBOOK.read_text(), re.MULTILINE)
    assert sorted(typed) == sorted(ast.unparse(ast.parse(snippet)) for snippet in FINE)
    assert sorted(typed for typed, _ in rows) == sorted(REFUSED)
    assert all(re.search(REFUSED[typed][2].split(" .*")[0].rstrip(";"), answer) for typed, answer in rows)
    assert len(FINE) + len(REFUSED) == 61


@pytest.mark.parametrize("snippet", FINE)
def test_works(world, snippet):
    FINE[snippet](world)


@pytest.mark.parametrize("snippet", FINE)
def test_runs_as_the_cookbook_prints_it(world, snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image.Image, "show", lambda self, title=None: None)
    monkeypatch.setattr(world.d, "threshold", world.d.threshold)  # put back afterwards
    shutil.copytree(world.folder, "pictures")
    shutil.copy(world.path, "photo.png")
    names = {"detector": world.d, "result": world.d("photo.png"), "pixels": PIXELS, "tensor": Tensor(PIXELS)}
    names |= {"io": io, "json": json, "np": np, "pickle": pickle, "threading": threading, "Image": Image, "Path": Path}
    for library in ("pandas", "supervision"):
        if library in snippet:
            names[library] = pytest.importorskip(library)
    before = set(threading.enumerate())
    exec(snippet.replace("https://example.org/photo.png", world.url), names)
    for thread in set(threading.enumerate()) - before:
        thread.join()


@pytest.mark.parametrize("snippet", REFUSED)
def test_is_refused_as_the_cookbook_prints_it(world, snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(world.path, "photo.png")
    names = {"detector": world.d, "result": world.d("photo.png"), "np": np, "pickle": pickle}
    refused(lambda: eval(snippet, names), *REFUSED[snippet][1:])


@pytest.mark.parametrize("snippet", REFUSED)
def test_is_refused_with_the_cure(world, snippet):
    call, kind, message = REFUSED[snippet]
    refused(lambda: call(world), kind, message)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PIXELS.astype(np.float32), "has values up to 255; give floating point from 0 to 1"),
        (PIXELS / 127.5 - 1, "seems to be normalised, which the model does by itself"),
        (np.where(PIXELS > 100, 1.0, 0.0), "no values but 0 and 1"),
        (np.full((4, 4, 3), np.nan), "not finite"),
        (PIXELS.transpose(2, 0, 1) / 255, r"channels first: array.transpose\(1, 2, 0\)"),
        (np.stack([PIXELS.transpose(2, 0, 1)]) / 255, r"channels first: array.transpose\(0, 2, 3, 1\)"),
    ],
)
def test_floating_point_of_an_uncertain_range_is_refused(world, array, message):
    refused(lambda: world.d(array), UserError, message)


def test_the_cure_for_channels_that_come_first_works(world):
    class Tensor:
        """As of a library whose ``transpose`` takes two axes."""

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return np.stack([PIXELS.transpose(2, 0, 1)] * 2).astype(np.float32) / 255

    for value in (np.asarray(Tensor()), Tensor()):
        with pytest.raises(UserError) as told:
            world.d(value)
        cure = str(told.value).rpartition("channels first: ")[2]
        all_same(world.d(eval(cure, {"numpy": np, "array": value, "it": value})), 2)


def test_addresses_of_files_are_their_paths(world, tmp_path):
    odd = tmp_path / "a picture #1.png"
    odd.write_bytes(world.path.read_bytes())
    for address in (world.path.as_uri(), odd.as_uri(), Path(world.path.as_uri()), f"file://localhost{world.path}"):
        same(world.d(address))
    assert next(world.d.stream(odd.as_uri())).name == odd.name
    all_same(world.d([world.path.as_uri(), odd.as_uri()]), 2)
    assert len(world.d(world.folder.as_uri())) == 2
    assert [picture.path for picture in find_inputs([odd.as_uri()]).pictures] == [odd]
    refused(lambda: world.d("file:///nowhere/x.png"), UserError, "image /nowhere/x.png does not exist")
    refused(lambda: world.d("file://photo.png"), UserError, "names the machine photo.png; give the path alone")


def test_more_that_is_refused_with_the_cure(world):
    d, r = world.d, world.r
    video(world)
    refused(lambda: d(f"{world.folder}/*.gif"), UserError, "no file is like .*; check the pattern")
    refused(lambda: d([str(world.folder)]), UserError, "is a folder among pictures; give it alone")
    refused(lambda: d(Path(world.url)), UserError, "lost a slash; give an address as text")
    refused(lambda: d("http://127.0.0.1:9/clip.mp4"), UserError, r"/clip.mp4 is a video; .*detector.stream\(address\)")
    refused(lambda: d("https://a:b@camera/live.m3u8?x=1"), UserError, r"^https://camera/live.m3u8\?x=1 is a video")
    refused(lambda: d("rtsp://camera/1"), UserError, r"rtsp://camera/1 is no picture but a stream; .*detector.stream")
    refused(lambda: d(world.url + "x"), UserError, "the server answers 404")
    refused(lambda: d(world.path, threshold=50), UserError, "threshold=50 must lie between 0 and 1")
    refused(lambda: d(world.path, classes="rde"), UserError, "no class 'rde'; did you mean red?")
    refused(lambda: d(world.path, threshold="a"), UserError, "threshold='a' is no number; it must lie between 0 and 1")
    refused(lambda: d(world.path, imgsz=640), TypeError, "the model knows its input size")
    refused(lambda: d(world.path, colour=1), TypeError, "it has threshold, classes, bgr")
    refused(lambda: Detector.from_pretrained("x"), AttributeError, r"call Detector\(name\)")
    refused(lambda: Detector("photo.jpg"), UserError, r"photo.jpg is a picture .* no model; Detector\(MODEL\) is cal")
    refused(lambda: Detector(""), UserError, "an empty name as its model")
    refused(lambda: Detector(None), UserError, "a Detector is made of a checkpoint folder.*, not of None")
    refused(lambda: Detector(PIXELS), UserError, "not of numpy.ndarray")
    refused(lambda: Detector("m.onnx", conf=0.3), TypeError, "argument 'conf'; here it is threshold")
    refused(lambda: Detector("m.onnx", classes=["red"]), TypeError, r"an option of its call, detector\(image, classes")
    refused(lambda: Detector("m.onnx", treshold=0.3), TypeError, "it has threshold, batch_size")
    refused(lambda: Detector("m.onnx", "high"), UserError, "threshold='high' is no number")
    refused(lambda: Detector("m.onnx", batch_size=2.5), UserError, "batch_size=2.5 is no whole number")
    refused(lambda: setattr(d, "threshold", 50), UserError, "threshold=50 must .*; as a share it is 0.5")
    refused(lambda: setattr(d, "mask_threshold", None), UserError, "mask_threshold=None is no number")
    for name in ("to_df", "to_csv", "tojson", "summary", "save_txt", "save_crop", "crop", "orig_img", "filter"):
        refused(lambda name=name: getattr(r, name), AttributeError, f"DetectionResult has no {name}; ")
    refused(lambda: r.xyxy, AttributeError, "boxes_xyxy_px")
    refused(lambda: d(PIXELS).to_coco(), UserError, "no file name that could be its id")
    assert not hasattr(r, "boxes") and not hasattr(d, "predict")
    assert dfine_jax.Detection is Detection


def test_what_cannot_be_drawn_is_still_shown_in_a_notebook(world):
    gone = pickle.loads(pickle.dumps(world.d(PIXELS)))
    assert gone._repr_png_() is None
    assert "<td>red</td>" in gone._repr_html_() and "<img" not in gone._repr_html_()
    assert "nothing found" in world.r[:0]._repr_html_()
    assert str(world.r[:0]) == "<nothing found in photo.png>"


def test_masks_travel_and_stay_small():
    from rectangles import RectangleBackend

    result = Detector(opened(RectangleBackend(mask_stride=2)))(PIXELS)
    assert result[0].mask.shape == (160, 240) and result[0].mask.any()
    np.testing.assert_array_equal(result[1:].masks, result.masks[1:])
    assert result == result[:] and result[:1] != result[1:2]
    assert set(result.to_dict()["objects"][0]["segmentation"]) == {"size", "counts"}
    assert len(pickle.dumps(result)) < 60_000


def test_frames_of_a_video(world, tmp_path):
    pytest.importorskip("av")
    from videos import write_video

    write_video(tmp_path / "clip.mp4", [PIXELS] * 3)
    results = list(world.d.stream(tmp_path / "clip.mp4"))
    assert [result.name for result in results] == [f"clip_{i:06d}.jpg" for i in range(3)]
    assert results[0].draw().size == (240, 160)
