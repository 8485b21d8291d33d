"""What a run writes down: a readable log, one CSV row per epoch, a progress bar."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

logger = logging.getLogger("dfine_jax.training")


def duration(seconds: float) -> str:
    """Seconds as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class RunLog:
    """``log.txt`` and ``metrics.csv`` of a run folder."""

    def __init__(self, out_dir: Path, finished_epochs: int) -> None:
        """Open for appending; CSV rows of epochs after ``finished_epochs`` (lost in a crash, run again) are dropped."""
        self._text = out_dir / "log.txt"
        self._csv = out_dir / "metrics.csv"
        self._columns: list[str] = []
        if self._csv.exists():
            with self._csv.open(newline="") as file:
                rows = list(csv.DictReader(file))
            kept = [row for row in rows if int(row["epoch"]) <= finished_epochs]
            if kept:
                self._columns = list(kept[0])
                self._write(kept)
            else:
                self._csv.unlink()

    def line(self, text: str) -> None:
        """Add a line to the log, with the time, and show it above the progress bar."""
        tqdm.write(text)
        with self._text.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def row(self, values: Mapping[str, float | int | None]) -> None:
        """Add an epoch to the CSV; the columns are those of the first row."""
        text = {name: "" if v is None else f"{v:.6g}" if isinstance(v, float) else str(v) for name, v in values.items()}
        if not self._columns:
            self._columns = list(text)
            self._write([text])
        else:
            with self._csv.open("a", newline="") as file:
                csv.DictWriter(file, self._columns, restval="", extrasaction="ignore").writerow(text)

    def _write(self, rows: list[dict[str, str]]) -> None:
        with self._csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def read_metrics(out_dir: Path) -> list[dict[str, float]]:
    """Rows of ``metrics.csv``; empty cells are left out."""
    with (out_dir / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
