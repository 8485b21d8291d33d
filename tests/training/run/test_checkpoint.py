"""Checkpoint directories: exact contents, descriptions, replacement that survives being killed, damage."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from small_checkpoint import METADATA, small_state

import dfine_jax
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.errors import UserError
from dfine_jax.families.dfine.tables import published
from dfine_jax.system.files import replaced_path
from dfine_jax.training.run import checkpoint
from dfine_jax.training.run.checkpoint import Metadata
from dfine_jax.training.run.stages import Progress


def assert_same(a, b):
    a, b = (jax.tree.leaves_with_path(t.replace(key=jax.random.key_data(t.key))) for t in (a, b))
    for (path, x), (other, y) in zip(a, b, strict=True):
        assert path == other
        np.testing.assert_array_equal(x, y, err_msg=str(path))
        assert np.asarray(x).dtype == np.asarray(y).dtype, path


def test_training_state_comes_back_bit_by_bit(tmp_path):
    state, progress = small_state(0.1), Progress(epoch=4, best_ap=0.25, best_epoch=3, skipped=1)
    checkpoint.save_training(tmp_path / "last", state, METADATA, progress)
    template = jax.eval_shape(small_state)
    restored, metadata, found = checkpoint.load_training(tmp_path / "last", template)
    assert_same(restored, state)
    assert metadata == METADATA
    assert found == progress


def test_both_kinds_hold_the_averaged_weights(tmp_path):
    state = small_state(0.5)
    state = state.replace(ema_params=jax.tree.map(lambda x: x + 1, state.ema_params))
    checkpoint.save_training(tmp_path / "last", state, METADATA, Progress())
    weights, metadata = checkpoint.load_weights(tmp_path / "last")
    checkpoint.save_weights(tmp_path / "best", weights, metadata)
    weights, _ = checkpoint.load_weights(tmp_path / "best")
    jax.tree.map(np.testing.assert_array_equal, weights["params"], jax.device_get(state.ema_params))
    with pytest.raises(UserError, match="holds weights only"):
        checkpoint.load_training(tmp_path / "best", state)


def test_description_is_complete_for_other_programs(tmp_path):
    checkpoint.save_weights(tmp_path / "best", {"params": {"w": np.ones(2)}, "batch_stats": {}}, METADATA)
    raw = json.loads((tmp_path / "best" / "metadata.json").read_text())
    assert raw["class_names"] == ["cat", "dog"] and raw["category_ids"] == [3, 17]
    assert raw["input_size_px"] == [640, 640] and raw["activation"] == "relu" and raw["ap"] == 0.25
    assert raw["source_sha256"] == "ab" * 32 and raw["licence"] == "Apache-2.0" and raw["library_version"]
    assert Preprocess.from_dict(raw["preprocessing"]) == Preprocess(640, 640)
    assert raw["config"]["model"]["variant"] == "n" and raw["method"] == "dfine"


def test_method_and_activation_come_back_with_the_weights(tmp_path):
    deim = published("deim_coco", "n")
    metadata = dataclasses.replace(METADATA, config=deim)
    checkpoint.save_weights(tmp_path / "best", {"params": {"w": np.ones(2)}, "batch_stats": {}}, metadata)
    raw = json.loads((tmp_path / "best" / "metadata.json").read_text())
    assert (raw["method"], raw["activation"]) == ("deim", "silu")
    model, _ = dfine_jax.load(tmp_path / "best")
    assert model.config == dataclasses.replace(deim.model, precision="float32")


def test_an_interrupted_replacement_leaves_the_previous_one(tmp_path):
    checkpoint.save_weights(tmp_path / "last", {"params": {"w": np.zeros(2)}}, METADATA)
    (tmp_path / "last").rename(replaced_path(tmp_path / "last"))  # killed between the two renames
    (tmp_path / "last.old").mkdir()  # a folder of the user's
    (tmp_path / ".last.unfinished").mkdir()
    weights, _ = checkpoint.load_weights(tmp_path / "last")
    assert weights["params"]["w"].tolist() == [0, 0]
    checkpoint.save_weights(tmp_path / "last", {"params": {"w": np.ones(2)}}, METADATA)
    weights, _ = checkpoint.load_weights(tmp_path / "last")
    assert weights["params"]["w"].tolist() == [1, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "last.old"]


WRITER = """
import sys, numpy as np
sys.path[:0] = {paths!r}
from test_checkpoint import METADATA
from dfine_jax.training.run import checkpoint
print("ready", flush=True)
value = 0
while True:
    value += 1
    checkpoint.save_weights({target!r}, {{"params": {{str(i): np.full(50, value) for i in range(40)}}}}, METADATA)
    print(value, flush=True)
"""


def test_killed_while_writing_it_stays_loadable(tmp_path):
    target = str(tmp_path / "last")
    code = WRITER.format(paths=[str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)], target=target)
    rng = np.random.RandomState(0)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        written = int(process.stdout.readline())
        for _ in range(int(rng.randint(1, 4))):
            written = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.3))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    weights, _ = checkpoint.load_weights(target)
    values = {float(v) for leaf in weights["params"].values() for v in leaf}
    assert len(values) == 1 and values.pop() >= written


def test_errors_say_what_was_expected(tmp_path):
    with pytest.raises(UserError, match="is not a checkpoint: expected a folder with metadata.json and weights/"):
        checkpoint.load_weights(tmp_path / "nothing")
    checkpoint.save_weights(tmp_path / "run" / "best", {"params": {"w": np.ones(2)}}, METADATA)
    with pytest.raises(UserError, match="is a run, not a checkpoint; give .*best"):
        checkpoint.load_weights(tmp_path / "run")


def test_damage_is_reported_in_one_line(tmp_path):
    path = tmp_path / "best"
    checkpoint.save_weights(path, {"params": {"w": np.ones(2000)}}, METADATA)
    for file in (path / "weights").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read.*damaged") as error:
        checkpoint.load_weights(path)
    assert "\n" not in str(error.value)
    (path / "metadata.json").write_text("{")
    with pytest.raises(UserError, match="metadata.json cannot be read"):
        checkpoint.load_metadata(path)
    (path / "metadata.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(
        UserError, match=r"written by a newer dfine_jax: it is of format 99, this version reads up to 2; upgrade"
    ):
        checkpoint.load_metadata(path)


def test_another_model_is_refused(tmp_path):
    checkpoint.save_training(tmp_path / "last", small_state(), METADATA, Progress())
    template = jax.eval_shape(small_state)
    wide = template.params | {"decoder": {"head": {"kernel": jax.ShapeDtypeStruct((2, 5), jnp.float32)}}}
    with pytest.raises(UserError, match="does not fit the configuration.*"):
        checkpoint.load_training(tmp_path / "last", template.replace(params=wide))
    other = template.replace(opt_state=(*template.opt_state, jax.ShapeDtypeStruct((), jnp.float32)))
    with pytest.raises(UserError, match="another optimiser"):
        checkpoint.load_training(tmp_path / "last", other)


def test_metadata_fields_are_all_stored():
    text = checkpoint.metadata_json(METADATA)
    assert {field.name for field in dataclasses.fields(Metadata)} <= set(json.loads(text))


def value_of(path):
    return float(checkpoint.load_weights(path)[0]["params"]["w"][0])


def test_what_is_renamed_is_on_the_disk_and_one_checkpoint_is_whole_at_every_moment(tmp_path, monkeypatch):
    """The order of calls decides what a power cut leaves: each is recorded, and what could be read before it."""
    target, calls = tmp_path / "last", []
    checkpoint.save_weights(target, {"params": {"w": np.zeros(1000)}}, METADATA)
    fsync, rename, rmtree = os.fsync, os.rename, checkpoint.shutil.rmtree

    def record(kind, place):
        if tmp_path in Path(place).parents or Path(place) == tmp_path:
            calls.append((kind, Path(place).relative_to(tmp_path).as_posix(), value_of(target)))

    def fsynced(descriptor):
        record("sync", os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def renamed(old, new, **options):
        record("rename", new)
        rename(old, new, **options)

    def removed(folder, **options):
        record("remove", folder)
        rmtree(folder, **options)

    monkeypatch.setattr(os, "fsync", fsynced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", removed)
    checkpoint.save_weights(target, {"params": {"w": np.ones(1000)}}, METADATA)
    monkeypatch.undo()
    assert value_of(target) == 1.0 and {value for *_, value in calls} == {0.0, 1.0}
    kinds = [(kind, place) for kind, place, _ in calls]
    aside, into = kinds.index(("rename", ".last.replaced")), kinds.index(("rename", "last"))
    synced = {place for kind, place in kinds[:aside] if kind == "sync"}
    files = {path.relative_to(target).as_posix() for path in target.rglob("*")}
    assert {f".last.unfinished/{name}" for name in files} <= synced and {".last.unfinished", "."} <= synced
    assert aside < into and ("sync", ".") in kinds[into:]
    gone = len(kinds) - 1 - kinds[::-1].index(("remove", ".last.replaced"))
    assert ("sync", ".") in kinds[into:gone]  # the new name is safe before the old checkpoint goes


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("RESOURCE_EXHAUSTED: no space\nstack")]
)
@pytest.mark.parametrize("where", ["arrays", "description", "sync"])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, error, where):
    target = tmp_path / "last"
    checkpoint.save_weights(target, {"params": {"w": np.zeros(10)}}, METADATA)

    def fails(*_, **__):
        raise error

    place = {"arrays": (checkpoint.ocp.Checkpointer, "save"), "description": (checkpoint, "write_whole")}
    monkeypatch.setattr(*place.get(where, (checkpoint, "sync_tree")), fails)
    with pytest.raises(UserError, match="last cannot be written, the one before it is kept: .*(No|no) space") as caught:
        checkpoint.save_weights(target, {"params": {"w": np.ones(10)}}, METADATA)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert value_of(target) == 0.0 and [path.name for path in tmp_path.iterdir()] == ["last"]
    monkeypatch.setattr(*place.get(where, (checkpoint, "sync_tree")), fails)
    with pytest.raises(UserError, match="other cannot be written, there is none before it"):
        checkpoint.save_weights(tmp_path / "other", {"params": {"w": np.ones(10)}}, METADATA)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


LIMITED = """
import resource, sys, numpy as np
sys.path[:0] = {paths!r}
from test_checkpoint import METADATA
from dfine_jax.errors import UserError
from dfine_jax.training.run import checkpoint
checkpoint.save_weights({target!r}, {{"params": {{"w": np.zeros(2000)}}}}, METADATA)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # larger files cannot be written, as on a full disk
try:
    checkpoint.save_weights({target!r}, {{"params": {{"w": np.random.default_rng(0).random(2_000_000)}}}}, METADATA)
except UserError as error:
    print(error)
"""


def test_files_that_the_system_refuses_are_one_line(tmp_path):
    """The array storage writes through code of its own, whose errors are its own, too."""
    target = tmp_path / "last"
    code = LIMITED.format(paths=[str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)], target=str(target))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "last cannot be written, the one before it is kept: " in done.stdout and done.stdout.count("\n") == 1
    assert value_of(target) == 0.0 and [path.name for path in tmp_path.iterdir()] == ["last"]
