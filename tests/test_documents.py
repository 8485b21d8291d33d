"""What documents name exists; their programs are correct."""

from __future__ import annotations

import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import yaml

from dfine_jax import Detector

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = [*DOCS.glob("*.md"), *DOCS.glob("api/*.md")]


def test_names_in_documents_exist():
    """Objects of the library that are named in running text, such as `dfine_jax.ops.platform.traced_for("other")`."""
    for document in [*PAGES, *DOCS.parent.glob("*.md")]:
        text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
        for name in re.findall(r"`(dfine_jax(?:\.\w+)+)", text):
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError):
                pytest.fail(f"{document.name} names {name}, which does not exist")


def test_files_in_documents_exist():
    """Paths below the repository or the package that are named in running text."""
    root = DOCS.parent
    for document in [*PAGES, root / "README.md", root / "CONTRIBUTING.md"]:
        for name in re.findall(r"`((?:\w+/)+\w+\.py)\b", document.read_text()):
            assert (root / name).is_file() or (root / "dfine_jax" / name).is_file(), f"{document.name} names {name}"


def test_functions_in_documents_exist():
    """`room/file.py::name`, above all the index of formulas."""
    root = DOCS.parent
    found = 0
    for document in [*PAGES, root / "README.md", root / "CONTRIBUTING.md"]:
        for file, name in re.findall(r"`((?:\w+/)+\w+\.py)::(\w+)`", document.read_text()):
            path = root / "dfine_jax" / file
            path = path if path.is_file() else root / file
            found += 1
            pattern = rf"^(?:def|class) {name}\b"
            assert re.search(pattern, path.read_text(), re.MULTILINE), f"{document.name}: {file} has no {name}"
    assert found >= 40


def site() -> dict:
    class Loader(yaml.SafeLoader):
        """``!ENV [NAME, default]`` as its default."""

    Loader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node)[-1])
    return yaml.load((DOCS / "site" / "mkdocs.yml").read_text(), Loader)


def test_the_site_shows_every_page():
    """Pages and links are what ``mkdocs build --strict`` checks, in the workflow; it is not needed here."""

    def targets(entry):
        if isinstance(entry, str):
            return [entry]
        return [target for value in (entry.values() if isinstance(entry, dict) else entry) for target in targets(value)]

    shown = targets(site()["nav"])
    notebooks = [f"notebooks/{path.name}" for path in (DOCS.parent / "experiments" / "notebooks").glob("*.ipynb")]
    assert sorted(shown) == sorted([*(path.relative_to(DOCS).as_posix() for path in PAGES), *notebooks])


def test_the_reference_is_of_what_exists_and_of_all_that_is_public():
    import dfine_jax

    text = "\n".join(page.read_text() for page in DOCS.glob("api/*.md"))
    named = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    for name in named:
        pkgutil.resolve_name(name)
    assert {f"dfine_jax.{name}" for name in dfine_jax.__all__} <= named
    members = " ".join(re.findall(r"members: \[(.*)\]", (DOCS / "api" / "losses.md").read_text()))
    listed = set(re.findall(r"\w+", members)) | {"detection_loss"}
    formulas = {"EdgeBins", "bin_targets", "decode", "encode", "integral", "weighting_function"}
    formulas |= {"cxcywh_to_xyxy", "xyxy_to_cxcywh", "iou_and_giou"}
    assert listed | formulas == set(dfine_jax.losses.__all__)


def test_the_reference_of_the_detector_has_all_its_methods():
    text = (DOCS / "api" / "prediction.md").read_text()
    (members,) = re.findall(r"::: dfine_jax\.Detector\n    options:\n      members: \[(.*)\]", text)
    methods = [name for name, value in vars(Detector).items() if inspect.isfunction(value) and name[0] != "_"]
    assert {*methods, "__call__"} <= set(members.split(", ")) <= set(dir(Detector))


def test_the_serving_page_does_what_its_document_says():
    page = (DOCS.parent / "dfine_jax" / "serving" / "page" / "on_server.js").read_text()
    (frame_px,), (file_px,) = (re.findall(rf"const {name} = (\d+);", page) for name in ("FRAME_PX", "FILE_PX"))
    (quality,) = re.findall(r'"image/jpeg", ([\d.]+)', page)
    text = " ".join((DOCS / "serve.md").read_text().split())
    assert f"JPEG of at most {file_px} pixels on the longer side" in text
    assert f"JPEG of quality {quality} and at most {frame_px} pixels on the longer side" in text


def test_links_in_documents_lead_somewhere():
    for document in [*PAGES, DOCS.parent / "README.md"]:
        text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (document.parent / target).exists(), f"{document.name} links {target}"


def test_python_in_documents_is_correct():
    for document in PAGES:
        for code in re.findall(r"^```python\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL):
            compile(code, str(document), "exec")
            for line in re.findall(r"^(?:from dfine_jax\S* import .*|import dfine_jax.*)$", code, re.MULTILINE):
                exec(line, {})
