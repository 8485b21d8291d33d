"""How this package came here, what to type for a part of it that is absent, and which commands are whose."""

from __future__ import annotations

import functools
import importlib
import json
import re
import shlex
import shutil
import sys
import urllib.parse
import urllib.request
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from dfine_jax.errors import UserError

DISTRIBUTION = "dfine-jax"
COMMAND = DISTRIBUTION.removesuffix("-jax")
# Library -> the extra that brings it.
EXTRAS = {
    **dict.fromkeys(("jax", "jaxlib", "flax", "optax", "orbax", "scipy", "safetensors"), "train"),
    **dict.fromkeys(("pycocotools", "yaml", "msgspec", "matplotlib"), "eval"),
    **dict.fromkeys(("jax2onnx", "onnx", "onnx_ir"), "export"),
    **dict.fromkeys(("starlette", "uvicorn", "python_multipart"), "serve"),
    "onnxruntime": "onnx", "trackers": "track", "openvino": "openvino", "nncf": "openvino", "av": "video",
    "supervision": "track", "mlflow": "mlflow",
    "tensorflow_datasets": "tfds", "tensorboardX": "tensorboard", "wandb": "wandb",
    "tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx", "torch": "parity", "transformers": "parity",
}  # fmt: skip


@functools.cache
def requirement() -> tuple[str, bool]:
    """What pip was given for this package: its name, a folder or an address; and whether it is editable.

    The record that pip leaves (PEP 610) says it; without one the package came from an index, or is a source tree.
    """
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        values = json.loads(text) if text else {}
    except (metadata.PackageNotFoundError, json.JSONDecodeError):
        values = {}
    return _of_record(values) or _source_tree() or (DISTRIBUTION, False)


def _of_record(values: dict) -> tuple[str, bool] | None:
    url = values.get("url", "")
    if version_control := values.get("vcs_info"):
        revision = version_control.get("requested_revision")
        return f"{version_control.get('vcs', 'git')}+{url}{f'@{revision}' if revision else ''}", False
    if url.startswith("file:"):
        path = urllib.request.url2pathname(urllib.parse.urlsplit(url).path)
        editable = bool(values.get("dir_info", {}).get("editable"))
        return (path, editable) if Path(path).exists() else None
    return (url, False) if url else None


def _source_tree() -> tuple[str, bool] | None:
    """The folder of the sources where this runs from them."""
    root = Path(__file__).resolve().parents[2]
    return (str(root), True) if (root / "pyproject.toml").is_file() else None


def pip_install(extra: str) -> str:
    """The command that adds an extra to the package as it was installed."""
    where, editable = requirement()
    if "://" in where:
        return f"pip install {shlex.quote(f'{DISTRIBUTION}[{extra}] @ {where}')}"
    return f"pip install {'-e ' * editable}{shlex.quote(f'{where}[{extra}]')}"


def absent(error: ModuleNotFoundError, purpose: str, whole: str = "") -> UserError | None:
    """The error for a library of an extra that is not here; None for anything else.

    Args:
      whole: the extra that brings all of the usual libraries that the purpose needs.
    """
    name = (error.name or "").partition(".")[0]
    if name not in EXTRAS:
        return None
    extra = (whole or EXTRAS[name]) if EXTRAS[name] in ("eval", "train") else EXTRAS[name]
    return UserError(f"{purpose} needs {name}, which is of the extra {extra} and not installed: {pip_install(extra)}")


def require(module: str, purpose: str, extra: str = "", note: str = "") -> ModuleType:
    """A library that is not always there.

    Args:
      purpose: what needs it, for the message.
      extra: that brings it, of a library that several have; empty: the one in ``EXTRAS``.
      note: about the command, behind it.

    Raises:
      UserError: it is absent or cannot be loaded; the message has the command that brings it.
    """
    note = f" ({note})" * bool(note)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = (error.name or module).partition(".")[0]
        cure = pip_install(extra) if extra else f"pip install {name}"
        own = None if extra else absent(error, purpose)
        told = own or f"{purpose} needs {name}, which is not installed: {cure}"
        raise UserError(f"{told}{note}") from error
    except (ImportError, OSError) as error:  # a part of it, or a library of the system, is absent
        own_extra = extra or EXTRAS.get(module.partition(".")[0], "")
        cure = pip_install(own_extra) if own_extra else f"pip install {module}"
        reason = " ".join(str(error).split())
        raise UserError(f"{purpose} needs {module}, which cannot be loaded ({reason}): {cure}{note}") from error


class Command(NamedTuple):
    """A command on PATH."""

    path: str
    module: str  # that it calls; empty: not known
    others: tuple[str, ...]  # other packages here that have a command of this name
    here: bool  # it runs in this environment


def command(name: str) -> Command | None:
    """The command that a shell starts by this name; None where there is none."""
    path = shutil.which(name)
    if path is None:
        return None
    try:
        text = Path(path).read_bytes()[:4000].decode("utf-8", "replace")
    except OSError:
        text = ""
    found = re.search(r"^\s*from ([\w.]+) import", text, re.MULTILINE)
    points = metadata.entry_points(group="console_scripts", name=name)
    owners = {point.dist.name for point in points if point.dist is not None}
    # A script names its interpreter, which lies in the folder of an environment; a program (Windows) lies there itself.
    interpreter = re.search(r"/\S*/python[\d.]*", text.partition("\nfrom")[0])
    folder = Path(interpreter[0] if interpreter else path).parent
    here = folder.resolve() == Path(sys.executable).parent.resolve()
    return Command(path, found[1] if found else "", tuple(sorted(owners - {DISTRIBUTION})), here)
