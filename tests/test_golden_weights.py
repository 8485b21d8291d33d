"""The recipes of the reference weights give the published check values."""

import numpy as np
from golden_weights import (
    hash_image,
    hash_state_dict,
    hash_uniform,
    variables_from_state_dict,
)


def test_hash_values():
    np.testing.assert_allclose(
        hash_uniform("image16", (4,)), [0.91431378, -0.72872474, 0.81497902, 0.25179442], atol=1e-8
    )
    state = hash_state_dict("n")
    np.testing.assert_allclose(
        state["backbone.stem.stem1.conv.weight"].ravel()[:3], [0.37191591, 0.20991907, 0.20189285], atol=1e-8
    )
    assert abs(np.abs(state["decoder.dec_score_head.0.weight"].astype(np.float64)).sum() - 770.899519) < 1e-4


def test_hash_image():
    image = hash_image(640)
    assert image.shape == (2, 640, 640, 3)
    assert abs(image.mean(dtype=np.float64) - 0.48747625) < 1e-7
    assert abs(image[0, 0, 0, 0] - 0.63932127) < 1e-7
    assert abs(hash_image(320).mean(dtype=np.float64) - 0.50494256) < 1e-7


def test_naming_contract():
    state = hash_state_dict("s")
    tree = variables_from_state_dict(state)
    params, stats = tree["params"], tree["batch_stats"]
    assert params["backbone"]["stages_1"]["blocks_0"]["layers_0"]["conv"]["kernel"].shape == (3, 3, 64, 32)
    assert params["encoder"]["downsample_convs_0_0"]["cv2"]["conv"]["kernel"].shape == (3, 3, 1, 256)
    in_proj = params["decoder"]["layers_0"]["self_attn"]["in_proj"]
    assert in_proj["kernel"].shape == (256, 768)
    np.testing.assert_array_equal(in_proj["kernel"].T, state["decoder.decoder.layers.0.self_attn.in_proj_weight"])
    assert params["decoder"]["lqe_layers_0"]["reg_conf"]["layers_1"]["kernel"].shape == (64, 1)
    assert params["decoder"]["denoising_class_embed"]["embedding"].shape == (81, 256)
    assert set(stats["encoder"]["input_proj_0"]["norm"]) == {"mean", "var"}
    assert set(params["decoder"]["layers_0"]["norm1"]) == {"scale", "bias"}
