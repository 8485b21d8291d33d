"""A server within the tests: the application behind uvicorn on a free port, in a thread; and requests to it."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import uvicorn
from PIL import Image

from dfine_jax.server.app import application
from dfine_jax.server.engine import Engine
from dfine_jax.server.limits import Limits
from dfine_jax.server.run import bind


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextlib.contextmanager
def serving(engine: Engine, limits: Limits | None = None, **options: Any) -> Iterator[int]:
    """The port; ``around`` puts something around the application."""
    around = options.pop("around", lambda app: app)
    app = around(application(engine, "toy", limits or Limits(), **options))
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    with bind("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield bound.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


def ask(port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


def post(port: int, body: Any, query: str = "", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(port, "POST", f"/detect{query}", body, named)


def form(*parts: tuple[str, bytes | str] | tuple[str, bytes | str, str]) -> tuple[bytes, str]:
    """A form of (field, content[, file name]), and its content type."""
    out = b""
    for name, content, *file in parts:
        named = f'; filename="{file[0]}"' if file else ""
        content = content.encode() if isinstance(content, str) else content
        head = f'--limit\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
        out += head.encode() + content + b"\r\n"
    return out + b"--limit--\r\n", "multipart/form-data; boundary=limit"


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    with io.BytesIO() as stream:
        Image.fromarray(pixels).save(stream, kind, **options)
        return stream.getvalue()
