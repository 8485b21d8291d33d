"""What the gate measured: a value, a table, a JSON file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from dfine_jax.converters.gate.compare import Comparison, Limits
from dfine_jax.system.files import write_whole


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """COCO AP of boxes or of masks, on the same images."""

    model: float  # what the file is compared with
    artefact: float
    images: int
    baseline: float | None = None  # the unreduced model, where the file is an operating point of it

    @property
    def drop(self) -> float:
        """How much the file loses against the model it is an equal of."""
        return self.model - self.artefact

    @property
    def cost(self) -> float | None:
        """How much it loses against the unreduced model; None where nothing is reduced."""
        return None if self.baseline is None else self.baseline - self.artefact


@dataclasses.dataclass(frozen=True)
class GateReport:
    """Everything about one run of the gate."""

    file: str
    sha256: str
    graph: str
    precision: str
    input: dict[str, Any]
    operating_point: dict[str, Any]  # queries, layers and the like that were reduced
    ran_on: dict[str, Any]
    images: str  # what was compared on
    limits: Limits
    comparisons: tuple[Comparison, ...]
    accuracy: Accuracy | None
    mask_accuracy: Accuracy | None  # of models that segment, where masks are annotated
    no_accuracy: str  # why AP was not measured
    failures: tuple[str, ...]
    first_divergence: str | None
    no_divergence: str  # why a file that failed has none
    quantization: dict[str, Any] = dataclasses.field(default_factory=dict)  # what int8 cost
    not_run: str = ""  # what was run instead, where the file itself could not be
    elsewhere: dict[str, Comparison | str] = dataclasses.field(default_factory=dict)  # other runtimes, or why not
    times: dict[str, Any] = dataclasses.field(default_factory=dict)  # of these

    @property
    def passed(self) -> bool:
        """Whether the file ran and every number is within its limit."""
        return not self.failures and not self.not_run

    @property
    def verdict(self) -> str:
        """One word or two."""
        return "REFUSED" if self.failures else "NOT RUN" if self.not_run else "PASSED"

    def summary(self) -> str:
        """One line for an error message."""
        more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
        where = f"; first difference: {self.first_divergence}" if self.first_divergence else ""
        return f"{self.failures[0]}{more}{where}" if self.failures else "within all limits"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        for name, accuracy in (("accuracy", self.accuracy), ("mask_accuracy", self.mask_accuracy)):
            if accuracy is not None:
                values[name] |= {"drop": accuracy.drop, "cost": accuracy.cost}
        return {"passed": self.passed, "verdict": self.verdict, **values}

    def table(self) -> str:
        """Text for people."""
        size = "x".join(str(side) for side in self.input["size_hw"])
        lines = [
            f"{self.file}: {self.verdict}",
            f"{self.graph} graph, {self.precision}, input {self.input['dtype']} {self.input['layout']} {size}, batch "
            f"{self.input['batch'] or 'any'}",
            *([self.not_run] if self.not_run else []),
            f"ran on {_listed(self.ran_on)}",
            f"compared with the model on {self.images}",
            "",
            f"{'batch':>5} {'rows':>6} {'box px: median':>15} {'95 %':>8} {'most':>8} {'score: median':>14} "
            f"{'95 %':>8} {'most':>8} {'near-ties':>10}",
        ]
        for c in self.comparisons:
            lines.append(
                f"{c.batch:>5} {c.rows:>6} {c.box_median_px:>15.2g} {c.box_p95_px:>8.2g} {c.box_most_px:>8.2g} "
                f"{c.score_median:>14.2g} {c.score_p95:>8.2g} {c.score_most:>8.2g} {c.cut_rows:>10}"
            )
        limits = self.limits
        lines.append(
            f"{'limit':>5} {'':>6} {limits.box_median_px:>15.2g} {limits.box_p95_px:>8.2g} {limits.box_most_px:>8.2g} "
            f"{limits.score_median:>14.2g} {limits.score_p95:>8.2g} {limits.score_most:>8.2g}"
        )
        lines += ["", *self._mask_lines(), *self._confident_lines(), *self._accuracy_lines()]
        lines += [f"{name}: {_found_there(outcome)}" for name, outcome in self.elsewhere.items()]
        if self.quantization:
            lines.append(f"quantization: {_listed(self.quantization)}")
        lines += [f"FAILED {failure}" for failure in self.failures]
        if self.first_divergence or self.no_divergence:
            lines.append(f"first difference: {self.first_divergence or f'not known ({self.no_divergence})'}")
        return "\n".join(lines).rstrip() + "\n"

    def _mask_lines(self) -> list[str]:
        limits = self.limits
        return [
            f"batch {c.batch}: 1 - IoU of masks: median {c.mask_median:.2g} (limit {limits.mask_median:.2g}), 95 % "
            f"{c.mask_p95:.2g} (limit {limits.mask_p95:.2g})"
            for c in self.comparisons
            if c.mask_median is not None
        ]

    def _confident_lines(self) -> list[str]:
        limit = self.limits.lost_share
        return [
            f"batch {c.batch}: {c.lost_share:.1%} of {c.sure_rows} confident detections have no partner "
            f"(limit {limit:.0%})"
            for c in self.comparisons
            if np.isfinite(limit)
        ]

    def _accuracy_lines(self) -> list[str]:
        reduced, lines = f"operating point: {_listed(self.operating_point)};", []
        if self.accuracy is None:
            lines.append(f"AP: not measured ({self.no_accuracy})")
            if self.operating_point:
                lines.append(f"{reduced} AP cost: not measured; give --data DIR with annotations")
        for accuracy, what in ((self.accuracy, "AP"), (self.mask_accuracy, "mask AP")):
            if accuracy is None:
                continue
            lines.append(
                f"{what} on {accuracy.images} images: model {accuracy.model:.4f}, file {accuracy.artefact:.4f}, drop "
                f"{_signed(accuracy.drop)} (limit {self.limits.ap_drop})"
            )
            if accuracy.cost is not None:
                cost, before = _signed(accuracy.cost), accuracy.baseline
                lines.append(f"{reduced} {what} cost {cost} against {before:.4f} of the unreduced model")
        return lines


def report_files(artefact: Path) -> tuple[Path, Path]:
    """``<artefact>.report.json`` and ``<artefact>.report.txt``."""
    return artefact.with_name(f"{artefact.name}.report.json"), artefact.with_name(f"{artefact.name}.report.txt")


def write(report: GateReport, artefact: Path) -> None:
    """Both files of a report."""
    _write(report.to_dict(), report.table(), artefact)


def write_refusal(artefact: Path, reason: str) -> None:
    """Both files where a file could not be made, or not be measured at all."""
    values = {"passed": False, "verdict": "REFUSED", "file": artefact.name, "failures": [reason]}
    _write(values, f"{artefact.name}: REFUSED\n\nFAILED {reason}\n", artefact)


def _write(values: dict[str, Any], table: str, artefact: Path) -> None:
    numbers, text = report_files(artefact)
    write_whole(numbers, json.dumps(_finite(values), indent=2) + "\n")
    write_whole(text, table)


def _found_there(outcome: Comparison | str) -> str:
    if isinstance(outcome, str):
        return outcome
    masks = "" if outcome.mask_median is None else f"; 1 - IoU of masks: median {outcome.mask_median:.2g}"
    return (
        f"box px median {outcome.box_median_px:.2g}, 95 % {outcome.box_p95_px:.2g}, most {outcome.box_most_px:.2g}; "
        f"score median {outcome.score_median:.2g}, 95 % {outcome.score_p95:.2g}, most {outcome.score_most:.2g}{masks} "
        f"({outcome.images} picture{'s' * (outcome.images > 1)})"
    )


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def _finite(value: Any) -> Any:
    """JSON has no infinity; a limit that does not limit is null."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value


def _signed(change: float) -> str:
    """With its sign, unless it is 0.0000."""
    text = f"{change:+.4f}"
    return text[1:] if float(text) == 0 else text
