"""Names of what is in the folder of a run, and the numbers of its epochs."""

from __future__ import annotations

import csv
import dataclasses
import json
from contextlib import suppress
from pathlib import Path

from dfine_jax.config import Config
from dfine_jax.system import stored
from dfine_jax.system.files import telling

LOSS = "loss_"  # before the kind, in the names of losses summed over what they are of
VAL = "val_"  # before the name of a loss, of validation images
PLAN = "plan.json"  # the configuration, as dfine train takes it
COMMAND = "command.txt"  # that started the run
ERRORS = "pictures/errors.json"  # sections of the page about the worst errors
STEPS = "steps.csv"  # the loss within epochs


def read_metrics(out_dir: Path | str) -> list[dict[str, float]]:
    """Rows of a run's ``metrics.csv``; empty cells are left out."""
    rows = read_rows(Path(out_dir) / "metrics.csv")
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table as text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_steps(out_dir: Path | str) -> list[tuple[int, float]]:
    """Lines of a run's ``steps.csv``: a step, and the mean loss from after the step of the line before to it.

    The first line after the run was resumed is the mean of the steps since. What a full disk or a power cut has left of
    a line is no line; of lines whose steps do not increase the later ones count.

    Raises:
      UserError: the system refuses.
    """
    file = Path(out_dir) / STEPS
    with telling(file):
        text = file.read_text(errors="replace") if file.is_file() else ""
    points: list[tuple[int, float]] = []
    for line in reversed(text.split("\n")[:-1]):
        step, _, loss = line.partition(",")
        with suppress(ValueError):
            point = int(step), float(loss)
            if not points or point[0] < points[-1][0]:
                points.append(point)
    return points[::-1]


def plan_text(config: Config) -> str:
    """A configuration as a plan, which ``dfine train`` takes as it is."""
    return json.dumps({**stored.stamp(), **dataclasses.asdict(config)}, indent=2) + "\n"
