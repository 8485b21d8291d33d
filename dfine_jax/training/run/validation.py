"""The evaluation of a run after an epoch, by its averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from dfine_jax.data.load.batch import EvalBatch
from dfine_jax.data.load.pipeline import EvalLoader
from dfine_jax.data.read.dataset import Dataset
from dfine_jax.evaluation.detections import Detections
from dfine_jax.evaluation.evaluate import Predict, evaluate
from dfine_jax.evaluation.score import Metrics
from dfine_jax.evaluation.truth import Truth
from dfine_jax.ops.postprocess import AnswerRules, Selected
from dfine_jax.training.run import hosts
from dfine_jax.training.run.stop import Stop
from dfine_jax.training.step.programs import EvalProgram
from dfine_jax.training.step.step import predict_function, validate_function
from dfine_jax.training.step.validation_loss import LossTotals, mean_terms


class Validated(NamedTuple):
    """What an evaluation found out."""

    metrics: Metrics
    loss: Mapping[str, float]  # terms by ``kind/where`` and their sum, ``loss``; empty: not asked for


class _StopError(Exception):
    """A signal came during evaluation."""


class Validation:
    """Evaluates weights on the validation images.

    Args:
      truth: what evaluations compare with.
      step: the program; with a loss if the loader's batches have objects.
      stop: asked between batches.
      rules: ``Family.answer_rules``.
    """

    def __init__(
        self,
        data: Dataset,
        loader: EvalLoader,
        truth: Truth,
        step: EvalProgram,
        stop: Stop,
        rules: AnswerRules,
    ) -> None:
        self._rules = rules
        self._data, self._loader, self._truth, self._step, self._stop = data, loader, truth, step, stop
        self._latest: EvalBatch | None = None

    def __call__(self, variables: Any, observe: Callable[[Detections], None]) -> Validated | None:
        """What is found out; None if a signal came before.

        Args:
          observe: is given the detections of all images.
        """
        totals = LossTotals() if self._loader.has_objects else None
        predict = predict_function(self._step, variables) if totals is None else self._with_loss(variables, totals)
        try:
            classes = self._data.classes
            batches, together = self._batches(), hosts.together
            metrics = evaluate(predict, batches, self._truth, classes, observe, together, self._rules)
        except _StopError:
            return None
        if totals is None:
            return Validated(metrics, {})
        names, sums = totals.values()
        return Validated(metrics, mean_terms(names, hosts.summed(sums)))

    def _with_loss(self, variables: Any, totals: LossTotals) -> Predict:
        """Predicts the latest batch, and counts its loss."""
        validate = validate_function(self._step, variables)
        blank: list[Any] = []  # loss of a batch without pictures, once it is needed

        def predict(images: np.ndarray) -> Selected:
            batch = self._latest
            assert batch is not None and batch.annotated is not None and batch.images is images
            found, loss = validate(batch.annotated)
            filling = float(np.mean((batch.image_id == -1) & (batch.size_px == 1).all(1)))
            if filling and not blank:
                empty: Any = self._loader.empty()
                blank.append(validate(empty)[1])
            totals.add(loss, blank[0] if filling else None, filling)
            return found

        return predict

    def _batches(self) -> Iterator[EvalBatch]:
        loader = self._loader
        for batch in tqdm(loader, total=len(loader), unit="batch", desc="evaluate", leave=False, disable=None):
            if self._stop.agreed():
                raise _StopError
            self._latest = batch
            yield batch
