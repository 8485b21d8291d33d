"""What the gate measured: a value, a table, a JSON file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from converters.compare import Comparison, Limits


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """COCO AP on the same images."""

    model: float  # what the file is compared with
    artefact: float
    images: int
    baseline: float | None = None  # the unreduced model, where the file is an operating point of it

    @property
    def drop(self) -> float:
        """How much the file loses."""
        return self.model - self.artefact


@dataclasses.dataclass(frozen=True)
class Report:
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
    failures: tuple[str, ...]
    first_divergence: str | None

    @property
    def passed(self) -> bool:
        """Whether every number is within its limit."""
        return not self.failures

    def summary(self) -> str:
        """One line for an error message."""
        more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
        where = f"; first difference: {self.first_divergence}" if self.first_divergence else ""
        return f"{self.failures[0]}{more}{where}" if self.failures else "within all limits"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        if self.accuracy is not None:
            values["accuracy"]["drop"] = self.accuracy.drop
        return {"passed": self.passed, **values}

    def table(self) -> str:
        """Text for people."""
        size = "x".join(str(side) for side in self.input["size_hw"])
        lines = [
            f"{self.file}: {'PASSED' if self.passed else 'REFUSED'}",
            f"{self.graph} graph, {self.precision}, input {self.input['dtype']} {self.input['layout']} {size}, batch "
            f"{self.input['batch'] or 'any'}",
            f"ran on {', '.join(f'{name} {value}' for name, value in self.ran_on.items())}",
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
        lines += ["", *self._accuracy_lines()]
        lines += [f"operating point: {name} {value}" for name, value in self.operating_point.items()]
        lines += [f"FAILED {failure}" for failure in self.failures]
        if self.first_divergence:
            lines.append(f"first difference: {self.first_divergence}")
        return "\n".join(lines).rstrip() + "\n"

    def _accuracy_lines(self) -> list[str]:
        accuracy = self.accuracy
        if accuracy is None:
            return ["AP: not measured (no annotations given, or refused before)"]
        lines = [
            f"AP on {accuracy.images} images: model {accuracy.model:.4f}, file {accuracy.artefact:.4f}, drop "
            f"{accuracy.drop:+.4f} (limit {self.limits.ap_drop})"
        ]
        if accuracy.baseline is not None:
            cost = accuracy.baseline - accuracy.artefact
            lines.append(f"AP of the unreduced model {accuracy.baseline:.4f}: this operating point costs {cost:+.4f}")
        return lines


def write(report: Report, artefact: Path) -> None:
    """``<artefact>.report.json`` and ``<artefact>.report.txt``."""
    text = json.dumps(_finite(report.to_dict()), indent=2)
    artefact.with_name(f"{artefact.name}.report.json").write_text(text + "\n")
    artefact.with_name(f"{artefact.name}.report.txt").write_text(report.table())


def _finite(value: Any) -> Any:
    """JSON has no infinity; a limit that does not limit is null."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value
