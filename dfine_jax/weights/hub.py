"""Published weights by name: downloaded once, kept in a cache, checked against the published SHA-256 if there is one.

Where there is none, the SHA-256 of the first download is kept, and later changes are noticed.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from dfine_jax.errors import UserError
from dfine_jax.system.files import read_text, replacing, sha256, telling, write_whole

OFFICIAL_URL = "https://github.com/Peterande/storage/releases/download/dfinev1.0"
HUGGINGFACE_URL = "https://huggingface.co"
LICENCE = "Apache-2.0"  # of the official weights


class Published(NamedTuple):
    """A file of the official release."""

    file: str
    sha256: str | None = None  # None: not known beforehand; that of the first download is kept


# Where a SHA-256 stands, several independent public projects that download the release and check it record the same
# one, with the same size: N (15,489,558 bytes), S (41,841,422) and M (79,108,938; also the identity of the file that
# the author keeps at huggingface.co/Peterande/D-FINE), and the backbone B0 (7,555,621). The release lists none.
_SHA256 = {
    "dfine_n_coco.pth": "41973938d2784d38a9836990d805b8392855ebf611aba55f0f7add90e110744c",
    "dfine_s_coco.pth": "48a6c8cc43eb57186843f752e2e8461ddd3326e0d3c575e71e6e960844683e89",
    "dfine_m_coco.pth": "b44a7586bf490858c7b8bce9e44bd025cb88724df9a07a8deb3ae1c12e608195",
    "PPHGNetV2_B0_stage1.pth": "70a372e8cbc59b34c5da2943261ecb633faf304a58e7e05461a27bd8d8b7f3d1",
}


def _published(file: str) -> Published:
    return Published(file, _SHA256.get(file))


OFFICIAL: dict[str, Published] = {
    **{f"dfine-{v}-coco": _published(f"dfine_{v}_coco.pth") for v in "nsmlx"},
    **{f"dfine-{v}-obj365": _published(f"dfine_{v}_obj365.pth") for v in "smlx"},
    "dfine-l-obj365-e25": _published("dfine_l_obj365_e25.pth"),
    **{f"dfine-{v}-obj2coco": _published(f"dfine_{v}_obj2coco.pth") for v in "smx"},
    "dfine-l-obj2coco": _published("dfine_l_obj2coco_e25.pth"),
}
# Trained on ImageNet.
BACKBONES: dict[str, Published] = {f"B{i}": _published(f"PPHGNetV2_B{i}_stage1.pth") for i in range(7)}


class Revision(NamedTuple):
    """A commit of a Hugging Face repository, and the SHA-256 of its model.safetensors where it is known."""

    commit: str
    sha256: str | None = None


# Commits and digests that several independent public projects record for these repositories.
REVISIONS: dict[str, Revision] = {
    "ustc-community/dfine-nano-coco": Revision(
        "066438d3d8f0da137a37b38fdf3368fd4afceced", "19e06bdc873da819920a8d373b879721a5b9759d822f8213220bb09abbdab58b"
    ),
    "ustc-community/dfine-small-coco": Revision(
        "f79e65b5fbb33ceb9d3ebba042955d7410c608f8", "a144baff3a27bfd538fe37b11fa8d4fca5744b8c054b5301e7c699a1379cd18f"
    ),
    "ustc-community/dfine-medium-coco": Revision("4ab9f5e466432f4fcf9a9a023da6aa5ecc9c9829"),
}
# A part starts and ends with a letter or digit and has no two dots or dashes in a row, as the hub demands; so it is
# neither a path out of the cache nor a hidden file.
_PART = r"[A-Za-z0-9]+(?:(?:[._]|-(?!-)|__+)[A-Za-z0-9]+)*"
_HUGGINGFACE = re.compile(rf"(?:hf:(?P<any>{_PART}/{_PART})(?:@(?P<at>{_PART}))?|(?P<known>ustc-community/{_PART}))")
_HUGGINGFACE_FILES = ("config.json", "model.safetensors")
_TIMEOUT_S = 30
_CHUNK = 1 << 18


def is_published(name: str) -> bool:
    """Whether the name is of the table, ``ustc-community/<model>`` or ``hf:<owner>/<model>[@revision]``."""
    return name in OFFICIAL or _HUGGINGFACE.fullmatch(name) is not None


def is_published_file(name: str, sha256: str) -> bool:
    """Whether a file is one of the official release: by its SHA-256, or by its name where no SHA-256 is known."""
    published = (*OFFICIAL.values(), *BACKBONES.values())
    return any(sha256 == item.sha256 or (name == item.file and item.sha256 is None) for item in published)


def fetch(name: str, *, progress: bool | None = None) -> Path:
    """Path of published weights: a ``.pth`` file, or a Hugging Face folder; downloaded when not in the cache.

    All files of a Hugging Face folder are of one commit: a known one, that of the name, or the newest when the first
    file is downloaded.

    Args:
      name: see :func:`is_published`.
      progress: show a bar; by default when the terminal is one.

    Raises:
      UserError: unknown name, no connection, a download that is not what is published, or a cached file that is not the
        one downloaded before.
    """
    match = _HUGGINGFACE.fullmatch(name)
    if name in OFFICIAL:
        file, known = OFFICIAL[name]
        return _cached(f"{OFFICIAL_URL}/{file}", cache_dir() / file, progress, known)
    if match is None:
        raise UserError(
            f"unknown weights {name!r}; published names: {', '.join(OFFICIAL)}, or hf:OWNER/MODEL of Hugging Face"
        )
    repository = match["any"] or match["known"]
    pinned = REVISIONS.get(repository) if match["at"] is None else Revision(match["at"])
    folder = cache_dir() / "huggingface" / (repository + (f"@{match['at']}" if match["at"] else ""))
    root = os.environ.get("HF_ENDPOINT", HUGGINGFACE_URL).rstrip("/")
    commit = _commit_of(folder, pinned)
    for file in _HUGGINGFACE_FILES:
        known = pinned.sha256 if pinned and file == "model.safetensors" else None
        served: list[str] = []
        url = f"{root}/{repository}/resolve/{commit}/{file}"
        _cached(url, folder / file, progress, known, headers=lambda got, to=served: to.append(got or ""))
        if served and _COMMIT.fullmatch(served[0]):  # of a branch, the commit that it was at
            commit = served[0]
            write_whole(folder / _COMMIT_FILE, f"{commit}\n")
    return folder


_COMMIT = re.compile("[0-9a-f]{40}")
_COMMIT_FILE = "commit.txt"


def _commit_of(folder: Path, pinned: Revision | None) -> str:
    """The commit to download from: that of the files there, the pinned one, or the newest."""
    record = folder / _COMMIT_FILE
    kept = read_text(record).strip() if record.is_file() else ""
    if _COMMIT.fullmatch(kept):
        return kept
    return pinned.commit if pinned else "main"


def fetch_backbone(name: str, *, progress: bool | None = None) -> Path:
    """Path of the HGNetv2 (``B0`` to ``B6``) trained on ImageNet, downloaded when not in the cache.

    Raises:
      UserError: unknown name, no connection, or a cached file that is not the one downloaded before.
    """
    if name not in BACKBONES:
        raise UserError(f"unknown backbone {name!r}; published: {', '.join(BACKBONES)}")
    file, known = BACKBONES[name]
    return _cached(f"{OFFICIAL_URL}/{file}", cache_dir() / file, progress, known)


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
