"""Loading by path, and starting from weights made for other classes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from dfine_jax.config import Config
from dfine_jax.data.read.coco_names import COCO_NAMES, OBJECTS365_NAMES, objects365_names
from dfine_jax.errors import UserError
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.family import DFINE
from dfine_jax.families.dfine.model import DFine
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.training.run.checkpoint import Metadata, save_weights
from dfine_jax.weights.load import LoadedModel, load, load_checkpoint, transfer, with_backbone

# The reference's table (`obj365_ids` in its solver): Objects365 class, from 0, of each COCO class.
OBJECTS365_OF_COCO = (
    0, 46, 5, 58, 114, 55, 116, 65, 21, 40, 176, 127, 249, 24, 56, 139, 92, 78, 99, 96,
    144, 295, 178, 180, 38, 39, 13, 43, 120, 219, 148, 173, 165, 154, 137, 113, 145, 146, 204, 8,
    35, 10, 88, 84, 93, 26, 112, 82, 265, 104, 141, 152, 234, 143, 150, 97, 2, 50, 25, 75,
    98, 153, 37, 73, 115, 132, 106, 61, 163, 134, 277, 81, 133, 18, 94, 30, 169, 70, 328, 226,
)  # fmt: skip


def variables(classes, fill):
    """The class-dependent leaves of a model and one other, filled with ``fill + class index``."""
    per_class = fill + np.arange(classes, dtype=np.float32)
    head = {"kernel": np.tile(per_class, (4, 1)), "bias": per_class}
    embedding = np.tile(np.append(per_class, 0.0)[:, None], (1, 4))
    return {
        "params": {
            "backbone": {"conv": {"kernel": np.full((3, 3), fill)}},
            "decoder": {
                "enc_score_head": head,
                "dec_score_head_0": head,
                "denoising_class_embed": {"embedding": embedding},
            },
        },
        "batch_stats": {"backbone": {"bn": {"mean": np.full(3, fill)}}},
    }


def loaded(names, fill=100.0):
    config = Config(model=model_config("n", num_classes=len(names)), loss=LossConfig())
    metadata = Metadata(config, tuple(names), tuple(range(len(names))))
    return LoadedModel(DFine(config.model), variables(len(names), fill), metadata)


def moved_rows(source, fresh, names):
    """``transfer`` to a model that differs in its classes alone."""
    model = dataclasses.replace(source.metadata.config.model, num_classes=len(names))
    return transfer(source, fresh, names, model)


def test_a_saved_checkpoint_loads_with_its_model(tmp_path):
    source = loaded(("cat", "dog"))
    save_weights(tmp_path / "best", source.variables, source.metadata)
    model, found = load(tmp_path / "best")
    assert model.config == source.metadata.config.model
    jax.tree.map(np.testing.assert_array_equal, found, source.variables)
    assert load_checkpoint(str(tmp_path / "best")).metadata == source.metadata
    assert load(tmp_path / "best", activation="relu")[0].config.decoder_activation == "relu"
    with pytest.raises(UserError, match=r"best is a checkpoint that knows its activation \(relu\); leave silu out"):
        load_checkpoint(tmp_path / "best", activation="silu")


def test_a_wrong_path_lists_what_is_expected(tmp_path):
    with pytest.raises(UserError, match="does not exist; expected a checkpoint folder.*published name.*dfine-n-coco"):
        load(tmp_path / "absent")
    (tmp_path / "cells.onnx").touch()
    with pytest.raises(UserError, match=r"cels.onnx does not exist; did you mean .*cells.onnx\?"):
        load(tmp_path / "cels.onnx")
    with pytest.raises(UserError, match="is not a checkpoint: expected a folder with metadata.json"):
        load(tmp_path)
    (tmp_path / "weights.txt").write_text("no weights")
    with pytest.raises(UserError, match="weights.txt"):
        load(tmp_path / "weights.txt")


def test_the_same_classes_copy_everything():
    source, fresh = loaded(("cat", "dog")), variables(2, 0.0)
    moved = moved_rows(source, fresh, ("cat", "dog"))
    jax.tree.map(np.testing.assert_array_equal, moved.variables, source.variables)
    assert moved.origins == {"cat": "cat", "dog": "dog"}


def test_rows_follow_the_names():
    moved = moved_rows(loaded(("cat", "dog", "bird")), variables(2, 0.0), ("bird", "horse"))
    decoder = moved.variables["params"]["decoder"]
    assert moved.origins == {"bird": "bird", "horse": None}
    assert moved.notes() == ["classes taken over by name (1): bird", "classes that start anew (1): horse"]
    assert np.asarray(decoder["enc_score_head"]["bias"]).tolist() == [102.0, 1.0]
    assert np.asarray(decoder["dec_score_head_0"]["kernel"]).tolist() == [[102.0, 1.0]] * 4
    assert np.asarray(decoder["denoising_class_embed"]["embedding"])[:, 0].tolist() == [102.0, 1.0, 0.0]
    assert moved.variables["params"]["backbone"]["conv"]["kernel"][0, 0] == 100.0
    assert moved.variables["batch_stats"]["backbone"]["bn"]["mean"][0] == 100.0


def test_unknown_classes_all_start_anew():
    moved = moved_rows(loaded(("cat",)), variables(2, 0.0), ("car", "bus"))
    assert moved.origins == {"car": None, "bus": None}
    assert np.asarray(moved.variables["params"]["decoder"]["enc_score_head"]["bias"]).tolist() == [0.0, 1.0]


def test_spellings_of_a_name_meet():
    moved = moved_rows(loaded(("Wild Bird", "hot-dog", "Hot Dog")), variables(3, 0.0), ("bird", "hot_dog", "Hot Dog"))
    assert moved.origins == {"bird": "Wild Bird", "hot_dog": "hot-dog", "Hot Dog": "Hot Dog"}
    assert np.asarray(moved.variables["params"]["decoder"]["enc_score_head"]["bias"]).tolist() == [100.0, 101.0, 102.0]


def rows_taken(names):
    """Rows of Objects365 weights, by class of a data set; -1 where it starts anew."""
    moved = moved_rows(loaded(objects365_names()), variables(len(names), -1000.0), names)
    bias = np.asarray(moved.variables["params"]["decoder"]["enc_score_head"]["bias"])
    return np.where(bias < 0, -1, bias - 100).tolist(), moved


def test_objects365_rows_become_those_of_coco():
    rows, moved = rows_taken(COCO_NAMES)
    assert rows == [1 + index for index in OBJECTS365_OF_COCO]
    assert None not in moved.origins.values() and moved.origins["bird"] == "Wild Bird"


def test_objects365_goes_on_as_objects365_with_all_its_rows():
    spaced = [
        name + " " if name in ("Cigar/Cigarette", "Formula 1", "Table Tennis") else name for name in OBJECTS365_NAMES
    ]
    assert rows_taken(spaced)[0] == list(range(1, 366))  # the annotation files have spaces there
    back = moved_rows(loaded(OBJECTS365_NAMES), variables(366, 0.0), objects365_names())
    bias = np.asarray(back.variables["params"]["decoder"]["enc_score_head"]["bias"])
    assert bias.tolist() == [0.0, *(100.0 + row for row in range(365))]


def test_classes_that_only_objects365_has_take_its_rows():
    names = ("Sneakers", "helmet", "street-lights", "camel", "Balloon", "basket", "Hot-air balloon", "spaceship")
    assert rows_taken(names)[0] == [2, 18, 12, 308, 91, 53, 229, -1]


def test_a_backbone_takes_the_place_of_the_fresh_one():
    new, backbone = variables(2, 0.0), {name: tree["backbone"] for name, tree in variables(2, 50.0).items()}
    out = with_backbone(new, backbone)
    assert out["params"]["backbone"] is backbone["params"] and out["params"]["decoder"] is new["params"]["decoder"]
    backbone["params"]["conv"]["kernel"] = np.zeros((5, 5))
    with pytest.raises(UserError, match="backbone is of another size: 1 entries differ, such as params/conv/kernel"):
        with_backbone(new, backbone)


def test_another_architecture_is_refused():
    fresh = variables(1, 0.0)
    fresh["params"]["backbone"]["conv"]["kernel"] = np.zeros((5, 5))
    with pytest.raises(
        UserError, match="another architecture \\(D-FINE-N\\); 1 entries differ, such as params/backbone/conv"
    ):
        moved_rows(loaded(("cat",)), fresh, ("cat",))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reg_scale", 8.0), ("up", 0.25), ("num_points", (4, 8)), ("reg_max", 16), ("num_heads", 4),
        ("decoder_activation", "silu"), ("mlp_activation", "silu"), ("variant", "s"), ("encoder_depth", 1.0),
    ],
)  # fmt: skip
def test_what_leaves_no_trace_in_shapes_must_be_as_in_the_weights(field, value):
    source = loaded(("cat", "dog"))
    other = dataclasses.replace(source.metadata.config.model, **{field: value})
    stored = getattr(source.metadata.config.model, field)
    with pytest.raises(UserError) as caught:
        transfer(source, variables(2, 0.0), ("cat", "dog"), other)
    assert f"model.{field} is {stored!r} in the weights, not {value!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", sorted(DFINE.free))
def test_free_fields_may_differ(field):
    source = loaded(("cat", "dog"))
    value = {"num_classes": 2, "num_queries": 7, "precision": "bfloat16"}.get(field, True)
    model = dataclasses.replace(source.metadata.config.model, **{field: value})
    moved = transfer(source, variables(2, 0.0), ("cat", "dog"), model)
    jax.tree.map(np.testing.assert_array_equal, moved.variables, source.variables)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_checkpoints_with_values_that_are_not_finite_are_refused(tmp_path, wrong):
    source = loaded(("cat", "dog"))
    source.variables["params"]["backbone"]["conv"]["kernel"][0, 1] = wrong
    save_weights(tmp_path / "best", source.variables, source.metadata)
    with pytest.raises(UserError, match=r"best: values that are not finite.*params/backbone/conv/kernel \(1 of 9\)"):
        load(tmp_path / "best")


@pytest.mark.parametrize("name", ["hf:../..", "hf:a/..", "hf:/etc", "hf:a/b/c", "hf:a\\b", "hf:a/b\0", "hf:%2e%2e/a"])
def test_names_that_are_paths_are_not_fetched(name):
    with pytest.raises(UserError, match="is no name of the Hugging Face hub; write hf:OWNER/MODEL"):
        load(name)
