"""Programs in docs/ run as they are printed."""

from __future__ import annotations

import http.client
import io
import json
import os
import pkgutil
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).resolve().parent.parent / "docs"


def program(document: str) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", (DOCS / document).read_text(), re.MULTILINE | re.DOTALL)
    return code


def ask(port: int, body: bytes) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/detect", body)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_the_server_answers_with_the_detections_of_the_file(tmp_path):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    pytest.importorskip("onnxruntime")
    from toy_artefact import toy_model, write_toy

    from dfine_jax import Detector

    model = write_toy(tmp_path / "toy.onnx", toy_model()[1])
    (tmp_path / "serve.py").write_text(program("serve.md") + "\nimport sys\nassert 'jax' not in sys.modules\n")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8))
    file = io.BytesIO()
    picture.save(file, "PNG")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "serve:app", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "MODEL": str(model)}, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            while "running on" not in (line := server.stderr.readline()):
                assert line, "the server ended"
            time.sleep(0.1)
            status, answer = ask(port, file.getvalue())
            assert ask(port, b"no picture")[0] == 400
        finally:
            server.terminate()
    expected = Detector(model, threshold=0.3)(picture)
    assert (status, answer["size"]) == (200, [80, 50])
    assert len(answer["objects"]) == len(expected) > 0
    assert [o["name"] for o in answer["objects"]] == list(expected.names)
    np.testing.assert_allclose([o["score"] for o in answer["objects"]], expected.scores, rtol=1e-5)
    np.testing.assert_allclose([o["box"] for o in answer["objects"]], expected.boxes_xyxy_px, rtol=1e-5)


def test_the_server_is_short():
    assert len([line for line in program("serve.md").splitlines() if line.strip()]) <= 30


def test_names_in_documents_exist():
    """Objects of the library that are named in running text, such as `dfine_jax.ops.platform.traced_for("other")`."""
    for document in [*DOCS.glob("*.md"), *DOCS.parent.glob("*.md")]:
        text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
        for name in re.findall(r"`(dfine_jax(?:\.\w+)+)", text):
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError):
                pytest.fail(f"{document.name} names {name}, which does not exist")


def test_files_in_documents_exist():
    """Paths below the repository or the package that are named in running text."""
    root = DOCS.parent
    for document in [*DOCS.glob("*.md"), root / "README.md", root / "CONTRIBUTING.md"]:
        for name in re.findall(r"`((?:\w+/)+\w+\.py)\b", document.read_text()):
            assert (root / name).is_file() or (root / "dfine_jax" / name).is_file(), f"{document.name} names {name}"


def test_functions_in_documents_exist():
    """`room/file.py::name`, above all the index of formulas."""
    root = DOCS.parent
    found = 0
    for document in [*DOCS.glob("*.md"), root / "README.md", root / "CONTRIBUTING.md"]:
        for file, name in re.findall(r"`((?:\w+/)+\w+\.py)::(\w+)`", document.read_text()):
            path = root / "dfine_jax" / file
            path = path if path.is_file() else root / file
            found += 1
            pattern = rf"^(?:def|class) {name}\b"
            assert re.search(pattern, path.read_text(), re.MULTILINE), f"{document.name}: {file} has no {name}"
    assert found >= 40


def test_python_in_documents_is_correct():
    for document in DOCS.glob("*.md"):
        for code in re.findall(r"^```python\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL):
            compile(code, str(document), "exec")
            for line in re.findall(r"^(?:from dfine_jax\S* import .*|import dfine_jax.*)$", code, re.MULTILINE):
                exec(line, {})
