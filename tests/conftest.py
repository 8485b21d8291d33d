"""Shared fixtures. Golden numbers and real images are looked up, and tests that need them are skipped when absent."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")  # commands run by tests store nothing in the user's cache
# A shell ignores Ctrl-C for its background jobs; tests of Ctrl-C need it, here and in the processes they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).resolve().parent.parent


def _first_existing(*candidates: Path | str | None) -> Path | None:
    return next((Path(c) for c in candidates if c and Path(c).is_dir()), None)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the reference numbers."""
    found = _first_existing(
        os.environ.get("DFINE_GOLDEN"), ROOT.parent / "shared" / "golden", ROOT / "tests" / "golden"
    )
    if found is None:
        pytest.skip("reference numbers not found; set DFINE_GOLDEN")
    return found


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real images (bccd/, coco_mini/)."""
    found = _first_existing(os.environ.get("DFINE_DATA"), ROOT.parent / "shared" / "data")
    if found is None:
        pytest.skip("real images not found; set DFINE_DATA")
    return found
