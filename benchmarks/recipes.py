"""Trainings side by side, each on its own share of the cores; the accuracy they reach in the same time, in one picture.

    python benchmarks/recipes.py --out runs/pair --run "D-FINE=--method dfine" --run "DEIM=--method deim" -- \\
        n --data bccd --size 320x320 --epochs 30 --batch-size 8 train.eval_every=2 data.workers=1

What follows ``--`` is given to ``dfine train`` in every run, what follows ``NAME=`` in one. A run that already ended in
OUT/NAME is not repeated. Training time is that of the steps with their waiting for data, without compilation and
evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfine_jax.evaluation import plots
from dfine_jax.training.report.run_files import read_metrics

ROOT = Path(__file__).resolve().parent.parent


def train_all(out: Path, runs: dict[str, list[str]], common: Sequence[str]) -> None:
    """Start all runs that have not ended yet at once, each with as many cores of its own as the others.

    Raises:
      SystemExit: a run failed; its last lines are shown.
    """
    cores = np.array_split(sorted(os.sched_getaffinity(0)), len(runs))
    started = []
    for (name, options), share in zip(runs.items(), cores, strict=True):
        if ended(out / name):
            continue
        command = [sys.executable, "-m", "dfine_jax.cli", "train", *common, *options, "--out", str(out / name)]
        with open(out / f"{name}.txt", "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                ["taskset", "-c", ",".join(map(str, share)), *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        started.append((name, process))
    failed = [name for name, process in started if process.wait() != 0]
    for name in failed:
        print(name, *(out / f"{name}.txt").read_text(encoding="utf-8").splitlines()[-5:], sep="\n", file=sys.stderr)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def ended(folder: Path) -> bool:
    """Whether the run has done all its epochs."""
    rows = read_metrics(folder) if (folder / "metrics.csv").exists() else []
    return bool(rows) and rows[-1]["epoch"] == train_config(folder)["epochs"]


def train_config(folder: Path) -> dict[str, float]:
    """Section ``train`` of a run's configuration."""
    return json.loads((folder / "last" / "metadata.json").read_text(encoding="utf-8"))["config"]["train"]


def curve(folder: Path) -> dict[str, list[float]]:
    """Minutes of training, epoch, AP and AP50 at every evaluation of a run."""
    batch = train_config(folder)["batch_size"]
    result: dict[str, list[float]] = {"minutes": [], "epoch": [], "ap": [], "ap50": []}
    minutes, step = 0.0, 0.0
    for row in read_metrics(folder):
        minutes += (row["step"] - step) * batch / row["images_per_s"] / 60
        step = row["step"]
        if "ap" in row:
            for key, value in {**row, "minutes": minutes}.items():
                if key in result:
                    result[key].append(value)
    return result


def report(out: Path, curves: dict[str, dict[str, list[float]]]) -> None:
    """Print what every run reached in the time of the shortest, and at its end; draw AP by time."""
    from matplotlib.figure import Figure

    shared = min(values["minutes"][-1] for values in curves.values())
    print(f"{'run':20s} {'minutes':>8s} {'epochs':>7s} {'AP':>6s} {'AP50':>6s}   best AP within {shared:.1f} min")
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.subplots()
    for colour, (name, values) in zip(plots.COLOURS, curves.items(), strict=False):
        best = int(np.argmax(values["ap"]))
        within = max(ap for ap, t in zip(values["ap"], values["minutes"], strict=True) if t <= shared)
        numbers = f"{values['minutes'][-1]:8.1f} {values['epoch'][-1]:7.0f} {values['ap'][best]:6.3f}"
        print(f"{name:20s} {numbers} {values['ap50'][best]:6.3f}   {within:.3f}")
        label = f"{name}: AP {values['ap'][best]:.3f}, AP50 {values['ap50'][best]:.3f}"
        axes.plot(values["minutes"], values["ap"], color=colour, label=label, marker="o", markersize=3)
        axes.plot(values["minutes"], values["ap50"], color=colour, linestyle=":")
    axes.set(title="AP (dotted: AP50), averaged weights", xlabel="minutes of training", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    plots.save_png(figure, out / "curves.png")
    (out / "curves.json").write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    print(out / "curves.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", action="append", required=True, metavar="NAME=OPTIONS")
    parser.add_argument("train", nargs="*", help="arguments of dfine train, after --")
    args = parser.parse_args()
    if not all("=" in run for run in args.run):
        parser.error("--run is NAME=OPTIONS, for example --run 'DEIM=--method deim'")
    runs = {name: shlex.split(options) for name, _, options in (run.partition("=") for run in args.run)}
    args.out.mkdir(parents=True, exist_ok=True)
    train_all(args.out, runs, args.train)
    report(args.out, {name: curve(args.out / name) for name in runs})


if __name__ == "__main__":
    main()
