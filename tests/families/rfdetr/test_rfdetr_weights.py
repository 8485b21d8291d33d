"""RF-DETR's official files and transformers' folders: names, order, class rows, what is recognised and what refused."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import pathlib

import jax
import numpy as np
import pytest
import rfdetr_golden

from dfine_jax import families
from dfine_jax.config import Config, DataConfig
from dfine_jax.converters.torch.exporter import export_weights
from dfine_jax.converters.torch.importer import import_weights
from dfine_jax.data.read.coco_names import COCO_CATEGORY_IDS, COCO_NAMES
from dfine_jax.errors import UserError
from dfine_jax.families.rfdetr.family import RFDETR
from dfine_jax.families.rfdetr.model import init_variables
from dfine_jax.families.rfdetr.variants import SIZES, VARIANTS
from dfine_jax.families.rfdetr.weights import official_keys, read_official, recognise_official, write_official
from dfine_jax.families.state_dict import leaf_shapes, tensor_shape

NANO = dataclasses.replace(VARIANTS["nano"], head_rows="coco")


@pytest.fixture(scope="module")
def state(golden):
    return rfdetr_golden.state_dict(golden("families/manifest_rfdetr_nano.json"))


def empty(model):
    """Tensors of an architecture that hold nothing, without memory."""
    shapes = leaf_shapes(model)
    return {key: np.broadcast_to(np.float32(0), tensor_shape(p, shapes[p])) for p, key in official_keys(model).items()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rows", ["coco", "spare"])
def test_every_size_is_recognised_by_its_shapes(variant, rows):
    model = dataclasses.replace(VARIANTS[variant], head_rows=rows, num_classes=80 if rows == "coco" else 3)
    assert recognise_official(empty(model)) == model


def test_official_files_are_read_and_written_bit_for_bit(state):
    model, variables = read_official(state, NANO)
    written = write_official(model, variables)
    assert list(written) == list(state)
    assert all(written[key].dtype == state[key].dtype and np.array_equal(written[key], state[key]) for key in state)


def test_keys_of_masks_stand_in_the_order_of_the_file(golden):
    state = rfdetr_golden.state_dict(golden("families/manifest_rfdetr_seg_nano.json"))
    model = dataclasses.replace(VARIANTS["seg-nano"], head_rows="coco")
    assert ["_kp_active_mask", *official_keys(model).values()] == list(state)


def test_rows_are_those_of_cocos_classes_in_order_and_then_the_unused(state):
    assert tuple(rfdetr_golden.USED) == COCO_CATEGORY_IDS
    bias = read_official(state, NANO)[1]["params"]["decoder"]["class_embed"]["bias"]
    np.testing.assert_array_equal(bias, state["class_embed.bias"][rfdetr_golden.USED + rfdetr_golden.UNUSED])


def test_a_file_with_more_queries_and_groups_gives_the_first_of_each_group(state):
    model = dataclasses.replace(NANO, groups=2, num_queries=5)
    variables = read_official(state, model)[1]
    want = state["query_feat.weight"].reshape(13, 300, -1)[:2, :5].reshape(10, -1)
    np.testing.assert_array_equal(variables["params"]["decoder"]["query_feat"], want)


def test_positions_of_another_table_are_resized(state):
    torch = pytest.importorskip("torch")
    key = "backbone.0.encoder.encoder.embeddings.position_embeddings"
    variables = read_official(state, dataclasses.replace(NANO, table=32))[1]
    found = variables["params"]["backbone"]["position_embeddings"]
    grid = torch.from_numpy(state[key][0, 1:].reshape(1, 24, 24, -1)).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(grid, (32, 32), mode="bicubic", antialias=True)
    np.testing.assert_array_equal(found[:, :1], state[key][:, :1])
    np.testing.assert_allclose(found[0, 1:], want.permute(0, 2, 3, 1).reshape(1024, -1).numpy(), atol=2e-6)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("backbone.0.encoder.base_model.model.encoder.layer.0.x", "LoRA"),
        ("transformer.decoder.keypoint_embed.weight", "keypoints"),
        ("backbone.0.projector.stages.1.0.cv1.conv.weight", "two levels"),
    ],
)
def test_other_forms_are_refused_with_a_cure(state, name, meaning):
    with pytest.raises(UserError, match=meaning):
        recognise_official({**state, name: np.zeros(1, np.float32)})


def test_a_missing_tensor_is_named(state):
    with pytest.raises(UserError, match=r"1 missing: query_feat\.weight"):
        read_official({key: tensor for key, tensor in state.items() if key != "query_feat.weight"}, NANO)


def save(path, content):
    """As the programs do."""
    torch = pytest.importorskip("torch")
    torch.save(jax.tree.map(lambda x: torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) else x, content), path)


TINY = dataclasses.replace(
    VARIANTS["seg-nano"], decoder_layers=1, num_queries=3, groups=2, decoder_ffn=8, num_classes=2, table=5
)


@pytest.fixture(scope="module")
def tiny():
    variables = jax.tree.map(np.asarray, init_variables(TINY, jax.random.key(0)))
    return variables, write_official(TINY, variables)


def same(found, variables):
    jax.tree.map(np.testing.assert_array_equal, found["params"], variables["params"])


def test_files_of_both_programs_tell_classes_windows_and_size(tmp_path, tiny):
    variables, tensors = tiny
    args = {"class_names": ["cat", "dog"], "num_windows": 2, "resolution": 96}
    save(tmp_path / "best.pth", {"model": tensors, "args": args})
    wrapped = {f"model._orig_mod.{key}": tensor for key, tensor in tensors.items()}
    save(tmp_path / "last.ckpt", {"state_dict": wrapped, "hyper_parameters": args, "epoch": 3})
    for name in ("best.pth", "last.ckpt"):
        found, metadata = import_weights(tmp_path / name)
        same(found, variables)
        model = metadata.config.model
        assert isinstance(model, RFDETR.Model)
        assert (model.windows, model.decoder_layers, model.head_rows, model.mask_width) == (2, 1, "spare", 256)
        assert metadata.class_names == ("cat", "dog") and metadata.input_size_px == (96, 96)
        assert metadata.config.train.method == "rfdetr"


def test_arguments_of_older_programs_are_an_object(tmp_path, tiny):
    arguments = {"class_names": ["cat", "dog"], "num_windows": 2, "resolution": 96, "output_dir": pathlib.Path("out")}
    save(tmp_path / "best.pth", {"model": tiny[1], "args": argparse.Namespace(**arguments)})
    _, metadata = import_weights(tmp_path / "best.pth")
    assert isinstance(metadata.config.model, RFDETR.Model) and metadata.config.model.windows == 2
    assert metadata.class_names == ("cat", "dog") and metadata.input_size_px == (96, 96)


def test_ninety_classes_are_not_cocos_rows(tmp_path):
    model = dataclasses.replace(TINY, num_classes=90)
    tensors = write_official(model, init_variables(model, jax.random.key(0)))
    names = [f"kind {i}" for i in range(90)]
    save(tmp_path / "own.pth", {"model": tensors, "args": {"class_names": names}})
    _, metadata = import_weights(tmp_path / "own.pth")
    assert metadata.class_names == tuple(names) and is_spare(metadata)
    save(tmp_path / "coco.pth", {"model": tensors})
    _, metadata = import_weights(tmp_path / "coco.pth")
    assert metadata.class_names == COCO_NAMES and metadata.category_ids == COCO_CATEGORY_IDS


def test_a_folder_of_transformers_is_written_and_read(tmp_path, tiny):
    variables, _ = tiny
    config = Config(model=TINY, loss=RFDETR.Loss(), data=DataConfig(height_px=60, width_px=60))
    metadata = dataclasses.replace(import_metadata(tmp_path, tiny), config=config)
    export_weights(tmp_path / "hf", "huggingface", variables, metadata)
    export_weights(tmp_path / "official.pth", "official", variables, metadata)
    for name in ("hf", "official.pth"):
        found, read = import_weights(tmp_path / name)
        same(found, variables)
        assert read.class_names == ("cat", "dog") and read.config.model == TINY
    torch = pytest.importorskip("torch")
    content = torch.load(tmp_path / "official.pth", weights_only=True)
    assert content["args"]["class_names"] == ["cat", "dog"] and content["args"]["resolution"] == 60
    assert content["model"]["_kp_active_mask"].dtype == torch.bool


def is_spare(metadata) -> bool:
    return metadata.config.model.head_rows == "spare"


def import_metadata(folder, tiny):
    save(folder / "a.pth", {"model": tiny[1], "args": {"class_names": ["cat", "dog"]}})
    return import_weights(folder / "a.pth")[1]


def test_the_licence_of_the_wide_ones_is_said(caplog):
    from dfine_jax.families.family import Origin

    origin = Origin("x.pth", "x.pth", "official", False, None, False)
    with caplog.at_level(logging.WARNING):
        RFDETR.described(VARIANTS["xlarge"], origin)
    assert "PML 1.0" in caplog.text and not any("xlarge" in n and "seg" not in n for n in RFDETR.published)


def test_names_of_recipes_and_titles():
    assert families.of_recipe("rfdetr-seg-nano") == (RFDETR, "seg-nano")
    assert families.title(VARIANTS["seg-nano"]) == "RF-DETR-SEG-NANO"
    for variant in SIZES:
        found, name = families.of_recipe(families.recipe_name(VARIANTS[variant]))
        assert found is RFDETR and name == variant


def test_published_files_have_names_of_their_own_and_sums():
    files = [entry.file for entry in RFDETR.published.values()]
    assert len(files) == len(set(files)) and all(len(entry.md5 or "") == 32 for entry in RFDETR.published.values())
