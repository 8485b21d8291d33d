"""Exported files in their runtimes: one preprocessing, one postprocessing, no jax, errors that name the cure."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from dfine_jax.data.picture.images import Preprocess
from dfine_jax.errors import UserError
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.prediction.detector import Detector, open_model
from dfine_jax.serving.backends.registry import open_artefact

sys.path.append(str(ROOT / "tests"))
import toy_artefact as toy  # noqa: E402

RUNTIMES = ["onnxruntime", "openvino"]
FORMS = [
    {},
    {"input": {"layout": "NHWC"}},
    {"input": {"dtype": "uint8"}},
    {"input": {"batch": 2}},
    {"graph": "complete"},
    {"graph": "complete", "input": {"batch": 4, "layout": "NHWC", "dtype": "uint8"}},
]


@pytest.fixture(scope="module")
def model():
    return toy.toy_model()


@pytest.fixture(scope="module")
def in_jax(model):
    from dfine_jax.serving.backends.jax_model import JaxBackend

    return JaxBackend(*model)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """What users really send: grey, transparent, palette, turned by EXIF, one pixel high, very wide."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)

    def noise(height, width):
        small = Image.fromarray(rng.integers(0, 256, (max(1, height // 16), max(1, width // 16), 3), np.uint8))
        return small.resize((width, height), Image.Resampling.BICUBIC)

    noise(123, 211).convert("L").save(folder / "grey.png")
    transparent = noise(97, 131).convert("RGBA")
    transparent.putalpha(Image.fromarray(rng.integers(0, 256, (97, 131), np.uint8)))
    transparent.save(folder / "rgba.png")
    noise(77, 95).convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    turned = noise(150, 90)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif, quality=90)
    noise(1, 333).save(folder / "one_pixel_high.png")
    noise(40, 10_000).save(folder / "wide.jpg", quality=85)
    noise(427, 641).save(folder / "odd.webp")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_detects_the_same_in_odd_photographs(tmp_path, model, in_jax, photographs, form, runtime):
    pytest.importorskip(runtime)
    path = toy.write_toy(tmp_path / "toy.onnx", model[1], **copy.deepcopy(form))
    detector = Detector(path, threshold=0.0, num_top=toy.TOP, runtime=runtime)
    results = detector(photographs)
    preprocess = Preprocess(toy.HEIGHT, toy.WIDTH)
    sizes = [(211, 123), (641, 427), (333, 1), (95, 77), (131, 97), (150, 90), (10_000, 40)]
    assert [r.size_px for r in results] == sizes
    for photograph, result in zip(photographs, results, strict=True):
        image = Image.open(photograph)
        if photograph.name == "turned.jpg":
            image = image.transpose(Image.Transpose.ROTATE_270)
        pixels = preprocess(image.convert("RGB"))
        view = np.array([preprocess.view_px(image.size)])
        scores, labels, boxes_px, *_ = in_jax.detect(pixels[None], view, toy.TOP)
        np.testing.assert_allclose(result.scores, scores[0], atol=2e-6)
        np.testing.assert_array_equal(result.labels, labels[0])
        np.testing.assert_allclose(result.boxes_xyxy_px, boxes_px[0], atol=1e-5 * max(image.size))
        assert result.category_ids == tuple(toy.IDS[i] for i in labels[0])


ORIENTED = {  # what a viewer does to the stored pixels, by EXIF orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@pytest.fixture(scope="module")
def real_photographs(cells, tmp_path_factory):
    """Real photographs, as they are and in odd forms: files, and what a viewer would show of each as RGB pixels."""
    folder = tmp_path_factory.mktemp("real")
    files = sorted((cells / "val").glob("*.jpg"))
    out = [(file, Image.open(file).convert("RGB")) for file in files]
    assert len(out) == 2

    def add(name, image, seen=None, **options):
        image.save(folder / name, **options)
        stored = Image.open(folder / name)  # JPEG loses some
        out.append((folder / name, seen(stored) if seen else stored.convert("RGB")))

    photograph = out[0][1]
    width, height = photograph.size
    for orientation, turn in ORIENTED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = out[orientation % 2][1]
        add(f"exif{orientation}.jpg", stored, lambda i, t=turn: i if t is None else i.transpose(t), exif=exif)
    grey = photograph.convert("L")
    add("grey.jpg", grey)
    add("grey16.png", Image.fromarray(np.asarray(grey).astype(np.uint16) * 256), lambda _: grey.convert("RGB"))
    transparent = photograph.convert("RGBA")
    transparent.putalpha(out[1][1].resize(photograph.size).convert("L"))
    add("rgba.png", transparent, lambda _: photograph)  # alpha is dropped, not blended
    add("palette.png", photograph.convert("P", palette=Image.Palette.ADAPTIVE))
    add("cmyk.jpg", photograph.convert("CMYK"))
    add("one_pixel_high.png", photograph.crop((0, height // 2, width, height // 2 + 1)))
    add("one_pixel_wide.png", photograph.crop((width // 2, 0, width // 2 + 1, height)))
    add("wide.jpg", photograph.resize((10_000, height // 8), Image.Resampling.BICUBIC))
    return out


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("form", [{}, {"graph": "complete", "input": {"dtype": "uint8"}}], ids=str)
def test_real_photographs_in_odd_forms_through_all_runtimes(tmp_path, model, in_jax, real_photographs, form, runtime):
    pytest.importorskip(runtime)
    path = toy.write_toy(tmp_path / "toy.onnx", model[1], **copy.deepcopy(form))
    detector = Detector(path, threshold=0.0, num_top=toy.TOP, runtime=runtime)
    results = detector([file for file, _ in real_photographs])
    preprocess = Preprocess(toy.HEIGHT, toy.WIDTH)
    for (file, seen), result in zip(real_photographs, results, strict=True):
        assert result.size_px == seen.size, file.name
        view = np.array([preprocess.view_px(seen.size)])
        scores, labels, boxes_px, *_ = in_jax.detect(preprocess(seen)[None], view, toy.TOP)
        np.testing.assert_allclose(result.scores, scores[0], atol=2e-6, err_msg=file.name)
        np.testing.assert_array_equal(result.labels, labels[0], err_msg=file.name)
        np.testing.assert_allclose(result.boxes_xyxy_px, boxes_px[0], atol=1e-5 * max(seen.size), err_msg=file.name)


@pytest.mark.parametrize("graph", ["raw", "complete"])
def test_a_letterboxed_file_gives_boxes_of_the_picture(tmp_path, model, graph):
    letterbox = Preprocess(toy.HEIGHT, toy.WIDTH, "letterbox")
    path = toy.write_toy(tmp_path / "toy.onnx", model[1], graph=graph, preprocess=letterbox.to_dict())
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 120, 3), np.uint8))
    (result,) = Detector(path, threshold=0.0, num_top=toy.TOP)([picture])
    raw = toy.write_toy(tmp_path / "raw.onnx", model[1])
    logits, boxes, _ = open_artefact(raw).predict(letterbox(picture)[None])
    best = np.argmax(logits.max(-1)[0])
    cx, cy, w, h = boxes[0, best]
    # 120 x 30 is shown as 64 x 16 in the middle of 64 x 48
    expected = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * [64, 48, 64, 48] - [0, 16, 0, 16]
    np.testing.assert_allclose(result.boxes_xyxy_px[0], expected * 120 / 64, atol=1e-3)


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_batches_of_any_size_run_in_those_the_file_accepts(tmp_path, model, batch):
    path = toy.write_toy(tmp_path / "toy.onnx", model[1], input={"batch": batch})
    backend = open_artefact(path)
    images = np.random.default_rng(0).integers(0, 256, (7, toy.HEIGHT, toy.WIDTH, 3), np.uint8)
    logits, boxes, _ = backend.predict(images)
    assert logits.shape == (7, toy.QUERIES, 3) and boxes.shape == (7, toy.QUERIES, 4)
    single = [backend.predict(image[None]) for image in images]
    np.testing.assert_allclose(logits, np.concatenate([one.logits for one in single]), atol=1e-5)
    assert Detector(path).batch_size == (batch or 1)


def test_an_exported_file_runs_without_jax_and_torch(tmp_path, model, capsys):
    path = toy.write_toy(tmp_path / "toy.onnx", model[1])
    picture = tmp_path / "a.png"
    Image.new("RGB", (90, 50), (200, 30, 60)).save(picture)
    code = (
        "import sys, time, json\nt = time.perf_counter()\nimport dfine_jax\n"
        f"d = dfine_jax.Detector({str(path)!r}, threshold=0.0)\nloaded = time.perf_counter() - t\n"
        f"n = len(d({str(picture)!r}))\n"
        "heavy = [m for m in ('jax', 'jaxlib', 'flax', 'torch', 'onnx', 'scipy', 'openvino') if m in sys.modules]\n"
        "print(json.dumps([n, heavy, loaded]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found, heavy, seconds = json.loads(ran.stdout)
    assert found == toy.QUERIES * 3 and heavy == []
    with capsys.disabled():
        print(f" [detector ready after {seconds:.2f} s]", end="")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_threads_are_those_asked_for_and_reported(tmp_path, model):
    path = toy.write_toy(tmp_path / "toy.onnx", model[1])
    kept = [open_artefact(path)]  # those of closed files would end in between
    for asked in (1, 3):
        before = len(os.listdir("/proc/self/task"))
        kept.append(backend := open_artefact(path, threads=asked))
        assert len(os.listdir("/proc/self/task")) - before == asked - 1  # the caller's is the first
        assert backend.describe()["threads"] == asked and backend.describe()["runtime"] == "onnxruntime"
    pytest.importorskip("openvino")
    ran = open_artefact(path, runtime="openvino", threads=1).describe()
    assert ran["runtime"] == "openvino" and ran["threads"] == 1 and ran["device"] == "CPU"


def metadata(**changes):
    values = toy.description()
    for key, value in changes.items():
        if value is None:
            values.pop(key)
        else:
            values[key] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format_version": 2}, r"written by a newer dfine_jax \(format 2, this version reads up to 1\); upgrade"),
        ({"preprocess": None}, r"damaged \(KeyError: 'preprocess'\)"),
        ({"preprocess": {**toy.description()["preprocess"], "channels": "BGR"}}, "channels='BGR' is not supported"),
        ({"graph": "half"}, "graph 'half' is none of raw, complete"),
        ({"category_ids": [1, 2]}, "class names and category ids of different number"),
        ({"preprocess": Preprocess(32, 32).to_dict()}, r"preprocessing to 32x32, input of \(48, 64\)"),
        ({"class_names": [*toy.NAMES, "dog"], "category_ids": [1, 2, 3, 4]}, "outputs have shapes"),
        ({"input": {**toy.description()["input"], "dtype": "uint8"}}, "the graph takes images float32, its descr"),
        ({"outputs": ["logits"]}, "outputs logits"),
    ],
)
def test_descriptions_that_do_not_fit_are_errors(tmp_path, model, values, message):
    import onnx

    path = toy.write_toy(tmp_path / "toy.onnx", model[1])
    loaded = onnx.load(path)
    onnx.helper.set_model_props(loaded, {"dfine_jax": json.dumps(metadata(**values))})
    onnx.save(loaded, path)
    with pytest.raises(UserError, match=message):
        Detector(path)(Image.new("RGB", (9, 9)))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_files_without_description_or_damaged_are_errors(tmp_path, model, runtime):
    import onnx

    pytest.importorskip(runtime)
    path = toy.write_toy(tmp_path / "toy.onnx", model[1])
    loaded = onnx.load(path)
    onnx.helper.set_model_props(loaded, {})
    onnx.save(loaded, tmp_path / "bare.onnx")
    with pytest.raises(UserError, match="carries no 'dfine_jax' metadata"):
        Detector(tmp_path / "bare.onnx", runtime=runtime)
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be loaded by"):
        Detector(tmp_path / "cut.onnx", runtime=runtime)


def test_wrong_requests_are_errors(tmp_path, model):
    path = toy.write_toy(tmp_path / "toy.onnx", model[1])
    for options, message in (
        ({"runtime": "tensorrt"}, "cannot be run by tensorrt"),
        ({"runtime": "pytorch"}, "runtime 'pytorch' is none of"),
        ({"device": "tpu"}, "device 'tpu' is none of ONNX Runtime's"),
        ({"threads": 0}, "threads=0 must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            open_model(path, **options)
    with pytest.raises(UserError, match="does not exist"):
        open_model(tmp_path / "absent.onnx")
    with pytest.raises(UserError, match=r"device=cpu is for exported files"):
        open_model(tmp_path, device="cpu")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_that_fails_while_running_says_on_what_and_why(tmp_path, model, runtime, capfd):
    pytest.importorskip(runtime)
    backend = open_artefact(toy.bake_batch(toy.write_toy(tmp_path / "toy.onnx", model[1])), runtime=runtime)
    backend.predict(np.zeros((1, toy.HEIGHT, toy.WIDTH, 3), np.uint8))
    with pytest.raises(
        UserError, match=r"toy.onnx: .* fails on images \[2, 3, 48, 64\] \(.*shape.*\); export"
    ) as caught:
        backend.predict(np.zeros((2, toy.HEIGHT, toy.WIDTH, 3), np.uint8))
    assert "\n" not in str(caught.value) and not capfd.readouterr().err


def test_an_engine_needs_its_description_and_the_same_bytes(tmp_path):
    engine = tmp_path / "toy.engine"
    engine.write_bytes(b"engine")
    with pytest.raises(UserError, match=r"toy.engine.json is not beside it"):
        Detector(engine)
    values = {**toy.description(), "engine": {"runtime": "tensorrt", "sha256": "other"}}
    (tmp_path / "toy.engine.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"is not the engine that toy.engine.json describes"):
        Detector(engine)


def test_what_a_checkpoint_stores_about_preprocessing_is_used(tmp_path):
    from dfine_jax.config import Config
    from dfine_jax.families.dfine.variants import model_config
    from dfine_jax.training.run.checkpoint import Metadata, load_metadata, save_weights

    metadata = Metadata(Config(model_config("n", num_classes=1), LossConfig()), ("ant",), (4,))
    save_weights(tmp_path / "best", {"params": {"w": np.ones(2)}, "batch_stats": {}}, metadata)
    assert load_metadata(tmp_path / "best") == metadata
    file = tmp_path / "best" / "metadata.json"
    values = json.loads(file.read_text())
    values["preprocessing"] |= {"height_px": 320, "resize": "letterbox"}
    file.write_text(json.dumps(values))
    stored = load_metadata(tmp_path / "best")
    assert stored.preprocess == Preprocess(320, 640, "letterbox") and stored.input_size_px == (320, 640)
    values["preprocessing"]["interpolation"] = "bicubic"
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="preprocessing.interpolation"):
        load_metadata(tmp_path / "best")


class ManyProviders:
    """ONNX Runtime as it is on a machine with a GPU."""

    @staticmethod
    def get_available_providers():
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize("device", [None, "cuda", "tensorrt"])
def test_cuda_multiplies_float32_as_float32(device):
    from dfine_jax.serving.backends import onnxruntime

    providers = dict(onnxruntime._providers(ManyProviders, device))
    assert providers["CUDAExecutionProvider"] == {"use_tf32": "0"}
    assert list(providers)[0] == f"{'Tensorrt' if device == 'tensorrt' else 'CUDA'}ExecutionProvider"


@pytest.mark.parametrize(
    ("device", "precision", "hint"),
    [
        ("CPU", "fp16", "f32"),
        ("GPU", "fp32", "f32"),
        ("GPU", "fp16", "f16"),
        ("AUTO", "fp32", "f32"),
        ("NPU", "fp32", None),
    ],
)
def test_openvino_computes_float32_files_in_float32(tmp_path, model, monkeypatch, device, precision, hint):
    openvino = pytest.importorskip("openvino")
    asked = {}

    class Core(openvino.Core):
        def compile_model(self, model, device_name, config):
            asked.update(config, device=device_name)
            raise RuntimeError("far enough")

    monkeypatch.setattr(openvino, "Core", Core)
    path = toy.write_toy(tmp_path / "toy.onnx", model[1], precision=precision)
    with pytest.raises(UserError, match="far enough"):
        open_artefact(path, runtime="openvino", device=device)
    assert asked["device"] == device and asked.get("INFERENCE_PRECISION_HINT") == hint
