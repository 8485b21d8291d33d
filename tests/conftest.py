"""Shared fixtures: reference numbers and real pictures, looked up file by file, and one compilation cache per session.

A test that needs a file which is not part of the repository is skipped, and the summary says which.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Commands run by tests store nothing in the user's cache. One folder for the session and all its processes: what one of
# them has compiled the others load. The controlling process makes it and removes it.
_OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if _OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="dfine-jax-tests-")
# A shell ignores Ctrl-C for its background jobs; tests of Ctrl-C need it, here and in the processes they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).resolve().parent.parent
Lookup = Callable[[str], Path]

# Axis strings in the signatures are checked at every call with DFINE_JAX_TYPECHECK=1.
if os.environ.get("DFINE_JAX_TYPECHECK", "0") != "0":
    install_import_hook(["dfine_jax"], "axis_checker.check_arrays")


def pytest_unconfigure() -> None:
    """Remove the session's compilation cache."""
    if _OWN_CACHE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def small_backbone(request: pytest.FixtureRequest) -> Iterator[None]:
    """The backbone of the shrunken model (tiny.py) is known while a module runs that uses it."""
    for value in vars(request.module).values():
        module = value if isinstance(value, types.ModuleType) else sys.modules.get(getattr(value, "__module__", ""))
        if module is not None and hasattr(module, "tiny_config"):
            with importlib.import_module(module.tiny_config.__module__).known_backbone():
                yield
            return
    yield


def _lookup(kind: str, variable: str) -> Lookup:
    folders = [Path(p) for p in (os.environ.get(variable), ROOT.parent / "shared" / kind, ROOT / "tests" / kind) if p]

    def find(name: str) -> Path:
        found = next((folder / name for folder in folders if (folder / name).exists()), None)
        if found is None:
            pytest.skip(f"{name} is not part of the repository; set {variable} to a folder that holds it")
        return found

    return find


@pytest.fixture(scope="session")
def golden() -> Lookup:
    """Path of a file of reference numbers by its name."""
    return _lookup("golden", "DFINE_GOLDEN")


@pytest.fixture(scope="session")
def real_data() -> Lookup:
    """Path of something in the folder of real images (bccd/, coco_mini/) by its relative name."""
    return _lookup("data", "DFINE_DATA")


@pytest.fixture(scope="session")
def cells() -> Path:
    """Folder of two real photographs with annotations, in COCO's layout, split "val"; part of the repository."""
    return ROOT / "tests" / "data" / "bccd"
