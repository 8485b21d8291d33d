"""What a run writes down: a readable log, a table and a CSV row per epoch, curves, examples, TensorBoard."""

from __future__ import annotations

import csv
import io
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from dfine_jax.data.picture.images import save_picture
from dfine_jax.errors import UserError
from dfine_jax.system.files import telling, write_whole
from dfine_jax.training.report.run_files import LOSS, VAL, read_metrics, read_rows, read_steps
from dfine_jax.training.report.sinks import Sink
from dfine_jax.training.report.underway import StepLosses, Underway

if TYPE_CHECKING:
    from dfine_jax.evaluation.detections import Detections, Kind
    from dfine_jax.evaluation.score import Metrics
    from dfine_jax.training.report.examples import Examples
    from dfine_jax.training.report.run_page import RunPage
    from dfine_jax.training.report.worst_errors import WorstErrors

EpochRow = Mapping[str, float | int | None]  # numbers of an epoch by name, a line of the table

_HEADER_EVERY = 20  # lines of the table
# Heading, the row's value, format; between these the losses by kind.
_FIRST = (("epoch", "epoch", "5.0f"), ("loss", "loss", "7.2f"))
_LAST = (
    ("grad", "grad_norm", "7.2f"),
    ("lr", "lr", "8.1e"),
    ("img/s", "images_per_s", "6.1f"),
    ("wait", "data_wait", "4.0%"),
    ("AP", "ap", "6.3f"),
    ("AP50", "ap50", "6.3f"),
    ("F1", "f1", "6.3f"),
    ("at", "best_threshold", "5.2f"),
)
_VALIDATION = (("val", VAL + "loss", "7.2f"),)  # the loss, before AP
_OF_MASKS = (("mask AP", "mask_ap", "7.3f"), ("mask AP50", "mask_ap50", "9.3f"), ("mask F1", "mask_f1", "7.3f"))
_GROUPS = {"grad_norm": "optim", "images_per_s": "speed", "data_wait": "speed"}
_MAX_CLASSES = 12  # in a line
_PER_EPOCH = ("epoch", "step", "skipped", "stage")  # count; no curves of their own


class RunLog:
    """``log.txt``, ``metrics.csv``, ``steps.csv`` and pictures of a run folder, and the sinks."""

    def __init__(
        self,
        out_dir: Path,
        finished_epochs: int,
        sinks: Sequence[Sink] = (),
        every: int = 10,
        rates: Callable[[int], Mapping[str, float]] | None = None,
        examples: Examples | None = None,
        pictures: bool = False,
        best_by: Kind = "boxes",
        page: RunPage | None = None,
        step: int = 0,
        errors: WorstErrors | None = None,
    ) -> None:
        """Open for appending; CSV rows of epochs after ``finished_epochs`` (lost in a crash, run again) are dropped.

        Args:
          every: steps whose mean is one point of curves within epochs.
          rates: learning rates at a 0-based step, for the sinks.
          examples: images to draw after each evaluation, if any.
          pictures: draw curves and evaluations.
          best_by: whose AP decides which epoch is the best, where there are masks.
          page: made anew when there is something to show, if any.
          step: steps that the run has done.
          errors: draws the worst errors when the run is finished, if any.
        """
        self.out_dir, self._every, self._rates, self._examples = out_dir, every, rates, examples
        self._sinks, self._pictures, self._best_by, self._page = list(sinks), pictures, best_by, page
        self._errors = errors
        self._text = out_dir / "log.txt"
        self._csv = out_dir / "metrics.csv"
        self._columns: list[str] = []
        self._table_lines = 0
        self._best_ap = -1.0
        self._window: dict[str, list[float]] = defaultdict(list)
        self._losses = StepLosses(out_dir, step, every)
        if self._csv.exists():
            kept = [row for row in read_rows(self._csv) if int(row["epoch"]) <= finished_epochs]
            if kept:
                self._columns = list(kept[0])
                self._best_ap = max((float(ap) for row in kept if (ap := self._deciding_ap(row))), default=-1.0)
                self._write(kept)
            else:
                self._csv.unlink()

    def line(self, text: str) -> None:
        """Add a line to the log, with the time, and show it above the progress bar."""
        tqdm.write(text)
        with telling(self._text), self._text.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Loss terms by layer and gradient norm of the 1-based ``step``, for ``steps.csv`` and the sinks."""
        self._losses.add(step, values["loss"])
        if not self._sinks:
            return
        for name, value in values.items():
            self._window[name].append(value)
        if step % self._every == 0:
            means = {tag(name): sum(seen) / len(seen) for name, seen in self._window.items()}
            means |= {tag(name): rate for name, rate in (self._rates(step - 1) if self._rates else {}).items()}
            self._window.clear()
            self._tell(lambda sink: sink.scalars(step, means))

    def row(self, values: EpochRow) -> None:
        """Add an epoch to the table, the CSV (its columns are those of the first row) and the sinks."""
        if self._table_lines % _HEADER_EVERY == 0:
            self.line(table_header(values))
        ap = self._deciding_ap(values)
        is_best = ap is not None and ap > self._best_ap
        if ap is not None:
            self._best_ap = max(ap, self._best_ap)
        self.line(table_line(values) + "  best" * is_best)
        self._table_lines += 1
        text = {name: "" if v is None else f"{v:.6g}" if isinstance(v, float) else str(v) for name, v in values.items()}
        if not self._columns:
            self._columns = list(text)
            self._write([text])
        else:
            self._write([*read_rows(self._csv), text])
        known = {name: float(v) for name, v in values.items() if v is not None and name not in _PER_EPOCH}
        tagged = {epoch_tag(name): value for name, value in known.items()}
        self._tell(lambda sink: sink.scalars(int(values["step"] or 0), tagged))

    def observe(self, results: Detections) -> None:
        """Take what an evaluation has detected, for the examples and the worst errors."""
        if self._examples is not None:
            self._examples.observe(results)
        if self._errors is not None:
            self._errors.observe(results)

    def best(self, metrics: Metrics) -> None:
        """Keep the numbers of a new best, as ``best_evaluation/metrics.json``; its pictures come with ``draw``."""
        from dfine_jax.evaluation.plots import save_evaluation

        self.line(by_class(metrics.per_class))
        if metrics.masks:
            self.line("mask " + by_class(metrics.masks.per_class))
        save_evaluation(metrics, self.out_dir / "best_evaluation", pictures=False)

    def finish(self) -> None:
        """The run has ended as it should: the worst errors, and the last page."""
        if self._errors is not None:
            try:
                self._errors.draw(self.out_dir, lambda images: tqdm(images, unit="image", desc="draw", disable=None))
            except (UserError, OSError) as error:  # the run is whole without them
                self.line(f"the worst errors could not be drawn: {error}")
        self.show("The run is finished.")

    def draw(self, step: int, metrics: Metrics | None, best: bool, epoch: int = 0) -> None:
        """Pictures of what the run has shown, and its page, after the row of an epoch.

        The curves so far; and after an evaluation (``metrics``) examples, its numbers in ``last_evaluation``, and its
        figures where they are looked for: in ``best_evaluation`` if it is the best, and for the sinks.
        """
        from dfine_jax.evaluation.plots import evaluation_figures, rendered, save_evaluation, save_png, training_figure

        shown: dict[str, Image.Image] = {}
        self._losses.write()
        if self._pictures:
            figure = training_figure(read_metrics(self.out_dir), read_steps(self.out_dir))
            save_png(figure, self.out_dir / "curves.png")
        if metrics is None:
            self.show()
            return
        if self._errors is not None:
            self._errors.judged(metrics, epoch, best)
        save_evaluation(metrics, self.out_dir / "last_evaluation", pictures=False)
        if self._pictures and (best or self._sinks):  # drawing takes seconds, which tiny datasets would feel
            shown = {f"evaluation/{name}": rendered(draw()) for name, draw in evaluation_figures(metrics).items()}
        if best:
            for name, picture in shown.items():
                save_picture(picture, self.out_dir / "best_evaluation" / f"{Path(name).name}.png")
        if self._examples is not None:
            drawn = self._examples.draw((metrics.masks or metrics).report.best_threshold)
            examples = self.out_dir / "examples"
            for name, pair in drawn.items():
                for what, picture in pair._asdict().items():
                    save_picture(picture, examples / f"{name}_{what}.jpg", quality=90)
                shown[f"examples/{name}"] = pair.side_by_side()
        self.show()
        classes = {f"ap_by_class/{name}": ap for name, ap in metrics.per_class.items() if ap >= 0}
        of_masks = metrics.masks.per_class if metrics.masks else {}
        classes |= {f"mask_ap_by_class/{name}": ap for name, ap in of_masks.items() if ap >= 0}
        self._tell(lambda sink: sink.scalars(step, classes))
        self._tell(lambda sink: sink.pictures(step, shown))

    def show(self, state: str = "") -> None:
        """Make the page anew.

        Args:
          state: how the run ended; empty: it goes on.
        """
        self._losses.write()
        if self._page is not None:
            self._page.write(state)

    def underway(self, now: Underway) -> None:
        """Between the ends of epochs: the page anew, where it is old enough."""
        if self._page is not None and self._page.note(now):
            # A full disk, a damaged file: no reason to end a training in the middle of an epoch.
            with suppress(UserError, OSError, ValueError):
                self.show()

    def close(self) -> None:
        """Finish the sinks."""
        self._tell(lambda sink: sink.close())

    def _deciding_ap(self, row: Mapping[str, Any]) -> Any:
        of_masks = row.get("mask_ap") if self._best_by == "masks" else None
        return row.get("ap") if of_masks in (None, "") else of_masks

    def _tell(self, message: Callable[[Sink], None]) -> None:
        for sink in tuple(self._sinks):
            try:
                message(sink)
            except getattr(sink, "failures", Exception) as error:
                self._sinks.remove(sink)
                name, text = type(sink).__name__, str(error).splitlines()
                self.line(f"{name} failed ({text[0] if text else type(error).__name__}): nothing more is sent there")

    def _write(self, rows: list[dict[str, str]]) -> None:
        with io.StringIO(newline="") as text:
            writer = csv.DictWriter(text, self._columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
            write_whole(self._csv, text.getvalue())  # killed at any moment, a resumed run keeps its rows


def _columns(row: EpochRow) -> list[tuple[str, str, str]]:
    kinds = [name.removeprefix(LOSS) for name in row if name.startswith(LOSS)]
    of_masks = _OF_MASKS if "mask_ap" in row else ()
    validation = _VALIDATION if VAL + "loss" in row else ()
    terms = ((kind, LOSS + kind, f"{max(6, len(kind))}.2f") for kind in kinds)
    return [*_FIRST, *terms, *_LAST[:4], *validation, *_LAST[4:], *of_masks]


def table_header(values: EpochRow) -> str:
    """Headings of the table for an epoch like this."""
    return "  ".join(f"{heading:>{_width(form)}}" for heading, _, form in _columns(values))


def table_line(values: EpochRow) -> str:
    """An epoch as a line of the table; a dash where there is no number."""
    cells = []
    for _, name, form in _columns(values):
        value = values.get(name)
        cells.append(f"{'-':>{_width(form)}}" if value is None else f"{value:>{form}}")
    return "  ".join(cells)


def tag(name: str) -> str:
    """Name of a step's value with its group; the terms of the loss, ``kind/where``, have theirs."""
    return name if "/" in name else f"{_group(name) or 'loss'}/{name}"


def _group(name: str) -> str | None:
    return "optim" if name.endswith("lr") else _GROUPS.get(name)


def by_class(per_class: Mapping[str, float]) -> str:
    """AP of the classes as a line; of many, those of the lowest and the highest."""
    known = sorted((name for name, ap in per_class.items() if ap >= 0), key=lambda name: per_class[name])
    texts = [f"{name} {per_class[name]:.3f}" for name in known]
    if len(texts) > _MAX_CLASSES:
        half = _MAX_CLASSES // 2
        texts = [*texts[:half], "...", *texts[-half:]]
    return "AP by class: " + ", ".join(texts)


def epoch_tag(name: str) -> str:
    """Name of an epoch's value with its group: mean losses, optimiser, speed, and the rest from the evaluation."""
    if name.startswith("loss"):
        return f"epoch_loss/{name.removeprefix(LOSS)}"
    if name.startswith(VAL + "loss"):
        return f"validation_loss/{name.removeprefix(VAL).removeprefix(LOSS)}"
    group = _group(name)
    return f"epoch_{group}/{name}" if group else f"validation/{name}"


def _width(form: str) -> int:
    return int(re.split(r"\D", form)[0])
