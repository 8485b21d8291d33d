"""After training: the best weights as an ONNX file beside them, in a process of its own that cannot harm the run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from dfine_jax.system.files import told
from dfine_jax.system.installed import pip_install
from dfine_jax.system.waiting import waiting

NEEDED = ("jax2onnx", "onnx", "onnxruntime")  # the extra "export"
_ERROR = "dfine: error: "


def export_best(out: Path, *, wanted: bool) -> str:
    """Make ``OUT/best.onnx`` of ``OUT/best``, compared with the model on generated pictures; a line that says so.

    A file of earlier weights is removed, whether or not a new one is made. Whatever goes wrong is only told: the run
    itself is over.

    Args:
      wanted: the run has come to its end, and the file was not declined.

    Returns:
      What happened, for the user; empty when there is nothing to say.
    """
    best, file = out / "best", out / "best.onnx"
    if _is_of(file, best):
        return f"as ONNX: {file}"
    try:
        for old in (file, *(file.with_name(f"{file.name}.report.{kind}") for kind in ("json", "txt"))):
            old.unlink(missing_ok=True)
    except OSError as error:
        return f"{told(error)}: it is of other weights than {best}"
    if not wanted or not best.is_dir():
        return ""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        return f"not exported to ONNX: {', '.join(missing)} not installed ({pip_install('export')})"
    with waiting(f"exporting {file}", "a minute or two, checked against the model; Ctrl-C leaves it out"):
        try:
            done = subprocess.run(_command(best, file), env=_environment(), capture_output=True, text=True, check=False)
        except OSError as error:
            return f"not exported to ONNX ({error}); {_by_hand(best, file)}"
        except KeyboardInterrupt:  # the process was ended too, perhaps before it could tidy up
            for folder in out.glob(f".{file.name}.*"):
                shutil.rmtree(folder, ignore_errors=True)
            return f"not exported to ONNX (interrupted); {_by_hand(best, file)}"
    if done.returncode == 0:
        return f"as ONNX, checked against the model: {file} (numbers in {file.name}.report.txt)"
    lines = [line.removeprefix(_ERROR).strip() for line in done.stderr.splitlines() if line.strip()]
    return f"not exported to ONNX ({lines[-1] if lines else f'status {done.returncode}'}); {_by_hand(best, file)}"


def _is_of(file: Path, best: Path) -> bool:
    """Whether a file was made of the weights that are there now."""
    try:
        return file.stat().st_mtime_ns >= (best / "metadata.json").stat().st_mtime_ns
    except OSError:
        return False


def _command(best: Path, file: Path) -> list[str]:
    return [sys.executable, "-m", "dfine_jax.cli", "export", str(best), "--to", "onnx", "--out", str(file)]


def _environment() -> dict[str, str]:
    """On the processor: this process may hold all memory of the accelerator."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}


def _by_hand(best: Path, file: Path) -> str:
    return f"later: dfine export {best} --out {file}"
