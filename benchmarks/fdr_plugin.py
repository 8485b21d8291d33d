"""What the refinement of edge distributions does for another detector: RT-DETRv2 plain, with FDR, with FDR and GO-LSD.

    python benchmarks/fdr_plugin.py --data bccd --out runs/fdr --seeds 2 --epochs 60

Every arm starts from nothing with the same seeds and takes the same steps at the same rates; arms differ in the box
head and its terms alone. One run after another has the machine for itself, arms in turn. The numbers are those of the
averaged weights after the last epoch, so that nothing is chosen on the validation images. A run that already ended in
OUT is not repeated, one that was interrupted goes on. Writes OUT/table.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfine_jax import load_checkpoint, read_metrics

ROOT = Path(__file__).resolve().parent.parent
ARMS: dict[str, list[str]] = {
    "plain": [],
    "FDR": ["model.box_head=fdr", "loss.go_lsd=false"],
    "FDR, GO-LSD": ["model.box_head=fdr"],
    "FDR, GO-LSD, no quality head": ["model.box_head=fdr", "model.quality_head=false"],
}
# RT-DETRv2-R18 with a smaller backbone and half the width: a step of seconds on two cores.
SMALL = (
    "rtdetrv2-r18",
    *("--size", "256x256", "--batch-size", "8", "--no-export"),
    *("model.backbone=B0", "model.encoder_width=128", "model.encoder_ffn=512"),
    *("model.decoder_width=128", "model.decoder_ffn=512", "model.num_queries=100"),
    *("optim.lr=4e-4", "optim.backbone_lr=4e-4", "data.workers=1", "log.pictures=0"),
)


class Run(NamedTuple):
    """Numbers of one run at its end."""

    ap: float
    ap50: float
    ap75: float
    step_s: float  # median over epochs, without waiting for data
    parameters: int


def folder(out: Path, arm: str, seed: int) -> Path:
    """Of a run."""
    return out / f"{arm.lower().replace(', ', '-').replace(' ', '-')}-{seed}"


def train(out: Path, arm: str, seed: int, options: Sequence[str]) -> None:
    """Train to the end, unless that was done.

    Raises:
      SystemExit: the run failed; its last lines are shown.
    """
    run = folder(out, arm, seed)
    if (run / "ended").exists():
        return
    asked = [*options, *ARMS[arm], f"train.seed={seed}"]
    begun = (run / "last").exists()
    command = [sys.executable, "-m", "dfine_jax.cli", "train", *asked, "--out", str(run), *(["--resume"] * begun)]
    with open(out / f"{run.name}.txt", "a", encoding="utf-8") as file:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code:
        lines = (out / f"{run.name}.txt").read_text(encoding="utf-8").splitlines()[-5:]
        raise SystemExit("\n".join([f"{run.name} failed", *lines]))
    (run / "ended").touch()


def numbers(run: Path) -> Run:
    """Numbers of a run that has ended."""
    rows, loaded = read_metrics(run), load_checkpoint(run / "last")
    batch = loaded.metadata.config.train.batch_size
    steps = [batch / row["images_per_s"] * (1 - row["data_wait"]) for row in rows]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(loaded.variables["params"]))
    last = [row for row in rows if row.get("ap") is not None][-1]
    return Run(last["ap"], last["ap50"], last["ap75"], statistics.median(steps), parameters)


def table(results: dict[str, list[Run]]) -> str:
    """One line for each arm: means over seeds with half the distance between the extremes, in Markdown."""
    lines = ["| arm | AP | AP50 | AP75 | step | parameters | seeds |", "|---|---|---|---|---|---|---|"]
    for arm, runs in results.items():
        cells = []
        for name in ("ap", "ap50", "ap75"):
            values = [100 * getattr(run, name) for run in runs]
            cells.append(f"{statistics.mean(values):.1f} ± {(max(values) - min(values)) / 2:.1f}")
        step_s = statistics.mean(run.step_s for run in runs)
        cells += [f"{step_s:.2f} s", f"{runs[0].parameters:,}", str(len(runs))]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS)[:3])
    parser.add_argument("train", nargs="*", help="more arguments of dfine train for all arms, after --")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    options = [
        *SMALL,
        "--data",
        args.data,
        "--epochs",
        str(args.epochs),
        f"train.eval_every={args.epochs}",
        *args.train,
    ]
    for seed in range(args.seeds):
        for arm in args.arms:
            train(args.out, arm, seed, options)
    text = table({arm: [numbers(folder(args.out, arm, seed)) for seed in range(args.seeds)] for arm in args.arms})
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
