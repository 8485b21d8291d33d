"""The notebooks run from top to bottom, on small sizes, and show what their texts say."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT
from tiny import tiny_config

import dfine_jax
from dfine_jax import losses
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.families.dfine.model import init_variables
from dfine_jax.training.run.checkpoint import Metadata, save_weights

NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))


def cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def run(name, parameters):
    """Names that the notebook leaves behind, run with other values in its cell of parameters."""
    import matplotlib

    matplotlib.use("Agg")
    values = {"__name__": "notebook"}
    for number, cell in enumerate(cells(ROOT / "experiments" / "notebooks" / name)):
        exec(compile("".join(cell["source"]), f"{name}, code cell {number}", "exec"), values)
        if "parameters" in cell["metadata"].get("tags", []):
            assert parameters.keys() <= values.keys()
            values.update(parameters)
    matplotlib.pyplot.close("all")
    return values


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=12, num_val=9, size_px=96, seed=0)


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    """A shrunken model that knows two of the four shapes."""
    names = read_coco(*find_split(data, "val")).names[:2]
    config = tiny_config(model={"num_classes": 2})
    path = tmp_path_factory.mktemp("model") / "best"
    rng = np.random.RandomState(0)  # fresh layers are equal, and so are their distributions
    fresh = init_variables(config.model, jax.random.key(0))
    variables = jax.tree.map(lambda x: x + 0.05 * rng.randn(*x.shape).astype(np.float32), fresh)
    save_weights(path, variables, Metadata(config, names, (0, 1)))
    return path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_stored_with_the_outputs_of_a_whole_run(path: Path):
    """Of ``jupyter nbconvert --execute --inplace`` behind a demo; large pictures are stored as smaller JPEG files."""
    assert path.stat().st_size < 300_000
    stored = cells(path)
    assert [cell["execution_count"] for cell in stored] == list(range(1, len(stored) + 1))
    for cell in stored:
        kinds = [output["output_type"] for output in cell["outputs"]]
        code = "".join(cell["source"])
        assert "error" not in kinds and ("stream" in kinds) == ("print(" in code)
        pictures = [kind for output in cell["outputs"] for kind in output.get("data", {}) if kind.startswith("image/")]
        assert bool(pictures) == ("_figure = " in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_start_where_nothing_is_installed(path: Path):
    first, *others = ["".join(cell["source"]) for cell in cells(path)]
    assert 'REPOSITORY = ""' in first and "git+{REPOSITORY}" in first and '"pip", "install"' in first
    if "DATA" in "".join(others):
        assert any('"dfine_jax", "demo"' in code for code in others[:2])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_use_the_public_surface(path: Path):
    surfaces = {"dfine_jax": dfine_jax.__all__, "dfine_jax.losses": losses.__all__}
    aliases, used = {"dfine_jax": "dfine_jax"}, set()
    for cell in cells(path):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.startswith("dfine_jax.")]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dfine_jax"):
                assert [(node.module, alias.name) for alias in node.names] == [("dfine_jax", "losses")]
                aliases["losses"] = "dfine_jax.losses"
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
                used.add((aliases[node.value.id], node.attr))
    assert used and all(name in surfaces[module] for module, name in used)


def test_loss_terms(data, checkpoint, capsys):
    values = run("loss_terms.ipynb", {"CHECKPOINT": str(checkpoint), "DATA": str(data)})
    edges, slopes = np.asarray(values["edges"]), {k: np.asarray(v) for k, v in values["slopes"].items()}
    inside = edges < 0.69
    np.testing.assert_allclose(-slopes["bbox"][inside], 5 * 1.5, rtol=1e-3)  # width moves by 1, the centre by 1/2
    np.testing.assert_allclose(-slopes["giou"][inside], 2 / 0.4, rtol=1e-3)  # IoU is width / 0.4
    assert all((-slope[inside] > 0).all() and (slope[edges > 0.72] > 0).all() for slope in slopes.values())
    assert all(not np.any(gradient) for gradient in values["pull_of_class_loss"].values())
    push = {name: np.asarray(value) for name, value in values["push"].items()}
    assert int(np.argmax(push["fgl"])) == int(np.argmax(values["wanted"]))
    assert all(abs(value.sum()) < 1e-5 for value in push.values())  # a softmax only moves probability around

    layers = values["layers"]
    assert len(values["refinement_figure"].axes) == 4 * layers
    norms = values["norms"]
    assert norms["bbox/aux_0"][0][0] > 0 and norms["bbox/aux_0"][0][1] == 0
    assert norms["fgl/last"][1][1] > 0 and norms["fgl/last"][1][0] == 0
    assert norms["ddf/aux_0"][1][0] > 0 and norms["ddf/aux_0"][1][1] == 0  # the teacher learns nothing
    assert all(not np.any(norms["vfl/last"][i]) for i in range(2))
    assert "ddf/aux_0" in capsys.readouterr().out

    widths, scores = np.asarray(values["WIDTHS"]), np.asarray(values["SCORES"])
    for name, power in (("vfl", 1.0), ("mal", 1.5)):
        pull = np.asarray(values["pulls"][name])
        expected = widths[:, None] ** power - scores
        weight = widths[:, None] if name == "vfl" else 1.0
        np.testing.assert_allclose(pull, weight * expected, atol=1e-4)


@pytest.mark.slow
def test_fdr_in_your_decoder(capsys):
    values = run("fdr_in_your_decoder.ipynb", {"STEPS": 120, "BATCH": 8})
    assert capsys.readouterr().out.count("overlap") == 2
    without, quality = values["parameters"]["without"], 2 * (20 * 64 + 64 + 64 + 1)
    assert values["parameters"]["with quality heads"] == without + quality
    for terms in values["curves"].values():
        terms = {name: np.asarray(value) for name, value in terms.items()}
        assert all(np.isfinite(value).all() for value in terms.values())
        assert terms["iou"][-5:].mean() > 2 * terms["iou"][:5].mean()
        assert all(terms[name][-5:].mean() < 0.6 * terms[name][:5].mean() for name in ("giou/layers", "giou/pre"))
        assert terms["ddf"][0] < 1e-6 < terms["ddf"].max()
    assert len(values["curves_figure"].axes) == 2


@pytest.mark.slow
def test_fine_tune(data, checkpoint, tmp_path, capsys):
    parameters = {"DATA": str(data), "WEIGHTS": str(checkpoint), "OUT": str(tmp_path / "run")}
    values = run("fine_tune.ipynb", {**parameters, "EPOCHS": 2, "SIZE_PX": 64, "BATCH_SIZE": 4})
    assert values["result"].finished and (tmp_path / "run" / "best" / "metadata.json").is_file()
    printed = capsys.readouterr().out
    assert "train: 12 images; circle" in printed and "AP by class" in printed
    assert "classes that start anew (2): " in (tmp_path / "run" / "log.txt").read_text()
    titles = [axis.get_title() for axis in values["curves_figure"].axes]
    assert any("Average precision" in title for title in titles)
    assert len(values["detections_figure"].axes) == 6
