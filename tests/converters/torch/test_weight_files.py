"""Files and folders of weights: what they are decides, not their names; parts, number types and values are checked."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from dfine_jax.converters.torch import torch_pickle
from dfine_jax.converters.torch.backbone import import_backbone
from dfine_jax.converters.torch.importer import import_weights
from dfine_jax.errors import UserError
from dfine_jax.families.dfine import huggingface
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.families.dfine.weights import write_official
from dfine_jax.families.state_dict import leaf_shapes

CONFIG = model_config("n", num_classes=3)
SETTINGS = {
    "model_type": "d_fine",
    "decoder_layers": 3,
    "decoder_n_points": [6, 6],
    "id2label": {"0": "a", "1": "b", "2": "c"},
}


@pytest.fixture(scope="module")
def state():
    rng = np.random.default_rng(0)
    leaves = {path: rng.standard_normal(shape, np.float32) for path, shape in leaf_shapes(CONFIG).items()}
    return write_official(CONFIG, traverse_util.unflatten_dict(leaves, sep="/"))


@pytest.fixture(scope="module")
def hugging(state):
    """The same weights under transformers' names, as far as the names of a real file are needed."""
    names = {}
    for key, value in state.items():
        name = to_hugging(key)
        if name.endswith(("in_proj_weight", "in_proj_bias")):
            for part, third in zip("qkv", np.split(value, 3), strict=True):
                names[name.replace("in_proj_", f"{part}_proj.")] = np.ascontiguousarray(third)
        elif not name.endswith(("num_batches_tracked", "anchors", "valid_mask", "num_points_scale")):
            names[name] = value
    return names


_RENAMED = (
    ("backbone.stem.", "backbone.model.embedder."), ("backbone.stages.", "backbone.model.encoder.stages."),
    (".conv.", ".convolution."), (".bn.", ".normalization."),
)  # fmt: skip
_MOVED = {
    "decoder.dec_score_head.": "decoder.class_embed.", "decoder.dec_bbox_head.": "decoder.bbox_embed.",
    "decoder.decoder.lqe_layers.": "decoder.lqe_layers.", "decoder.decoder.layers.": "decoder.layers.",
    "decoder.enc_output.proj.": "enc_output.0.", "decoder.enc_output.norm.": "enc_output.1.",
    "decoder.enc_score_head.": "enc_score_head.", "decoder.enc_bbox_head.": "enc_bbox_head.",
    "decoder.denoising_class_embed.": "denoising_class_embed.", "decoder.decoder.up": "decoder.up",
    "decoder.decoder.reg_scale": "decoder.reg_scale",
}  # fmt: skip


def to_hugging(key):
    if key.startswith("backbone."):
        for old, new in _RENAMED:
            key = key.replace(old, new)
        return f"model.{key}"
    for part in ("encoder", "decoder"):
        for i in range(2):
            for j, kind in enumerate(("conv", "norm")):
                key = key.replace(f"{part}.input_proj.{i}.{kind}.", f"{part}_input_proj.{i}.{j}.")
    for block in ("fpn_blocks", "pan_blocks"):
        for old, new in (("cv1", "conv1"), ("cv2.0", "csp_rep1"), ("cv2.1", "conv2"), ("cv3.0", "csp_rep2")):
            key = key.replace(f"{block}.0.{old}.", f"{block}.0.{new}.")
        for old, new in (("cv3.1", "conv3"), ("cv4", "conv4")):
            key = key.replace(f"{block}.0.{old}.", f"{block}.0.{new}.")
    key = key.replace("downsample_convs.0.0.cv", "downsample_convs.0.conv")
    for old, new in _MOVED.items():
        if key.startswith(old):
            key = new + key.removeprefix(old)
            break
    return f"model.{key}"


def tree_equal(found, state):
    expected = write_official(CONFIG, found)
    return all(np.array_equal(expected[key], value) for key, value in state.items() if "num_batches" not in key)


def test_names_of_this_test_are_those_of_transformers(hugging, state):
    back = huggingface.to_official(hugging)
    assert all(np.array_equal(back[key], state[key]) for key in back)


def shards(names):
    keys = list(names)
    return {"a": {k: names[k] for k in keys[::2]}, "b": {k: names[k] for k in keys[1::2]}}


@pytest.mark.parametrize("kind", ["safetensors", "sharded safetensors", "bin", "sharded bin"])
def test_folders_of_transformers(tmp_path, hugging, state, kind):
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS), encoding="utf-8-sig")
    if kind == "safetensors":
        save_file(hugging, tmp_path / "model.safetensors")
    elif kind == "bin":
        torch_pickle.save(tmp_path / "pytorch_model.bin", hugging)
    else:
        suffix = "safetensors" if "safe" in kind else "bin"
        stem = "model" if "safe" in kind else "pytorch_model"
        places = {}
        for name, part in shards(hugging).items():
            file = tmp_path / f"{stem}-{name}.{suffix}"
            save_file(part, file) if suffix == "safetensors" else torch_pickle.save(file, part)
            places |= dict.fromkeys(part, file.name)
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    variables, metadata = import_weights(tmp_path)
    assert tree_equal(variables, state) and metadata.class_names == ("a", "b", "c")
    assert metadata.config.model.decoder_activation == "relu"
    assert import_weights(tmp_path, activation="relu")[1] == metadata
    with pytest.raises(UserError, match=r"config.json says that the activation is relu, not silu; leave it out"):
        import_weights(tmp_path, activation="silu")


def test_folders_that_are_incomplete(tmp_path, hugging):
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(UserError, match="no weights there; expected one of model.safetensors, .*pytorch_model.bin"):
        import_weights(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    name = next(iter(hugging))
    for content, message in (
        ("{", "is not JSON"),
        ("[]", "no weight_map"),
        (json.dumps({"weight_map": {name: 3}}), "no weight_map"),
        (json.dumps({"weight_map": {name: "../x.safetensors"}}), "'../x.safetensors' is not a file of this folder"),
        (json.dumps({"weight_map": {name: "gone.safetensors"}}), "gone.safetensors: no such file"),
        (
            json.dumps({"weight_map": {name: "part.safetensors"}}),
            f"part.safetensors: {name} is missing, which model.safe",
        ),
    ):
        index.write_text(content)
        save_file({"other": np.zeros(1)}, tmp_path / "part.safetensors")
        with pytest.raises(UserError, match=message):
            import_weights(tmp_path)


def test_endings_say_nothing(tmp_path, state):
    save_file(state, tmp_path / "really_safe.pth")
    torch_pickle.save(tmp_path / "really_torch.safetensors", {"model": state})
    torch_pickle.save(tmp_path / "no_ending", {"model": state})
    for file in tmp_path.iterdir():
        assert tree_equal(import_weights(file, activation="relu")[0], state), file


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["pth", "safetensors", "folder"])
def test_values_that_are_not_finite_are_refused(tmp_path, state, hugging, kind, wrong):
    key = "decoder.decoder.layers.1.linear1.weight"
    if kind == "folder":
        (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
        name = to_hugging(key)
        bad = hugging | {name: hugging[name].copy()}
        bad[name][2, :3] = wrong
        save_file(bad, tmp_path / "model.safetensors")
        file = tmp_path
    else:
        bad = state | {key: state[key].copy()}
        bad[key][2, :3] = wrong
        file = tmp_path / f"a.{kind}"
        torch_pickle.save(file, {"ema": {"module": bad}}) if kind == "pth" else save_file(bad, file)
    with pytest.raises(UserError, match=rf"{key.replace('.', '[.]')} \(3 of {state[key].size:,}\)") as caught:
        import_weights(file, activation="relu")
    assert str(file) in str(caught.value) and "take an earlier checkpoint" in str(caught.value)


def test_half_precision_that_overflowed_and_what_float32_cannot_hold(tmp_path, state):
    key = "encoder.input_proj.0.conv.weight"
    with np.errstate(over="ignore"):
        half = {k: v.astype(np.float16) for k, v in (state | {key: state[key] * 1e6}).items()}
    double = state | {key: np.full(state[key].shape, 1e300)}
    for name, tensors in {"half": half, "double": double}.items():
        torch_pickle.save(tmp_path / f"{name}.pth", tensors)
        with pytest.raises(
            UserError, match=f"{name}.pth: values that are not finite .*encoder.input_proj.0.conv.weight"
        ):
            import_weights(tmp_path / f"{name}.pth", activation="relu")
    fine = {k: v.astype(ml_dtypes.bfloat16) if v.dtype.kind == "f" else v for k, v in state.items()}
    torch_pickle.save(tmp_path / "brain.pth", fine)
    import_weights(tmp_path / "brain.pth", activation="relu")


def test_quantised_weights_are_refused(tmp_path, state):
    key = "encoder.input_proj.0.conv.weight"
    torch_pickle.save(tmp_path / "a.pth", state | {key: state[key].astype(np.int8)})
    with pytest.raises(UserError, match=f"a.pth: {key} is stored as int8: quantised weights cannot be converted"):
        import_weights(tmp_path / "a.pth", activation="relu")


def test_backbones_with_values_that_are_not_finite(tmp_path, state):
    backbone = {k.removeprefix("backbone."): v.copy() for k, v in state.items() if k.startswith("backbone.")}
    torch_pickle.save(tmp_path / "b.pth", {"state_dict": {f"module.{k}": v for k, v in backbone.items()}})
    import_backbone(tmp_path / "b.pth", CONFIG)
    torch_pickle.save(tmp_path / "d.pth", {"model": state})
    import_backbone(tmp_path / "d.pth", CONFIG)  # that of a detector
    backbone["stem.stem1.conv.weight"][0] = np.nan
    torch_pickle.save(tmp_path / "b.pth", backbone)
    with pytest.raises(
        UserError, match=r"b.pth: values that are not finite.* in (backbone\.)?stem.stem1.conv.weight \(27 of 432\)"
    ):
        import_backbone(tmp_path / "b.pth", CONFIG)


OTHERS = {
    "model.0.conv.weight": "a YOLO model",
    "model.22.cv1.conv.weight": "a YOLO model",
    "backbone.res_layers.0.blocks.0.conv1.weight": "RT-DETR with ResNet",
    "model.backbone.model.embedder.embedder.0.convolution.weight": "transformers' RT-DETR",
    "backbone.dinov3.blocks.0.norm1.weight": "DEIMv2 with DINOv3",
    "transformer.encoder.layers.0.norm1.weight": "a DETR",
    "roi_heads.box_head.fc6.weight": "a Faster or Mask R-CNN",
    "layer1.0.conv1.weight": "an image classifier",
    "stem.stem1.conv.weight": "weights of the backbone alone",
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_other_models_are_called_what_they_are(tmp_path, name, prefix):
    torch_pickle.save(
        tmp_path / "a.pth", {"model": {prefix + name: np.zeros((2, 2), np.float32), prefix + "x": np.zeros(1)}}
    )
    message = f"a.pth: not a state dict of D-FINE, RT-DETRv2 or RF-DETR: the names are those of {OTHERS[name]}"
    with pytest.raises(UserError, match=message):
        import_weights(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("extra", "hint"),
    [
        ("decoder.decoder.layers.0.swish_ffn.w12.weight", "those of DEIMv2"),
        ("mask_decoder.0.weight", "of another kind"),
    ],
)
def test_relatives_are_called_what_they_are(tmp_path, state, extra, hint):
    torch_pickle.save(tmp_path / "a.pth", {"model": state | {extra: np.zeros((2, 2), np.float32)}})
    with pytest.raises(UserError, match=f"1 unexpected: {extra}.*{hint}"):
        import_weights(tmp_path / "a.pth")
