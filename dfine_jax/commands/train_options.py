"""What can be wrong with the options of ``dfine train``, told before data are read and jax is loaded."""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path

from dfine_jax.commands.early import check_recipe, require_data, require_model
from dfine_jax.commands.train_card import check_card
from dfine_jax.commands.train_plan import is_file, is_plan, parse_size
from dfine_jax.commands.train_resume import check_changes
from dfine_jax.errors import UserError


def name_folder(options: argparse.Namespace) -> list[str]:
    """Give a run without ``--out`` a folder of its own, ``runs/RECIPE``; a line says which, if it was not given.

    Raises:
      UserError: a run is to be continued, or several hosts are to share the folder, and nothing says which.
    """
    if options.out is not None:
        return []
    recipe = re.sub(r"\.(?:py|json)(:?)", lambda match: "-" * len(match[1]), Path(options.recipe).name)
    first = Path("runs") / recipe
    if options.resume:
        raise UserError(f"--resume: give the folder of the run to continue, such as --out {_latest(first)}")
    if options.processes is not None:
        raise UserError(f"several hosts write into one folder: give the same --out on each, such as --out {first}")
    following = (first.with_name(f"{recipe}-{number}") for number in itertools.count(2))
    options.out = next(folder for folder in itertools.chain([first], following) if not folder.exists())
    return [f"folder of the run: {options.out} (--out DIR for another one)"]


def _latest(first: Path) -> Path:
    """Of the folders that ``name_folder`` gives, the last that can be continued; the first where none can be."""
    beside = first.parent.iterdir() if first.parent.is_dir() else ()
    numbers = {folder: re.fullmatch(rf"{re.escape(first.name)}(?:-(\d+))?", folder.name) for folder in beside}
    runs = [(int(match[1] or 1), folder) for folder, match in numbers.items() if match and (folder / "last").is_dir()]
    return max(runs, default=(0, first))[1]


def check_options(options: argparse.Namespace) -> None:
    """Values make sense and belong together, and what they name is there.

    Raises:
      UserError: one does not.
    """
    if options.resume:
        check_changes(options)
    for name, value in (("--epochs", options.epochs), ("--batch-size", options.batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value} must be at least 1")
    size_px = parse_size(options.size) if options.size else None
    if not is_file(options.recipe):
        check_recipe(options.recipe, size_px, options.overrides, options.task)
    elif not Path(re.sub(r"(?<=\.py):.*", "", options.recipe)).is_file():
        raise UserError(f"{options.recipe} does not exist; give a variant such as n, or an experiment file or plan")
    if options.weights:
        require_model(options.weights, exported=False)
    if options.resume and not options.out.exists():
        raise UserError(f"--resume: {options.out} does not exist, so there is no run to continue")
    if options.card:
        check_card(options.card, dry_run=options.dry_run)
    if options.max_hours is not None and not options.max_hours > 0:
        raise UserError(f"--max-hours {options.max_hours:g} must be above 0")
    if options.weights and options.backbone:
        raise UserError("--weights has a backbone of its own; leave out --backbone")
    if options.activation and not options.weights:
        raise UserError("--activation is for the file given with --weights")
    if options.method and is_file(options.recipe):
        raise UserError(f"{options.recipe} says itself whose recipe it is; leave out --method")
    if options.task and is_file(options.recipe):
        raise UserError(f"{options.recipe} says itself what its model does; leave out --task")
    together = [options.coordinator, options.processes, options.process]
    if None in together and together != [None] * 3:
        raise UserError("--coordinator, --processes and --process are given together or not at all")
    of_variant = " of a variant" if is_plan(options.recipe) else ""
    derived_from = {
        "train.epochs": f"--epochs N{of_variant}",
        "train.batch_size": f"--batch-size N{of_variant}",
        "data.height_px": "--size HxW",
        "data.width_px": "--size HxW",
    }
    for text in options.overrides:
        key = text.partition("=")[0].strip()
        if key in derived_from:
            alone = f", or change it alone in {options.recipe}" if is_file(options.recipe) else ""
            raise UserError(f"{text}: rates and schedules follow this value; give it as {derived_from[key]}{alone}")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is a file; give a folder for the run")
    require_data(options.data)
