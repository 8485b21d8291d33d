"""What a wheel adds to an environment, and that it works away from the sources."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import onnx_models as tiny
import pytest
from conftest import ROOT
from PIL import Image

from dfine_jax.converters.onnx.export import export_onnx, save
from dfine_jax.prediction.detector import Detector

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporter's libraries


def run(*command, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> tuple[Path, set[str], set[str]]:
    """An environment that sees the libraries of this one; what the wheel added to its packages and to its commands."""
    folder = tmp_path_factory.mktemp("installed")
    sources, environment = folder / "sources", folder / "environment"
    sources.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    for name in ("dfine_jax", "converters", "experiments"):
        shutil.copytree(ROOT / name, sources / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder)
    run(*pip, "wheel", *options, sources, cwd=folder)

    venv.create(environment, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    commands = environment / "bin"
    before = set(os.listdir(packages)), set(os.listdir(commands))
    (wheel,) = folder.glob("*.whl")
    run(*pip, "--python", commands / "python", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    added = set(os.listdir(packages)) - before[0], set(os.listdir(commands)) - before[1]
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    return environment, *added


def test_one_name_is_added_and_one_command_under_two_names(installed):
    environment, packages, commands = installed
    assert {name.partition("-")[0] for name in packages} == {"dfine_jax"} and len(packages) == 2
    assert commands == {"dfine", "dfine-jax"}
    (package,) = environment.rglob("site-packages/dfine_jax")
    assert (package / "py.typed").is_file()
    sources = {p.relative_to(ROOT) for p in (ROOT / "dfine_jax").rglob("*.py")}
    sources |= {Path("dfine_jax") / p.relative_to(ROOT) for p in (ROOT / "converters").rglob("*.py")}
    assert {p.relative_to(package.parent) for p in package.rglob("*.py") if not p.is_symlink()} == sources


def test_the_command_works_away_from_the_sources(installed, tmp_path):
    environment, *_ = installed
    where = run(environment / "bin" / "python", "-c", "import dfine_jax; print(dfine_jax.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)
    assert "usage: dfine demo" in run(environment / "bin" / "dfine", "demo", "--help", cwd=tmp_path)

    save(export_onnx(*tiny.tiny_model(), tiny.META, size_hw=tiny.SIZE_HW), tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    found = ("--out", "drawn", "--json", "results.json", "--threshold", "0")
    run(environment / "bin" / "dfine", "predict", "model.onnx", "picture.png", *found, cwd=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    expected = Detector(tmp_path / "model.onnx", threshold=0)(tmp_path / "picture.png")
    assert len(results) == len(expected) > 0
    np.testing.assert_allclose([r["score"] for r in results], expected.scores, atol=1e-4)
    assert (tmp_path / "drawn" / "picture.png").is_file()
