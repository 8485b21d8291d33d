"""Backbone files: taken whole or refused."""

from __future__ import annotations

import numpy as np
import pytest

from dfine_jax.converters.torch import torch_pickle
from dfine_jax.converters.torch.backbone import import_backbone
from dfine_jax.errors import UserError
from dfine_jax.families import state_dict
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.families.official import to_official
from dfine_jax.families.state_dict import leaf_shapes


def official(config):
    """The backbone's entries under official names without prefix, each filled with its own number."""
    out = {}
    for number, (path, shape) in enumerate(sorted(leaf_shapes(config).items())):
        if path.split("/")[1] == "backbone":
            key = to_official(path).removeprefix("backbone.")
            out[key] = np.full(state_dict.tensor_shape(path, shape), number, np.float32)
            if key.endswith("running_mean"):
                out[key.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
    return out


@pytest.fixture
def file(tmp_path):
    def write(tensors):
        torch_pickle.save(tmp_path / "PPHGNetV2_B0_stage1.pth", tensors)
        return tmp_path / "PPHGNetV2_B0_stage1.pth"

    return write


@pytest.mark.parametrize("variant", ["n", "l"])
def test_every_entry_finds_its_place(file, variant):
    config = model_config(variant)
    tree = import_backbone(file(official(config)), config)
    number = {path: i for i, path in enumerate(sorted(leaf_shapes(config)))}
    for path, shape in leaf_shapes(config).items():
        collection, part, *names = path.split("/")
        if part == "backbone":
            leaf = tree[collection]
            for name in names:
                leaf = leaf[name]
            assert leaf.shape == shape and (leaf == number[path]).all(), path


def test_another_backbone_is_refused(file):
    with pytest.raises(UserError, match="the entries do not fit HGNetv2-B2, the backbone of D-FINE-M .* more"):
        import_backbone(file(official(model_config("n"))), model_config("m"))


def test_incomplete_files_are_refused(file):
    tensors = official(model_config("n"))
    del tensors["stem.stem1.conv.weight"]
    tensors["fc.weight"] = np.zeros((2, 2), np.float32)
    message = "1 missing: stem.stem1.conv.weight; 1 unexpected: fc.weight"
    with pytest.raises(UserError, match=message):
        import_backbone(file(tensors), model_config("n"))
    with pytest.raises(UserError, match="absent.pth does not exist"):
        import_backbone("absent.pth", model_config("n"))
