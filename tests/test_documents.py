"""What documents name exists; their programs are correct."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_names_in_documents_exist():
    """Objects of the library that are named in running text, such as `dfine_jax.ops.platform.traced_for("other")`."""
    for document in [*DOCS.glob("*.md"), *DOCS.parent.glob("*.md")]:
        text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
        for name in re.findall(r"`(dfine_jax(?:\.\w+)+)", text):
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError):
                pytest.fail(f"{document.name} names {name}, which does not exist")


def test_files_in_documents_exist():
    """Paths below the repository or the package that are named in running text."""
    root = DOCS.parent
    for document in [*DOCS.glob("*.md"), root / "README.md", root / "CONTRIBUTING.md"]:
        for name in re.findall(r"`((?:\w+/)+\w+\.py)\b", document.read_text()):
            assert (root / name).is_file() or (root / "dfine_jax" / name).is_file(), f"{document.name} names {name}"


def test_functions_in_documents_exist():
    """`room/file.py::name`, above all the index of formulas."""
    root = DOCS.parent
    found = 0
    for document in [*DOCS.glob("*.md"), root / "README.md", root / "CONTRIBUTING.md"]:
        for file, name in re.findall(r"`((?:\w+/)+\w+\.py)::(\w+)`", document.read_text()):
            path = root / "dfine_jax" / file
            path = path if path.is_file() else root / file
            found += 1
            pattern = rf"^(?:def|class) {name}\b"
            assert re.search(pattern, path.read_text(), re.MULTILINE), f"{document.name}: {file} has no {name}"
    assert found >= 40


def test_python_in_documents_is_correct():
    for document in DOCS.glob("*.md"):
        for code in re.findall(r"^```python\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL):
            compile(code, str(document), "exec")
            for line in re.findall(r"^(?:from dfine_jax\S* import .*|import dfine_jax.*)$", code, re.MULTILINE):
                exec(line, {})
