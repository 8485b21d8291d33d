"""Learning rates of whole runs, and the decay of the average."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dfine_jax.config import Config, ConfigError, OptimConfig, TrainConfig
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.training.step.optimizer import ema_update
from dfine_jax.training.step.schedule import ema_decay, make_schedule

STEPS = 3696  # of an epoch: COCO in batches of 32
DEIM_L = Config(
    model_config("l"),
    LossConfig(),
    optim=OptimConfig(
        lr=5e-4, schedule="flat_cosine", warmup_steps=2000, flat_epochs=29, final_epochs=8, min_lr_ratio=0.5
    ),
    train=TrainConfig(epochs=58),
)


def with_optim(config, **changes):
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, **changes))


# Iterations and rates of the reference's scheduler. It runs after the optimiser: its iteration i rules step i + 1.
@pytest.mark.parametrize(
    ("iteration", "rate"),
    [(1000, 1.25e-4), (2000, 5e-4), (107_184, 5e-4), (145_992, 3.75e-4), (184_800, 2.5e-4), (214_367, 2.5e-4)],
)
def test_flat_cosine_is_the_reference(iteration, rate):
    schedule = make_schedule(DEIM_L, STEPS)
    np.testing.assert_allclose(5e-4 * schedule(jnp.asarray(iteration + 1)), rate, rtol=1e-5)


def test_flat_cosine_starts_as_the_reference():
    schedule = make_schedule(DEIM_L, STEPS)
    np.testing.assert_allclose([schedule(k) for k in range(4)], [1 / 2000, 0, 1 / 2000**2, 4 / 2000**2], rtol=1e-5)


def test_flat_cosine_without_warmup_starts_at_the_full_rate():
    """The reference divides zero by zero there."""
    schedule = make_schedule(with_optim(DEIM_L, warmup_steps=0), STEPS)
    assert [float(schedule(k)) for k in (0, 1, 2, 1000)] == [1, 1, 1, 1]


def test_a_flat_part_longer_than_the_run_never_ends():
    schedule = make_schedule(with_optim(DEIM_L, flat_epochs=7800, final_epochs=12), STEPS)
    assert float(schedule(58 * STEPS - 1)) == 1


def test_flat_cosine_falls_monotonically_between_its_flat_ends():
    schedule = make_schedule(DEIM_L, 10)  # warm-up is longer than the flat part here, as in very short runs
    long = make_schedule(with_optim(DEIM_L, warmup_steps=20), 10)
    rates = np.array([float(long(k)) for k in range(580)])
    assert (np.diff(rates[22:]) <= 1e-7).all() and rates[-1] == 0.5 and rates[291] == 1
    assert max(float(schedule(k)) for k in range(580)) <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_epochs": 59}, "optim.final_epochs=59 must be at most train.epochs=58"),
        ({"flat_epochs": 52}, "optim.flat_epochs=52 ends after the last 8 of 58 epochs begin; set it to 50"),
    ],
)
def test_parts_must_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_schedule(with_optim(DEIM_L, **changes), STEPS)


def test_constant_warms_up_counting_from_one():
    schedule = make_schedule(Config(model_config("n"), LossConfig(), optim=OptimConfig(warmup_steps=4)), 0)
    assert [float(schedule(jnp.asarray(k))) for k in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert float(make_schedule(Config(model_config("n"), LossConfig(), optim=OptimConfig(warmup_steps=0)), 0)(0)) == 1.0


def test_the_decay_of_the_average_follows_the_reference():
    optim = OptimConfig(ema_decay=0.9999, ema_warmup_steps=1000)
    np.testing.assert_allclose(ema_decay(jnp.asarray(1), optim), 0.9999 * (1 - np.exp(-1 / 1000)), rtol=1e-4)
    constant = OptimConfig(ema_decay=0.9, ema_warmup_steps=0)
    np.testing.assert_allclose(ema_decay(jnp.asarray(1), constant), 0.9, rtol=1e-6)
    np.testing.assert_allclose(ema_decay(jnp.asarray(1), constant, -0.2), 0.7, rtol=1e-6)


@pytest.mark.parametrize(("epochs", "steps", "rise"), [(55, 40, 0.1), (7, 13, 0.3), (2, 3, 0.1)])
def test_one_cycle_is_torchs(epochs, steps, rise):
    torch = pytest.importorskip("torch")
    config = with_optim(DEIM_L, schedule="onecycle", onecycle_rise=rise)
    config = dataclasses.replace(config, train=TrainConfig(epochs=epochs))
    schedule, total = make_schedule(config, steps), epochs * steps
    adamw = torch.optim.AdamW([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(adamw, 2.0, total, pct_start=rise, cycle_momentum=False)
    for step in range(total):
        np.testing.assert_allclose(2 * schedule(step), theirs.get_last_lr()[0], rtol=1e-4, atol=1e-7)
        if step + 1 < total:
            adamw.step()
            theirs.step()
    assert float(schedule(total + 5)) == pytest.approx(1e-4 / 25)


def test_one_cycle_by_its_formula():
    schedule = make_schedule(with_optim(DEIM_L, schedule="onecycle"), 100)  # of 5800 steps
    assert float(schedule(0)) == pytest.approx(0.04) and float(schedule(579)) == pytest.approx(1.0)
    assert float(schedule(579 / 2)) == pytest.approx(0.52, rel=1e-5)
    middle = (579 + 5799) / 2
    assert float(schedule(middle)) == pytest.approx((1 + 4e-6) / 2, rel=1e-5)
    assert float(schedule(5799)) == pytest.approx(4e-6, abs=1e-7)
    short = make_schedule(dataclasses.replace(with_optim(DEIM_L, schedule="onecycle"), train=TrainConfig(epochs=1)), 10)
    shares = [float(short(step)) for step in range(10)]  # torch divides by zero here
    assert shares[0] == pytest.approx(0.04) and shares[1:] == sorted(shares[1:], reverse=True) and 0.9 < shares[1] < 1


@pytest.mark.parametrize("name", ["drop", "cosine"])
def test_drop_and_cosine_are_lambda_lr_of_the_reference(name):
    """Warm-up from 0; a tenth from an epoch on, or half a cosine to the end (rfdetr 1.11.2, module_model.py)."""
    torch = pytest.importorskip("torch")
    epochs, steps, warmup, drop, low = 12, 7, 10, 9, 0.1 if name == "drop" else 0.05
    config = with_optim(DEIM_L, schedule=name, warmup_steps=warmup, drop_epoch=drop, min_lr_ratio=low)
    schedule = make_schedule(dataclasses.replace(config, train=TrainConfig(epochs=epochs)), steps)

    def share(step: int) -> float:
        if step < warmup:
            return step / warmup
        if name == "drop":
            return 1.0 if step < drop * steps else low
        return low + (1 - low) * 0.5 * (1 + np.cos(np.pi * (step - warmup) / (epochs * steps - warmup)))

    adamw = torch.optim.AdamW([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.LambdaLR(adamw, share)
    for step in range(epochs * steps):
        np.testing.assert_allclose(schedule(step), theirs.get_last_lr()[0], rtol=1e-5, atol=1e-6)
        adamw.step()
        theirs.step()


def test_without_an_epoch_the_rate_never_drops():
    config = with_optim(DEIM_L, schedule="drop", warmup_steps=0, min_lr_ratio=0.1)
    assert [float(make_schedule(config, 10)(step)) for step in (0, 579)] == [1.0, 1.0]


def test_an_average_whose_first_update_copies_is_torchs():
    """``AveragedModel`` counts from 0 and copies first; decay 0.993 with tau 100 then begins with the second update."""
    torch = pytest.importorskip("torch")
    optim = OptimConfig(ema_decay=0.993, ema_warmup_steps=100, ema_first="copy")
    model = torch.nn.Linear(1, 1, bias=False)

    def mixed(average, new, count):
        decay = 0.993 * (1 - np.exp(-(int(count) + 1) / 100))
        return average * decay + new * (1 - decay)

    theirs, ours = torch.optim.swa_utils.AveragedModel(model, avg_fn=mixed), jnp.float32(model.weight.item())
    for update in range(1, 40):
        with torch.no_grad():
            model.weight += float(np.sin(update))
        theirs.update_parameters(model)
        ours = ema_update(ours, jnp.float32(model.weight.item()), ema_decay(jnp.asarray(update), optim))
        np.testing.assert_allclose(ours, theirs.module.weight.item(), rtol=1e-5)
        if update == 1:
            assert float(ours) == model.weight.item()
