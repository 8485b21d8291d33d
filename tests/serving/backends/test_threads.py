"""Several threads use one detector: everybody gets the answers to the own pictures."""

from __future__ import annotations

import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT

from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.dataset import Classes
from dfine_jax.prediction.detector import Detector, OpenedModel
from dfine_jax.serving.backends.jax_model import JaxBackend
from dfine_jax.serving.backends.tensorrt import TensorRtSession, _Plan

sys.path.append(str(ROOT / "tests"))
import toy_artefact as toy  # noqa: E402

THREADS, ROUNDS = 6, 12


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40 + 7 * i, 60 + 5 * i, 3), np.uint8) for i in range(THREADS)]


@pytest.fixture
def impatient_threads():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def hammer(detector: Detector, pictures) -> None:
    expected = [detector(picture) for picture in pictures]
    start = threading.Barrier(THREADS)

    def work(i: int) -> None:
        start.wait()
        for turn in range(ROUNDS):
            given = pictures[i : i + 1 + turn % 3]  # other batches, for which runtimes have other plans
            for result, right in zip(detector(given), expected[i:], strict=False):
                np.testing.assert_allclose(result.boxes_xyxy_px, right.boxes_xyxy_px, atol=1e-3)
                np.testing.assert_allclose(result.scores, right.scores, atol=1e-5)
                assert result.size_px == right.size_px

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, i) for i in range(THREADS)]:
            done.result()


@pytest.mark.parametrize("graph", ["raw", "complete"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_exported_files(tmp_path, pictures, impatient_threads, runtime, graph):
    pytest.importorskip(runtime)
    path = toy.write_toy(tmp_path / "toy.onnx", toy.toy_model()[1], graph=graph)
    hammer(Detector(path, threshold=0.1, batch_size=3, num_top=toy.TOP, runtime=runtime), pictures)


def test_jax(pictures, impatient_threads):
    model = OpenedModel(
        JaxBackend(*toy.toy_model()), Classes(toy.NAMES, toy.IDS), Preprocess(toy.HEIGHT, toy.WIDTH), None
    )
    hammer(Detector(model, threshold=0.1, batch_size=3, num_top=toy.TOP), pictures)


def test_jax_compiles_a_shape_once():
    backend = JaxBackend(*toy.toy_model())
    compiled, lower = [], backend._forward.lower

    def counted(*arguments):
        compiled.append(arguments)
        return lower(*arguments)

    backend._forward = types.SimpleNamespace(lower=counted)
    shape = (1, toy.HEIGHT, toy.WIDTH, 3)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: backend.predict(np.zeros(shape, np.uint8)), range(THREADS)))
    backend.prepare(shape)
    assert len(compiled) == 1


class Card:
    """CUDA's runtime as far as a session calls it; remembers which threads chose their GPU."""

    cudaError_t = types.SimpleNamespace(cudaSuccess=0)  # noqa: N815

    def __init__(self):
        self.chosen = threading.local()

    def cudaSetDevice(self, index):  # noqa: N802
        self.chosen.index = index
        return (0,)

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        assert self.chosen.index == 1
        time.sleep(0.002)
        return (0,)


def test_tensorrt_runs_one_after_another(monkeypatch):
    """Its pinned buffers, here plain arrays, are shared by all runs of a shape."""
    session = object.__new__(TensorRtSession)
    session._cuda, session._device, session._lock, session._plans = Card(), "cuda:1", threading.Lock(), {}
    session._inputs, session._outputs, session._stream = ["images"], ["twice"], 0

    def plan(shapes):
        host = {"images": np.zeros(shapes["images"]), "twice": np.zeros(shapes["images"])}
        return _Plan(None, host, {}, capture=False)

    def enqueue(made):
        time.sleep(0.001)
        np.copyto(made.host["twice"], 2 * made.host["images"])

    monkeypatch.setattr(session, "_plan", plan)
    monkeypatch.setattr(session, "_enqueue", enqueue)

    def work(value):
        for _ in range(ROUNDS):
            out = session.run({"images": np.full((4, 4), value)})["twice"]
            np.testing.assert_array_equal(out, 2 * value)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, np.arange(float(THREADS))))
    assert len(session._plans) == 1
