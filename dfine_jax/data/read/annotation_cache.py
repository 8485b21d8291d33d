"""Where annotations of other formats are kept as COCO JSON, which evaluation reads like any other."""

from __future__ import annotations

import atexit
import functools
import hashlib
import logging
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from dfine_jax.errors import UserError
from dfine_jax.system.cache import cache_dir
from dfine_jax.system.files import telling, write_whole

logger = logging.getLogger(__name__)


def keep(name: str, split: str, identity: str, make: Callable[[], str]) -> Path:
    """The file with the text that ``make`` gives, written unless it is there as it was written.

    A cache that cannot be written (no home, read-only, full) is told once and replaced by a temporary folder, which
    ends with the program.

    Args:
      name: of the dataset, for the file's name.
      split: likewise.
      identity: what the content follows from; another one gives another file.
      make: gives the content.

    Raises:
      UserError: no temporary file can be written either.
    """
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80]
    file_name = f"{short}-{split}-{digest}.json"
    try:
        file = cache_dir() / "annotations" / file_name
        if _is_whole(file):
            return file
    except RuntimeError as error:  # of pathlib: no home
        return _keep_for_now(file_name, make(), str(error))
    text = make()
    try:
        write_whole(file, text)
        write_whole(_sum_of(file), str(zlib.crc32(text.encode())))
    except UserError as error:
        return _keep_for_now(file_name, text, str(error))
    return file


def _sum_of(file: Path) -> Path:
    return file.with_suffix(".crc32")


def _is_whole(file: Path) -> bool:
    """Whether the file is there with the checksum that was written beside it."""
    try:
        return zlib.crc32(file.read_bytes()) == int(_sum_of(file).read_bytes())
    except (OSError, ValueError):
        return False


def _keep_for_now(file_name: str, text: str, reason: str) -> Path:
    folder = _temporary_folder(reason)
    file = folder / file_name
    if not file.is_file():
        write_whole(file, text)
    return file


@functools.cache
def _temporary_folder_made() -> Path:
    with telling("folder for temporary files (TMPDIR)"):
        folder = Path(tempfile.mkdtemp(prefix="dfine-annotations-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


_told: set[str] = set()


def _temporary_folder(reason: str) -> Path:
    folder = _temporary_folder_made()
    if not _told:
        _told.add(reason)
        logger.warning(
            "annotations cannot be kept for the next time (%s); they are in %s until the program ends. "
            "DFINE_CACHE names a folder that can be written",
            reason,
            folder,
        )
    return folder
