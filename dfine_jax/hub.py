"""Published weights by name: downloaded once, kept in a cache, checked against the SHA-256 of the first download."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from dfine_jax.errors import UserError

OFFICIAL_URL = "https://github.com/Peterande/storage/releases/download/dfinev1.0"
HUGGINGFACE_URL = "https://huggingface.co"
LICENCE = "Apache-2.0"  # of the official weights

OFFICIAL: dict[str, str] = {
    **{f"dfine-{v}-coco": f"dfine_{v}_coco.pth" for v in "nsmlx"},
    **{f"dfine-{v}-obj365": f"dfine_{v}_obj365.pth" for v in "smlx"},
    "dfine-l-obj365-e25": "dfine_l_obj365_e25.pth",
    **{f"dfine-{v}-obj2coco": f"dfine_{v}_obj2coco.pth" for v in "smx"},
    "dfine-l-obj2coco": "dfine_l_obj2coco_e25.pth",
}
BACKBONES: dict[str, str] = {f"B{i}": f"PPHGNetV2_B{i}_stage1.pth" for i in range(7)}  # trained on ImageNet
_HUGGINGFACE = re.compile(r"(?:hf:(?P<any>[\w.-]+/[\w.-]+)|(?P<known>ustc-community/[\w.-]+))")
_HUGGINGFACE_FILES = ("config.json", "model.safetensors")
_TIMEOUT_S = 30
_CHUNK = 1 << 18


def is_published(name: str) -> bool:
    """Whether the name is of the table, ``ustc-community/<model>`` or ``hf:<owner>/<model>``."""
    return name in OFFICIAL or _HUGGINGFACE.fullmatch(name) is not None


def fetch(name: str, *, progress: bool | None = None) -> Path:
    """Path of published weights: a ``.pth`` file, or a Hugging Face folder; downloaded when not in the cache.

    Args:
      name: see :func:`is_published`.
      progress: show a bar; by default when the terminal is one.

    Raises:
      UserError: unknown name, no connection, or a cached file that is not the one downloaded before.
    """
    match = _HUGGINGFACE.fullmatch(name)
    if name in OFFICIAL:
        return _cached(f"{OFFICIAL_URL}/{OFFICIAL[name]}", cache_dir() / OFFICIAL[name], progress)
    if match is None:
        raise UserError(f"unknown weights {name!r}; published names: {', '.join(OFFICIAL)}, or hf:OWNER/MODEL")
    repository = match["any"] or match["known"]
    folder = cache_dir() / "huggingface" / repository
    root = os.environ.get("HF_ENDPOINT", HUGGINGFACE_URL).rstrip("/")
    for file in _HUGGINGFACE_FILES:
        _cached(f"{root}/{repository}/resolve/main/{file}", folder / file, progress)
    return folder


def fetch_backbone(name: str, *, progress: bool | None = None) -> Path:
    """Path of the HGNetv2 (``B0`` to ``B6``) trained on ImageNet, downloaded when not in the cache.

    Raises:
      UserError: unknown name, no connection, or a cached file that is not the one downloaded before.
    """
    if name not in BACKBONES:
        raise UserError(f"unknown backbone {name!r}; published: {', '.join(BACKBONES)}")
    return _cached(f"{OFFICIAL_URL}/{BACKBONES[name]}", cache_dir() / BACKBONES[name], progress)


def cache_dir() -> Path:
    """Where downloads are kept: ``DFINE_CACHE``, else the user's cache folder; without a home, one that may be lost."""
    try:
        return _chosen_cache_dir()
    except RuntimeError:  # of pathlib: nobody's home
        user = os.getuid() if hasattr(os, "getuid") else "user"
        return Path(tempfile.gettempdir()) / f"dfine_jax-{user}"


def _chosen_cache_dir() -> Path:
    if chosen := os.environ.get("DFINE_CACHE"):
        return Path(chosen).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "dfine_jax"
    if sys.platform == "win32" and (base := os.environ.get("LOCALAPPDATA")):
        return Path(base) / "dfine_jax" / "cache"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "dfine_jax"


def _cached(url: str, file: Path, progress: bool | None) -> Path:
    record = file.with_name(file.name + ".sha256")
    if not file.is_file():
        digest = _download(url, file, progress)
        record.write_text(f"{digest}  {file.name}\n")
        return file
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not record.is_file():  # put there by hand
        record.write_text(f"{digest}  {file.name}\n")
    elif record.read_text().split()[:1] != [digest]:
        raise UserError(
            f"{file} has changed since its download (SHA-256 {digest}); delete it and {record.name}, repeat"
        )
    return file


def _download(url: str, file: Path, progress: bool | None) -> str:
    """Download to a temporary name, rename when complete; the SHA-256."""
    cure = f"fetch {url} on a connected machine and put it at {file}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(file) as target:
            digest = _copy(url, target, file.name, progress)
            os.chmod(target.name, 0o644)
            os.replace(target.name, file)
        return digest
    except urllib.error.HTTPError as error:
        raise UserError(f"{url} answers {error.code} ({error.reason}); check the name, or {cure}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"download failed ({reason}); without a connection: {cure}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}); set DFINE_CACHE to another folder") from error


@contextlib.contextmanager
def _temporary(file: Path) -> Iterator[Any]:
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as target:
        try:
            yield target
        finally:
            Path(target.name).unlink(missing_ok=True)


def _copy(url: str, target: BinaryIO, label: str, progress: bool | None) -> str:
    digest, received = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
        total = int(answer.headers.get("Content-Length") or 0)
        hide = None if progress is None else not progress  # None: hidden unless the terminal is one
        with tqdm(total=total or None, desc=label, unit="B", unit_scale=True, disable=hide) as bar:
            while chunk := answer.read(_CHUNK):
                target.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                bar.update(len(chunk))
    if total and received != total:
        raise http.client.IncompleteRead(b"", total - received)
    target.flush()
    return digest.hexdigest()
