"""Official names and layouts of our leaves."""

import numpy as np
import pytest

from dfine_jax.families import official, state_dict

PAIRS = {
    "backbone.stages.1.blocks.0.layers.0.conv.weight": "params/backbone/stages_1/blocks_0/layers_0/conv/kernel",
    "backbone.stem.stem2a.bn.weight": "params/backbone/stem/stem2a/bn/scale",
    "backbone.stem.stem2a.bn.running_var": "batch_stats/backbone/stem/stem2a/bn/var",
    "backbone.stages.2.blocks.1.aggregation.0.lab.scale": "params/backbone/stages_2/blocks_1/aggregation_0/lab/scale",
    "encoder.downsample_convs.0.0.cv1.conv.weight": "params/encoder/downsample_convs_0_0/cv1/conv/kernel",
    "encoder.pan_blocks.1.cv3.0.bottlenecks.2.conv2.norm.bias":
        "params/encoder/pan_blocks_1/cv3_0/bottlenecks_2/conv2/norm/bias",
    "encoder.encoder.0.layers.0.self_attn.in_proj_weight": "params/encoder/encoder_0/layers_0/self_attn/in_proj/kernel",
    "encoder.encoder.0.layers.0.self_attn.in_proj_bias": "params/encoder/encoder_0/layers_0/self_attn/in_proj/bias",
    "decoder.decoder.layers.5.gateway.norm.weight": "params/decoder/layers_5/gateway/norm/scale",
    "decoder.decoder.lqe_layers.0.reg_conf.layers.1.weight": "params/decoder/lqe_layers_0/reg_conf/layers_1/kernel",
    "decoder.query_pos_head.layers.0.bias": "params/decoder/query_pos_head/layers_0/bias",
    "decoder.denoising_class_embed.weight": "params/decoder/denoising_class_embed/embedding",
    "decoder.dec_score_head.3.weight": "params/decoder/dec_score_head_3/kernel",
}  # fmt: skip


@pytest.mark.parametrize(("key", "path"), PAIRS.items())
def test_pairs(key, path):
    assert official.to_official(path) == key


@pytest.mark.parametrize("shape", [(8, 3, 5, 5), (6, 4), (7,), (1,)])
def test_layouts_are_inverse_and_shapes_agree(shape):
    tensor = np.random.default_rng(0).standard_normal(shape)
    leaf = state_dict.to_leaf("params/a/kernel", tensor)
    np.testing.assert_array_equal(state_dict.to_tensor("params/a/kernel", leaf), tensor)
    assert state_dict.tensor_shape("params/a/kernel", leaf.shape) == shape


def test_convolution_layout():
    tensor = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)  # O, I, h, w
    leaf = state_dict.to_leaf("params/a/kernel", tensor)
    assert leaf.shape == (4, 5, 3, 2) and leaf[1, 2, 0, 1] == tensor[1, 0, 1, 2]
