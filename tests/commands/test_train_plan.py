"""Plans: derived, saved, taken as they are; and what weights decide."""

from __future__ import annotations

import dataclasses
import json

import pytest
from conftest import ROOT

from dfine_jax.cli import Parser, main
from dfine_jax.commands import train
from dfine_jax.commands.train_plan import plan, read_plan, write_plan
from dfine_jax.config import Config
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.errors import UserError
from dfine_jax.families import of_recipe
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.model import DFine
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.families.family import Build
from dfine_jax.system import stored
from dfine_jax.training.run.checkpoint import Metadata
from dfine_jax.weights.load import LoadedModel, bound_fields, check_same_architecture

OVERRIDES = ("optim.weight_decay=0.5", "train.patience=7")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=40, num_val=1, size_px=32, seed=0)


def loaded(variant="s", **changes):
    """Weights as far as a plan looks at them: those of a DEIM model, input 640x640."""
    changes = {"num_classes": 4, "decoder_activation": "silu", "mlp_activation": "silu"} | changes
    config = Config(model_config(variant, **changes), LossConfig())
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, method="deim"))
    return LoadedModel(DFine(config.model), {}, Metadata(config, tuple("abcd"), (1, 2, 3, 4)))


@pytest.fixture
def configured(data, tmp_path):
    """A function that gives configuration and log lines of a command line."""
    train_data = read_dataset(data, "train")
    commands = Parser(prog="dfine").add_subparsers(parser_class=Parser)
    train.add_parser(commands)

    def of(*arguments, save=(), weights=None):
        words = [*arguments, "--data", str(data), "--out", str(tmp_path / "run")]
        options = commands.choices["train"].parse_intermixed_args(words)
        config, notes = plan(options, train_data, weights)
        if save:
            write_plan(save, config)
        return config, "\n".join(notes)

    return of


@pytest.mark.parametrize("start", [(), ("--backbone", "b.pth"), ("weights",), ("weights", "--method=dfine")])
@pytest.mark.parametrize("variant", ["n", "s", "l", "x"])
@pytest.mark.parametrize("method", ["dfine", "deim"])
def test_a_plan_is_the_configuration_that_was_saved(configured, tmp_path, variant, method, start):
    weights = loaded(variant) if "weights" in start else None
    asked = [variant, *(option for option in start if option != "weights"), *OVERRIDES]
    if not weights:
        asked += ["--method", method]
    file = tmp_path / "plan.json"
    saved = configured(*asked, "--epochs", "5", "--size", "64x96", save=file, weights=weights)[0]
    assert configured(str(file))[0] == read_plan(str(file)) == saved
    assert configured(str(file), weights=weights)[0] == saved
    assert (saved.optim.weight_decay, saved.train.patience, saved.data.height_px) == (0.5, 7, 64)
    with pytest.raises(UserError, match="is a configuration") as caught:
        configured(str(file), "--epochs", "100", "--batch-size", "4")
    command = f"dfine train {variant} --method {saved.train.method} --epochs 100 --batch-size 4"
    assert f"for --epochs 100 --batch-size 4: {command}, with what else" in str(caught.value)


def test_a_plan_of_a_plan_keeps_all_that_was_given(configured, tmp_path):
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    configured("s", "optim.lr=0.25", "--epochs", "40", save=first)
    configured(str(first), "data.augment=dense", "--size", "64", save=second)
    found, notes = configured(str(second), "train.seed=3")
    assert (
        found == configured("s", "optim.lr=0.25", "data.augment=dense", "train.seed=3", "--size=64", "--epochs=40")[0]
    )
    assert (found.data.start_augment_epoch, found.data.stop_mosaic_epoch) == (4, 20)
    assert f"(file {second})" in notes and "train.seed=3 (given)" in notes


def test_a_plan_of_an_experiment_file(configured, tmp_path):
    recipe, file = f"{ROOT / 'experiments' / 'deim_coco.py'}:s", tmp_path / "plan.json"
    short = configured(recipe, "--epochs", "5", *OVERRIDES, save=file)[0]
    assert configured(str(file))[0] == short
    with pytest.raises(UserError, match="for --batch-size 4: dfine train s --method deim --batch-size 4"):
        configured(str(file), "--batch-size", "4")


@pytest.mark.parametrize("recipe", ["{}", "{}:s", "{}.json", "../{}", "s; {}"])
def test_a_plan_never_runs_what_it_names(configured, data, tmp_path, capsys, recipe):
    """Early plans say what they were derived from, and were derived from it anew."""
    witness, script = tmp_path / "witness", tmp_path / "evil.py"
    script.write_text(f"import pathlib\npathlib.Path({str(witness)!r}).touch()\n")
    (tmp_path / "evil.py.json").write_text(script.read_text())
    file = tmp_path / "plan.json"
    saved = configured("n", "--epochs", "5", save=file)[0]
    origin = {"recipe": recipe.format(script), "num_images": 40}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 1, "origin": origin}))
    assert configured(str(file))[0] == saved
    where = ["--data", str(data), "--out", str(tmp_path / "run"), "--dry-run"]
    for flags in (["--epochs", "9"], ["--batch-size", "2"], ["--epochs", "9", "--batch-size", "2"]):
        assert main(["train", str(file), *flags, *where]) == 2
        assert "is a configuration" in capsys.readouterr().err
    assert main(["train", str(file), "train.epochs=9", *where]) == 2
    assert "give it as --epochs N of a variant, or change it alone in" in capsys.readouterr().err
    assert not witness.exists()


def test_a_plan_written_by_hand(configured, tmp_path):
    file, config = tmp_path / "plan.json", Config(model_config("n", num_classes=9), LossConfig())
    file.write_text(json.dumps(dataclasses.asdict(config)))
    found, notes = configured(str(file), "optim.lr=0.125", "--size", "64")
    assert (found.optim.lr, found.data.width_px, found.model.num_classes) == (0.125, 64, 4)
    assert found.train == config.train and f"(file {file})" in notes
    for text, message in (
        ("[1, 2]", "holds no sections"),
        ("{", "is not JSON"),
        ('{"origin": {"recipes": "s"}}', "configuration key '.*model' is missing"),
        (json.dumps(dataclasses.asdict(config) | {"orgin": {}}), "unknown configuration key '.*orgin'"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            configured(str(file))


def test_plans_of_other_versions(configured, tmp_path, caplog):
    file = tmp_path / "plan.json"
    config = configured("n", "--epochs", "5", save=file)[0]
    values = json.loads(file.read_text())
    assert values["format"] == stored.FORMAT
    file.write_text(json.dumps(values | {"format": stored.FORMAT + 1, "library_version": "99.0"}))
    with pytest.raises(
        UserError, match=r"plan.json was written by a newer dfine_jax \(99.0\): it is of format \d+, .*upgrade"
    ):
        read_plan(str(file))
    newer = values | {"library_version": "99.0", "telemetry": 1}
    newer["optim"] = values["optim"] | {"lookahead": 3}
    file.write_text(json.dumps(newer))
    assert read_plan(str(file)) == config
    said = "\n".join(caplog.messages)
    assert "left out what this version" in said and "telemetry, optim.lookahead" in said.replace(
        "optim.lookahead, telemetry", "telemetry, optim.lookahead"
    )
    file.write_text(json.dumps(values | {"optim": values["optim"] | {"lookahead": 3}}))
    with pytest.raises(UserError, match="unknown configuration key '.*optim.lookahead'"):
        read_plan(str(file))


TRACELESS = [
    ("reg_scale", 8.0), ("up", 0.25), ("num_points", (6, 3, 3)), ("decoder_activation", "relu"),
    ("mlp_activation", "relu"), ("num_heads", 4), ("reg_max", 16), ("encoder_depth", 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), TRACELESS)
def test_the_architecture_is_that_of_the_weights(configured, tmp_path, field, value):
    weights, file = loaded("s", **{field: value}), tmp_path / "plan.json"
    experiment = f"{ROOT / 'experiments' / 'dfine_coco.py'}:s"
    config, notes = configured("s", weights=weights, save=file)
    assert getattr(config.model, field) == value and bound_fields(config.model) == bound_fields(
        weights.metadata.config.model
    )
    shown = f"model.{field}=" in notes and "as in the weights; table: " in notes
    assert shown or field.endswith("activation")  # which are in the table, too
    for recipe in (experiment, str(file)):
        assert getattr(configured(recipe, weights=weights)[0].model, field) == value
    assert getattr(configured(str(file))[0].model, field) == value
    if not field.endswith("activation"):  # which follow the weights, as of experiment files
        with pytest.raises(UserError, match=f"model.{field} is .* in {file}, but .* in the weights"):
            configured(str(file), weights=loaded())


@pytest.mark.parametrize(("field", "value"), TRACELESS)
@pytest.mark.parametrize("kind", ["variant", "experiment", "plan"])
def test_a_value_against_the_weights_is_an_error(configured, tmp_path, kind, field, value):
    stored = getattr(loaded().metadata.config.model, field)
    file = tmp_path / "plan.json"
    configured("s", "--method=deim", save=file)
    recipe = {"variant": "s", "experiment": f"{ROOT / 'experiments' / 'deim_coco.py'}:s", "plan": str(file)}[kind]
    same = f"model.{field}={json.dumps(stored)}"
    taken = configured(recipe, same, weights=loaded())[0].model
    assert bound_fields(taken) == bound_fields(loaded().metadata.config.model)
    with pytest.raises(UserError) as caught:
        configured(recipe, f"model.{field}={json.dumps(value)}", weights=loaded())
    assert f"model.{field} is {value!r} in the command line, but {stored!r} in the weights" in str(caught.value)


def test_what_a_plan_or_a_file_sets_is_not_changed_by_weights(configured, tmp_path):
    plan_file, script = tmp_path / "plan.json", tmp_path / "mine.py"
    configured("s", "--method=deim", "model.reg_scale=8", save=plan_file)
    script.write_text(
        "from dfine_jax.config import Config\nfrom dfine_jax.families.dfine.config import LossConfig\n"
        "from dfine_jax.families.dfine.variants import model_config\n"
        "def get_config():\n    return Config(model_config('s', reg_scale=8.0), LossConfig())\n"
    )
    for file in (plan_file, script):
        with pytest.raises(UserError) as caught:
            configured(str(file), weights=loaded())
        assert f"model.reg_scale is 8.0 in {file}, but 4.0 in the weights" in str(caught.value)
        assert configured(str(file), weights=loaded(reg_scale=8.0))[0].model.reg_scale == 8.0


def test_weights_are_trained_for_another_way_of_sampling(configured):
    """Where somebody says so; a variant or a table that say nothing keep that of the weights."""
    own = of_recipe("rtdetrv2-r18")[0]

    def weights(sampling):
        model = dataclasses.replace(own.variants["r18"], num_classes=4, sampling=sampling)
        return LoadedModel(
            own.build(model, Build()), {}, Metadata(Config(model, own.Loss()), tuple("abcd"), (1, 2, 3, 4))
        )

    plain, discrete = (f"{ROOT / 'experiments' / f'{name}.py'}:r18" for name in ("rtdetr_coco", "rtdetr_discrete_coco"))
    for words, start, sampling in (
        ([discrete], "bilinear", "discrete"),
        (["rtdetrv2-r18", "model.sampling=discrete"], "bilinear", "discrete"),
        (["rtdetrv2-r18"], "discrete", "discrete"),
        ([plain], "discrete", "discrete"),
        ([plain, "model.sampling=bilinear"], "discrete", "bilinear"),
    ):
        config = configured(*words, weights=weights(start))[0]
        assert config.model.sampling == sampling
        check_same_architecture(weights(start).metadata.config.model, config.model)


def test_weights_are_trained_further_with_another_box_head(configured):
    own = of_recipe("rtdetrv2-r18")[0]

    def weights(**fields):
        model = dataclasses.replace(own.variants["r18"], num_classes=4, **fields)
        return LoadedModel(
            own.build(model, Build()), {}, Metadata(Config(model, own.Loss()), tuple("abcd"), (1, 2, 3, 4))
        )

    for words, start, head in (
        (["model.box_head=fdr"], {}, ("fdr", True)),
        (["model.box_head=fdr", "model.quality_head=false"], {}, ("fdr", False)),
        ([], {"box_head": "fdr", "quality_head": False}, ("fdr", False)),
        (["model.box_head=plain", "model.quality_head=true"], {"box_head": "fdr"}, ("plain", True)),
    ):
        config = configured("rtdetrv2-r18", *words, weights=weights(**start))[0]
        assert (config.model.box_head, config.model.quality_head) == head
        check_same_architecture(weights(**start).metadata.config.model, config.model)


def test_weights_of_another_variant(configured):
    with pytest.raises(
        UserError, match="n is of variant n, the weights are of variant s; train s, or give weights of n"
    ):
        configured("n", weights=loaded("s"))


def test_free_fields_are_the_runs(configured):
    weights = loaded(num_queries=100, precision="bfloat16", backbone_frozen_bn=True)
    config = configured("s", "model.num_queries=50", "model.backbone_frozen_stem=true", weights=weights)[0]
    assert (config.model.num_queries, config.model.precision, config.model.backbone_frozen_stem) == (
        50,
        "float32",
        True,
    )


def test_the_input_is_that_of_the_weights(configured, tmp_path):
    weights = loaded()
    config = weights.metadata.config
    boxed = {"resize": "letterbox", "border": 114, "enlarge": False}
    input_of = dataclasses.replace(config.data, height_px=96, width_px=64, **boxed)
    metadata = dataclasses.replace(weights.metadata, config=dataclasses.replace(config, data=input_of))
    weights, file = dataclasses.replace(weights, metadata=metadata), tmp_path / "plan.json"
    experiment = f"{ROOT / 'experiments' / 'dfine_coco.py'}:s"
    commands = [["s"], ["s", "--size", "32"], [str(file)], [str(file), "--size", "32"]]
    notes = configured("s", weights=weights, save=file)[1]
    found = [configured(*command, weights=weights)[0].data for command in (*commands, [experiment])]
    inputs = [(data.height_px, data.width_px, data.resize) for data in found]
    assert inputs[:3] == [(96, 64, "letterbox"), (32, 32, "letterbox"), (96, 64, "letterbox")]
    assert inputs[3:] == [(32, 32, "letterbox"), (640, 640, "stretch")]
    assert [(data.border, data.enlarge) for data in found] == [(114, False)] * 4 + [(0, True)]
    assert "data.height_px=96 (derived: as in the weights; table: 640)" in notes
