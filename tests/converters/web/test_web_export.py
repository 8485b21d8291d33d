"""The folder for static hosts: what lies in it, what is refused, and that a browser finds what the model finds."""

from __future__ import annotations

import functools
import json
import re
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "tests"))
import onnx_models as tiny
from tiny import tiny_config, tiny_rfdetr, tiny_rtdetr, tiny_segmenter

from dfine_jax.converters.gate import compare
from dfine_jax.converters.gate.data import open_data
from dfine_jax.converters.gate.staging import RefusedError
from dfine_jax.converters.web import browser, runtime
from dfine_jax.converters.web.check import GPU_LIMITS
from dfine_jax.converters.web.export import _objects, export_web
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.errors import UserError
from dfine_jax.families.dfine.model import DFine
from dfine_jax.families.rfdetr.model import RFDetr
from dfine_jax.families.rtdetr.model import RTDetr
from dfine_jax.serving.page_files import BROWSER, PAGE, content

META = {**tiny.META, "preprocess": Preprocess(*tiny.SIZE_HW), "best_threshold": 0.42}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A folder with the names of ONNX Runtime Web's files: what is written and refused does not run them."""
    folder = tmp_path_factory.mktemp("dist")
    for name in runtime.FILES:
        (folder / name).write_text(f"/*! ONNX Runtime Web v{runtime.VERSION} */")
    return folder


def export(out, files, variables=None, model=None, **options):
    if model is None:
        model, own = tiny.tiny_model()
        variables = variables or own
    return export_web(
        model, variables, META, out, size_hw=tiny.SIZE_HW, data=open_data(None, "val"), runtime=files,
        **{"run_browser": False, **options},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(stand_in, tmp_path_factory):
    out = tmp_path_factory.mktemp("web") / "page"
    report = export(out, stand_in)
    assert report.passed
    return out


def test_all_that_the_page_needs_is_there(folder):
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    expected = {*PAGE, *BROWSER, "model.json", "model.onnx", "check.png", "runtime/LICENSE.txt"}
    assert names == expected | {f"runtime/{name}" for name in runtime.FILES}
    model = json.loads((folder / "model.json").read_text())
    assert (model["engine"], model["threshold"], model["task"]) == ("onnxruntime-web", 0.42, "detect")
    assert model["graph_bytes"] == (folder / "model.onnx").stat().st_size
    assert (model["class_names"], model["category_ids"]) == (["red", "white", "platelet"], [1, 2, 7])
    assert model["check"]["objects"] and "Microsoft" in (folder / "runtime/LICENSE.txt").read_text()
    text = folder.with_name("page.report.txt").read_text()
    assert "PASSED" in text and "no browser was asked: the folder's page has not run, only its graph has" in text


def test_the_report_says_that_no_browser_was_found(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv(browser.SETTING, "")
    export(tmp_path / "page", stand_in, run_browser=True)
    assert "no browser was found: the folder's page has not run" in (tmp_path / "page.report.txt").read_text()


def test_no_address_outside_the_folder(folder):
    """Of the page's own files; an address in words to be read would be found too."""
    for path in folder.iterdir():
        if path.suffix in (".html", ".css", ".js", ".json"):
            found = re.findall(r"(?:https?:|wss?:)?//[\w.-]+\.\w+[^\s\"'`<]*", path.read_text())
            assert not found, f"{path.name}: {found}"
    assert "default-src 'none'" in (folder / "index.html").read_text()


def test_names_that_the_page_loads_exist():
    for name in (*PAGE, *BROWSER):
        for loaded in re.findall(r"from \"\./([\w.]+)\"|URL\(\"([\w.]+\.js)\"", content(name).decode()):
            assert content(next(filter(None, loaded)))


def test_an_earlier_export_is_replaced_and_other_folders_are_not(folder, stand_in, tmp_path):
    other = tmp_path / "letters"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="no earlier web export"):
        export(other, stand_in)
    assert [path.name for path in tmp_path.iterdir()] == ["letters"]
    with pytest.raises(UserError, match="has no ort.webgpu.min.mjs; give the folder dist"):
        export(tmp_path / "page", other)


def test_a_wrong_graph_is_refused(stand_in, tmp_path, monkeypatch):
    from dfine_jax.converters.web import export as module

    right = module.export_onnx

    def wrong(model, variables, *rest, **options):
        """Of other weights than the model: the tiny network hardly looks at its pixels."""
        return right(model, jax.tree.map(lambda x: 1.02 * x, variables), *rest, **options)

    monkeypatch.setattr(module, "export_onnx", wrong)
    with pytest.raises(RefusedError, match="error"):
        export(tmp_path / "page", stand_in)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.report.json", "page.report.txt"]
    assert "REFUSED" in (tmp_path / "page.report.txt").read_text()


def test_known_objects_end_where_the_page_ends_them():
    outputs = {"scores": [[0.9, 0.8, 0.7]], "labels": [[0, 1, 2]]}
    outputs |= {"boxes": [[[-5.0, 2, 30, 60], [41, 0, 50, 9], [1, 2, 3, 4]]]}
    arrays = {name: np.array(value) for name, value in outputs.items()}
    known = _objects(arrays, {"rules": {"clip_boxes": True}}, (40, 50))  # the second lies beside the picture
    assert [(x["label"], x["box"]) for x in known] == [(0, [0, 2, 30, 50]), (2, [1, 2, 3, 4])]
    assert _objects(arrays, {"rules": {"clip_boxes": False}}, (40, 50))[0]["box"] == [-5, 2, 30, 60]


def test_a_damaged_archive_and_no_connection(tmp_path, monkeypatch):
    (tmp_path / "x.tgz").write_bytes(b"damaged")
    with pytest.raises(UserError, match="SHA-512"):
        runtime.runtime_files(tmp_path / "x.tgz")
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runtime, "URL", "http://127.0.0.1:9/none.tgz")
    with pytest.raises(UserError, match="--runtime"):
        runtime.runtime_files(None)
    assert not list((tmp_path / "cache").glob("*.tgz"))


def variables_of(model):
    """Random ones, with which the network looks at its pixels."""
    images = jax.ShapeDtypeStruct((1, 128, 128, 3), np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), images)
    stream = np.random.default_rng(0)

    def fill(path, leaf):
        noise, name = stream.standard_normal(leaf.shape), path[-1].key
        if name == "kernel":
            noise *= np.sqrt(1.2 / np.prod(leaf.shape[:-1]))
        elif name in ("scale", "var") or name.startswith("layer_scale"):
            noise = 1 + 0.3 * np.abs(noise)
        else:
            noise *= 0.3
        return noise.astype(np.float32)

    return {"batch_stats": {}, **jax.tree_util.tree_map_with_path(fill, dict(shapes))}


FAMILIES = {
    "D-FINE": (DFine, tiny_config),
    "D-FINE-seg": (DFine, tiny_segmenter),
    "RT-DETRv2": (RTDetr, tiny_rtdetr),
    "RF-DETR": (RFDetr, tiny_rfdetr),
    "RF-DETR-seg": (RFDetr, functools.partial(tiny_rfdetr, masks=True)),
}


def export_family(name, out, files, **options):
    make, configured = FAMILIES[name]
    model = make(configured().model)
    return export(out, files, variables_of(model), model=model, **options)


@pytest.mark.parametrize(
    "name", [pytest.param("RF-DETR-seg"), *(pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES)]
)
def test_every_family_is_written(name, stand_in, tmp_path):
    """The graph in ONNX Runtime finds what the model finds in pictures of four sizes."""
    assert export_family(name, tmp_path / "page", stand_in).passed
    model = json.loads((tmp_path / "page" / "model.json").read_text())
    assert model["task"] == ("segment" if "seg" in name else "detect") and len(model["check"]["objects"]) >= 5


@pytest.fixture(scope="module")
def downloaded():
    """ONNX Runtime Web is downloaded once, into the cache; without it and without a browser nothing can be tried."""
    if browser.find_browser() is None:
        pytest.skip("needs Chromium, Chrome or Edge")


@pytest.mark.slow
@pytest.mark.internet
@pytest.mark.parametrize("name", FAMILIES)
def test_the_browser_finds_what_the_model_finds(name, downloaded, tmp_path):
    report = export_family(name, tmp_path / "page", None, run_browser=True)
    assert report.passed
    found = {run.partition(", ")[2]: outcome for run, outcome in report.elsewhere.items()}
    wasm = next(outcome for run, outcome in found.items() if run.startswith("WebAssembly"))
    gpu = next(outcome for run, outcome in found.items() if run.startswith("WebGPU"))
    assert not isinstance(wasm, str) and not isinstance(gpu, str), (wasm, gpu)
    for run in (wasm, gpu):
        print(f"{name}: {run.box_median_px:.4f} px, most {run.box_most_px:.4f}, score {run.score_most:.1e}")
    assert wasm.box_median_px < 0.02 and wasm.box_most_px < 0.2 and wasm.score_most < 1e-3
    assert gpu.box_median_px < 0.05 and not compare.exceeded(gpu, GPU_LIMITS)
