"""The folder of downloads, compiled programs and read annotations."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


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
