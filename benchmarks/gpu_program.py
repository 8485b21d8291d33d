"""Programs for graphics cards, compiled without one: memory, launches, library calls, copies, float64, collectives.

    python benchmarks/gpu_program.py --variants s n --cards h100 a100 t4 rtx3090 rtx4090 --precisions bfloat16 float32
    python benchmarks/gpu_program.py --variants s --program predict --batch 1
    python benchmarks/gpu_program.py --variants s --devices 8
    python benchmarks/gpu_program.py --variants s x --task segment --slots 100
    python benchmarks/gpu_program.py --variants rfdetr-nano rfdetr-medium --batches 4 --remat backbone decoder

Needs ``pip install -e '.[cuda]'``, but no card: each program is compiled from a description of the card (minutes
on two cores) and not run, so there are no times here. Which of several equal kernels a real card takes is found by
trying them there, so the mix of kinds may differ a little; memory and the number of operations hardly depend on it.
Matching is on the device (``loss.assignment=device``), because SciPy's is a call to the host.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfine_jax import families
from dfine_jax.config import Config, DataConfig, TrainConfig
from dfine_jax.errors import UserError
from dfine_jax.training.plan.cards import CARDS
from dfine_jax.training.plan.on_card import Answer, Question, fits, measure

_MIB = 1 << 20


def row(answer: Answer) -> str:
    counts = answer.launches
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.kinds.items(), key=lambda item: -item[1]))
    calls = ", ".join(f"{number} {name}" for name, number in sorted(counts.calls.items(), key=lambda item: -item[1]))
    return (
        f"  {answer.peak_bytes / _MIB:.0f} MiB of {answer.memory_bytes / _MIB:.0f}, temporaries "
        f"{answer.temporary_bytes / _MIB:.0f}; {'fits' if fits(answer) else 'does not fit'}\n"
        f"  {counts.total} launches ({kinds}), {counts.in_loops} in a turn of loops; {counts.large_copies} copies of "
        f"1 MiB and more\n"
        f"  calls: {calls}\n"
        f"  float64 {counts.float64}, host {counts.host}, collectives {counts.collectives or 'none'}; "
        f"compiled in {answer.compile_seconds:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["s"])
    parser.add_argument("--cards", nargs="+", default=["h100"], choices=list(CARDS))
    parser.add_argument("--precisions", nargs="+", default=["bfloat16"], choices=["bfloat16", "float32"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8], help="images of a device")
    parser.add_argument("--size", type=int, help="side of the input; default: what the variant is published for")
    parser.add_argument("--remat", nargs="*", default=[], help="parts computed again backwards: backbone, decoder, ...")
    parser.add_argument("--slots", type=int, default=20, help="ground-truth boxes per image")
    parser.add_argument("--task", choices=["detect", "segment"], help="default: that of the variant")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--program", default="train", choices=["train", "predict"])
    parser.add_argument("--out", type=Path, help="append answers as lines of JSON")
    args = parser.parse_args()
    for variant, precision, card, batch in itertools.product(args.variants, args.precisions, args.cards, args.batches):
        family, name = families.of_recipe(variant)
        model = family.variants[name]
        model = dataclasses.replace(family.tasks[args.task](model) if args.task else model, precision=precision)
        height_px, width_px = (args.size, args.size) if args.size else family.size_px(model)
        train = TrainConfig(remat=tuple(args.remat))
        config = Config(model, family.Loss(), data=DataConfig(height_px=height_px, width_px=width_px), train=train)
        question = Question(config, card, batch, args.slots, args.devices, args.program)
        again = f", again: {' '.join(args.remat)}" if args.remat else ""
        what = f"{args.program} {families.title(model)} {height_px}x{width_px} {precision}{again}"
        print(f"{what} batch {batch} of {args.slots} objects on {args.devices} {card}")
        try:
            answer = measure(question)
        except UserError as error:
            parser.exit(2, f"error: {error}\n")
        print(row(answer), flush=True)
        if args.out:
            line = {"variant": variant, "task": families.task(model), "precision": precision, "card": card}
            line |= {"batch": batch, "devices": args.devices, "program": args.program, "slots": args.slots}
            line |= {"height_px": height_px, "width_px": width_px, "remat": args.remat}
            line |= dataclasses.asdict(answer)
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
