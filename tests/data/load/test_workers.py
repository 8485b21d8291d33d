"""Worker processes: order, isolation from jax and from the user's main module, failures, and their end."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dfine_jax.data.load import workers
from dfine_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[3]

SCRIPT = """
import sys, tempfile
import jax.numpy as jnp
jnp.ones(3).sum()
from dfine_jax.config import DataConfig
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split
from dfine_jax.data.load.pipeline import TrainLoader
from dfine_jax.data.read.synthetic import make_shapes_dataset
root = make_shapes_dataset(tempfile.mkdtemp(), 4, 1, 48, 0)
stream = TrainLoader(read_coco(*find_split(root, "train")), DataConfig(height_px=32, width_px=32),
                     batch_size=2, seed=0, workers=2).batches()
print([next(stream).images.shape for _ in range(5)][-1])
"""


@dataclasses.dataclass(frozen=True)
class Probe:
    """Writes (step, row, process id, jax imported) and fails where asked."""

    rows: int = 4
    fail: tuple[int, int] | None = None
    crash: tuple[int, int] | None = None
    chatter: bool = False

    @property
    def layout(self):
        return (((self.rows, 4), "int64"), ((self.rows, 3, 5), "uint8"))

    def fill(self, step, row, out):
        if (step, row) == self.fail:
            raise UserError("row is bad")
        if (step, row) == self.crash:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.chatter:
            print("a library prints this")
        out[0][row] = step, row, os.getpid(), "jax" in sys.modules
        out[1][row] = step + row

    def finish(self, step, arrays):
        return tuple(array.copy() for array in arrays)

    def describe(self, step, row):
        return f"file-{step}-{row}"


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids, seconds=20.0):
    end = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("count", [0, 1, 3, 9])
def test_batches_come_in_order_and_stay_valid(count):
    got = list(workers.batches(Probe(chatter=count > 0), range(5, 16), count))
    assert [int(b[0][0, 0]) for b in got] == list(range(5, 16))
    for step, batch in zip(range(5, 16), got, strict=True):  # earlier batches are not overwritten by later ones
        assert batch[0][:, 1].tolist() == [0, 1, 2, 3]
        np.testing.assert_array_equal(batch[1][:, 0, 0], step + np.arange(4))


def test_workers_are_other_processes_without_jax():
    import jax

    assert jax.__name__ in sys.modules
    (batch,) = workers.batches(Probe(), [0], 2)
    assert len(set(batch[0][:, 2].tolist()) - {os.getpid()}) == 2
    assert not batch[0][:, 3].any()


@pytest.mark.parametrize("count", [0, 2])
def test_errors_of_the_user_arrive_unchanged(count):
    stream = workers.batches(Probe(fail=(3, 1)), range(9), count)
    for _ in range(3):
        next(stream)
    with pytest.raises(UserError, match="^row is bad$"):
        next(stream)


def test_a_killed_worker_is_reported_with_its_file_and_the_others_end():
    stream = workers.batches(Probe(crash=(6, 2)), range(9), 2)
    pids = set(next(stream)[0][:, 2].tolist())
    with pytest.raises(UserError, match="status -9 while reading file-6-2"):
        list(stream)
    assert gone(pids)


def test_closing_ends_the_workers():
    stream = workers.batches(Probe(), range(1000), 2)
    pids = set(next(stream)[0][:, 2].tolist())
    assert all(alive(pid) for pid in pids)
    stream.close()
    assert gone(pids, 1.0)


def test_workers_end_when_the_main_process_is_killed():
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import test_workers as t\n"
        "stream = t.workers.batches(t.Probe(), range(1000), 2)\n"
        "print(*set(next(stream)[0][:, 2].tolist()), flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as process:
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2 and all(alive(pid) for pid in pids)
        process.kill()
    assert gone(pids)


@pytest.mark.parametrize("how", ["script", "stdin"])
def test_unguarded_scripts_and_standard_input_work(tmp_path, how):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    path = tmp_path / "unguarded.py"
    path.write_text(SCRIPT)
    arguments, text = ([str(path)], None) if how == "script" else (["-"], SCRIPT)
    result = subprocess.run(
        [sys.executable, *arguments], input=text, capture_output=True, text=True, env=environment, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "(2, 32, 32, 3)" in result.stdout and result.stderr == ""


def test_data_modules_never_import_jax():
    paths = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "dfine_jax" / "data").rglob("*.py"))
    names = sorted(".".join(path.parts) for path in paths)
    code = f"import sys, importlib\nfor n in {names}: importlib.import_module(n)\n"
    code += "sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    assert (
        "dfine_jax.data.load.pipeline" in names
        and subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    )
