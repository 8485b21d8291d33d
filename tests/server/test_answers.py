"""Requests that are right: pictures in every wrapping, parameters, forms of the answer."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from rectangles import RectangleBackend, opened, scene

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from running import ask, encoded, form, post, serving

from dfine_jax.prediction.detector import Detector
from dfine_jax.server.answers import image_ids
from dfine_jax.server.engine import Engine
from dfine_jax.server.limits import Limits

SCENE = scene(96, 64, ("red", 8, 8, 40, 30), ("blue", 50, 20, 90, 60))
PNG = encoded(SCENE)


@pytest.fixture(scope="module")
def port():
    with serving(Engine(opened(), threshold=0.3)) as port:
        yield port


@pytest.fixture(scope="module")
def masks_port():
    with serving(Engine(opened(RectangleBackend(mask_stride=4)), threshold=0.3)) as port:
        yield port


def test_a_picture_in_every_wrapping_is_the_same_as_for_the_detector(port):
    expected = Detector(opened(), threshold=0.3)(SCENE)
    body, kind = form(("file", PNG, "photo.png"))
    text = base64.b64encode(PNG).decode()
    answers = [
        post(port, PNG),
        post(port, PNG, Content_Type="image/png"),
        post(port, PNG, Content_Type="application/x-www-form-urlencoded"),  # what curl --data-binary says
        post(port, body, Content_Type=kind),
        post(port, json.dumps({"image": text}), Content_Type="application/json"),
        post(
            port, json.dumps({"image": f"data:image/png;base64,{text}"}), Content_Type="application/json; charset=utf-8"
        ),
        post(port, iter([PNG[:100], PNG[100:]])),  # in chunks, of unknown length
    ]
    for answer in answers:
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json"), answer.body
        assert answer.json["size"] == [96, 64]
        assert answer.json["objects"] == expected.to_dict()["objects"]
        assert set(answer.json["times_ms"]) == {"decode", "wait", "network"}
    assert [entry["name"] for entry in answers[0].json["objects"]] == ["red", "blue"]


def test_an_orientation_is_applied(port):
    exif = Image.Exif()
    exif[0x0112] = 6
    answer = post(port, encoded(SCENE, "JPEG", quality=98, exif=exif)).json
    assert answer["size"] == [64, 96]
    red = next(entry for entry in answer["objects"] if entry["name"] == "red")
    np.testing.assert_allclose(red["box"], [64 - 30, 8, 64 - 8, 40], atol=2)


def test_other_kinds_of_pictures_are_read(port):
    for kind in ("WEBP", "GIF", "BMP", "TIFF"):
        assert len(post(port, encoded(SCENE, kind)).json["objects"]) == 2, kind


def test_threshold_and_classes_are_of_each_request(port):
    names = lambda answer: [entry["name"] for entry in answer.json["objects"]]  # noqa: E731
    assert names(post(port, PNG, "?threshold=0.999")) == []
    assert names(post(port, PNG, "?classes=blue")) == ["blue"]
    assert names(post(port, PNG, "?classes=7")) == ["red"]  # the id of the data
    assert names(post(port, PNG, "?classes=blue,green&classes=7")) == ["red", "blue"]
    body, kind = form(("file", PNG, "a.png"), ("classes", "blue"))
    assert names(post(port, body, Content_Type=kind)) == ["blue"]
    values = {"image": base64.b64encode(PNG).decode(), "classes": ["blue"], "threshold": 0.2}
    assert names(post(port, json.dumps(values), Content_Type="application/json")) == ["blue"]


def test_several_pictures_come_back_in_their_order(port):
    other = encoded(scene(50, 40, ("green", 5, 5, 30, 30)))
    body, kind = form(("file", PNG, "a.png"), ("file", other, "C:\\folder\\b.png"))
    results = post(port, body, Content_Type=kind).json["results"]
    assert [(entry["file"], entry["size"]) for entry in results] == [("a.png", [96, 64]), ("b.png", [50, 40])]
    assert [entry["name"] for entry in results[1]["objects"]] == ["green"]


def test_coco_results(port):
    body, kind = form(("file", PNG, "a.png"), ("file", PNG, "b.png"))
    entries = post(port, body, "?format=coco", Content_Type=kind).json
    assert [entry["image_id"] for entry in entries] == ["a.png", "a.png", "b.png", "b.png"]
    assert entries[0]["category_id"] == 7
    np.testing.assert_allclose(entries[0]["bbox"], [8, 8, 32, 22], atol=1)


def test_coco_results_of_equal_names_have_ids_of_their_own(port):
    body, kind = form(("file", PNG, "a.png"), ("file", PNG, "a.png"))
    entries = post(port, body, "?format=coco", Content_Type=kind).json
    assert [entry["image_id"] for entry in entries] == ["a.png", "a.png", "a.png (2)", "a.png (2)"]
    assert image_ids(["a.png", "", "a.png", "", "b.png"]) == ["a.png", 1, "a.png (2)", 3, "b.png"]


def test_drawn_pictures(port):
    plain = Detector(opened(), threshold=0.3)(PNG).draw()
    for answer in (post(port, PNG, "?format=png"), post(port, PNG, Accept="image/png, */*;q=0.1")):
        assert answer.headers["content-type"] == "image/png"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.body))), np.asarray(plain))
    assert post(port, PNG, "?format=jpg").headers["content-type"] == "image/jpeg"
    assert post(port, PNG, Accept="*/*").headers["content-type"] == "application/json"


def test_masks_are_outlines_run_lengths_or_left_out(masks_port):
    red = post(masks_port, PNG).json["objects"][0]
    (ring,) = red["polygons"]
    xs, ys = ring[::2], ring[1::2]
    np.testing.assert_allclose([min(xs), min(ys), max(xs), max(ys)], [8, 8, 40, 30], atol=4)
    runs = post(masks_port, PNG, "?masks=rle").json["objects"][0]
    assert (
        runs["segmentation"] == Detector(opened(RectangleBackend(4)), threshold=0.3)(PNG).to_coco(1)[0]["segmentation"]
    )
    assert "polygons" not in runs
    assert set(post(masks_port, PNG, "?masks=none").json["objects"][0]) == set(red) - {"polygons"}
    with_masks, without = (
        post(masks_port, PNG, "?format=png").body,
        post(masks_port, PNG, "?format=png&masks=none").body,
    )
    assert with_masks != without


def test_health_metadata_and_the_page(port):
    health = ask(port, "GET", "/health").json
    assert health["status"] == "ok" and health["requests"] == 0
    metadata = ask(port, "GET", "/metadata").json
    assert metadata["class_names"] == ["red", "green", "blue"] and metadata["category_ids"] == [7, 3, 90]
    assert (metadata["threshold"], metadata["input"]["size_hw"]) == (0.3, [64, 64])
    assert metadata["limits"]["body_mb"] == 20 and metadata["engine"] == "server"
    page = ask(port, "GET", "/")
    assert page.headers["content-type"] == "text/html; charset=utf-8" and b"<title>" in page.body
    for name, kind in (("page.js", "text/javascript"), ("on_server.js", "text/javascript"), ("page.css", "text/css")):
        answer = ask(port, "GET", f"/{name}")
        assert answer.status == 200 and answer.headers["content-type"].startswith(kind), name
    assert ask(port, "GET", "/model.json").json == metadata


def test_pages_of_other_addresses_may_read_answers_only_when_told(port):
    foreign = {"Origin": "https://example.org"}
    assert "access-control-allow-origin" not in ask(port, "GET", "/health", headers=foreign).headers
    with serving(Engine(opened()), Limits(), origins=["https://example.org"]) as open_port:
        answer = ask(open_port, "GET", "/health", headers=foreign)
        assert answer.headers["access-control-allow-origin"] == "https://example.org"
        other = ask(open_port, "GET", "/health", headers={"Origin": "https://elsewhere.org"})
        assert "access-control-allow-origin" not in other.headers
