"""The worst errors of a run's best weights, for its page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfine_jax.data.read.dataset import Dataset
from dfine_jax.data.read.records import image_ids
from dfine_jax.evaluation.detections import Detections
from dfine_jax.evaluation.error_gallery import error_sections, read_sections, sections_text
from dfine_jax.evaluation.metrics import THRESHOLDS
from dfine_jax.evaluation.score import Metrics
from dfine_jax.evaluation.truth import Truth
from dfine_jax.pages.page import Section
from dfine_jax.system.files import write_whole
from dfine_jax.training.report.run_files import ERRORS


@dataclasses.dataclass(frozen=True, eq=False)
class _Kept:
    """An evaluation."""

    detections: Detections
    metrics: Metrics
    epoch: int
    best: bool


class WorstErrors:
    """Keeps the detections of the best evaluation of this process until the end of the run, when errors are drawn.

    Of 5,000 images with 100 detections each that is 28 MB, and the run lengths of masks. Where the best is older than
    the process, it keeps those of the latest evaluation. Those below ``THRESHOLDS`` are left out: errors are of scores
    from the best threshold on, and of objects that are missed the best score is told, which is lower.

    Args:
      truth: what evaluations compare with.
    """

    def __init__(self, data: Dataset, truth: Truth | None) -> None:
        self._data, self._truth = data, truth
        self._latest: Detections | None = None
        self._kept: _Kept | None = None

    def observe(self, detections: Detections) -> None:
        """Take the detections of an evaluation, until ``judged`` is told what they are worth."""
        self._latest = detections

    def judged(self, metrics: Metrics, epoch: int, best: bool) -> None:
        """Keep the evaluation, if it is the best or none of the best is at hand."""
        latest, self._latest = self._latest, None
        if latest is not None and (best or self._kept is None or not self._kept.best):
            self._kept = _Kept(latest.at_least(float(THRESHOLDS[0])), metrics, epoch, best)

    def draw(self, out_dir: Path, progress: Callable[[Any], Any]) -> None:
        """Write pictures of what is kept, if anything, into the folder of the run, for ``read_errors``.

        Those that an earlier process drew are replaced only by the best's.

        Raises:
          UserError: a picture cannot be read, or the system refuses.
        """
        if self._kept is None or (not self._kept.best and (out_dir / ERRORS).exists()):
            return
        report = (self._kept.metrics.masks or self._kept.metrics).report
        ids = image_ids(self._data.records).tolist()
        drawn = error_sections(
            self._data, self._data.classes, self._kept.detections, ids, out_dir, threshold=report.best_threshold,
            kind=report.kind, progress=progress, truth=self._truth,
        )  # fmt: skip
        which = f"{'The best' if self._kept.best else 'The latest'} evaluation, epoch {self._kept.epoch}."
        drawn[0] = drawn[0]._replace(text=f"{which} {drawn[0].text}")
        write_whole(out_dir / ERRORS, sections_text(drawn))


def read_errors(out_dir: Path) -> list[Section]:
    """Sections that ``WorstErrors`` drew in a run's folder; none where it has not."""
    try:
        return read_sections((out_dir / ERRORS).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):  # damaged, too
        return []
