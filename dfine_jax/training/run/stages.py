"""Best weights, the second stage, and when to give up: what an evaluation means for the run.

The reference (src/solver/det_solver.py) trains its last epochs without strong augmentation. They start from the best
weights so far, and an epoch that does not improve is undone: training returns to the best of the first stage. At both
occasions it also sets another decay for the average, which has no effect there, because the decay in use was copied
before; here it has, unless ``optim.ema_restart=ignore``.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from dfine_jax.config import OptimConfig, TrainConfig
from dfine_jax.evaluation.score import Metrics


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands; with the arrays of the state, all that exact continuation needs."""

    epoch: int = 0  # finished epochs, evaluation included; the step is in the state
    best_ap: float = -1.0
    best_epoch: int = 0
    skipped: int = 0  # non-finite steps so far
    stage: int = 1
    stage_best_ap: float = -1.0  # best since the last return to the best weights of stage 1; -1: none yet
    returns: int = 0  # to those weights, in stage 2
    without_best: int = 0  # evaluations of this stage since the last new best
    ended_early: bool = False  # by train.patience or train.target_ap
    # Of the epoch begun: what its row in the log is the mean of.
    summed_steps: int = 0
    summed_names: tuple[str, ...] = ()
    sums: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    finished: bool  # False: stopped by a signal or the clock, to be resumed
    best_ap: float  # -1: never evaluated
    best_epoch: int
    metrics: Metrics | None  # of the last evaluation in this process


class Verdict(NamedTuple):
    """What to do after an evaluation."""

    progress: Progress
    is_best: bool  # of the run: keep the averaged weights
    is_start: bool  # where stage 2 would start now: keep the whole state
    go_back: bool  # continue from that state


def judge(
    progress: Progress, ap: float, epoch: int, *, has_start: bool, patience: int, target_ap: float = 0.0
) -> Verdict:
    """Take the evaluation after the 1-based ``epoch`` into account.

    Args:
      ap: average precision of the averaged weights; -1 when there is nothing to measure it on.
      has_start: the run keeps, or in stage 2 has kept, a state to return to.
      patience: evaluations without a new best that end the run; 0 = never.
      target_ap: average precision that ends the run; 0 = never.
    """
    is_best = ap > progress.best_ap
    improved = progress.stage_best_ap < 0 or ap > progress.stage_best_ap
    go_back = progress.stage == 2 and not improved and has_start
    without_best = 0 if is_best else progress.without_best + 1
    progress = dataclasses.replace(
        progress,
        best_ap=ap if is_best else progress.best_ap,
        best_epoch=epoch if is_best else progress.best_epoch,
        stage_best_ap=-1.0 if go_back else max(ap, progress.stage_best_ap),
        returns=progress.returns + go_back,
        without_best=without_best,
        ended_early=0 < patience <= without_best or 0 < target_ap <= ap,
    )
    return Verdict(progress, is_best, has_start and progress.stage == 1 and improved, go_back)


def judged(progress: Progress, ap: float | None, epoch: int, train: TrainConfig, *, kept: bool) -> Verdict:
    """What an epoch means for a run that trains as ``train`` says.

    Args:
      ap: as of ``judge``; None: not evaluated.
      kept: a state to return to has been kept.
    """
    if ap is None or ap < 0:  # no object to find: such an evaluation judges nothing
        return Verdict(progress, False, False, False)
    has_start = 0 < train.stage2_epoch < train.epochs and (progress.stage == 1 or kept)
    return judge(progress, ap, epoch, has_start=has_start, patience=train.patience, target_ap=train.target_ap)


def why_ended(progress: Progress) -> str:
    """Of a run that an evaluation has ended."""
    if not progress.without_best:
        return "training ends (train.target_ap)"
    return f"no new best in {progress.without_best} evaluations: training ends (train.patience)"


def second_stage(progress: Progress) -> Progress:
    """The first moment of stage 2: patience starts anew."""
    return dataclasses.replace(progress, stage=2, without_best=0)


def ema_shift(progress: Progress, optim: OptimConfig) -> float:
    """What to add to ``optim.ema_decay``: nothing in stage 1, in stage 2 less with every return."""
    if progress.stage == 1 or optim.ema_restart == "ignore":
        return 0.0
    decay = max(0.0, optim.ema_restart_decay - progress.returns * optim.ema_restart_step)
    return decay - optim.ema_decay
