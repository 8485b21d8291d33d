"""The ONNX file beside the best weights: made when a run has ended, never of other weights, never at its cost."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dfine_jax.commands import train_export
from dfine_jax.commands.train_export import export_best
from dfine_jax.system.installed import pip_install


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder with best weights, and exports replaced by a line of Python."""
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "metadata.json").write_text("{}")
    monkeypatch.setattr(train_export, "NEEDED", ())

    def exports_by(code: str) -> Path:
        monkeypatch.setattr(train_export, "_command", lambda best, file: [sys.executable, "-c", code, str(file)])
        return tmp_path

    return exports_by


MAKES_IT = "import os, sys, pathlib; pathlib.Path(sys.argv[1]).write_text(os.environ['JAX_PLATFORMS'])"


def files(out: Path) -> list[str]:
    return sorted(p.name for p in out.iterdir())


def test_the_file_lies_beside_best_and_is_made_on_the_processor(run):
    out = run(MAKES_IT)
    assert export_best(out, wanted=True).startswith(f"as ONNX, checked against the model: {out / 'best.onnx'}")
    assert (out / "best.onnx").read_text() == "cpu"
    run("raise SystemExit('made once more')")
    assert export_best(out, wanted=True) == f"as ONNX: {out / 'best.onnx'}"  # of a run that is resumed at its end


def test_a_file_of_earlier_weights_does_not_stay(run):
    out = run(MAKES_IT)
    for name in ("best.onnx", "best.onnx.report.json", "best.onnx.report.txt"):
        (out / name).write_text("earlier")
        os.utime(out / name, (1, 1))
    assert export_best(out, wanted=False) == ""
    assert files(out) == ["best"]


def test_a_file_of_earlier_weights_that_cannot_be_removed_is_told(run):
    out = run(MAKES_IT)
    (out / "best.onnx").mkdir()
    os.utime(out / "best.onnx", (1, 1))
    note = export_best(out, wanted=True)
    assert note.startswith(f"{out / 'best.onnx'}: ") and note.endswith(f"it is of other weights than {out / 'best'}")


def test_a_failure_is_told_with_its_reason_and_the_command(run):
    out = run("import sys; print('note', file=sys.stderr); sys.exit('dfine: error: it has no such operation')")
    note = export_best(out, wanted=True)
    assert note == (
        f"not exported to ONNX (it has no such operation); later: dfine export {out / 'best'} --out {out / 'best.onnx'}"
    )
    out = run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert "not exported to ONNX (status -9)" in export_best(out, wanted=True)


def test_without_the_packages_or_without_best(run, monkeypatch):
    out = run(MAKES_IT)
    monkeypatch.setattr(train_export, "NEEDED", ("no_such_package",))
    note = export_best(out, wanted=True)
    assert note == f"not exported to ONNX: no_such_package not installed ({pip_install('export')})"
    monkeypatch.setattr(train_export, "NEEDED", ())
    assert export_best(out / "elsewhere", wanted=True) == "" and files(out) == ["best"]


def test_ctrl_c_leaves_the_export_out(run, monkeypatch):
    out = run(MAKES_IT)
    (out / ".best.onnx.abc").mkdir()

    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_export.subprocess, "run", pressed)
    assert "not exported to ONNX (interrupted); later: dfine export" in export_best(out, wanted=True)
    assert files(out) == ["best"]
