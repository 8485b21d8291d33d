"""``dfine serve`` as it is started, asked and stopped."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")
pytest.importorskip("onnxruntime")

from rectangles import RectangleBackend, opened
from toy_artefact import CHANNELS, NAMES, write_toy

from dfine_jax import Detector, cli

sys.path.append(str(Path(__file__).resolve().parent.parent / "server"))
from running import ask, encoded, form, post

DOCS = Path(__file__).resolve().parents[2] / "docs"
PIXELS = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)


def variables():
    """Of the toy model, without a program that makes them."""
    rng = np.random.default_rng(1)
    shapes = {"stem": (3, 3, 3, CHANNELS), "score_head": (CHANNELS, len(NAMES)), "box_head": (CHANNELS, 4)}
    layers = {name: {"kernel": shape, "bias": shape[-1:]} for name, shape in shapes.items()}
    draw = lambda shape: rng.normal(0, 0.6, shape).astype(np.float32)  # noqa: E731
    return {"params": {name: {part: draw(shape) for part, shape in parts.items()} for name, parts in layers.items()}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("model") / "toy.onnx", variables())


def test_the_best_threshold_is_said_to_be_that():
    from dfine_jax.commands.serve import _description
    from dfine_jax.server.engine import Engine

    model = opened(RectangleBackend(), (64, 64))._replace(best_threshold=0.43)
    assert "input 64x64, threshold 0.43 (best F1); " in _description(Engine(model), "m", None)
    assert "input 64x64, threshold 0.3; " in _description(Engine(model, threshold=0.3), "m", None)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_an_exported_file_is_served_without_jax_until_a_signal(model, stop):
    code = "import sys\nfrom dfine_jax.cli import main\nstatus = main()\n"
    code += "assert 'jax' not in sys.modules\nsys.exit(status)"
    command = [sys.executable, "-c", code, "serve", str(model), "--port", "0", "--threshold", "0.3", "--batch", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None and server.stderr is not None
            told = server.stdout.readline() + server.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:(\d+) is the page", told)
            assert found, told + server.stderr.read()
            assert "3 classes, input 48x64, threshold 0.3; onnxruntime on CPU, batches of up to 4 pictures" in told
            port = int(found[1])
            body, kind = form(("file", encoded(PIXELS), "photo.png"))
            answers = [post(port, encoded(PIXELS)).json, post(port, body, Content_Type=kind).json]
            assert ask(port, "GET", "/health").json["pictures"] == 2
            client = program(DOCS / "serve.md")["detect"]
            answers.append(client(encoded(PIXELS), f"http://127.0.0.1:{port}", threshold=0.3))
            taken = cli_status("serve", str(model), "--port", str(port))
        finally:
            server.send_signal(stop)
            _, log = server.communicate(timeout=30)
    assert server.returncode == 0 and log.endswith("dfine: stopped; all requests are answered\n"), log
    expected = Detector(model, threshold=0.3)(Image.fromarray(PIXELS))
    assert len(expected) > 0
    for answer in answers:
        assert answer["objects"] == expected.to_dict()["objects"]
    assert taken == (
        2,
        f"dfine: error: port {port} of 127.0.0.1 is taken by another program; stop it, or give --port {port + 1}\n",
    )


def program(document: Path) -> dict:
    """What the program that is printed in a document defines."""
    (code,) = re.findall(r"^```python\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    defined: dict = {}
    exec(code, defined)
    return defined


def cli_status(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "dfine_jax", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "--port 70000 must lie between 0 and 65535"),
        (["--host", "no such host"], "--host no such host is no address; 127.0.0.1 is this machine"),
        (["--cors", "example.org"], "--cors example.org is no origin; write it as https://example.org"),
        (["--max-mb", "0"], "must be positive"),
        (["--threshold", "2"], "threshold=2.0 must lie between 0 and 1"),
        (["--batch", "0"], "batch 0 must be at least 1"),
        (["--threads", "0"], "threads=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_one_line(model, capsys, options, message):
    assert cli.main(["serve", str(model), "--port", "0", *options]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("dfine: error: ") and printed.count("\n") == 1 and message in printed


def test_a_model_that_is_not_there_is_told_before_anything_else(capsys):
    assert cli.main(["serve", "nothing.onnx"]) == 2
    assert "nothing.onnx" in capsys.readouterr().err


def test_a_file_of_one_picture_cannot_have_batches(tmp_path, capsys):
    single = write_toy(tmp_path / "one.onnx", variables(), input={"batch": 1})
    assert cli.main(["serve", str(single), "--port", "0", "--batch", "8"]) == 2
    assert "the file runs batches of 1 and no others" in capsys.readouterr().err


def test_a_missing_extra_is_named_with_its_command(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert cli.main(["serve", str(model), "--port", "0"]) == 2
    assert re.search(r"dfine serve needs uvicorn, .* extra serve .*: pip install .*\[serve\]", capsys.readouterr().err)


@pytest.mark.skipif(os.geteuid() == 0, reason="administrators may have any port")
def test_reserved_ports(model, capsys):
    assert cli.main(["serve", str(model), "--port", "1"]) == 2
    assert "port 1 is reserved" in capsys.readouterr().err


def test_a_port_that_somebody_else_has(model, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert cli.main(["serve", str(model), "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 is taken by another program" in capsys.readouterr().err
