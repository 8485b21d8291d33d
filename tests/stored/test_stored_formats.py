"""What earlier versions stored is read, computes the same and can be trained further; newer formats are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny  # noqa: F401  the backbone of the stored model
from flax import traverse_util
from small_checkpoint import METADATA, small_state

from dfine_jax.cli import main
from dfine_jax.commands.train_plan import read_plan
from dfine_jax.config import Config, ConfigError
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.errors import UserError
from dfine_jax.families import sections
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.model import init_variables
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.prediction.detector import Detector
from dfine_jax.serving import artefact
from dfine_jax.system import stored
from dfine_jax.training.report.run_files import read_metrics
from dfine_jax.training.run import checkpoint, loop
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.state import create_state
from dfine_jax.weights.load import bound_fields, load, load_checkpoint


@pytest.fixture(scope="module")
def format1(tmp_path_factory):
    folder = tmp_path_factory.mktemp("format1")
    shutil.unpack_archive(Path(__file__).parent / "format1.zip", folder)
    return folder


@pytest.fixture(scope="module")
def format1_last(tmp_path_factory):
    """What the last version stored whose number was 1: within an epoch, with the values that had names of methods."""
    folder = tmp_path_factory.mktemp("format1_last")
    shutil.unpack_archive(Path(__file__).parent / "format1_last.zip", folder)
    return folder


def test_the_last_of_format_1(format1_last, data, tmp_path):
    loaded = load_checkpoint(format1_last / "last")
    config = loaded.metadata.config
    assert (config.model.family, config.train.method, config.data.augment) == ("dfine", "deim", "dense")
    images = np.random.default_rng(1).random((2, 64, 64, 3), np.float32)
    answer = jax.jit(lambda v, x: loaded.model.apply(v, x, train=False))(loaded.variables, images).answer
    expected = np.load(format1_last / "expected.npz")
    np.testing.assert_allclose(answer.logits, expected["logits"], atol=2e-5)
    np.testing.assert_allclose(answer.boxes_cxcywh, expected["boxes_cxcywh"], atol=2e-6)
    assert read_plan(str(format1_last / "plan.json")) == config
    raw = stored.current(json.loads((format1_last / "last" / "metadata.json").read_text()), "metadata.json")
    assert raw["progress"]["summed_names"] == ["loss", "grad_norm", "mal/aux_0", "mal/last", "ddf/dn_1", "bbox/enc_0"]


@pytest.fixture
def last_data(data, tmp_path):
    """The data that run was started with: the same pictures, classes in the order of their names."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    names = ["circle", "rectangle", "star", "triangle"]
    for file in (folder / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        ids = {category["id"]: names.index(category["name"]) + 1 for category in content["categories"]}
        content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
        content["annotations"] = [box | {"category_id": ids[box["category_id"]]} for box in content["annotations"]]
        file.write_text(json.dumps(content))
    return folder


def test_a_run_of_format_1_goes_on_within_its_epoch(format1_last, last_data, tmp_path):
    """Its sums and its table are those of one run with the steps that follow."""
    run = tmp_path / "run"
    shutil.copytree(format1_last / "last", run / "last")
    shutil.copy(format1_last / "metrics.csv", run)
    assert main(["train", "n", "--data", str(last_data), "--out", str(run), "--resume", "--no-export"]) == 0
    first, second = read_metrics(run)
    assert first["ap"] == 0.25 and set(first) - {"images_per_s"} <= set(second)
    terms = sum(second[f"loss_{kind}"] for kind in ("mal", "bbox", "giou", "fgl", "ddf"))
    assert second["loss_mal"] > 0 and second["loss"] == pytest.approx(terms, rel=0.2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The data that the stored run was started with."""
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=2, size_px=64, seed=0)


def test_a_checkpoint_computes_what_it_computed(format1):
    model, variables = load(format1 / "last")
    assert (model.config.reg_scale, model.config.up, model.config.num_points) == (6.0, 0.25, (1, 3))
    images = np.random.default_rng(1).random((2, 64, 64, 3), np.float32)
    answer = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    expected = np.load(format1 / "expected.npz")
    np.testing.assert_allclose(answer.logits, expected["logits"], atol=2e-5)
    np.testing.assert_allclose(answer.boxes_cxcywh, expected["boxes_cxcywh"], atol=2e-6)


def test_an_exported_file_answers_what_it_answered(tmp_path):
    shutil.unpack_archive(Path(__file__).parent / "format1_export.zip", tmp_path)
    picture = np.random.default_rng(2).integers(0, 256, (50, 80, 3), np.uint8)
    answer, expected = Detector(tmp_path / "exported.onnx", threshold=0.0)(picture), np.load(tmp_path / "answer.npz")
    assert list(answer.names) == expected["names"].tolist() and len(answer) == 40
    np.testing.assert_allclose(answer.scores, expected["scores"], atol=1e-6)
    np.testing.assert_allclose(answer.boxes_xyxy_px, expected["boxes_xyxy_px"], atol=1e-3)


def test_its_description(format1):
    metadata = load_checkpoint(format1 / "last").metadata
    assert (metadata.source_file, metadata.licence, metadata.epoch, metadata.ap) == (
        "dfine_n_coco.pth",
        "Apache-2.0",
        1,
        0.25,
    )
    assert metadata.num_images == 8 and len(metadata.class_names) == 4 and metadata.input_size_px == (64, 64)


def test_its_training_state(format1):
    config = checkpoint.load_metadata(format1 / "last").config
    optimizer = make_optimizer(config.model, config.optim)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: create_state(init_variables(config.model, key), optimizer, key))
    state, _, progress = checkpoint.load_training(format1 / "last", shapes)
    assert int(state.step) == int(state.ema_updates) == 3
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if np.ndim(leaf)]
    assert moments and all(np.all(leaf == 2.0**-10) for leaf in moments)
    assert (progress.epoch, progress.best_ap, progress.skipped, progress.sums) == (1, 0.25, 1, (2.5,))


def test_a_run_is_continued(format1, data, tmp_path):
    shutil.copytree(format1 / "last", tmp_path / "run" / "last")
    command = ["train", "n", "--data", str(data), "--out", str(tmp_path / "run"), "--resume"]
    assert main([*command, "--dry-run"]) == 0
    assert main([*command, "--max-hours", "1e-9"]) == 0  # stopped before its first step, stored by this version
    raw = json.loads((tmp_path / "run" / "last" / "metadata.json").read_text())
    assert raw["format"] == stored.FORMAT and raw["progress"]["best_ap"] == 0.25
    before, after = (checkpoint.load_weights(folder / "last")[0] for folder in (format1, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_run_starts_from_it(format1, data, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        loop, "train", lambda config, *rest, **given: calls.append((config, given)) or loop.Result(True, -1.0, 0, None)
    )
    where = ["--data", str(data), "--out", str(tmp_path / "run"), "--batch-size", "2"]
    assert main(["train", "n", "--weights", str(format1 / "last"), *where]) == 0
    ((config, given),) = calls
    stored_model = load_checkpoint(format1 / "last")
    assert bound_fields(config.model) == bound_fields(stored_model.metadata.config.model)
    new, old = (
        traverse_util.flatten_dict(tree, sep="/") for tree in (given["start"].variables, stored_model.variables)
    )
    assert set(new) == set(old)
    for path, leaf in new.items():  # the row of no class starts anew
        rows = slice(None, -1 if path.endswith("denoising_class_embed/embedding") else None)
        np.testing.assert_array_equal(leaf[rows], old[path][rows], err_msg=path)


def test_plans(format1, data, tmp_path, capsys):
    config = read_plan(str(format1 / "plan_variant.json"))
    assert (config.train.epochs, config.optim.weight_decay, config.data.width_px) == (5, 0.5, 96)
    where = ["--data", str(data), "--out", str(tmp_path / "run"), "--dry-run"]
    assert main(["train", str(format1 / "plan_variant.json"), *where]) == 0
    assert "5 epochs" in capsys.readouterr().out
    assert read_plan(str(format1 / "plan_file.json")).train.method == "deim"
    assert main(["train", str(format1 / "plan_file.json"), "--epochs", "9", *where]) == 2
    assert "for --epochs 9: dfine train s --method deim --epochs 9, " in capsys.readouterr().err


def test_the_description_of_an_exported_file(format1):
    text = (format1 / "description.json").read_text()
    found = artefact.from_json(text, "n.onnx")
    assert (found.variant, found.class_names, found.preprocess) == ("n", ("cat", "dog"), Preprocess(320, 512))
    newer = json.dumps(json.loads(text) | {"format_version": 2})
    with pytest.raises(UserError, match="n.onnx: .* was written by a newer dfine_jax .format 2, .*upgrade dfine_jax"):
        artefact.from_json(newer, "n.onnx")
    assert artefact.from_json(json.dumps(json.loads(text) | {"mood": "good"}), "n.onnx").extra == {"mood": "good"}


def changed(format1, tmp_path, **values):
    folder = tmp_path / "last"
    shutil.copytree(format1 / "last", folder, dirs_exist_ok=True)
    raw = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps(raw | values))
    return folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"format": 3, "library_version": "7.1.0"},
            r"was written by a newer dfine_jax \(7.1.0\): it is of format 3.*upgrade",
        ),
        ({"format": 0}, "is not of format 2; it was written by another program"),
        ({"format": "1"}, "written by another program"),
        ({"format": True}, "written by another program"),
        ({"format": None}, "written by another program"),
    ],
)
def test_formats_that_cannot_be_read_say_so(format1, tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        checkpoint.load_metadata(changed(format1, tmp_path, **values))


def test_what_a_newer_version_added_is_left_out_and_told(format1, tmp_path, caplog):
    raw = json.loads((format1 / "last" / "metadata.json").read_text())
    config = raw["config"] | {"model": raw["config"]["model"] | {"depth": "x"}}
    progress = raw["progress"] | {"mood": "good"}
    newer = changed(format1, tmp_path, library_version="99.0", config=config, progress=progress)
    assert load_checkpoint(newer).metadata == load_checkpoint(format1 / "last").metadata
    said = "\n".join(caplog.messages)
    assert (
        "was written by a newer dfine_jax (99.0); left out what this version" in said and "config.model.depth" in said
    )
    same = changed(format1, tmp_path, config=config)
    with pytest.raises(ConfigError, match="unknown configuration key '.*config.model.depth'"):
        checkpoint.load_metadata(same)


def test_names_of_early_files(format1, tmp_path):
    raw = json.loads((format1 / "last" / "metadata.json").read_text())
    loss = {"weight_vfl" if key == "weight_class" else key: value for key, value in raw["config"]["loss"].items()}
    loss["weight_vfl"] = 3.0
    early = changed(format1, tmp_path, config=raw["config"] | {"loss": loss})
    assert checkpoint.load_metadata(early).config.loss.weight_class == 3.0
    names = {"summed_names": ["loss", "loss_vfl", "loss_ddf_dn_1", "grad_norm"], "sums": [1.0, 2.0, 3.0, 4.0]}
    progress = stored.current({"format": 1, "progress": names}, "metadata.json")["progress"]
    assert progress["summed_names"] == ["loss", "vfl/last", "ddf/dn_1", "grad_norm"]
    plan = json.loads((format1 / "plan_variant.json").read_text())
    plan["loss"] = loss
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert read_plan(str(tmp_path / "plan.json")).loss.weight_class == 3.0


def test_state_without_the_counters_of_the_average(tmp_path):
    """The first version stored the step alone."""
    state = small_state(0.5)
    checkpoint.save_training(tmp_path / "last", state, METADATA, checkpoint.Progress())
    arrays = checkpoint._restore(tmp_path / "last" / "training")
    shutil.rmtree(tmp_path / "last" / "training")
    early = {name: value for name, value in arrays.items() if name not in ("ema_updates", "ema_shift")}
    with checkpoint._checkpointer() as checkpointer:
        checkpointer.save((tmp_path / "last" / "training").absolute(), early)
    restored, _, _ = checkpoint.load_training(tmp_path / "last", jax.eval_shape(small_state))
    assert int(restored.ema_updates) == int(restored.step) == 11 and float(restored.ema_shift) == 0.0


def test_values_that_are_missing_take_their_defaults():
    config = stored.build(Config, {"model": {**vars(model_config("n"))}}, "plan.json", None, sections)
    assert config == Config(model_config("n"), LossConfig())
