"""Requests that are wrong, and too many of them: a status of 4xx or 503 with the reason, never a trace."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from rectangles import opened, scene

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from running import ask, encoded, form, post, serving

from dfine_jax.server.engine import Engine
from dfine_jax.server.limits import Limits

PNG = encoded(scene(96, 64, ("red", 8, 8, 40, 30)))
LIMITS = Limits(body_mb=0.5, megapixels=1, pictures=3)


@pytest.fixture(scope="module")
def port():
    with serving(Engine(opened(), megapixels=LIMITS.megapixels), LIMITS) as port:
        yield port
        assert post(port, PNG).status == 200  # after everything below


def bomb(side: int) -> bytes:
    """A small PNG file of many pixels."""
    with io.BytesIO() as stream:
        Image.new("1", (side, side)).save(stream, "PNG")
        return stream.getvalue()


def huge_png() -> bytes:
    """A PNG header that promises 10^10 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


JPEG = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "JPEG")
HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 64
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
TEXT = "data:image/png;base64," + base64.b64encode(PNG).decode()


def as_form(*parts):
    body, kind = form(*parts)
    return body, "", {"Content_Type": kind}


def as_json(value):
    return json.dumps(value), "", {"Content_Type": "application/json"}


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        ((b"", "", {}), 400, "the body is empty"),
        ((b"no picture", "", {}), 415, "no picture that can be read"),
        ((EPS, "", {}), 415, "no picture that can be read"),
        ((HEIC, "", {}), 415, "HEIC pictures are not read; send JPEG, PNG or WebP"),
        ((JPEG[:700], "", {}), 400, "cannot be decoded"),
        ((PNG[:60], "", {}), 400, "cannot be decoded"),
        ((PNG[:20], "", {}), 400, "damaged"),
        ((bomb(1500), "", {}), 413, "1500x1500 pixels, 1 megapixels are the limit"),
        ((huge_png(), "", {}), 413, "megapixels"),
        ((b"\xff" * 600_000, "", {}), 413, "larger than 0.5 MB"),
        ((iter([b"\xff" * 300_000] * 2), "", {}), 413, "larger than 0.5 MB"),
        ((PNG, "", {"Content_Encoding": "gzip"}), 415, "content-encoding gzip"),
        ((PNG, "?threshold=2", {}), 400, "threshold=2.0 must lie between 0 and 1"),
        ((PNG, "?threshold=nan", {}), 400, "must lie between 0 and 1"),
        ((PNG, "?threshold=high", {}), 400, "threshold 'high' is no number"),
        ((PNG, "?threshold=0.1&threshold=0.2", {}), 400, "given 2 times"),
        ((PNG, "?conf=0.1", {}), 400, "unknown parameter 'conf'; did you mean threshold?"),
        ((PNG, "?zzz=1", {}), 400, "there are threshold, classes, format, masks"),
        ((PNG, "?classes=rad", {}), 400, "the model has no class 'rad'; did you mean red?"),
        ((PNG, "?format=xml", {}), 400, "format 'xml' is none of json, coco, png, jpeg"),
        ((PNG, "?masks=all", {}), 400, "masks 'all' is none of polygons, rle, none"),
        (as_form(("threshold", "0.5")), 400, "the form holds no file"),
        (as_form(("file", "photo.jpg")), 400, "field file of the form is text, not a file"),
        (as_form(("file", PNG, "a.png"), ("file", b"x", "b.png")), 415, "b.png: no picture"),
        (as_form(*[("file", PNG, "a.png")] * 4), 400, "Too many files"),
        (as_form(("file", PNG, "a.png"), ("note", "x" * 20_000)), 400, "the form cannot be read"),
        ((PNG, "", {"Content_Type": "multipart/form-data"}), 400, "Missing boundary"),
        ((PNG, "", {"Content_Type": "multipart/form-data; boundary=x"}), 400, "the form cannot be read"),
        (as_form(("file", PNG, "a.png"), ("file", PNG, "b.png"), ("format", "png")), 400, "one picture in a request"),
        (as_json([1]), 400, "no JSON object"),
        (("{", "", {"Content_Type": "application/json"}), 400, "no JSON object"),
        (as_json({"threshold": 0.5}), 400, "holds no image"),
        (as_json({"image": "!"}), 400, "not written in base64"),
        (as_json({"image": TEXT, "classes": {"a": 1}}), 400, "'classes' in the JSON is neither"),
        (as_json({"images": [TEXT] * 4}), 413, "4 pictures in one request; 3 are the limit"),
    ],
)
def test_a_wrong_request_is_told_why(port, request_, status, reason):
    body, query, headers = request_
    answer = post(port, body, query, **headers)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json"), answer.body
    assert list(answer.json) == ["error"] and reason in answer.json["error"]
    assert "Traceback" not in answer.json["error"] and "\n" not in answer.json["error"]


def test_addresses_and_methods(port):
    assert (ask(port, "GET", "/nothing").status, ask(port, "GET", "/../etc/passwd").status) == (404, 404)
    wrong = ask(port, "GET", "/detect")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST") and "POST /detect takes pictures" in wrong.json[
        "error"
    ]


def test_damaged_files_of_many_kinds_are_refused_and_do_no_harm(port):
    """Bytes of real files changed at random: whatever the decoders make of them, it is no failure of the server."""
    rng = np.random.default_rng(0)
    pixels = scene(60, 40, ("red", 5, 5, 20, 20))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        whole = np.frombuffer(encoded(pixels, kind), np.uint8)
        for _ in range(12):
            damaged = whole.copy()
            damaged[rng.integers(0, len(damaged), 6)] = rng.integers(0, 256, 6)
            answer = post(port, damaged[: rng.integers(8, len(damaged) + 1)].tobytes())
            assert answer.status in (200, 400, 413, 415), (kind, answer.body)
