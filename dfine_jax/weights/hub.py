"""Published weights by name: downloaded once, kept in a cache, checked against published SHA-256 or MD5 sums.

Where there is none, the SHA-256 of the first download is kept, and later changes are noticed.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from tqdm import tqdm

from dfine_jax import families
from dfine_jax.config import ModelSection
from dfine_jax.errors import UserError
from dfine_jax.families.family import Published, Repository
from dfine_jax.system.cache import cache_dir
from dfine_jax.system.files import read_text, replacing, sha256, telling, write_whole
from dfine_jax.weights.names import HUGGINGFACE

HUGGINGFACE_URL = "https://huggingface.co"
_HUGGINGFACE_FILES = ("config.json", "model.safetensors")
_TIMEOUT_S = 30
_CHUNK = 1 << 18


def licence(name: str) -> str:
    """Of published weights, where it is known."""
    match = HUGGINGFACE.fullmatch(name)
    found = families.published().get(name) or _repositories().get((match and match["repository"]) or name)
    return found.licence if found else ""


def _repositories() -> dict[str, Repository]:
    return {name: each for own in families.every() for name, each in own.repositories.items()}


def is_published_file(name: str, sha256: str) -> bool:
    """Whether a file is of the families' tables: by its SHA-256, or by its name where no SHA-256 is known."""
    published = [item for own in families.every() for item in (*own.published.values(), *own.backbones.values())]
    return any(sha256 == item.sha256 or (name == item.file and item.sha256 is None) for item in published)


def fetch(name: str, *, progress: bool | None = None) -> Path:
    """Path of published weights: a ``.pth`` file, or a Hugging Face folder; downloaded when not in the cache.

    All files of a Hugging Face folder are of one commit: a known one, that of the name, or the newest when the first
    file is downloaded.

    Args:
      name: see ``names.is_published``.
      progress: show a bar; by default when the terminal is one.

    Raises:
      UserError: unknown name, no connection, a download that is not what is published, or a cached file that is not the
        one downloaded before.
    """
    match = HUGGINGFACE.fullmatch(name)
    known = families.published()
    if name in known:
        return _of_table(known[name], progress)
    if match is None:
        raise UserError(
            f"unknown weights {name!r}; published names: {', '.join(known)}, or hf:OWNER/MODEL of Hugging Face"
        )
    repository = match["repository"] or match["plain"]
    pinned = _repositories().get(repository) if match["at"] is None else Repository(match["at"])
    folder = cache_dir() / "huggingface" / (repository + (f"@{match['at']}" if match["at"] else ""))
    root = os.environ.get("HF_ENDPOINT", HUGGINGFACE_URL).rstrip("/")
    commit = _commit_of(folder, pinned)
    for file in _HUGGINGFACE_FILES:
        digest = pinned.sha256 if pinned and file == "model.safetensors" else None
        served: list[str] = []
        url = f"{root}/{repository}/resolve/{commit}/{file}"
        _cached(url, folder / file, progress, digest, headers=lambda got, to=served: to.append(got or ""))
        if served and _COMMIT.fullmatch(served[0]):  # of a branch, the commit that it was at
            commit = served[0]
            write_whole(folder / _COMMIT_FILE, f"{commit}\n")
    return folder


_COMMIT = re.compile("[0-9a-f]{40}")
_COMMIT_FILE = "commit.txt"


def _commit_of(folder: Path, pinned: Repository | None) -> str:
    """The commit to download from: that of the files there, the pinned one, or the newest."""
    record = folder / _COMMIT_FILE
    kept = read_text(record).strip() if record.is_file() else ""
    if _COMMIT.fullmatch(kept):
        return kept
    return pinned.commit if pinned else "main"


def fetch_backbone(model: ModelSection) -> Path:
    """Path of a model's backbone trained on ImageNet, downloaded when not in the cache.

    Raises:
      UserError: none is published, no connection, or a cached file that is not the one downloaded before.
    """
    family = families.of(model)
    name = family.backbone_of(model)
    if name not in family.backbones:
        raise UserError(f"no backbone {name!r} is published; there are {', '.join(family.backbones)}")
    return _of_table(family.backbones[name], None)


def _of_table(published: Published, progress: bool | None) -> Path:
    file = cache_dir() / published.file
    is_new = not file.is_file()
    file = _cached(address(published), file, progress, published.sha256)
    if is_new and published.md5:
        _check_md5(published, file)
    return file


def _check_md5(published: Published, file: Path) -> None:
    """The sum of a file just downloaded; one that was there before is known by its SHA-256.

    Raises:
      UserError: it is another one, and the file is gone.
    """
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "md5").hexdigest()
    if found != published.md5:
        file.unlink()
        file.with_name(file.name + ".sha256").unlink(missing_ok=True)
        raise UserError(
            f"what {address(published)} sent is not the published file (MD5 {found}, published {published.md5}): a "
            "proxy or the server has changed it; nothing is kept"
        )


def address(published: Published) -> str:
    """Where it is downloaded from."""
    return published.url


def _cached(
    url: str,
    file: Path,
    progress: bool | None,
    known: str | None,
    *,
    headers: Callable[[str | None], None] = lambda commit: None,
) -> Path:
    """The file at ``file``, downloaded when it is not there.

    Args:
      known: its SHA-256, if that is published; otherwise that of the first download is kept beside it.
      headers: is given the commit that the server names, when something is downloaded.
    """
    record = file.with_name(file.name + ".sha256")
    if not file.is_file():
        digest = _download(url, file, progress, known, headers)
        write_whole(record, f"{digest}  {file.name}\n")
        return file
    with telling(file):
        digest = sha256(file)
    if known and digest != known:
        raise UserError(f"{file} is not the published file (SHA-256 {digest}, published {known}); delete it and repeat")
    if not record.is_file():  # put there by hand
        write_whole(record, f"{digest}  {file.name}\n")
    elif read_text(record).split()[:1] != [digest]:
        raise UserError(
            f"{file} has changed since its download (SHA-256 {digest}); delete it and {record.name}, repeat"
        )
    return file


def _download(
    url: str, file: Path, progress: bool | None, known: str | None, headers: Callable[[str | None], None]
) -> str:
    """Download to a temporary name, rename when complete and right; the SHA-256."""
    cure = f"fetch {url} on a connected machine and put it at {file}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as target:
            digest = _copy(url, target, file.name, progress, headers)
            if known and digest != known:
                raise UserError(
                    f"what {url} sent is not the published file (SHA-256 {digest}, published {known}): a proxy or the "
                    "server has changed it; nothing is kept"
                )
        return digest
    except urllib.error.HTTPError as error:
        raise UserError(f"{url} answers {error.code} ({error.reason}); check the name, or {cure}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"download failed ({reason}); without a connection: {cure}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}); set DFINE_CACHE to another folder") from error


def _copy(url: str, target: IO[bytes], label: str, progress: bool | None, headers: Callable[[str | None], None]) -> str:
    digest, received = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
        headers(answer.headers.get("X-Repo-Commit"))
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
