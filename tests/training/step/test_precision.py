"""Which programs multiply in float32 on every device. Numbers cannot show it on a CPU, the programs can."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SIZE_PX, random_batch, tiny_config

from dfine_jax.converters.gate.gate import check_artefact
from dfine_jax.families.dfine.model import DFine, init_variables
from dfine_jax.ops.fdr import integral
from dfine_jax.ops.postprocess import Answer
from dfine_jax.ops.precision import EXACT
from dfine_jax.serving.backends.jax_model import JaxBackend
from dfine_jax.training.step.optimizer import make_optimizer
from dfine_jax.training.step.state import create_state
from dfine_jax.training.step.step import make_eval_step, make_train_step

PRODUCTS = ("dot_general", "conv_general_dilated")


def equations(jaxpr) -> Iterator:
    """All equations of a program, those of its inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
        for program in inner:
            if hasattr(program, "eqns"):
                yield from equations(program)


def precisions(function, *arguments) -> list[set]:
    """Of every product of the program whose operands are float32, the precisions of its operands."""
    closed = jax.make_jaxpr(function)(*arguments)
    products = [e for e in equations(closed.jaxpr) if e.primitive.name in PRODUCTS]
    wide = [e for e in products if all(v.aval.dtype == jnp.float32 for v in e.invars)]
    sides = [e.params["precision"] for e in wide]
    return [set(s if isinstance(s, tuple) else (s,)) for s in sides]


@pytest.fixture(scope="module")
def model():
    config = tiny_config().model
    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    return config, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def test_evaluation_and_prediction_multiply_in_float32(model):
    config, variables = model
    images = np.zeros((1, SIZE_PX, SIZE_PX, 3), np.float32)
    found = {
        "the model": precisions(lambda v, x: DFine(config).apply(v, x, train=False), variables, images),
        "evaluation": precisions(make_eval_step(tiny_config()), variables, images[None]),
        "prediction": precisions(JaxBackend(DFine(config), variables)._forward, variables, images.astype(np.uint8)),
    }
    for name, products in found.items():
        assert len(products) > 50, name
        assert all(sides == {EXACT} for sides in products), name


def test_who_asks_for_less_gets_it_but_not_in_evaluation(model):
    config, variables = model
    images = np.zeros((1, SIZE_PX, SIZE_PX, 3), np.float32)
    with jax.default_matmul_precision("tensorfloat32"):
        asked = precisions(lambda v, x: DFine(config).apply(v, x, train=False), variables, images)
        evaluated = precisions(make_eval_step(tiny_config()), variables, images[None])
    assert sum(sides == {EXACT} for sides in asked) < 5  # the integrals
    assert all(sides == {EXACT} for sides in evaluated)


@pytest.mark.slow
def test_training_multiplies_as_the_device_does_except_in_the_integral(model):
    config = tiny_config()
    tx = make_optimizer(config.model, config.optim)
    _, variables = model
    state = create_state(jax.tree.map(jnp.asarray, variables), tx, jax.random.key(1))
    step = make_train_step(config, tx)
    packed = step._packed(state)
    found = precisions(step._program, packed.arrays, random_batch(0, jax.local_device_count(), 1))
    exact = sum(sides == {EXACT} for sides in found)
    assert len(found) > 150 and 0 < exact < len(found) / 4
    backwards = precisions(jax.grad(lambda x: integral(x, np.ones(5, np.float32)).sum()), np.zeros((2, 4, 5), "f"))
    assert backwards and all(sides == {EXACT} for sides in backwards)


def test_the_gate_compares_with_products_in_float32(tmp_path, monkeypatch):
    """Whatever JAX was told: the reference is asked inside the setting."""
    seen = []

    def reference(images):
        seen.append(jax.config.jax_default_matmul_precision)
        return Answer(np.zeros((len(images), 5, 3), np.float32), np.full((len(images), 5, 4), 0.5, np.float32))

    toy = pytest.importorskip("toy_artefact")
    path = toy.write_toy(tmp_path / "toy.onnx", toy.toy_model()[1])
    with jax.default_matmul_precision("tensorfloat32"):
        check_artefact(path, None, None, reference=reference, baseline=reference)
    assert seen and set(seen) == {"highest"}
