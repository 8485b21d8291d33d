"""Files of the page that shows pictures and what is found in them, for whoever serves or copies them.

``index.html``, ``page.css``, ``page.js`` and ``draw.js`` are the page. ``model.json``, which the caller writes beside
them, says what model it is and which engine runs it: ``in_browser.js`` (ONNX Runtime Web, with those of ``BROWSER``)
or ``on_server.js``.
"""

from __future__ import annotations

import mimetypes
from importlib import resources
from pathlib import Path
from typing import Any

from dfine_jax.errors import UserError

PAGE = ("index.html", "page.css", "page.js", "draw.js")
BROWSER = ("in_browser.js", "worker.js", "objects.js", "isolate.js")
SERVER = ("on_server.js",)
DESCRIPTION = "model.json"
# Of the page; workers get their own from whoever sends them.
HEADERS = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
_TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}


def content(name: str) -> bytes:
    """One of the files.

    Raises:
      UserError: there is none of this name.
    """
    if name not in (*PAGE, *BROWSER, *SERVER):
        raise UserError(f"the page has no file {name!r}")
    return resources.files("dfine_jax.serving").joinpath("page", name).read_bytes()


def content_type(name: str) -> str:
    """What a server says that a file is, whatever the system's own table says."""
    suffix = Path(name).suffix
    return _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"


def description(
    engine: str,
    *,
    variant: str,
    task: str,
    class_names: tuple[str, ...],
    category_ids: tuple[int, ...],
    threshold: float,
    **more: Any,
) -> dict[str, Any]:
    """What ``model.json`` holds.

    Args:
      engine: "onnxruntime-web" or "server".
      threshold: score from which objects are shown at first.
      more: what the engine needs to know.
    """
    values = {"engine": engine, "variant": variant, "task": task, "threshold": threshold}
    return {**values, "class_names": list(class_names), "category_ids": list(category_ids), **more}
