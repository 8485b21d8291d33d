"""Cures name a command that works for how the package came here; the core works alone; whose ``dfine`` it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from dfine_jax.commands import doctor
from dfine_jax.errors import UserError
from dfine_jax.system import installed

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = ("jax", "jaxlib", "flax", "optax", "orbax", "scipy", "matplotlib", "pycocotools", "yaml", "msgspec", "onnx")
HOOK = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize(
    ("record", "command"),
    [
        ({"url": f"file://{ROOT}", "dir_info": {"editable": True}}, f"pip install -e '{ROOT}[video]'"),
        ({"url": f"file://{ROOT}", "dir_info": {}}, f"pip install '{ROOT}[video]'"),
        (
            {"url": "https://host/a/b.git", "vcs_info": {"vcs": "git", "requested_revision": "v1"}},
            "pip install 'dfine-jax[video] @ git+https://host/a/b.git@v1'",
        ),
        ({"url": "https://host/a.whl", "archive_info": {}}, "pip install 'dfine-jax[video] @ https://host/a.whl'"),
        ({"url": "file:///no/such/folder", "dir_info": {}}, f"pip install -e '{ROOT}[video]'"),  # of the source tree
    ],
)  # fmt: skip
def test_the_command_is_that_of_how_it_was_installed(monkeypatch, record, command):
    class Distribution:
        def read_text(self, name):
            return json.dumps(record)

    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution())
    installed.requirement.cache_clear()
    assert installed.pip_install("video") == command
    installed.requirement.cache_clear()


def test_from_an_index_the_name_is_enough(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    monkeypatch.setattr(installed, "_source_tree", lambda: None)
    installed.requirement.cache_clear()
    assert installed.pip_install("export") == "pip install 'dfine-jax[export]'"
    installed.requirement.cache_clear()


def test_extras_are_those_of_the_project():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(doctor.PARTS) == set(extras)
    modules = {module for part in doctor.PARTS.values() for module, _ in part[1]}
    unasked = {
        module for part in ("cuda", "docs", "dev") for module, _ in doctor.PARTS[part][1]
    }  # that no code requires
    assert {module.partition(".")[0] for module in modules - unasked} == set(installed.EXTRAS)
    assert set(installed.EXTRAS.values()) == set(doctor.PARTS) - {"cuda", "docs", "dev"}
    for extra, (_, libraries) in doctor.PARTS.items():
        listed = " ".join(extras[extra])
        for module, distribution in libraries:
            assert distribution.removeprefix("jax-cuda13-plugin") in listed or distribution == "jaxlib", (extra, module)
            known = installed.EXTRAS.get(module.partition(".")[0], extra)
            assert known == extra, (module, known, extra)
    core = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {text.partition(">=")[0] for text in core} == set(doctor.CORE)


def test_an_absent_library_is_told_with_its_extra():
    with pytest.raises(
        UserError, match="this needs no_such_library, which is not installed: pip install no_such_library"
    ):
        installed.require("no_such_library", "this")
    error = installed.absent(ModuleNotFoundError("x", name="jax.numpy"), "dfine train")
    assert (
        str(error)
        == f"dfine train needs jax, which is of the extra train and not installed: {installed.pip_install('train')}"
    )
    error = installed.absent(ModuleNotFoundError("x", name="yaml"), "dfine train", "train")
    assert str(error).startswith("dfine train needs yaml, which is of the extra train")
    assert installed.absent(ModuleNotFoundError("x", name="numpy.typo"), "x") is None


def test_runtimes_are_told_with_the_extra_that_brings_them(monkeypatch, tmp_path):
    from dfine_jax.converters.openvino.export import export_openvino
    from dfine_jax.serving.backends.onnxruntime import OnnxRuntimeSession
    from dfine_jax.serving.backends.openvino import OpenVinoSession
    from dfine_jax.serving.backends.tensorrt import require_gpu

    for name in ("onnxruntime", "openvino", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    for extra, opening in {
        "onnx": lambda: OnnxRuntimeSession(tmp_path / "m.onnx"),
        "openvino": lambda: OpenVinoSession(tmp_path / "m.xml"),
        "tensorrt-rtx": lambda: require_gpu("tensorrt_rtx"),
    }.items():
        with pytest.raises(UserError) as told:
            opening()
        note = " (for an NVIDIA GPU onnxruntime-gpu instead)" if extra == "onnx" else ""
        assert str(told.value).endswith(f"not installed: {installed.pip_install(extra)}{note}"), told.value
    with pytest.raises(UserError, match="an OpenVINO file needs openvino, which is of the extra openvino"):
        export_openvino(tmp_path / "m.onnx", tmp_path / "m.xml", "fp32")


def test_a_library_that_cannot_be_loaded_is_told_with_the_reason(monkeypatch, tmp_path):
    (tmp_path / "nncf.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nncf", raising=False)
    with pytest.raises(
        UserError, match=r"int8 needs nncf, which cannot be loaded \(libgomp.*\): pip install .*\[openvino"
    ):
        installed.require("nncf", "int8")
    with pytest.raises(UserError, match=r"x needs no_such, which is not installed: pip install .*\[tensorrt-rtx\]"):
        installed.require("no_such.bindings", "x", "tensorrt-rtx")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (f"#!{sys.executable}\nfrom dfine_jax.cli import main\n", "/dfine, of this package"),
        (f"#!/bin/sh\n'exec' {sys.executable} \"$0\"\nfrom dfine_jax.cli import main\n", "/dfine, of this package"),
        ("#!/opt/other/bin/python3\nfrom dfine_jax.cli import main\n", "of dfine-jax in another environment"),
        ("#!/usr/bin/python\nimport sys\nfrom pydfine.cli import main\n", "of another program (pydfine.cli); call"),
        (None, "no dfine on PATH; python -m dfine_jax is the same"),
    ],
)  # fmt: skip
def test_doctor_says_whose_the_command_is(monkeypatch, tmp_path, script, words):
    if script:
        file = tmp_path / "dfine"
        file.write_text(script)
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert words in doctor._command()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Runs Python where the libraries of all extras but ONNX Runtime are absent, also in the processes it starts."""
    folder = tmp_path_factory.mktemp("hook")
    (folder / "sitecustomize.py").write_text(HOOK)
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    return run


def test_the_core_runs_an_exported_file_alone(alone):
    pytest.importorskip("onnxruntime")
    done = alone(str(ROOT / "tests" / "run_core.py"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("the core works alone\n")


def test_doctor_works_alone(alone):
    done = alone("-m", "dfine_jax", "doctor")
    assert done.returncode == 0, done.stderr
    assert "MISSING" not in done.stdout and "devices" not in done.stdout
    assert f"train: checkpoints, train, convert, demo ({installed.pip_install('train')})" in done.stdout


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ("train n --data . --out r", "train"),
        ("evaluate dfine-n-coco --data .", "eval"),
        ("check --data .", "eval"),
        ("data convert --data . --to yolo --out y", "eval"),
        ("benchmark dfine-n-coco --data .", "eval"),
        ("export dfine-n-coco", "export"),
        ("convert dfine-n-coco w", "train"),
        ("demo --out d", "train"),
        ("errors dfine-n-coco --data . --out e", "eval"),
    ],
)
def test_commands_say_which_extra_they_need(alone, line, extra):
    done = alone("-m", "dfine_jax", *line.split())
    assert done.returncode == 2, (line, done.stderr)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("dfine: error: ") and last.endswith(f"not installed: {installed.pip_install(extra)}"), last
