"""One entry for every kind of file, and the command around it."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from flax import traverse_util
from safetensors.numpy import load_file, save_file

import dfine_jax
from dfine_jax.cli import main
from dfine_jax.converters.torch import torch_pickle
from dfine_jax.converters.torch.importer import class_table, import_weights
from dfine_jax.data.read.coco_names import COCO_CATEGORY_IDS, COCO_NAMES
from dfine_jax.errors import UserError
from dfine_jax.families import state_dict
from dfine_jax.families.dfine.published import DETECTORS
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.families.dfine.weights import guess_activation, recognise_official, write_official
from dfine_jax.families.family import Published
from dfine_jax.families.official import to_official
from dfine_jax.families.state_dict import leaf_shapes
from dfine_jax.training.run.checkpoint import load_weights
from dfine_jax.weights.load import load_checkpoint

CONFIG = model_config("n", num_classes=3)


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(0)
    leaves = {path: rng.standard_normal(shape, np.float32) for path, shape in leaf_shapes(CONFIG).items()}
    return traverse_util.unflatten_dict(leaves, sep="/")


@pytest.fixture(scope="module")
def state(variables):
    return write_official(CONFIG, variables)


def assert_same(found, expected):
    found, expected = (traverse_util.flatten_dict(tree, sep="/") for tree in (found, expected))
    assert set(found) == set(expected)
    assert all(np.array_equal(found[path], expected[path]) for path in expected)


@pytest.mark.parametrize("wrapper", ["ema", "model", "bare"])
def test_wrappers(tmp_path, variables, state, wrapper):
    other = {key: np.zeros_like(value) for key, value in state.items()}
    content = {"ema": {"model": other, "ema": {"module": state}}, "model": {"model": state}, "bare": state}[wrapper]
    torch_pickle.save(tmp_path / "a.pth", content)
    found, metadata = import_weights(tmp_path / "a.pth", activation="relu")
    assert_same(found, variables)
    assert metadata.config.model == CONFIG
    assert metadata.class_names == ("class_0", "class_1", "class_2") and metadata.category_ids == (0, 1, 2)
    digest = hashlib.sha256((tmp_path / "a.pth").read_bytes()).hexdigest()
    assert (metadata.source_file, metadata.source_sha256) == ("a.pth", digest)


def test_official_safetensors(tmp_path, variables, state):
    save_file(state, tmp_path / "a.safetensors")
    found, metadata = import_weights(tmp_path / "a.safetensors", activation="silu", class_names=["a", "b", "c"])
    assert_same(found, variables)
    assert metadata.config.model.decoder_activation == metadata.config.model.mlp_activation == "silu"
    assert metadata.class_names == ("a", "b", "c")


def test_weights_of_deim_are_known_by_their_name(tmp_path, state, caplog):
    torch_pickle.save(tmp_path / "deim_dfine_hgnetv2_n_coco.pth", {"model": state})
    loaded = load_checkpoint(tmp_path / "deim_dfine_hgnetv2_n_coco.pth")
    stored = loaded.metadata.config
    assert loaded.model.config.decoder_activation == loaded.model.config.mlp_activation == "silu"
    assert (stored.train.method, stored.loss.class_loss) == ("deim", "mal")
    (line,) = caplog.messages
    assert "DEIM with SiLU assumed (by its name); otherwise give --activation relu" in line
    caplog.clear()
    other = dfine_jax.load(tmp_path / "deim_dfine_hgnetv2_n_coco.pth", activation="relu")[0]
    assert other.config.decoder_activation == "relu" and not caplog.messages


def test_an_activation_that_nothing_says_must_be_given(tmp_path, state, caplog, capsys):
    for name in ("best_stg2.pth", "weights.safetensors"):
        file = tmp_path / name
        torch_pickle.save(file, {"model": state}) if file.suffix == ".pth" else save_file(state, file)
        with pytest.raises(
            UserError, match=f"{name} does not say which activation.*--activation relu .D-FINE. or silu"
        ):
            import_weights(file)
        assert import_weights(file, activation="relu")[1].config.train.method == "dfine"
        assert import_weights(file, activation="silu")[1].config.train.method == "deim" and not caplog.messages
    assert main(["convert", str(tmp_path / "best_stg2.pth"), str(tmp_path / "out")]) == 2
    assert "to dfine convert first where a command has no such option" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["s", "m", "l", "x"])
def test_sizes_of_rtdetrv4(variant):
    """By shapes: a projection from the encoder's width to that of the teacher's features."""
    config = model_config(variant)
    shapes = {to_official(p): state_dict.tensor_shape(p, s) for p, s in leaf_shapes(config).items()}
    shapes["encoder.input_proj.0.norm.num_batches_tracked"] = ()  # counters of norms that are trained
    if not config.backbone_frozen_bn:
        shapes["backbone.stem.stem1.bn.num_batches_tracked"] = ()
    shapes["encoder.feature_projector.0.weight"] = (768, config.encoder_width)
    found = recognise_official({key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()})
    assert found == model_config(variant, decoder_activation="silu", mlp_activation="silu")


def test_weights_of_rtdetrv4_are_known_by_the_projection_to_their_teacher(tmp_path, variables, state, caplog):
    """Which serves training alone; weights without it are known by their name, or not at all."""
    width = CONFIG.encoder_width
    projection = {"weight": np.ones((768, width), np.float32), "bias": np.ones(768, np.float32)}
    distilled = state | {f"encoder.feature_projector.0.{name}": value for name, value in projection.items()}
    teacher = {"blocks.0.attn.qkv.weight": np.zeros((6, 2), np.float32)}
    torch_pickle.save(tmp_path / "best.pth", {"ema": {"module": distilled}, "teacher_model": teacher})
    found, metadata = import_weights(tmp_path / "best.pth")
    assert_same(found, variables)
    assert metadata.config.model.decoder_activation == metadata.config.model.mlp_activation == "silu"
    assert metadata.config.train.method == "deim"
    assert not any("assumed" in line for line in caplog.messages)
    with pytest.raises(UserError, match="best.pth says that the activation is silu, not relu"):
        import_weights(tmp_path / "best.pth", activation="relu")
    torch_pickle.save(tmp_path / "RTv4-S-hgnet.pth", {"model": state})
    assert import_weights(tmp_path / "RTv4-S-hgnet.pth")[1].config.model.decoder_activation == "silu"
    assert "SiLU assumed (by its name)" in caplog.messages[-1]
    torch_pickle.save(tmp_path / "a.pth", {"model": state | {"encoder.feature_projector.1.weight": np.ones(3)}})
    with pytest.raises(UserError, match="1 unexpected: encoder.feature_projector.1.weight"):
        import_weights(tmp_path / "a.pth", activation="silu")


@pytest.mark.parametrize("name", ["dfine_n_mine.pth", "D-FINE-best.pth", "my_d_fine.pth"])
def test_what_is_assumed_by_name_is_said(tmp_path, state, caplog, name):
    torch_pickle.save(tmp_path / name, {"model": state})
    _, metadata = import_weights(tmp_path / name)
    assert (metadata.config.train.method, metadata.config.loss.class_loss) == ("dfine", "vfl")
    assert f"{name}: D-FINE with ReLU assumed (by its name)" in caplog.messages[0]
    assert "give --activation silu" in caplog.messages[0] and caplog.records[0].levelname == "WARNING"


@pytest.mark.parametrize("variant", ["l", "x"])
def test_trained_batch_norms_in_the_backbone_of_large_variants_are_those_of_deim(variant):
    encoder = {"encoder.input_proj.0.norm.num_batches_tracked": np.zeros(())}
    backbone = {"backbone.stem.stem1.bn.num_batches_tracked": np.zeros(())}
    shapes = {to_official(p): state_dict.tensor_shape(p, s) for p, s in leaf_shapes(model_config(variant)).items()}
    official = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()} | encoder
    trained = guess_activation("best.pth", recognise_official(official | backbone))
    assert trained == ("silu", "its backbone was trained with its batch norms")
    assert guess_activation("best.pth", recognise_official(official)) is None
    assert guess_activation("best.pth", model_config("s")) is None


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory):
    """A file of N with 80 classes."""
    config = model_config("n")
    tree = traverse_util.unflatten_dict({p: np.zeros(s, np.float32) for p, s in leaf_shapes(config).items()}, sep="/")
    file = tmp_path_factory.mktemp("unnamed") / "a.pth"
    torch_pickle.save(file, {"model": write_official(config, tree)})
    return file


def test_eighty_classes_are_called_those_of_coco_with_a_warning(unnamed, caplog):
    _, metadata = import_weights(unnamed, activation="relu")
    assert (metadata.class_names, metadata.category_ids) == (COCO_NAMES, COCO_CATEGORY_IDS)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "80 classes without names, assumed to be those of COCO" in record.message
    caplog.clear()
    _, metadata = import_weights(unnamed, activation="relu", class_names=[f"cell {i}" for i in range(80)])
    assert metadata.class_names[79] == "cell 79" and metadata.category_ids == tuple(range(80)) and not caplog.records


def test_the_warning_is_seen_in_a_script(unnamed):
    script = f"import dfine_jax\ndfine_jax.load({str(unnamed)!r}, activation='relu')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "a.pth: 80 classes without names, assumed to be those of COCO" in done.stderr


def test_classes_of_published_files_are_known(unnamed, tmp_path, monkeypatch, caplog):
    digest = hashlib.sha256(unnamed.read_bytes()).hexdigest()
    monkeypatch.setitem(DETECTORS, "dfine-n-coco", Published("https://none/dfine_n_coco.pth", digest))
    _, metadata = import_weights(unnamed)  # by its digest: activation and classes
    assert metadata.class_names == COCO_NAMES and metadata.config.model.decoder_activation == "relu"
    assert not caplog.records


@pytest.mark.parametrize(("count", "whose"), [(80, "COCO"), (366, "Objects365"), (365, None), (3, None)])
def test_classes_without_names(count, whose, caplog):
    names, ids = class_table("x.pth", count, None)
    assert len(names) == len(ids) == count
    assert [record.levelname for record in caplog.records] == ["WARNING"] * bool(whose)
    assert (names[0] == "class_0") == (whose is None)
    class_table("x.pth", count, None, sure=True)
    assert len(caplog.records) == bool(whose)


def test_errors_name_the_file(tmp_path, state):
    torch_pickle.save(tmp_path / "a.pth", {"model": {k: v for k, v in state.items() if "enc_output" not in k}})
    with pytest.raises(UserError, match=r"a.pth: the entries do not fit .*4 missing: decoder.enc_output"):
        import_weights(tmp_path / "a.pth", activation="relu")
    torch_pickle.save(tmp_path / "b.pth", {"model": state})
    with pytest.raises(UserError, match="b.pth: 2 class names for 3 classes"):
        import_weights(tmp_path / "b.pth", activation="relu", class_names=["a", "b"])


def test_command_there_and_back(tmp_path, variables, state, capsys):
    source, names = tmp_path / "a.pth", tmp_path / "names.txt"
    torch_pickle.save(source, {"model": state})
    names.write_text("red\n\nwhite\nplatelet\n")
    assert (
        main(["convert", str(source), str(tmp_path / "out"), "--activation", "relu", "--class-names", str(names)]) == 0
    )
    printed = capsys.readouterr().out
    assert "D-FINE-N, 3 classes (red, white, platelet)" in printed and "parameters, ReLU" in printed
    found, metadata = load_weights(tmp_path / "out")
    assert_same(found, variables)
    assert metadata.class_names == ("red", "white", "platelet") and metadata.source_file == "a.pth"
    for name in ("b.pth", "b.pt", "b.safetensors"):
        assert main(["convert", str(tmp_path / "out"), str(tmp_path / name)]) == 0
        assert_same(import_weights(tmp_path / name, activation="relu")[0], variables)
    written = load_file(tmp_path / "b.safetensors")
    assert {key: value.shape for key, value in written.items()} == {key: value.shape for key, value in state.items()}
    (tmp_path / "same").mkdir()
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "same" / "b.pth")]) == 0
    assert (tmp_path / "same" / "b.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_command_errors(tmp_path, state, capsys):
    source = tmp_path / "a.pth"
    torch_pickle.save(source, {"model": state})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"")
    (tmp_path / "page.pth").write_text("<html>")
    cases = {
        (
            "convert",
            str(tmp_path / "nothing.pth"),
            str(tmp_path / "out"),
        ): "nothing.pth does not exist; expected a checkpoint folder",
        ("convert", str(tmp_path / "page.pth"), str(tmp_path / "out")): "not a PyTorch checkpoint",
        ("convert", str(tmp_path / "photos"), str(tmp_path / "out")): "is not a checkpoint",
        ("convert", "dfine-s-coca", str(tmp_path / "out")): "did you mean dfine-s-coco",
        ("convert", str(source), str(tmp_path / "photos")): "exists; choose another place or add --force",
        ("convert", str(source), str(tmp_path / "photos"), "--force"): "is a folder without metadata.json",
        (
            "convert",
            str(source),
            str(tmp_path / "theirs"),
            "--activation",
            "relu",
            "--huggingface",
        ): "D-FINE are not written",
        (
            "convert",
            str(source),
            str(tmp_path / "out"),
            "--class-names",
            str(tmp_path / "no.txt"),
        ): "no.txt: No such file or directory",
    }
    for arguments, message in cases.items():
        assert main(list(arguments)) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert (tmp_path / "photos" / "one.jpg").exists() and not (tmp_path / "out").exists()


def test_command_with_a_published_name(tmp_path, state, monkeypatch):
    monkeypatch.setenv("DFINE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "cache" / "dfine_n_coco.pth"
    torch_pickle.save(file, {"model": state})
    known = Published(f"https://none/{file.name}", hashlib.sha256(file.read_bytes()).hexdigest(), "Apache-2.0")
    monkeypatch.setitem(DETECTORS, "dfine-n-coco", known)
    assert main(["convert", "dfine-n-coco", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "metadata.json").read_text())["licence"] == "Apache-2.0"


def test_load(tmp_path, variables, state, capsys):
    torch_pickle.save(tmp_path / "a.pth", {"model": state})
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "out"), "--activation", "relu"]) == 0
    for name in ("a.pth", "out"):
        model, found = dfine_jax.load(tmp_path / name, activation="relu")
        assert model.config == CONFIG
        assert_same(found, variables)
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "b.pth"), "--activation", "silu"]) == 2
    assert "is a checkpoint that knows its activation (relu); leave silu out" in capsys.readouterr().err
