"""Backbone: tree, freezing, statistics. Values against the reference are in tests/parity/test_features.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import golden_image, golden_state_dict, hash_state_dict, submodule, variables_from_state_dict

from dfine_jax.families.backbones.hgnetv2 import BACKBONES, HGNetV2
from dfine_jax.families.dfine.variants import VARIANTS
from dfine_jax.nn.initializers import draw_variables

KEY = jax.random.key(0)
PARAMETERS = {"n": 1_850_396, "s": 1_850_396, "m": 6_026_626}  # trainable; l and x freeze batch normalisation
FROZEN_AFFINE = {"l": 13_507_680, "x": 33_231_840}  # without the frozen scale and bias


def backbone_of(variant, **changes):
    c = VARIANTS[variant]
    fields = {
        "backbone": c.backbone,
        "lab": c.backbone_lab,
        "frozen_bn": c.backbone_frozen_bn,
        "frozen_stem": c.backbone_frozen_stem,
        "return_stages": c.return_stages,
    }
    return HGNetV2(**(fields | changes))


def shapes_of(module, *inputs):
    tree = jax.eval_shape(lambda: module.init(KEY, *inputs, train=False))
    return jax.tree.map(lambda leaf: leaf.shape, tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))


@pytest.mark.parametrize("variant", "nsmlx")
def test_tree_equals_the_official_names(variant):
    expected = submodule(variables_from_state_dict(hash_state_dict(variant)), "backbone")
    assert shapes_of(backbone_of(variant), jnp.zeros((1, 64, 64, 3))) == jax.tree.map(np.shape, expected)


@pytest.mark.parametrize("variant", "nsmlx")
def test_parameter_count(variant):
    tree = jax.eval_shape(lambda: backbone_of(variant).init(KEY, jnp.zeros((1, 64, 64, 3)), train=False))["params"]
    sizes = [(jax.tree_util.keystr(p), leaf.size) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    if variant in FROZEN_AFFINE:
        assert sum(size for path, size in sizes if "'bn'" not in path) == FROZEN_AFFINE[variant]
    else:
        assert sum(size for _, size in sizes) == PARAMETERS[variant]


@pytest.mark.parametrize("name", BACKBONES)
def test_every_size_gives_the_strides(name):
    module = HGNetV2(name, return_stages=(0, 1, 2, 3))
    outputs = jax.eval_shape(lambda: module.init_with_output(KEY, jnp.zeros((2, 64, 96, 3)), train=False))[0]
    widths = [stage.out for stage in BACKBONES[name].stages]
    assert [o.shape for o in outputs] == [(2, 16 >> i, 24 >> i, c) for i, c in enumerate(widths)]


def test_training_statistics_of_the_first_layer(golden):
    variables = submodule(variables_from_state_dict(golden_state_dict(golden, "n")), "backbone")
    images = golden_image(256, 256, 4, seed=50)
    module = HGNetV2("B0", lab=True, return_stages=(0,))
    _, updated = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))(variables, images)
    with np.load(golden("step_n_dn0.npz")) as stored:
        for name in ("mean", "var"):
            expected = stored[f"after_backbone.stem.stem1.bn.running_{name}"]
            np.testing.assert_allclose(
                updated["batch_stats"]["stem"]["stem1"]["bn"][name], expected, rtol=2e-6, atol=1e-7
            )


def gradients(module, images):
    variables = draw_variables(lambda key: module.init(key, images, train=False), KEY)

    def loss(params):
        outputs, _ = module.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return sum(jnp.square(o).sum() for o in outputs)

    tree = jax.jit(jax.grad(loss))(variables["params"])
    return {jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_freezing_stops_gradients():
    images = jax.random.uniform(KEY, (2, 64, 64, 3))
    small = {"backbone": "B0", "return_stages": (1,)}
    free = gradients(HGNetV2(**small), images)
    frozen = gradients(HGNetV2(**small, frozen_bn=True, frozen_stem=True), images)
    assert free.keys() == frozen.keys()
    assert all(np.any(g) for path, g in free.items() if "kernel" in path or "bias" in path)
    for path, gradient in frozen.items():
        assert np.any(gradient) != ("'bn'" in path or "'stem'" in path), path


def test_frozen_stem_lets_the_image_gradient_through():
    images = jax.random.uniform(KEY, (1, 64, 64, 3))
    module = HGNetV2("B0", return_stages=(0,), frozen_stem=True)
    variables = draw_variables(lambda key: module.init(key, images, train=False), KEY)
    assert np.any(jax.jit(jax.grad(lambda x: module.apply(variables, x, train=False)[0].sum()))(images))


def test_bfloat16():
    images = jax.random.uniform(KEY, (1, 64, 64, 3))
    module = HGNetV2("B0", lab=True, return_stages=(1,), dtype=jnp.bfloat16)
    variables = draw_variables(lambda key: module.init(key, images, train=False), KEY)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))

    def run(module):
        return jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))(variables, images)

    outputs, updated = run(module)
    assert all(o.dtype == jnp.bfloat16 for o in outputs)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updated))
    exact = np.asarray(run(HGNetV2("B0", lab=True, return_stages=(1,)))[0][0])
    error = np.asarray(outputs[0], np.float32) - exact
    assert np.sqrt(np.square(error).mean()) < 0.05 * exact.std()
