"""How this package came here, and what to type for a part of it that is absent."""

from __future__ import annotations

import functools
import importlib
import json
import shlex
import urllib.parse
import urllib.request
from importlib import metadata
from types import ModuleType

from dfine_jax.errors import UserError

DISTRIBUTION = "dfine-jax"


@functools.cache
def requirement() -> tuple[str, bool]:
    """What pip was given for this package: its name, a folder or an address; and whether it is editable.

    The record that pip leaves (PEP 610) says it; without one the package came from an index, or is a source tree.
    """
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        values = json.loads(text) if text else {}
    except (metadata.PackageNotFoundError, json.JSONDecodeError):
        return DISTRIBUTION, False
    url = values.get("url", "")
    if version_control := values.get("vcs_info"):
        revision = version_control.get("requested_revision")
        return f"{version_control.get('vcs', 'git')}+{url}{f'@{revision}' if revision else ''}", False
    if url.startswith("file:") and "dir_info" in values:
        folder = urllib.request.url2pathname(urllib.parse.urlsplit(url).path)
        return folder, bool(values["dir_info"].get("editable"))
    return url or DISTRIBUTION, False


def pip_install(extra: str) -> str:
    """The command that adds an extra to the package as it was installed."""
    where, editable = requirement()
    if "://" in where:
        return f"pip install {shlex.quote(f'{DISTRIBUTION}[{extra}] @ {where}')}"
    return f"pip install {'-e ' * editable}{shlex.quote(f'{where}[{extra}]')}"


def require(module: str, purpose: str, extra: str = "") -> ModuleType:
    """A library that is not always there.

    Args:
      purpose: what needs it, for the message.
      extra: of this package that brings it; empty: it is installed by its own name.

    Raises:
      UserError: it is absent; the message has the command that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        cure = pip_install(extra) if extra else f"pip install {module.partition('.')[0]}"
        raise UserError(f"{purpose} needs {error.name or module}, which is not installed; {cure}") from error
