"""A folder of the web export in a browser that is installed here: the folder's own engine looks at pictures."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dfine_jax.errors import UserError
from dfine_jax.serving.page_files import HEADERS, content_type

Backend = Literal["wasm", "webgpu"]
SETTING = "DFINE_BROWSER"  # environment: the browser's program; empty: none
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge", "msedge")
_ELSEWHERE = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
_FLAGS = ("--headless=new", "--no-first-run", "--no-default-browser-check", "--disable-extensions", "--mute-audio")
# The GPU where there is one, else Chromium's own in software, which takes minutes.
_GPU_FLAGS = ("--enable-unsafe-webgpu", "--enable-features=Vulkan")
_SOFTWARE_GPU_FLAGS = (
    "--use-webgpu-adapter=swiftshader", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
)  # fmt: skip
_OWN = "__check__"  # path of what is not of the folder
_PAGE = """<!doctype html><meta charset="utf-8"><title>check</title><script type="module" src="/__check__/check.js">
</script>"""
_SCRIPT = """
const post = (name, body) => fetch(`/__check__/${name}`, { method: "POST", body });
try {
  const model = await (await fetch("/model.json")).json();
  const count = Number(new URLSearchParams(location.search).get("pictures"));
  const { createEngine } = await import("/in_browser.js");
  const begin = performance.now();
  const engine = await createEngine(model, (text) => post("progress", text));
  const values = { backend: engine.describe(), created_ms: performance.now() - begin, runs: [] };
  for (let i = 0; i < count; i++) {
    const picture = await (await fetch(`/__check__/${i}.png`)).blob();
    const { size, outputs, times_ms } = await engine.outputs(picture);
    const shapes = {};
    for (const [name, { dims, data, type }] of Object.entries(outputs)) {
      shapes[name] = { dims, type };
      await post(`${i}.${name}`, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    }
    values.runs.push({ size, shapes, times_ms });
  }
  await post("done", JSON.stringify(values));
} catch (error) {
  await post("failed", String(error?.message || error));
}
"""


def find_browser() -> str | None:
    """The program of a Chromium, Chrome or Edge; None where there is none.

    Raises:
      UserError: ``DFINE_BROWSER`` names a program that does not exist.
    """
    chosen = os.environ.get(SETTING)
    if chosen is not None:
        if chosen and not shutil.which(chosen):
            raise UserError(f"{SETTING}={chosen} does not exist; name the program of a Chromium, Chrome or Edge")
        return shutil.which(chosen) if chosen else None
    found = (shutil.which(name) for name in (*_NAMES, *_ELSEWHERE))
    return next((path for path in found if path), None)


class Mailbox:
    """What a browser has posted."""

    def __init__(self) -> None:
        self.posted: dict[str, bytes] = {}
        self.ended = threading.Event()


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, mailbox: Mailbox, own: dict[str, bytes], isolated: bool, **kwargs: Any) -> None:
        self._mailbox, self._own, self._isolated = mailbox, own, isolated
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:  # noqa: N802
        name = self._own_name()
        if name is None:
            super().do_GET()
            return
        body = self._own.get(name)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Type", content_type(name))
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = self._own_name() or ""
        self._mailbox.posted[name] = body
        self.send_response(204)
        self.end_headers()
        if name in ("done", "failed"):
            self._mailbox.ended.set()

    def end_headers(self) -> None:
        for name, value in HEADERS.items() if self._isolated else ():
            self.send_header(name, value)
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def guess_type(self, path: str | os.PathLike[str]) -> str:
        return content_type(os.fspath(path))

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _own_name(self) -> str | None:
        path = urllib.parse.urlsplit(self.path).path
        return path.removeprefix(f"/{_OWN}/") if path.startswith(f"/{_OWN}/") else None


@contextlib.contextmanager
def serving(
    folder: Path, own: dict[str, bytes] | None = None, *, isolated: bool = True
) -> Iterator[tuple[str, Mailbox]]:
    """A folder on the loopback address while the block runs.

    Args:
      own: content of addresses below ``__check__``.
      isolated: with the headers that threads need; many static hosts send none.
    """
    mailbox = Mailbox()
    handler = functools.partial(_Handler, directory=str(folder), mailbox=mailbox, own=own or {}, isolated=isolated)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", mailbox
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def started(program: str, address: str, options: Sequence[str] = ()) -> Iterator[subprocess.Popen]:
    """A browser with a fresh profile at an address; it has ended when the block has."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        root = ("--no-sandbox",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()  # Chromium refuses else
        command = [program, *_FLAGS, *root, f"--user-data-dir={profile}", *options, address]
        silent = subprocess.DEVNULL
        process = subprocess.Popen(command, stdout=silent, stderr=silent, start_new_session=sys.platform != "win32")
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def look(
    folder: Path,
    pictures: Sequence[UInt8[np.ndarray, "h w 3"]],
    program: str,
    backend: Backend,
    *,
    software_gpu: bool = True,
    timeout_s: float = 600.0,
    threads: int | None = None,
) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """Outputs of the graph for each picture, and what the engine says: ``backend``, ``created_ms``, ``times_ms``.

    Args:
      software_gpu: WebGPU computes on the processor, as where there is no GPU.

    Raises:
      UserError: the browser ends or does not answer in time, or the engine fails.
    """
    own = {"check.html": _PAGE.encode(), "check.js": _SCRIPT.encode()}
    for i, picture in enumerate(pictures):
        with io.BytesIO() as stream:
            Image.fromarray(picture).save(stream, "PNG", compress_level=1)
            own[f"{i}.png"] = stream.getvalue()
    query = f"pictures={len(pictures)}&backend={backend}" + (f"&threads={threads}" if threads else "")
    with serving(folder, own) as (address, mailbox):
        with started(program, f"{address}/{_OWN}/check.html?{query}", flags(backend, software_gpu)) as process:
            wait(mailbox, process, timeout_s)
    values = json.loads(mailbox.posted["done"])
    values["times_ms"] = [run["times_ms"] for run in values["runs"]]
    return values, [_outputs(mailbox.posted, i, run["shapes"]) for i, run in enumerate(values.pop("runs"))]


def flags(backend: Backend, software_gpu: bool = True) -> list[str]:
    """What a browser is started with for a backend."""
    return [] if backend == "wasm" else [*_GPU_FLAGS, *(_SOFTWARE_GPU_FLAGS if software_gpu else ())]


def wait(mailbox: Mailbox, process: subprocess.Popen, timeout_s: float) -> None:
    """Until the page has posted ``done``; what it posts as ``progress`` is told where it does not.

    Raises:
      UserError: the browser ends or does not answer in time, or the page has posted ``failed``.
    """
    end = time.monotonic() + timeout_s
    while not mailbox.ended.wait(0.2):
        said = mailbox.posted.get("progress", b"nothing").decode("utf-8", "replace")
        if process.poll() is not None:
            raise UserError(f"the browser ended by itself (exit status {process.returncode}); last it said: {said}")
        if time.monotonic() > end:
            raise UserError(f"no answer within {timeout_s:.0f} s; last it said: {said}")
    if "failed" in mailbox.posted:
        raise UserError(mailbox.posted["failed"].decode("utf-8", "replace")[:400])


def _outputs(posted: dict[str, bytes], i: int, shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(posted[f"{i}.{name}"], np.dtype(shape["type"])).reshape(shape["dims"])
        for name, shape in shapes.items()
    }


def version(program: str) -> str:
    """What the browser calls itself."""
    try:
        found = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Path(program).name
    return " ".join(found.stdout.split()[:2]) or Path(program).name
