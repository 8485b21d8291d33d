"""Files of dfine-seg: what stands beside their tensors."""

from __future__ import annotations

import dataclasses

import golden_fill
import numpy as np
import pytest

from dfine_jax import families
from dfine_jax.config import Config, DataConfig
from dfine_jax.converters.torch import torch_pickle
from dfine_jax.converters.torch.exporter import export_weights
from dfine_jax.converters.torch.importer import import_weights
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.dfine_seg import class_names, meta, remarks
from dfine_jax.families.dfine.variants import model_config, segmenting

NAMES = [f"thing {i}" for i in range(80)]
META = {
    "version": "0.6.2",
    "model_name": "n",
    "num_classes": 80,
    "label_to_name": dict(enumerate(NAMES)),
    "img_size": [480, 640],
    "keep_ratio": True,
}


@pytest.fixture(scope="module")
def tensors(golden):
    name = "families/{}_dfineseg062_n"
    return golden_fill.state_dict(golden(f"{name.format('manifest')}.json"), golden(f"{name.format('bnstats')}.npz"))


def save(path, tensors):
    """As dfine-seg does."""
    torch = pytest.importorskip("torch")
    model = {key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}
    torch.save({"model": model, "meta": META | {"task": "segment" if "mask" in str(list(tensors)) else "detect"}}, path)


def test_a_checkpoint_tells_classes_and_input(tensors, tmp_path):
    save(tmp_path / "model.pt", tensors)
    _, metadata = import_weights(tmp_path / "model.pt")
    config = metadata.config
    assert families.task(config.model) == "segment" and config.train.method == "dfine-seg"
    assert metadata.class_names == tuple(NAMES) and config.model.position_order == "row_major"
    assert (config.data.height_px, config.data.width_px, config.data.resize) == (480, 640, "letterbox")
    assert metadata.preprocess == Preprocess(480, 640, "letterbox", "bilinear", border=114, enlarge=False)


def test_released_files_are_tensors_alone(tensors, tmp_path):
    torch_pickle.save(tmp_path / "dfine_seg_n_coco.pt", dict(tensors))
    variables, metadata = import_weights(tmp_path / "dfine_seg_n_coco.pt")
    assert metadata.class_names[0] == "person" and metadata.config.model.mask_width == 128
    assert metadata.preprocess == Preprocess(640, 640, interpolation="bilinear")
    kernel = variables["params"]["decoder"]["mask_decoder"]["lateral_0"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0].T, tensors["decoder.mask_decoder.lateral.0.weight"][:, :, 0, 0])


def test_a_detector_is_known_by_its_remarks(tensors, tmp_path):
    boxes = {key: value for key, value in tensors.items() if ".mask_" not in key}
    save(tmp_path / "a.pt", boxes)
    _, metadata = import_weights(tmp_path / "a.pt")
    model = metadata.config.model
    assert (families.task(model), model.position_order, metadata.class_names[1]) == ("detect", "row_major", "thing 1")
    torch_pickle.save(tmp_path / "dfine_n.pth", {"model": boxes})
    assert import_weights(tmp_path / "dfine_n.pth")[1].config.model.position_order == "transposed"


def test_remarks_of_other_programs_are_let_alone():
    assert meta({"meta": {"epoch": 3}}) is None and class_names({"meta": "x"}) is None
    assert class_names({"meta": {**META, "label_to_name": {0: "a", 2: "b"}}}) is None


def test_released_detectors_are_known_by_their_names(tensors, tmp_path):
    boxes = {key: value for key, value in tensors.items() if ".mask_" not in key}
    for name, order in (("dfine_n_coco.pt", "row_major"), ("dfine_n_coco.pth", "transposed"), ("x.pt", "transposed")):
        torch_pickle.save(tmp_path / name, boxes)
        _, metadata = import_weights(tmp_path / name, activation="relu")
        assert metadata.config.model.position_order == order
        assert metadata.config.train.method == ("dfine-seg" if order == "row_major" else "dfine")
        assert metadata.preprocess.interpolation == ("bilinear" if order == "row_major" else "bilinear_antialias")


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_its_remarks_are_written_back(tensors, tmp_path, task):
    torch = pytest.importorskip("torch")
    kept = tensors if task == "segment" else {key: value for key, value in tensors.items() if ".mask_" not in key}
    save(tmp_path / "model.pt", kept)
    variables, metadata = import_weights(tmp_path / "model.pt")
    export_weights(tmp_path / "back.pth", "official", variables, metadata)
    content = torch.load(tmp_path / "back.pth", weights_only=True)
    assert content["meta"] == META | {"task": task, "in_channels": 3}
    assert set(content["model"]) - set(kept) == {"decoder.anchors", "decoder.valid_mask"}  # its network has these, too
    for key, value in kept.items():
        np.testing.assert_array_equal(content["model"][key].numpy(), value)
    # Without our description the remarks alone tell it.
    del content["meta"]["in_channels"]
    torch.save({name: content[name] for name in ("model", "meta")}, tmp_path / "alone.pt")
    again = import_weights(tmp_path / "alone.pt")[1]
    assert again.config == metadata.config and again.class_names == metadata.class_names


def test_other_weights_have_no_remarks():
    assert remarks(Config(model_config("n"), LossConfig()), NAMES) == {}


SILU = {"decoder_activation": "silu", "mlp_activation": "silu"}


@pytest.mark.parametrize(
    ("changes", "size_px", "others"),
    [
        ({"position_order": "row_major"}, (320, 640), ""),
        ({"up": 0.3, "reg_scale": 8.0, "backbone_frozen_bn": True, "precision": "bfloat16"}, (640, 640), ""),
        ({}, (320, 640), "model.position_order=transposed"),
        (SILU, (640, 640), "model.decoder_activation=silu, model.mlp_activation=silu"),
        ({"num_queries": 100}, (640, 640), "model.num_queries=100"),
        ({"mask_width": 256, "mask_stages": ()}, (640, 640), "model.mask_width=256, model.mask_stages=()"),
    ],
)
def test_only_what_dfine_seg_computes_is_called_its_own(caplog, changes, size_px, others):
    model = dataclasses.replace(segmenting(model_config("n")), **changes)
    config = Config(model, LossConfig(), data=DataConfig(height_px=size_px[0], width_px=size_px[1]))
    assert bool(remarks(config, NAMES)) == (not others)
    told = f"dfine-seg cannot compute this model: it has no setting for {others}; the file is for dfine_jax alone"
    assert caplog.messages == ([told] if others else [])


def test_the_activation_of_masks_without_remarks_is_asked_for(tensors, tmp_path, caplog):
    """Files of dfine-seg before 0.6 do not say what they are, and DEIM's may have masks, too."""
    cases = [("x.pt", None, "relu"), ("deim_masks.pt", None, "silu"), ("x.pt", "silu", "silu")]
    for name, asked, found in cases:
        caplog.clear()
        torch_pickle.save(tmp_path / name, dict(tensors))
        _, metadata = import_weights(tmp_path / name, activation=asked, class_names=NAMES)
        assert metadata.config.model.decoder_activation == found
        assert any("otherwise give --activation" in line for line in caplog.messages) == (asked is None)
