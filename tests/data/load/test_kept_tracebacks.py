"""A cell of a notebook that fails keeps its traceback; the loader's processes and memory end all the same."""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing

import pytest

from dfine_jax.config import DataConfig
from dfine_jax.data.load.pipeline import EvalLoader, TrainLoader
from dfine_jax.data.load.workers import closing_batches
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.evaluation.evaluate import evaluate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return read_dataset(make_shapes_dataset(tmp_path_factory.mktemp("shapes"), 8, 8, 64, 0), "val")


def children() -> set[int]:
    """Processes started by this one that live."""
    found = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat:
                fields = stat.read().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == str(os.getpid()) and fields[0] != "Z":
            found.add(int(entry))
    return found


def batch_memory() -> int:
    """Mappings that workers write batches to; the read-only one of the records belongs to the loader itself."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:dfine-batches" in line and " rw-s " in line for line in maps)


def kept(body) -> BaseException:
    """What the body raises, with its traceback and all that hangs on it."""
    try:
        body()
    except RuntimeError as error:
        return error
    raise AssertionError("nothing was raised")


def fails_in_evaluation(dataset):
    def predict(images):
        assert len(children()) >= 2 and batch_memory()
        raise RuntimeError("in the network")

    evaluate(
        predict,
        EvalLoader(dataset, Preprocess(64, 64), batch_size=2, workers=2),
        dataset.annotation_file,
        dataset.classes,
    )


def fails_in_a_chain(dataset):
    loader = EvalLoader(dataset, Preprocess(64, 64), batch_size=2, workers=2)

    def chained():
        yield from loader

    with closing_batches(chained()) as stream:
        next(stream)
        assert len(children()) >= 2 and batch_memory()
        raise RuntimeError("in the cell")


def fails_in_training(dataset):
    loader = TrainLoader(dataset, DataConfig(height_px=64, width_px=64), batch_size=2, seed=0, workers=2)
    with closing(loader.batches()) as batches:
        next(batches)
        assert len(children()) >= 2 and batch_memory()
        raise RuntimeError("in the step")


@pytest.mark.parametrize("body", [fails_in_evaluation, fails_in_a_chain, fails_in_training])
def test_no_process_and_no_memory_stays(dataset, body):
    processes, memory = children(), batch_memory()
    error = kept(lambda: body(dataset))
    ended = time.monotonic() + 5
    while children() - processes and time.monotonic() < ended:
        time.sleep(0.05)
    assert error.__traceback__ is not None
    assert not children() - processes
    assert batch_memory() <= memory
