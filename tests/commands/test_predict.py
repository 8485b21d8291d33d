"""``dfine predict``: which images, which ids, what is written, what is reported."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dfine_jax import cli, detector
from dfine_jax.backends.base import Backend
from dfine_jax.commands import predict
from dfine_jax.data.images import Preprocess
from dfine_jax.detector import Classes
from dfine_jax.errors import UserError


class StubBackend(Backend):
    """Two boxes on every image: a certain one and an unlikely one."""

    def predict(self, images):
        logits = np.full((len(images), 2, 2), -9.0, np.float32)
        logits[:, 0, 1], logits[:, 1, 0] = 3.0, -1.0
        boxes = np.array([[0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.2, 0.2]], np.float32)
        return logits, np.broadcast_to(boxes, (len(images), 2, 4))


@pytest.fixture(autouse=True)
def stub_detector(monkeypatch):
    class StubDetector(detector.Detector):
        def __init__(self, model, threshold, *, batch_size):
            if model != "model":
                raise UserError(f"{model} is no model")
            self.threshold, self.batch_size, self.num_top = threshold, batch_size, 300
            self.classes = Classes(("dog", "cat"), (18, 17))
            self.input_size_px = (64, 64)
            self._preprocess, self._backend = Preprocess(64, 64), StubBackend()

    monkeypatch.setattr(detector, "Detector", StubDetector)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for name, size in (("b.png", (400, 300)), ("a.jpg", (320, 320)), ("sub/a.jpg", (640, 480))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (120, 130, 140)).save(root / name)
    (root / "notes.txt").write_text("not an image")
    return root


def run(*arguments) -> int:
    return cli.main(["predict", *map(str, arguments)])


def test_folder_to_pictures_and_results(folder, tmp_path, capsys):
    out, results = tmp_path / "out", tmp_path / "results.json"
    assert run("model", folder, "--out", out, "--json", results, "--batch-size", 2) == 0
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == ["a.jpg", "b.png", "sub/a.jpg"]
    drawn = np.asarray(Image.open(out / "b.png"))
    assert drawn.shape == (300, 400, 3)
    assert tuple(drawn[150, 100]) != (120, 130, 140)  # left edge of the box
    entries = json.loads(results.read_text())
    assert [e["image_id"] for e in entries] == ["a.jpg", "b.png", "sub/a.jpg"]
    assert entries[1] == {"image_id": "b.png", "category_id": 17, "bbox": [100, 75, 200, 150], "score": 0.95257}
    printed = capsys.readouterr().out
    assert f"{folder / 'a.jpg'}: 1 cat\n" in printed
    assert "3 objects in 3 images\n" in printed


def test_threshold(folder, tmp_path):
    results = tmp_path / "r.json"
    assert run("model", folder / "a.jpg", "--json", results, "--threshold", 0.1) == 0
    assert [e["category_id"] for e in json.loads(results.read_text())] == [17, 18]
    assert not (tmp_path / "predictions").exists()  # --json alone draws nothing


def test_ids_from_annotations(folder, tmp_path):
    annotations, results = tmp_path / "a.json", tmp_path / "r.json"
    images = [{"file_name": "a.jpg", "id": 5}, {"file_name": "sub/a.jpg", "id": 6}, {"file_name": "b.png", "id": 9}]
    annotations.write_text(json.dumps({"images": images}))
    assert run("model", folder, "--json", results, "--annotations", annotations) == 0
    assert [e["image_id"] for e in json.loads(results.read_text())] == [5, 9, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a COCO annotation file"),
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
    assert [e["image_id"] for e in json.loads(results.read_text())] == ["a.jpg", "b.png", "sub/a.jpg"]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dfine: error:")]
    assert len(errors) == 1
    assert str(folder / "aa.jpg") in errors[0]


def test_a_single_corrupt_image_is_the_error(tmp_path, capsys):
    broken = tmp_path / "x.png"
    broken.write_bytes(b"no picture")
    assert run("model", broken, "--out", tmp_path / "out") == 2
    assert f"image {broken} is not a picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "{f}/none.jpg"], "{f}/none.jpg does not exist"),
        (["model", "{f}/empty"], "folder {f}/empty holds no images"),
        (["model", "{f}", "--out", "{f}"], "the drawn picture would replace {f}/a.jpg; choose another --out"),
        (["model", "{f}", "--json", "{f}/no/r.json"], "folder {f}/no of {f}/no/r.json does not exist"),
        (["moddel", "{f}"], "moddel is no model"),
    ],
)
def test_errors(folder, capsys, arguments, message):
    (folder / "empty").mkdir()
    assert run(*(a.format(f=folder) for a in arguments)) == 2
    assert message.format(f=folder) in capsys.readouterr().err


def test_a_second_run_does_not_detect_in_its_own_pictures(folder):
    out = folder / "drawn"
    assert run("model", folder, "--out", out) == 0
    assert [p.name for p in predict.find_pictures([str(folder)], exclude=out)] == ["a.jpg", "b.png", "sub/a.jpg"]


def test_same_names_from_several_sources_do_not_overwrite_each_other(folder, tmp_path):
    out = tmp_path / "out"
    assert run("model", folder / "a.jpg", folder / "sub" / "a.jpg", "--out", out) == 0
    assert sorted(p.name for p in out.iterdir()) == ["a.jpg", "a_2.jpg"]
    assert Image.open(out / "a_2.jpg").size == (640, 480)
