"""Loading by path, and starting from weights made for other classes."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dfine_jax import weights
from dfine_jax.config import Config
from dfine_jax.errors import UserError
from dfine_jax.variants import model_config
from dfine_jax.weights import LoadedModel, Metadata, load, load_checkpoint, save_weights, transfer


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
    config = Config(model=model_config("n", num_classes=len(names)))
    metadata = Metadata(config, tuple(names), tuple(range(len(names))))
    return LoadedModel(weights.DFine(config.model), variables(len(names), fill), metadata)


def test_a_saved_checkpoint_loads_with_its_model(tmp_path):
    source = loaded(("cat", "dog"))
    save_weights(tmp_path / "best", source.variables, source.metadata)
    model, found = load(tmp_path / "best")
    assert model.config == source.metadata.config.model
    jax.tree.map(np.testing.assert_array_equal, found, source.variables)
    assert load_checkpoint(str(tmp_path / "best")).metadata == source.metadata


def test_a_wrong_path_lists_what_is_expected(tmp_path):
    with pytest.raises(UserError, match="does not exist; expected a checkpoint folder.*published name.*dfine-n-coco"):
        load(tmp_path / "absent")
    with pytest.raises(UserError, match="is not a checkpoint: expected a folder with metadata.json"):
        load(tmp_path)
    (tmp_path / "weights.txt").write_text("no weights")
    with pytest.raises(UserError, match="weights.txt"):
        load(tmp_path / "weights.txt")


def test_the_same_classes_copy_everything():
    source, fresh = loaded(("cat", "dog")), variables(2, 0.0)
    moved = transfer(source, fresh, ("cat", "dog"))
    jax.tree.map(np.testing.assert_array_equal, moved.variables, source.variables)
    assert moved.copied == ("cat", "dog") and moved.fresh == ()


def test_rows_follow_the_names():
    moved = transfer(loaded(("cat", "dog", "bird")), variables(2, 0.0), ("bird", "horse"))
    decoder = moved.variables["params"]["decoder"]
    assert moved.copied == ("bird",) and moved.fresh == ("horse",)
    assert np.asarray(decoder["enc_score_head"]["bias"]).tolist() == [102.0, 1.0]
    assert np.asarray(decoder["dec_score_head_0"]["kernel"]).tolist() == [[102.0, 1.0]] * 4
    assert np.asarray(decoder["denoising_class_embed"]["embedding"])[:, 0].tolist() == [102.0, 1.0, 0.0]
    assert moved.variables["params"]["backbone"]["conv"]["kernel"][0, 0] == 100.0
    assert moved.variables["batch_stats"]["backbone"]["bn"]["mean"][0] == 100.0


def test_unknown_classes_all_start_anew():
    moved = transfer(loaded(("cat",)), variables(2, 0.0), ("car", "bus"))
    assert moved.copied == () and moved.fresh == ("car", "bus")
    assert np.asarray(moved.variables["params"]["decoder"]["enc_score_head"]["bias"]).tolist() == [0.0, 1.0]


def test_another_architecture_is_refused():
    fresh = variables(1, 0.0)
    fresh["params"]["backbone"]["conv"]["kernel"] = np.zeros((5, 5))
    with pytest.raises(UserError, match="another architecture \\(N\\); 1 entries differ, such as params/backbone/conv"):
        transfer(loaded(("cat",)), fresh, ("cat",))
