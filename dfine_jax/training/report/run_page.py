"""``report.html`` of a run: what it does and has shown so far, made anew from the files of its folder."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dfine_jax.config import Config
from dfine_jax.data.read.dataset import Dataset, listed
from dfine_jax.errors import UserError
from dfine_jax.evaluation.evaluation_page import evaluation_sections
from dfine_jax.families import recipe_name, task
from dfine_jax.pages.charts import Chart, Curve
from dfine_jax.pages.page import Commands, Facts, Files, Folded, Item, Pair, Section, page
from dfine_jax.system.files import write_whole
from dfine_jax.training.report.run_curves import best_text, curve_section
from dfine_jax.training.report.run_files import COMMAND, PLAN, STEPS, read_metrics, read_steps
from dfine_jax.training.report.underway import Underway
from dfine_jax.training.report.worst_errors import read_errors

if TYPE_CHECKING:
    from dfine_jax.training.run.checkpoint import Metadata

PAGE = "report.html"
_EVERY_S = 60.0  # between pages within an epoch
_LONGEST_ERROR = 600  # letters
_FILES = (
    ("best", "weights of the best epoch: what to evaluate, export and detect with"),
    ("last", "everything that going on needs"),
    ("best.onnx", "the best weights for other programs"),
    ("metrics.csv", "numbers by epoch"),
    (STEPS, "the loss within epochs"),
    ("log.txt", "what the run said, with the time"),
    (PLAN, "the whole configuration; dfine train takes it"),
    ("curves.png", "the curves as one picture"),
    ("augmented.jpg", "pictures of the first batch, as the model gets them"),
    ("best_evaluation/metrics.json", "all numbers of the best epoch"),
    ("last_evaluation/metrics.json", "all numbers of the latest evaluation"),
)
_SAID = ("memory of a train step", "compiled the", "about ")  # beginnings of lines about speed


@dataclasses.dataclass(frozen=True)
class Origin:
    """How a run was started, for the commands on its page."""

    command: str = ""  # as typed; kept in the folder, so that a resumed run knows it, too
    resume: str = ""  # that goes on with it
    data: str = "DATA"  # what ``--data`` of commands takes


def about_data(train_data: Dataset, val_data: Dataset | None, metadata: Metadata) -> list[tuple[str, str]]:
    """What a run trains on and where it began, as names and what they stand for."""
    names = metadata.class_names
    facts = [("training images", str(len(train_data)))]
    facts.append(("validation images", "none" if val_data is None else str(len(val_data))))
    facts.append(("classes", f"{len(names)}: {listed(names)}"))
    return [*facts, ("weights it began with", metadata.source_file or "none of a detector")]


class RunPage:
    """The page of one run; ``write`` makes it anew.

    Args:
      about: names and what they stand for, of the data.
    """

    def __init__(self, out_dir: Path, config: Config, about: Sequence[tuple[str, str]], origin: Origin) -> None:
        self._out, self._config, self._about, self._origin = out_dir, config, about, origin
        self._written_s = 0.0  # by the monotonic clock
        self._goes_on = False  # the page says so
        self._news = self._reached = ""  # how far the run has come

    @contextmanager
    def telling_errors(self) -> Iterator[None]:
        """An error inside that ends the run is told on its page, with how to go on."""
        ended = False
        try:
            yield
            ended = True
        finally:
            error = None if ended else sys.exception()
            if error is not None and self._goes_on:
                # A full disk, a damaged file: the first error is the one to tell.
                with suppress(UserError, OSError, ValueError):
                    self.write("The run ended with an error.", error)

    def note(self, now: Underway) -> bool:
        """Remember how far the run has come; whether the page is old enough for a new one."""
        at = time.strftime("%Y-%m-%d %H:%M:%S")
        self._news = f"{at}: {now.text()} "
        self._reached = f"It had come to step {now.step} of {now.total} ({at})."
        return time.monotonic() - self._written_s >= _EVERY_S

    def write(self, state: str = "", error: BaseException | None = None) -> None:
        """Write the page.

        Args:
          state: how the run ended; empty: it goes on.
          error: that ended it.
        """
        self._written_s, self._goes_on = time.monotonic(), not state
        rows = read_metrics(self._out) if (self._out / "metrics.csv").is_file() else []
        text = f"{state or self._going_on(rows)} {best_text(rows, self._config)}"
        sections = [
            *([self._ended(error)] if error else []),
            self._plan(),
            curve_section(rows, read_steps(self._out), self._config),
            *self._evaluation(),
            self._examples(),
            *self._errors(),
            self._speed(rows),
            Section("Go on", "", [Commands(self._commands()), Files(self._files())]),
        ]
        title = f"Run {self._out.resolve().name}"
        write_whole(self._out / PAGE, page(title, text, sections, long=True), durable=False)

    def _going_on(self, rows: Sequence[Mapping[str, float]]) -> str:
        done, epochs = int(rows[-1]["epoch"]) if rows else 0, self._config.train.epochs
        now = f"Epoch {done + 1} of {epochs} is being trained." if done < epochs else "The last epoch is over."
        return f"{now} {self._news}Load the page again for news, which come once a minute."

    def _ended(self, error: BaseException) -> Section:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        short = text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}..."
        if not (self._out / "last").is_dir():
            about = (
                "It ended before its first checkpoint: remove its folder, or choose another one, and start it again."
            )
            return Section("Error", short, [Facts([("to go on", about)])])
        command = self._origin.resume or "the command that started it, with --resume (from Python: resume=True)"
        rows = [("go on from the last checkpoint, once the cause is removed", command)]
        return Section("Error", f"{short} {self._reached}", [Commands(rows)])

    def _plan(self) -> Section:
        config, train, data, optim = self._config, self._config.train, self._config.data, self._config.optim
        model = [("model", recipe_name(config.model)), ("task", task(config.model)), *self._about]
        model += [("input", f"{data.height_px}x{data.width_px}, {data.resize}"), ("augmentation", data.augment)]
        run = [("epochs", str(train.epochs)), ("images per step", str(train.batch_size))]
        run += [("rate", f"{optim.lr:g}, backbone {optim.backbone_lr:g}"), ("schedule", optim.schedule)]
        run += [("optimiser", optim.optimizer), ("recipe", train.method or "-"), ("precision", config.model.precision)]
        folded: list[Item] = [Folded("All values", json.dumps(dataclasses.asdict(config), indent=2))]
        if said := _opening(self._log()):
            folded.insert(0, Folded("What the run said at its start", "\n".join(said)))
        return Section("Plan", "", [Facts(model), Facts(run), *folded])

    def _evaluation(self) -> list[Section]:
        try:
            values = json.loads((self._out / "best_evaluation" / "metrics.json").read_text())
        except (OSError, ValueError):
            return [Section("Result", "No evaluation yet: numbers, thresholds, classes and confusions come with it.")]
        pictures = "best_evaluation/" if (self._out / "best_evaluation" / "confusion.png").is_file() else None
        return evaluation_sections(values, pictures)

    def _examples(self) -> Section:
        detected = sorted((self._out / "examples").glob("*_detected.jpg"))
        pairs = []
        for file in detected:
            stem = file.name.removesuffix("_detected.jpg")
            annotated = f"examples/{stem}_annotated.jpg"
            pairs.append(Pair(("annotated", annotated), ("detected", f"examples/{file.name}"), stem))
        text = "Validation pictures after the latest evaluation, from its best threshold on; each opens at full size."
        nothing = "None are drawn (log.pictures=0)." if not self._config.log.pictures else "They come with evaluations."
        return Section("Examples", text if pairs else nothing, pairs)

    def _errors(self) -> list[Section]:
        if drawn := read_errors(self._out):
            return drawn
        evaluated = (self._out / "best_evaluation").is_dir()
        if not (self._goes_on and evaluated and self._config.log.pictures):
            return []
        return [Section("Worst errors", "Missed, false and confused objects are drawn when the run is finished.")]

    def _speed(self, rows: Sequence[Mapping[str, float]]) -> Section:
        known = [row for row in rows if "images_per_s" in row]
        facts = []
        if known:
            last = known[-1]
            facts.append(("images per second", f"{last['images_per_s']:.1f} in the last epoch"))
            facts.append(("waiting for data", f"{last.get('data_wait', 0.0):.0%} of the time"))
        log = self._log()
        if log:
            facts += [("started", log[0][0]), ("latest news", log[-1][0])]
        said = list(dict.fromkeys(line for _, line in log if line.startswith(_SAID)))
        facts += [("said", line) for line in said[-4:]]
        items: list[Item] = [Facts(facts)] if facts else []
        if len(known) > 1:
            curve = Curve("images per second", [(row["epoch"], row["images_per_s"]) for row in known])
            items.append(Chart("Images per second", "epoch", [curve], whole=True))
        return Section("Speed", "" if items else "The first epoch is not over.", items)

    def _commands(self) -> list[tuple[str, str]]:
        out, data = str(self._out), self._origin.data
        best = str(self._out / "best")
        commands = []
        try:
            commands.append(("as it was started", (self._out / COMMAND).read_text(encoding="utf-8").strip()))
        except OSError:
            again = ["train", str(self._out / PLAN), "--data", data, "--out", f"{out}-again"]
            commands.append(("the same again", f"dfine {shlex.join(again)}"))
        if self._origin.resume:
            commands.append(("go on with it", self._origin.resume))
        lines = {
            "detect": ["predict", best, "PICTURE", "--out", "drawn"],
            "all numbers, worst errors": ["evaluate", best, "--data", data, "--out", f"{out}/evaluation"],
            "mistakes in the annotations": ["errors", best, "--data", data, "--out", f"{out}/suspects"],
            "a file for other programs": ["export", best, "--data", data, "--out", f"{out}/model.onnx"],
        }
        return commands + [(what, f"dfine {shlex.join(words)}") for what, words in lines.items()]

    def _files(self) -> list[tuple[str, str]]:
        return [(name, about) for name, about in _FILES if (self._out / name).exists()]

    def _log(self) -> list[tuple[str, str]]:
        """Times and lines of the log."""
        try:
            lines = (self._out / "log.txt").read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        return [(line[:19], line[21:]) for line in lines if re.match(r"\d{4}-\d\d-\d\d ", line)]


def _opening(log: Sequence[tuple[str, str]]) -> list[str]:
    """What was said before the first line of the table."""
    lines = [line for _, line in log]
    ends = [i for i, line in enumerate(lines) if line.split()[:2] == ["epoch", "loss"]]
    return lines[: ends[0]] if ends else lines
