"""Hugging Face D-FINE: names, configuration, and the same outputs as transformers."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.optimize import linear_sum_assignment

from dfine_jax.converters.torch.importer import import_weights, settings_names
from dfine_jax.converters.torch.tensor_files import read_safetensors
from dfine_jax.data.read.coco_names import COCO_CATEGORY_IDS, COCO_NAMES
from dfine_jax.errors import UserError
from dfine_jax.families.dfine import huggingface
from dfine_jax.families.dfine.model import DFine
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.families.dfine.weights import recognise_official, write_official

PAIRS = {
    "model.backbone.model.embedder.stem2a.convolution.weight": "backbone.stem.stem2a.conv.weight",
    "model.backbone.model.encoder.stages.2.blocks.0.layers.1.conv2.normalization.running_var":
        "backbone.stages.2.blocks.0.layers.1.conv2.bn.running_var",
    "model.backbone.model.encoder.stages.3.downsample.convolution.weight": "backbone.stages.3.downsample.conv.weight",
    "model.encoder_input_proj.1.0.weight": "encoder.input_proj.1.conv.weight",
    "model.decoder_input_proj.2.1.running_mean": "decoder.input_proj.2.norm.running_mean",
    "model.encoder.encoder.0.layers.0.final_layer_norm.bias": "encoder.encoder.0.layers.0.norm2.bias",
    "model.encoder.aifi.0.layers.0.mlp.layers.1.weight": "encoder.encoder.0.layers.0.linear2.weight",
    "model.encoder.fpn_blocks.0.csp_rep2.bottlenecks.1.conv1.norm.weight":
        "encoder.fpn_blocks.0.cv3.0.bottlenecks.1.conv1.norm.weight",
    "model.encoder.pan_blocks.1.conv3.conv.weight": "encoder.pan_blocks.1.cv3.1.conv.weight",
    "model.encoder.downsample_convs.1.conv2.norm.bias": "encoder.downsample_convs.1.0.cv2.norm.bias",
    "model.decoder.layers.4.final_layer_norm.weight": "decoder.decoder.layers.4.norm3.weight",
    "model.decoder.layers.0.fc1.weight": "decoder.decoder.layers.0.linear1.weight",
    "model.decoder.layers.0.encoder_attn.sampling_offsets.bias":
        "decoder.decoder.layers.0.cross_attn.sampling_offsets.bias",
    "model.decoder.layers.0.self_attn.o_proj.bias": "decoder.decoder.layers.0.self_attn.out_proj.bias",
    "model.decoder.lqe_layers.0.reg_conf.layers.1.bias": "decoder.decoder.lqe_layers.0.reg_conf.layers.1.bias",
    "model.decoder.class_embed.2.weight": "decoder.dec_score_head.2.weight",
    "bbox_embed.1.layers.2.bias": "decoder.dec_bbox_head.1.layers.2.bias",
    "model.enc_output.1.weight": "decoder.enc_output.norm.weight",
    "model.denoising_class_embed.weight": "decoder.denoising_class_embed.weight",
    "model.decoder.pre_bbox_head.layers.0.weight": "decoder.pre_bbox_head.layers.0.weight",
}  # fmt: skip


@pytest.mark.parametrize(("name", "key"), PAIRS.items())
def test_names(name, key):
    assert huggingface.official_place(name) == (key, None)


def test_attention_thirds():
    place = huggingface.official_place("model.decoder.layers.1.self_attn.v_proj.weight")
    assert place == ("decoder.decoder.layers.1.self_attn.in_proj_weight", 2)
    assert huggingface.official_place("lm_head.weight") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "rt_detr"}, "model_type 'rt_detr' is not that of D-FINE"),
        ({"decoder_method": "discrete"}, "decoder_method='discrete' is not supported"),
        ({"eval_idx": 1}, "eval_idx=1 is not supported"),
        ({"learn_initial_query": True}, "learn_initial_query=True"),
    ],
)
def test_unsupported_settings(tmp_path, change, message):
    state = {"decoder.enc_score_head.weight": np.zeros((3, 128), np.float32)}
    state |= {"backbone.stem.stem4.conv.weight": np.zeros((16, 16, 1, 1), np.float32)}
    state |= {"encoder.input_proj.0.conv.weight": np.zeros((128, 512, 1, 1), np.float32)}
    names = {
        "model.enc_score_head.weight": state["decoder.enc_score_head.weight"],
        "model.backbone.model.embedder.stem4.convolution.weight": state["backbone.stem.stem4.conv.weight"],
        "model.encoder_input_proj.0.0.weight": state["encoder.input_proj.0.conv.weight"],
    }
    save_file(names, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "d_fine", "decoder_layers": 3} | change))
    with pytest.raises(UserError, match=message):
        import_weights(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_damaged_configuration(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json"):
        import_weights(tmp_path)


def test_damaged_safetensors(tmp_path):
    save_file({"a": np.zeros(1000, np.float32)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    for length in (0, 5, 30, len(whole) - 1):
        (tmp_path / "a.safetensors").write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged"):
            read_safetensors(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="no such file"):
        read_safetensors(tmp_path / "b.safetensors")


def test_brain_floats(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    save_torch({"a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read_safetensors(tmp_path / "a.safetensors")["a"], [1.5, -2.0])


def test_contradictions_and_gaps():
    zeros, ones = np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)
    both = {"model.decoder.class_embed.0.weight": zeros, "class_embed.0.weight": ones}
    with pytest.raises(UserError, match="two different tensors"):
        huggingface.to_official(both)
    same = huggingface.to_official({name: zeros for name in both})
    assert list(same) == ["decoder.dec_score_head.0.weight"]
    with pytest.raises(UserError, match="query, key and value"):
        huggingface.to_official({"model.decoder.layers.0.self_attn.q_proj.weight": zeros})
    with pytest.raises(UserError, match="1 names are not of transformers' D-FINE, for example lm_head"):
        huggingface.to_official({"lm_head.weight": zeros})


@pytest.mark.parity
@pytest.mark.parametrize("variant", ["n", *(pytest.param(v, marks=pytest.mark.slow) for v in "smlx")])
def test_same_outputs_as_transformers(tmp_path, variant):
    """Measured at 320x320, float32, worst query: logits 5e-6 (S) to 3e-5 (X), boxes 1e-6 to 2.5e-6."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from hf_models import build

    model = build(variant)
    model.save_pretrained(tmp_path)
    variables, metadata = import_weights(tmp_path)
    assert metadata.config.model == model_config(variant)
    images = np.random.default_rng(1).random((1, 320, 320, 3), np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    expected_logits, expected_boxes = expected.logits[0].numpy(), expected.pred_boxes[0].numpy()
    detector = DFine(metadata.config.model)
    out = jax.jit(lambda v, x: detector.apply(v, x, train=False))(variables, images)
    logits, boxes = np.asarray(out.logits)[0], np.asarray(out.boxes_cxcywh)[0]
    # Neighbours of the selection may swap places: compare each query with its counterpart.
    order, counterpart = linear_sum_assignment(np.abs(logits[:, None] - expected_logits[None]).max(-1))
    np.testing.assert_allclose(logits[order], expected_logits[counterpart], atol=1e-4)
    np.testing.assert_allclose(boxes[order], expected_boxes[counterpart], atol=1e-5)


@pytest.mark.parity
def test_class_names_and_back(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from hf_models import build, from_official

    labels = {i: name for i, name in enumerate(["cat", "dog", "owl"])}
    model = build("s", 3, id2label=labels, label2id={name: i for i, name in labels.items()}, num_queries=150)
    model.save_pretrained(tmp_path)
    variables, metadata = import_weights(tmp_path)
    assert metadata.class_names == ("cat", "dog", "owl") and metadata.category_ids == (0, 1, 2)
    assert metadata.config.model == model_config("s", num_classes=3, num_queries=150)
    official = write_official(metadata.config.model, variables)
    assert recognise_official(official) == model_config("s", num_classes=3)
    state = model.state_dict()
    back = from_official(official, state)
    for name, tensor in state.items():
        assert torch.equal(torch.from_numpy(np.array(back[name])).reshape(tensor.shape).to(tensor.dtype), tensor), name


def test_coco_classes_under_other_spellings():
    from dfine_jax.converters.torch.importer import class_table

    names = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "tv": "tvmonitor"}
    spelled = tuple(names.get(name, name) for name in COCO_NAMES)
    assert class_table("model", 80, spelled) == (COCO_NAMES, COCO_CATEGORY_IDS)
    other = (*COCO_NAMES[:-1], "comb")
    assert class_table("model", 80, other) == (other, tuple(range(80)))


def test_names_of_the_configuration():
    settings = {"id2label": {str(i): name for i, name in enumerate(COCO_NAMES)}}
    assert settings_names(settings) == COCO_NAMES
    assert settings_names({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}) is None
    assert settings_names({}) is None
