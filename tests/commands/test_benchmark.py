"""``dfine benchmark`` on graphs that run in microseconds: what is measured, counted and written."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from dfine_jax.benchmark import latency, latency_worker
from dfine_jax.benchmark.latency import Amounts, Contender, Measurement, Picture, measure, num_blocks, percentiles
from dfine_jax.benchmark.latency_worker import Served
from dfine_jax.cli import main
from dfine_jax.data.picture.object_masks import ObjectMasks
from dfine_jax.errors import UserError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
sys.path.append(str(ROOT / "tests"))
import onnx_models as tiny  # noqa: E402
import tfds_toy  # noqa: E402
import toy_artefact as toy  # noqa: E402


@pytest.fixture(scope="module")
def variables():
    return toy.toy_model()[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shapes under the toy's class names."""
    return toy.toy_dataset(tmp_path_factory.mktemp("shapes"), num_val=7)


def test_table_json_and_picture(tmp_path, variables, data, capsys):
    raw = toy.write_toy(tmp_path / "raw.onnx", variables)
    pair = toy.write_toy(tmp_path / "pair.onnx", variables, graph="complete", input={"batch": 2})
    out = tmp_path / "bench"
    arguments = ["benchmark", raw, f"{raw}@openvino", pair, "--data", data, "--out", out, "--images", 7]
    pytest.importorskip("openvino")
    given = ["--rounds", 2, "--runs", 3, "--batches", "1,2", "--throughput-threads", "1,2"]
    assert main([str(a) for a in [*arguments, *given]]) == 0
    printed = capsys.readouterr().out
    assert "raw.onnx@openvino" in printed and "runtime openvino" in printed and "cores" in printed
    values = json.loads((out / "benchmark.json").read_text())
    assert values["images"] == "7 images of instances_val.json" and values["hardware"]["cores"] >= 1
    first, second, third = values["models"]
    assert first["end_to_end_ms"]["runs"] == 7 and first["raw_ms"]["runs"] == 6
    assert first["raw_ratio_to_first"] == 1.0
    assert third["raw_ms"]["batch"] == 2
    cells = {(c["threads"], c["batch"]) for c in first["throughput"]}
    assert cells == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert {c["batch"] for c in third["throughput"]} == {2}
    assert first["load_s"] > 0 and first["peak_memory_mib"] > 20 and first["file_mb"] > 0
    assert first["end_to_end_ms"]["p50"] <= first["end_to_end_ms"]["p95"] <= first["end_to_end_ms"]["p99"]
    with Image.open(out / "benchmark.png") as picture:
        assert min(picture.size) > 250
    page = (out / "report.html").read_text()
    assert page.count("raw.onnx@openvino") >= 4 and f"{first['ap']:.4f}" in page and "2 threads, batch 2" in page
    assert "dfine benchmark" in page and "http" not in page

    evaluated = tmp_path / "evaluate.json"
    assert main(["evaluate", str(raw), "--data", str(data), "--json", str(evaluated)]) == 0
    ap = json.loads(evaluated.read_text())["ap"]
    assert first["ap"] == pytest.approx(ap, abs=1e-9) and second["ap"] == pytest.approx(ap, abs=1e-4)


def test_each_model_may_have_its_own_runtime_and_device(tmp_path, variables, capsys):
    pytest.importorskip("openvino")
    file = toy.write_toy(tmp_path / "raw.onnx", variables)
    given = ["--images", "1", "--rounds", "1", "--runs", "1", "--batches", "1", "--threads", "1", "--out", tmp_path]
    assert main(["benchmark", f"{file}@onnxruntime:cpu", f"{file}@openvino:CPU", *map(str, given)]) == 0
    assert "raw.onnx@onnxruntime:cpu" in capsys.readouterr().out
    models = json.loads((tmp_path / "benchmark.json").read_text())["models"]
    assert [(m["ran_on"]["runtime"], m["ran_on"]["threads"]) for m in models] == [("onnxruntime", 1), ("openvino", 1)]
    assert main(["benchmark", f"{file}@onnxruntime:mars", *map(str, given)]) == 2
    assert "device 'mars' is none of ONNX Runtime's" in capsys.readouterr().err


def test_pictures_may_lie_in_records(tmp_path, variables, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    tfds_toy.prepare(tmp_path)
    name = tfds_toy.use(tmp_path, monkeypatch)
    file, out = toy.write_toy(tmp_path / "raw.onnx", variables), tmp_path / "bench"
    given = ["--rounds", "1", "--runs", "1", "--batches", "1", "--out", str(out)]
    assert main(["benchmark", str(file), "--data", name, *given]) == 0
    (model,) = json.loads((out / "benchmark.json").read_text())["models"]
    assert model["end_to_end_ms"]["runs"] == tfds_toy.COUNTS["validation"] and 0 <= model["ap"] <= 1


def test_yolo_descriptions_are_data_too(tmp_path, variables, capsys):
    for kind in ("images", "labels"):
        (tmp_path / kind / "val").mkdir(parents=True)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "images" / "val" / "a.png")
    (tmp_path / "labels" / "val" / "a.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("train: images/val\nval: images/val\nnames: [ant, bee, cat]\n")
    file, out = toy.write_toy(tmp_path / "raw.onnx", variables), tmp_path / "bench"
    given = ["--rounds", "1", "--runs", "1", "--batches", "1", "--out", str(out)]
    assert main(["benchmark", str(file), "--data", str(tmp_path / "data.yaml"), *given]) == 0
    assert json.loads((out / "benchmark.json").read_text())["models"][0]["end_to_end_ms"]["runs"] == 1
    assert "not in the data" not in (out / "benchmark.txt").read_text()

    (tmp_path / "data.yaml").write_text("train: images/val\nval: images/val\nnames: [ant, bee]\n")
    assert main(["benchmark", str(file), "--data", str(tmp_path / "data.yaml"), *given]) == 0
    line = (out / "benchmark.txt").read_text().splitlines()[-1]
    assert line == "raw.onnx: 1 of the model's 3 classes are not in the data, detections of them do not count: cat"

    (tmp_path / "data.yaml").write_text("train: images/val\nval: images/val\nnames: [ant, wasp]\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency._Worker, "detect", None)  # told before anything is measured
        assert main(["benchmark", str(file), "--data", str(tmp_path / "data.yaml"), *given]) == 2
    assert "raw.onnx does not know all classes" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("threads", "2"), ("device", "cuda")])
def test_options_of_exported_files_are_not_dropped_for_others(tmp_path, capsys, option, value):
    assert main(["benchmark", str(tmp_path), f"--{option}", value, "--images", "1"]) == 2
    assert f"{option}={value} is for exported files; JAX is told by" in capsys.readouterr().err


def test_models_take_turns_and_every_picture_is_detected_in_once(tmp_path, variables):
    raw = toy.write_toy(tmp_path / "raw.onnx", variables)
    pictures = []
    for i in range(5):
        Image.fromarray(np.full((20 + i, 30, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
        pictures.append(Picture(str(tmp_path / f"{i}.png"), 10 + i))
    amounts = Amounts(tuple(pictures), rounds=2, raw_runs=2, batches=(1,))
    contenders = [Contender(str(raw)), Contender(str(raw), threads=1)]
    calls = []
    measured = measure(contenders, amounts, lambda: calls.append(1))
    assert len(calls) == num_blocks(2, amounts) == 8
    for each in measured:
        assert sorted(each.detections) == [10, 11, 12, 13, 14]
        assert len(each.end_to_end_ms) == 5 and len(each.raw_ms) == 4 and len(each.block_ms) == 2
    assert measured[1].ran_on["threads"] == 1
    scores, labels, corners = measured[0].detections[12]
    assert len(scores) == len(labels) == len(corners) == toy.QUERIES * 3 and scores[0] >= scores[-1]


def test_ratios_are_formed_round_by_round():
    def measurement(blocks):
        values = {"load_s": 0, "first_run_s": 0, "memory_mib": 0, "file_mb": 0, "precision": "fp32", "raw_batch": 1}
        empty = {"ran_on": {}, "input_size_px": (1, 1), "class_names": ()}
        return Measurement(Contender("m"), **values, **empty, block_ms=blocks)  # pyright: ignore

    calm, other = measurement([10.0, 100.0, 10.0]), measurement([12.0, 120.0, 12.0])
    assert other.ratio(calm) == pytest.approx(1.2)
    assert percentiles([float(i) for i in range(101)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert percentiles([]) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.onnx"], "absent.onnx does not exist; dfine export writes one"),
        (["absent.onnx", "--rounds", "0"], "--rounds 0 must be at least 1"),
        (["absent.onnx", "--batches", "1,x"], "--batches 1,x: give positive numbers"),
        (["absent.onnx", "--data", "nowhere"], "data folder nowhere does not exist"),
    ],
)
def test_errors(capsys, arguments, message):
    assert main(["benchmark", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def segmenting(tmp_path):
    """A file with masks and its classes."""
    from dfine_jax.converters.onnx.export import export_onnx, save

    proto = export_onnx(*tiny.tiny_model("segment"), tiny.META, size_hw=tiny.SIZE_HW)
    save(proto, tmp_path / "segment.onnx")
    return tmp_path / "segment.onnx"


def test_masks_are_made_in_the_size_of_the_picture_for_what_is_shown(segmenting, tmp_path, monkeypatch):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (51, 97, 3), np.uint8)).save(tmp_path / "picture.png")
    made = []
    monkeypatch.setattr(ObjectMasks, "all", lambda masks: made.append((len(masks), masks.size_px)))
    served = Served({"model": str(segmenting), "runtime": None, "device": None, "threads": 1})
    picture = {"path": str(tmp_path / "picture.png"), "size_px": None}
    ((scores, labels, corners, masks),) = json.loads(json.dumps(served.detect([picture])["found"]))
    assert len(scores) == len(labels) == len(corners) == len(masks) == 30
    monkeypatch.setattr(latency_worker, "SHOWN", scores[7])
    served.detect([picture])
    assert made == [(0, (97, 51)), (8, (97, 51))]  # all scores are below 0.5
    assert all(mask["size"] == [51, 97] for mask in masks)


def test_mask_precision_stands_beside_that_of_boxes(segmenting, tmp_path):
    data = toy.toy_dataset(tmp_path / "shapes", num_val=3, names=tiny.META["class_names"])
    given = ["--images", 3, "--rounds", 1, "--runs", 1, "--batches", 1, "--out", tmp_path / "bench"]
    assert main([str(a) for a in ["benchmark", segmenting, "--data", data, *given]]) == 0
    (model,) = json.loads((tmp_path / "bench" / "benchmark.json").read_text())["models"]
    evaluated = tmp_path / "evaluate.json"
    assert main(["evaluate", str(segmenting), "--data", str(data), "--json", str(evaluated)]) == 0
    numbers = json.loads(evaluated.read_text())
    assert model["ap"] == pytest.approx(numbers["ap"], abs=1e-9)
    assert model["mask_ap"] == pytest.approx(numbers["mask_ap"], abs=1e-9)
    assert "mask AP" in (tmp_path / "bench" / "benchmark.txt").read_text()


def test_masks_that_cannot_be_drawn_are_told_before_anything_is_measured(segmenting, tmp_path, capsys, monkeypatch):
    data = toy.toy_dataset(tmp_path / "shapes", num_val=3, names=tiny.META["class_names"])
    file = data / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = {"size": [10, 10], "counts": [100]}
    file.write_text(json.dumps(content))
    monkeypatch.setattr(latency._Worker, "detect", lambda *_: pytest.fail("it was measured"))
    assert main(["benchmark", str(segmenting), "--data", str(data), "--batches", "1"]) == 2
    assert f"annotation {content['annotations'][0]['id']}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "cause"),
    [
        ("loading\nx.onnx: no such file\n", "x.onnx: no such file"),
        ("", "ended without a word"),
        (
            'a warning\nTraceback (most recent call last):\n  File "a.py", line 1, in f\n    f()\n'
            "RuntimeError: out of memory\nallocating 5 GB\n--------------------\nFor simplicity, JAX has removed ...\n",
            "RuntimeError: out of memory",
        ),
        (
            'Traceback (most recent call last):\n  File "a.py"\nKeyError: 1\n\nThe above exception was the direct '
            'cause of:\n\nTraceback (most recent call last):\n  File "b.py"\nValueError: bad\n',
            "ValueError: bad",
        ),
    ],
)
def test_why_a_process_ended(written, cause):
    assert latency._cause(written) == cause


def test_an_error_of_a_process_is_its_own(tmp_path, monkeypatch):
    """Of JAX, whose note on tracebacks would stand last."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'dfine_jax.benchmark.latency_worker' in sys.orig_argv:\n"
        "    import jax\n"
        "    from dfine_jax.prediction import detector\n"
        "    detector.open_model = lambda *_, **__: jax.jit(lambda x: x + [][0])(1.0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match="^a.onnx: IndexError: list index out of range$"):
        measure([Contender("a.onnx")], Amounts(()))


def test_a_pause_is_before_each_run_and_not_in_its_time(tmp_path, variables, capsys):
    raw, out = toy.write_toy(tmp_path / "raw.onnx", variables), tmp_path / "bench"
    amounts = ["--images", "2", "--rounds", "1", "--runs", "3", "--batches", "1", "--out", str(out)]
    assert main(["benchmark", str(raw), *amounts, "--pause-ms", "200"]) == 0
    assert "each after a pause of 200 ms" in capsys.readouterr().out
    values = json.loads((out / "benchmark.json").read_text())
    assert values["pause_ms"] == 200 and values["models"][0]["raw_ms"]["p50"] < 200
    served = Served({"model": str(raw), "runtime": None, "device": None, "threads": None})
    started = time.perf_counter()
    times = served.raw(1, 3, pause_ms=100)["ms"]
    assert 1e3 * (time.perf_counter() - started) >= 300 + sum(times)
    assert main(["benchmark", str(raw), *amounts, "--pause-ms", "-1"]) == 2
    assert "--pause-ms -1 must be between" in capsys.readouterr().err
