"""Best weights and the second stage against the reference's algorithm, written out once more."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dfine_jax.config import OptimConfig
from dfine_jax.training.run import stages
from dfine_jax.training.run.stages import Progress


def reference(aps, stop_epoch, restart_decay=0.9999):
    """det_solver.fit with its decays in effect: per epoch (weights from, saved as best, decay)."""
    best, top, decay, source, log = None, 0.0, 0.9999, "own", []
    for epoch, ap in enumerate(aps):
        if epoch == stop_epoch:
            source, decay = "best_stg1", restart_decay
        trained_from, source, saved = source, "own", None
        best_now = best is None or ap > best
        best = ap if best_now else best
        if best > top:
            top, saved = best, "best_stg2" if epoch >= stop_epoch else "best_stg1"
        if best_now:
            if epoch < stop_epoch:
                top, saved = max(ap, top), "best_stg1"
        elif epoch >= stop_epoch:
            best, decay, source = None, decay - 1e-4, "best_stg1"
        log.append((trained_from, saved, round(decay, 6)))
    return log


def ours(aps, stop_epoch, optim):
    progress, source, log = Progress(), "own", []
    for epoch, ap in enumerate(aps):
        if epoch == stop_epoch:
            progress, source = stages.second_stage(progress), "best_stg1"
        trained_from, source = source, "own"
        verdict = stages.judge(progress, ap, epoch + 1, has_start=True, patience=0)
        progress = dataclasses.replace(verdict.progress, epoch=epoch + 1)
        saved = "best_stg1" if verdict.is_start else "best_stg2" if verdict.is_best else None
        source = "best_stg1" if verdict.go_back else source
        log.append((trained_from, saved, round(optim.ema_decay + stages.ema_shift(progress, optim), 6)))
    return log, progress


@pytest.mark.parametrize("seed", range(20))
def test_decisions_are_those_of_the_reference(seed):
    rng = np.random.default_rng(seed)
    aps = np.round(np.sort(rng.uniform(0.1, 0.5, 14)) + rng.normal(0, 0.08, 14), 4).clip(0.01).tolist()
    optim = OptimConfig(ema_restart_decay=0.9998)
    log, progress = ours(aps, 8, optim)
    assert log == reference(aps, 8, 0.9998)
    assert progress.best_ap == max(aps) and progress.best_epoch == 1 + int(np.argmax(aps))


def test_the_reference_ignores_its_decays():
    optim = OptimConfig(ema_restart="ignore", ema_restart_decay=0.5)
    assert stages.ema_shift(Progress(stage=2, returns=3), optim) == 0.0


def test_decay_falls_with_every_return_and_not_below_zero():
    optim = OptimConfig(ema_decay=0.9, ema_restart_decay=0.8, ema_restart_step=0.3)
    decays = [optim.ema_decay + stages.ema_shift(Progress(stage=2, returns=n), optim) for n in range(4)]
    np.testing.assert_allclose(decays, [0.8, 0.5, 0.2, 0.0], atol=1e-12)
    assert stages.ema_shift(Progress(stage=1), optim) == 0.0


def test_without_a_second_stage_nothing_is_kept_for_it():
    verdict = stages.judge(Progress(), 0.3, 1, has_start=False, patience=0)
    assert verdict.is_best and not verdict.is_start and not verdict.go_back


def test_patience_counts_evaluations_without_a_new_best():
    progress = Progress()
    ended = []
    for epoch, ap in enumerate([0.1, 0.2, 0.2, 0.15, 0.3, 0.3, 0.3, 0.3], 1):
        progress = stages.judge(progress, ap, epoch, has_start=False, patience=3).progress
        ended.append(progress.ended_early)
    assert ended == [False] * 7 + [True] and progress.best_epoch == 5


def test_patience_starts_anew_with_the_second_stage():
    progress = Progress(best_ap=0.5, stage_best_ap=0.5, without_best=2)
    progress = stages.second_stage(progress)
    verdict = stages.judge(progress, 0.4, 9, has_start=True, patience=2)
    assert verdict.go_back and not verdict.progress.ended_early
    assert stages.judge(verdict.progress, 0.45, 10, has_start=True, patience=2).progress.ended_early


def test_training_ends_at_the_target():
    below, reached = (stages.judge(Progress(), ap, 1, has_start=False, patience=0, target_ap=0.9) for ap in (0.89, 0.9))
    assert not below.progress.ended_early and reached.progress.ended_early and reached.is_best
    assert not stages.judge(Progress(), 1.0, 1, has_start=False, patience=0).progress.ended_early
