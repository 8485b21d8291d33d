"""``dfine predict``: which images and videos, which ids, what is written, what is reported."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from rectangles import RectangleBackend, opened, scene, with_disc
from videos import write_video

from dfine_jax import cli
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.dataset import Classes
from dfine_jax.errors import UserError
from dfine_jax.prediction import detector, video
from dfine_jax.prediction.detector import OpenedModel
from dfine_jax.prediction.inputs import find_inputs, result_files
from dfine_jax.prediction.video import VideoReader
from dfine_jax.serving.backends.jax_model import JaxBackend

TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    backend = RectangleBackend()

    def open_model(model, **_):
        if model != "model":
            raise UserError(f"{model} is no model")
        return opened(backend, (160, 160))

    monkeypatch.setattr(detector, "open_model", open_model)
    monkeypatch.setattr("dfine_jax.commands.predict.require_model", lambda model: None)  # there is no file
    return backend


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    scenes = {
        "b.png": scene(400, 300, ("blue", 100, 75, 300, 225)),
        "a.jpg": scene(320, 320, ("red", 20, 40, 120, 100), ("green", 200, 200, 260, 300)),
        "sub/a.jpg": scene(640, 480, ("green", 40, 60, 240, 180)),
    }
    for name, image in scenes.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name, quality=95)
    (root / "notes.txt").write_text("not an image")
    return root


def moving(count: int) -> list[np.ndarray]:
    """A red rectangle that goes right, and a green one in every second frame."""
    frames = []
    for i in range(count):
        green = [("green", 200, 100, 280, 140)] if i % 2 else []
        frames.append(scene(320, 160, ("red", 20 + 8 * i, 20, 60 + 8 * i, 60), *green))
    return frames


@pytest.fixture
def clip(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    write_video(path, moving(10))
    return path


def run(*arguments) -> int:
    return cli.main(["predict", *map(str, arguments)])


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*"))


def errors(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("dfine: error:")]


def test_of_one_picture_the_file_is_named_and_of_more_the_folder(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = []
    for arguments in ([folder / "a.jpg"], [folder / "a.jpg", "--out", "drawn"], [folder]):
        assert run("model", *arguments) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("drawn: ")]
        places.append(line.removeprefix("drawn: "))
    assert places == ["predictions/a.jpg", "drawn/a.jpg", "predictions"]
    assert all(Path(place).exists() for place in places)


def test_folder_to_pictures_and_results(folder, tmp_path, capsys, backend):
    out, results = tmp_path / "out", tmp_path / "results.json"
    assert run("model", folder, "--out", out, "--json", results, "--batch-size", 2) == 0
    assert backend.batches == [2, 2]  # the second one is filled up
    assert files(out) == ["a.jpg", "b.png", "sub/a.jpg"]
    drawn = np.asarray(Image.open(out / "b.png"))
    assert drawn.shape == (300, 400, 3)
    assert tuple(drawn[150, 100]) not in [(0, 0, 255), (20, 20, 20)]  # the frame on the left edge
    entries = json.loads(results.read_text())
    assert [e["image_id"] for e in entries] == ["a.jpg", "a.jpg", "b.png", "sub/a.jpg"]
    assert entries[2] == {"image_id": "b.png", "category_id": 90, "bbox": [100, 75, 200, 150], "score": 0.98201}
    printed = capsys.readouterr().out
    assert f"{folder / 'a.jpg'}: 1 red, 1 green\n" in printed
    assert "4 objects in 3 images\n" in printed


def test_threshold_and_json_alone(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("model", folder / "a.jpg", "--json", "r.json", "--threshold", 0.99) == 0
    assert json.loads((tmp_path / "r.json").read_text()) == []
    assert not (tmp_path / "predictions").exists()
    assert run("model", folder / "a.jpg") == 0
    assert files(tmp_path / "predictions") == ["a.jpg"]


@pytest.mark.parametrize(
    ("classes", "ids"),
    [
        (["red"], {7}),
        (["3"], {3}),
        (["red, 90"], {7, 90}),
        (["green", "--classes", "blue"], {3, 90}),
    ],
)
def test_class_filter(folder, tmp_path, classes, ids):
    assert run("model", folder, "--json", tmp_path / "r.json", "--classes", *classes) == 0
    assert {e["category_id"] for e in json.loads((tmp_path / "r.json").read_text())} == ids


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("gren", "the model has no class 'gren'; did you mean green?"),
        ("BLUE", "no class 'BLUE'; did you mean blue?"),
        ("red,12", "no class '12'; give names or ids of: red (7), green (3), blue (90)"),
        (",", "no class is named"),
    ],
)
def test_unknown_classes(folder, tmp_path, capsys, classes, message):
    assert run("model", folder, "--json", tmp_path / "r.json", "--classes", classes) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


def test_crops(folder, tmp_path):
    crops = tmp_path / "crops"
    assert run("model", folder, "--crops", crops) == 0
    assert files(crops) == ["blue/b_0.png", "green/a_1.jpg", "green/sub/a_0.jpg", "red/a_0.jpg"]
    blue = np.asarray(Image.open(crops / "blue" / "b_0.png"))
    assert blue.shape == (150, 200, 3)
    assert (blue == (0, 0, 255)).all()  # cut from the picture without frames


@pytest.fixture
def discs(folder, backend):
    """A model that makes masks, and a picture of two discs, which overlap their boxes only."""
    backend.mask_stride = 2
    image = scene(320, 240)
    shown = [with_disc(image, "red", 100, 120, 60), with_disc(image, "green", 230, 100, 50)]
    Image.fromarray(image).save(folder / "discs.png")
    return folder / "discs.png", shown


def overlap(a, b) -> float:
    return (a & b).sum() / (a | b).sum()


def test_masks_in_results_pictures_and_files(discs, tmp_path, capsys):
    picture, (red, green) = discs
    places = {f"--{name}": tmp_path / name for name in ("out", "crops", "labels", "masks")}
    outputs = [part for option in places.items() for part in option]
    assert run("model", picture, *outputs, "--json", tmp_path / "r.json") == 0
    printed = capsys.readouterr().out
    assert f"labels: {tmp_path / 'labels'}\nmasks: {tmp_path / 'masks'}\nCOCO results:" in printed

    entries = {entry["category_id"]: entry for entry in json.loads((tmp_path / "r.json").read_text())}
    assert entries[7]["segmentation"]["size"] == [240, 320]
    for number, mask in ((7, red), (3, green)):
        assert overlap(coco_mask.decode(entries[number]["segmentation"]).astype(bool), mask) > 0.95

    numbers = np.asarray(Image.open(tmp_path / "masks" / "discs.png"))
    objects = json.loads((tmp_path / "masks" / "discs.json").read_text())["objects"]
    assert [one["id"] for one in objects] == [1, 2]
    for one in objects:
        assert overlap(numbers == one["id"], {"red": red, "green": green}[one["name"]]) > 0.95
        assert one["area"] == (numbers == one["id"]).sum()
        assert {key: one[key] for key in ("category_id", "bbox", "score")} == {
            key: entries[one["category_id"]][key] for key in ("category_id", "bbox", "score")
        }

    lines = [line.split() for line in (tmp_path / "labels" / "discs.txt").read_text().splitlines()]
    assert [int(line[0]) for line in lines] == [{7: 0, 3: 1}[one["category_id"]] for one in objects]
    for line in lines:
        polygon = [float(value) * (320, 240)[i % 2] for i, value in enumerate(line[1:])]
        drawn = coco_mask.decode(coco_mask.frPyObjects([polygon], 240, 320))[..., 0].astype(bool)
        assert overlap(drawn, (red, green)[int(line[0])]) > 0.95

    assert files(tmp_path / "crops") == ["green/discs_1.png", "red/discs_0.png"]
    cut = np.asarray(Image.open(tmp_path / "crops" / "red" / "discs_0.png"))
    assert cut.shape == (120, 120, 4)
    assert overlap(cut[..., 3] == 255, red[60:180, 40:160]) > 0.95
    assert set(np.unique(cut[..., 3])) == {0, 255}

    marked = np.asarray(Image.open(tmp_path / "out" / "discs.png")).astype(int)
    assert abs(marked[120, 100] - [255, 0, 0]).max() > 20  # tinted
    assert (marked[200:, 200:] == 20).all()  # nothing is there


def test_mask_threshold_and_tiles(discs, tmp_path):
    areas = {}
    for name, arguments in {"half": [], "more": ["--mask-threshold", 0.02], "tiles": ["--tile", 160]}.items():
        assert run("model", discs[0], "--json", tmp_path / "r.json", "--classes", "red", *arguments) == 0
        (entry,) = json.loads((tmp_path / "r.json").read_text())
        areas[name] = int(coco_mask.area(entry["segmentation"]))
    assert areas["more"] > 1.01 * areas["half"]
    assert areas["tiles"] == pytest.approx(areas["half"], rel=0.05)
    assert run("model", discs[0], "--json", tmp_path / "r.json", "--mask-threshold", 2) == 2


def test_labels_are_boxes_of_models_without_masks(folder, tmp_path):
    assert run("model", folder, "--labels", tmp_path / "labels", "--classes", "blue,red") == 0
    assert files(tmp_path / "labels") == ["a.txt", "b.txt", "sub/a.txt"]
    assert (tmp_path / "labels" / "b.txt").read_text() == "2 0.5 0.5 0.5 0.5\n"
    assert (tmp_path / "labels" / "sub" / "a.txt").read_text() == ""  # looked at, and nothing found


def test_masks_are_refused_of_models_without(folder, tmp_path, capsys):
    assert run("model", folder, "--masks", tmp_path / "masks") == 2
    assert errors(capsys) == ["dfine: error: --masks: model makes boxes and no masks; leave it away"]


def test_files_of_pictures_that_differ_in_their_ending_alone(folder, discs, tmp_path):
    Image.open(folder / "a.jpg").save(folder / "a.png")
    assert run("model", folder / "a.jpg", folder / "a.png", "--masks", tmp_path / "m", "--crops", tmp_path / "c") == 0
    assert files(tmp_path / "m") == ["a.json", "a.png", "a_2.json", "a_2.png"]
    assert files(tmp_path / "c") == ["green/a_1.png", "green/a_2_1.png", "red/a_0.png", "red/a_2_0.png"]


def test_masks_do_not_replace_pictures(discs, tmp_path, capsys):
    assert run("model", discs[0], "--masks", discs[0].parent) == 2
    assert "the drawn result would replace" in capsys.readouterr().err


def test_masks_of_frames(clip, tmp_path, backend):
    backend.mask_stride = 2
    out = [tmp_path / name for name in ("out", "m", "l")]
    assert run("model", clip, "--out", out[0], "--masks", out[1], "--labels", out[2], "--every", 5) == 0
    assert files(out[0]) == ["clip.mp4"]
    assert files(out[1]) == ["clip_000000.json", "clip_000000.png", "clip_000005.json", "clip_000005.png"]
    assert len((out[2] / "clip_000005.txt").read_text().splitlines()) == 2


def test_tiles_find_what_the_shrunk_picture_hides(tmp_path):
    spots = [("red", x, 301, x + 9, 309) for x in range(20, 1600, 130)]
    Image.fromarray(scene(1640, 700, *spots)).save(tmp_path / "wide.png")
    results = tmp_path / "r.json"
    assert run("model", tmp_path / "wide.png", "--json", results) == 0
    assert json.loads(results.read_text()) == []
    for tile in ("auto", "200", "160x320"):
        assert run("model", tmp_path / "wide.png", "--json", results, "--tile", tile, "--batch-size", 4) == 0
        boxes = sorted(e["bbox"] for e in json.loads(results.read_text()))
        np.testing.assert_allclose(boxes, [[x0, y0, x1 - x0, y1 - y0] for _, x0, y0, x1, y1 in spots], atol=2)


def test_video_to_video_and_results(clip, tmp_path, capsys):
    out, results = tmp_path / "out", tmp_path / "r.json"
    assert run("model", clip, "--out", out, "--json", results, "--batch-size", 4) == 0
    entries = json.loads(results.read_text())
    reds = [e for e in entries if e["category_id"] == 7]
    assert [e["frame"] for e in reds] == list(range(10))
    assert [e["time_s"] for e in reds] == [i / 10 for i in range(10)]
    assert [e["image_id"] for e in reds] == [f"clip.mp4#{i}" for i in range(10)]
    np.testing.assert_allclose([e["bbox"] for e in reds], [[20 + 8 * i, 20, 40, 40] for i in range(10)], atol=2)
    assert [e["frame"] for e in entries if e["category_id"] == 3] == [1, 3, 5, 7, 9]
    with VideoReader(str(out / "clip.mp4")) as reader:
        frames = list(reader)
    np.testing.assert_allclose([f.time_s for f in frames], np.arange(10) / 10, atol=1e-3)
    assert np.abs(frames[0].image[40, 20].astype(int) - (255, 0, 0)).max() > 40  # a frame is drawn on the edge
    assert np.abs(frames[0].image[40, 40].astype(int) - (255, 0, 0)).max() < 40  # and not inside
    printed = capsys.readouterr().out
    assert "clip.mp4: 10 frames at " in printed
    assert "10 red, 5 green\n" in printed
    assert "15 objects in 10 frames\n" in printed


def test_frames_are_skipped_and_keep_their_times(clip, tmp_path):
    arguments = ("--json", tmp_path / "r.json", "--out", tmp_path, "--crops", tmp_path / "crops", "--classes", "red")
    (tmp_path / "in").mkdir()
    clip = clip.rename(tmp_path / "in" / "clip.mp4")
    assert run("model", clip, "--every", 3, "--seconds", 0.8, *arguments) == 0
    entries = json.loads((tmp_path / "r.json").read_text())
    assert [(e["frame"], e["time_s"]) for e in entries] == [(0, 0.0), (3, 0.3), (6, 0.6)]
    assert files(tmp_path / "crops") == [f"red/clip_{i:06d}_0.jpg" for i in (0, 3, 6)]
    with VideoReader(str(tmp_path / "clip.mp4")) as reader:
        np.testing.assert_allclose([f.time_s for f in reader], [0, 0.3, 0.6], atol=1e-3)


def test_a_folder_of_both_with_a_damaged_video(folder, clip, tmp_path, capsys):
    clip.rename(folder / "clip.mp4")
    (folder / "broken.avi").write_text("no video")
    assert run("model", folder, "--json", tmp_path / "r.json") == 1
    ids = {str(e["image_id"]).partition("#")[0] for e in json.loads((tmp_path / "r.json").read_text())}
    assert ids == {"a.jpg", "b.png", "sub/a.jpg", "clip.mp4"}
    captured = capsys.readouterr()
    assert "19 objects in 3 images and 10 frames\n" in captured.out
    assert f"{folder / 'broken.avi'} cannot be opened" in captured.err


def test_a_single_unreadable_video_is_the_error(tmp_path, capsys):
    pytest.importorskip("av")
    (tmp_path / "broken.avi").write_text("no video")
    assert run("model", tmp_path / "broken.avi", "--json", tmp_path / "r.json") == 2
    assert "broken.avi cannot be opened" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
def test_ctrl_c_leaves_complete_files(clip, tmp_path):
    """A run in its own process, interrupted by a real signal once frames are done."""
    program = f"""
        import sys, time
        sys.path.insert(0, {str(TESTS)!r})
        import rectangles
        from dfine_jax import cli
        from dfine_jax.commands import predict
        from dfine_jax.prediction import detector

        class Slow(rectangles.RectangleBackend):
            def predict(self, images):
                time.sleep(0.15)
                if len(self.batches) == 3:
                    print("go", flush=True)
                return super().predict(images)

        detector.open_model = lambda *_, **__: rectangles.opened(Slow(), (160, 160))
        predict.require_model = lambda model: None
        sys.exit(cli.main(sys.argv[1:]))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), "predict", "model", str(clip), "--out", "out"]
    with subprocess.Popen(
        [*command, "--json", "r.json"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted; the files hold what was done until then" in err
    assert "Traceback" not in err
    frames = {e["frame"] for e in json.loads((tmp_path / "r.json").read_text())}
    assert frames == set(range(len(frames)))
    assert 3 <= len(frames) < 10
    with VideoReader(str(tmp_path / "out" / "clip.mp4")) as reader:
        assert len(list(reader)) == len(frames)
    assert f"clip.mp4: {len(frames)} frames" in out


def test_ctrl_c_is_how_a_live_stream_ends(tmp_path, backend, monkeypatch, capsys):
    pytest.importorskip("av")
    monkeypatch.setattr(video, "_TIMEOUT_S", (10.0, 0.5))
    buffer = io.BytesIO()
    write_video(buffer, moving(30), container="mpegts")
    listener = socket.create_server(("127.0.0.1", 0))
    clients = []

    def send() -> None:
        clients.append(listener.accept()[0])
        clients[0].sendall(buffer.getvalue())  # and stays connected

    detect = backend.detect

    def detect_and_press(images, *arguments):
        if len(backend.batches) == 3:
            signal.raise_signal(signal.SIGINT)
        return detect(images, *arguments)

    monkeypatch.setattr(backend, "detect", detect_and_press)
    threading.Thread(target=send, daemon=True).start()
    with listener:
        source = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        assert run("model", source, "--out", tmp_path / "out", "--json", tmp_path / "r.json") == 0
        clients[0].close()
    (path,) = (tmp_path / "out").iterdir()
    with VideoReader(str(path)) as reader:
        assert len(list(reader)) == 3
    assert len({e["frame"] for e in json.loads((tmp_path / "r.json").read_text())}) == 3
    assert f"{source}: 3 frames" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--tile", "32x40", "--batch-size", "3"], ["--classes", "bee,90"]])
def test_every_backend_gives_the_same_with_the_same_options(tmp_path, monkeypatch, arguments):
    """A network in JAX and its hand-written ONNX graph in two runtimes, on a picture and a video."""
    for module in ("onnx", "onnxruntime", "openvino", "av"):
        pytest.importorskip(module)
    from toy_artefact import HEIGHT, IDS, NAMES, WIDTH, toy_model, write_toy

    monkeypatch.undo()
    model, variables = toy_model()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (90, 70, 3), np.uint8)).save(tmp_path / "noise.png")
    frames = [np.kron(rng.integers(0, 256, (8, 10, 3), np.uint8), np.ones((8, 8, 1), np.uint8)) for _ in range(3)]
    write_video(tmp_path / "noise.mp4", frames)
    file = write_toy(tmp_path / "toy.onnx", variables)
    inputs = [file, tmp_path / "noise.png", tmp_path / "noise.mp4", "--threshold", 0.3, *arguments]

    assert run(*inputs, "--json", tmp_path / "ort.json") == 0
    assert run(*inputs, "--json", tmp_path / "ov.json", "--runtime", "openvino", "--threads", 1) == 0
    in_jax = OpenedModel(JaxBackend(model, variables), Classes(NAMES, IDS), Preprocess(HEIGHT, WIDTH), None)
    monkeypatch.setattr(detector, "open_model", lambda *_, **__: in_jax)
    assert run(*inputs, "--json", tmp_path / "jax.json") == 0

    expected = json.loads((tmp_path / "jax.json").read_text())
    assert {e["image_id"] for e in expected} == {"noise.png", "noise.mp4#0", "noise.mp4#1", "noise.mp4#2"}
    for name in ("ort", "ov"):
        entries = json.loads((tmp_path / f"{name}.json").read_text())
        assert [(e["image_id"], e["category_id"]) for e in entries] == [
            (e["image_id"], e["category_id"]) for e in expected
        ]
        for key, atol in (("bbox", 0.05), ("score", 1e-4)):
            np.testing.assert_allclose([e[key] for e in entries], [e[key] for e in expected], atol=atol)


def test_exported_files_are_predicted_with_without_jax(folder, clip, tmp_path):
    for module in ("onnx", "onnxruntime"):
        pytest.importorskip(module)
    from toy_artefact import toy_model, write_toy

    file = write_toy(tmp_path / "toy.onnx", toy_model()[1])
    code = "import sys; from dfine_jax import cli; status = cli.main(sys.argv[1:]); "
    code += "print(status, [m for m in ('jax', 'flax', 'torch') if m in sys.modules])"
    command = [sys.executable, "-c", code, "predict", file, folder, clip, "--out", tmp_path / "out", "--tile", "200"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert files(tmp_path / "out") == ["a.jpg", "b.png", "clip.mp4", "sub/a.jpg"]


def test_ids_from_annotations(folder, tmp_path):
    annotations, results = tmp_path / "a.json", tmp_path / "r.json"
    images = [{"file_name": "a.jpg", "id": 5}, {"file_name": "sub/a.jpg", "id": 6}, {"file_name": "b.png", "id": 9}]
    annotations.write_text(json.dumps({"images": images}))
    assert run("model", folder, "--json", results, "--annotations", annotations) == 0
    assert [e["image_id"] for e in json.loads(results.read_text())] == [5, 5, 9, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a COCO annotation file"),
        ('{"images": []}', "has no image 'a.jpg' (3 of 3 are absent)"),
    ],
)
def test_wrong_annotations(folder, tmp_path, capsys, text, message):
    annotations = tmp_path / "a.json"
    annotations.write_text(text)
    assert run("model", folder, "--json", tmp_path / "r.json", "--annotations", annotations) == 2
    assert f"{annotations} {message}" in capsys.readouterr().err


def test_a_corrupt_image_among_others_is_named_and_the_rest_is_done(folder, tmp_path, capsys):
    (folder / "aa.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    results = tmp_path / "r.json"
    assert run("model", folder, "--json", results, "--batch-size", 2) == 1
    assert [e["image_id"] for e in json.loads(results.read_text())] == ["a.jpg", "a.jpg", "b.png", "sub/a.jpg"]
    (error,) = errors(capsys)
    assert str(folder / "aa.jpg") in error


def test_a_single_corrupt_image_is_the_error(tmp_path, capsys):
    broken = tmp_path / "x.png"
    broken.write_bytes(b"no picture")
    assert run("model", broken, "--out", tmp_path / "out") == 2
    assert f"image {broken} is not a picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "{f}/none.jpg"], "{f}/none.jpg does not exist; give an image, a folder, a video"),
        (["model", "{f}/empty"], "folder {f}/empty holds no images"),
        (["model", "{f}", "--out", "{f}"], "the drawn result would replace {f}/a.jpg; choose another --out"),
        (["model", "{f}", "--out", "{f}/b.png"], "--out {f}/b.png is a file; give a folder"),
        (["model", "{f}", "--crops", "{f}/b.png"], "--crops {f}/b.png is a file; give a folder"),
        (["model", "{f}", "--json", "{f}/no/r.json"], "--json {f}/no/r.json: folder {f}/no does not exist; create it"),
        (["model", "{f}", "--json", "{f}"], "--json {f} is a folder; give a file"),
        (["moddel", "{f}", "--font", "{f}/no.ttf"], "font {f}/no.ttf does not exist; give a TrueType"),
        (["moddel", "{f}", "--font", "{f}/notes.txt"], "font {f}/notes.txt cannot be read as a font"),
        (["moddel", "{f}", "--tile", "big"], "--tile big is no size; write auto, 800, or height x width"),
        (["moddel", "{f}", "--tile", "8"], "8x8 pixels is too small"),
        (["moddel", "{f}", "--tile", "auto", "--overlap", "1"], "overlap=1.0 of tiles must lie between 0 and 0.8"),
        (["moddel", "{f}", "--every", "0"], "--every 0 must be at least 1"),
        (["moddel", "{f}", "--seconds", "-1"], "--seconds -1 must be positive"),
        (["moddel", "{f}", "--annotations", "{f}/no.json"], "{f}/no.json: No such file or directory; check the name"),
        (["moddel", "{f}"], "moddel is no model"),
    ],
)
def test_errors(folder, capsys, arguments, message):
    (folder / "empty").mkdir()
    assert run(*(a.format(f=folder) for a in arguments)) == 2
    assert message.format(f=folder) in capsys.readouterr().err


def test_annotations_and_videos_do_not_go_together(clip, capsys):
    assert run("model", clip, "--annotations", "a.json") == 2
    assert "--annotations gives ids to images only" in capsys.readouterr().err


def test_a_second_run_does_not_detect_in_its_own_results(folder, clip):
    out = folder / "drawn"
    clip.rename(folder / "clip.mp4")
    assert run("model", folder, "--out", out, "--crops", folder / "crops") == 0
    inputs = find_inputs([str(folder)], exclude=[out, folder / "crops"])
    assert [p.name for p in inputs.pictures] == ["a.jpg", "b.png", "sub/a.jpg"]
    assert [c.name for c in inputs.clips] == ["clip.mp4"]


def test_same_names_from_several_sources_do_not_overwrite_each_other(folder, tmp_path):
    out = tmp_path / "out"
    assert run("model", folder / "a.jpg", folder / "sub" / "a.jpg", "--out", out) == 0
    assert sorted(p.name for p in out.iterdir()) == ["a.jpg", "a_2.jpg"]
    assert Image.open(out / "a_2.jpg").size == (640, 480)


def test_names_of_streams_hide_passwords_and_are_files():
    sources = ["rtsp://me:secret@10.0.0.7:554/live.sdp?token=1", "http://host/a/b.mp4", "0", "/dev/video0"]
    inputs = find_inputs(sources)
    assert [c.name for c in inputs.clips] == [
        "rtsp://10.0.0.7:554/live.sdp?token=1", "http://host/a/b.mp4", "camera0", "camera0",
    ]  # fmt: skip
    assert [p.as_posix() for p in result_files(inputs)[1]] == [
        "10.0.0.7_554_live.sdp.mp4", "host_a_b.mp4.mp4", "camera0.mp4", "camera0_2.mp4",
    ]  # fmt: skip
