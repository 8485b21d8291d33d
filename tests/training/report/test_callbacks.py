"""What programs are told of a run, and what their errors do to it."""

from __future__ import annotations

import pytest

from dfine_jax.errors import UserError
from dfine_jax.training.report.callbacks import Callbacks


class Seen:
    def __init__(self, fails=""):
        self.calls, self.fails = [], fails

    def on_step(self, step, values):
        self.calls.append(("step", step, values))
        if self.fails:
            raise ValueError(self.fails)

    def on_end(self, result):
        self.calls.append(("end", result))


class OnlyEpochs:
    def __init__(self):
        self.rows = []

    def on_epoch(self, epoch, row):
        self.rows.append((epoch, row))


def test_each_is_told_what_it_asks_for():
    seen, epochs, asked = Seen(), OnlyEpochs(), []
    callbacks = Callbacks([seen, epochs], asked.append)
    callbacks.step(1, {"loss": 2.0})
    callbacks.epoch(1, {"ap": 0.5})
    callbacks.end("result")
    assert seen.calls == [("step", 1, {"loss": 2.0}), ("end", "result")]
    assert epochs.rows == [(1, {"ap": 0.5})] and not asked


def test_an_error_asks_the_run_to_end_and_is_raised_at_its_end():
    seen, after, asked = Seen("no"), OnlyEpochs(), []
    callbacks = Callbacks([seen, after], asked.append)
    callbacks.step(1, {})
    callbacks.step(2, {})
    callbacks.epoch(1, {})
    assert asked == ["ValueError in on_step of a callback"] and len(seen.calls) == 1 and after.rows == []
    with pytest.raises(ValueError, match="no"):
        callbacks.end("result")
    assert seen.calls[-1] == ("end", "result")


def test_ctrl_c_passes_through():
    class Pressed:
        def on_step(self, step, values):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Callbacks([Pressed()], print).step(1, {})


def test_what_has_no_method_of_the_kind_is_refused():
    with pytest.raises(UserError, match="none of on_step, on_epoch, on_end"):
        Callbacks([object()], print)
