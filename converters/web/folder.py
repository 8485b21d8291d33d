"""The folder that a static host serves: the page, the graph, ONNX Runtime Web, and what the page is told about them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dfine_jax.converters.gate.report import report_files
from dfine_jax.converters.gate.staging import staging
from dfine_jax.converters.web.runtime import LICENCE, LICENCE_FILE
from dfine_jax.errors import UserError
from dfine_jax.serving.page_files import BROWSER, DESCRIPTION, PAGE, content
from dfine_jax.system.files import read_json, write_whole

ENGINE = "onnxruntime-web"
GRAPH, CHECK, RUNTIME = "model.onnx", "check.png", "runtime"


def write_folder(
    folder: Path,
    graph: bytes,
    description: Mapping[str, Any],
    runtime: Mapping[str, bytes],
    check: tuple[UInt8[np.ndarray, "h w 3"], Sequence[Mapping[str, Any]]],
) -> None:
    """All files.

    Args:
      description: what ``page_files.description`` made; completed here by what lies beside it.
      runtime: of ``runtime.runtime_files``.
      check: a picture and what the model finds in it, with which each browser checks its own backend.
    """
    for name in (*PAGE, *BROWSER):
        write_whole(folder / name, content(name), durable=False)
    for name, data in runtime.items():
        write_whole(folder / RUNTIME / name, data, durable=False)
    write_whole(folder / RUNTIME / LICENCE_FILE, LICENCE, durable=False)
    write_whole(folder / GRAPH, graph, durable=False)
    with io.BytesIO() as stream:
        Image.fromarray(check[0]).save(stream, "PNG")
        write_whole(folder / CHECK, stream.getvalue(), durable=False)
    more = {"graph": GRAPH, "graph_bytes": len(graph), "check": {"file": CHECK, "objects": list(check[1])}}
    write_whole(folder / DESCRIPTION, json.dumps({**description, **more}, indent=1) + "\n", durable=False)


@contextlib.contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """A new folder beside ``final`` that is gone afterwards unless ``release_folder`` moved it.

    After a UserError inside, an earlier export at the final name is gone and the report says why.

    Raises:
      UserError: something else than an earlier export is at the final name.
    """
    if final.exists() and not is_export(final) and not (final.is_dir() and not any(final.iterdir())):
        raise UserError(f"--out {final} exists and is no earlier web export; choose another folder")
    with staging(final, discard) as staged:
        yield staged


def release_folder(staged: Path, final: Path) -> None:
    """Give a folder its name, in place of an earlier export, whose report goes first."""
    for old in report_files(final):
        old.unlink(missing_ok=True)
    if final.exists():
        final.rename(staged.parent / "replaced")  # goes with the folder around it
    staged.rename(final)


def discard(final: Path) -> None:
    """Remove an earlier export, its reports first."""
    for old in report_files(final):
        old.unlink(missing_ok=True)
    if is_export(final):
        shutil.rmtree(final)


def is_export(folder: Path) -> bool:
    """Whether a folder is one of these."""
    try:
        return read_json(folder / DESCRIPTION).get("engine") == ENGINE
    except (UserError, AttributeError):
        return False
