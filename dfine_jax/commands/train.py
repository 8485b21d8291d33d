"""``dfine train``: train a variant or an experiment file on a folder of annotated images."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dfine_jax.commands.train_options import check_options, name_folder
from dfine_jax.commands.train_plan import plan, write_plan
from dfine_jax.commands.train_resume import resumed_config
from dfine_jax.errors import UserError
from dfine_jax.families import ACTIVATION_HELP, METHOD_HELP, TASKS

if TYPE_CHECKING:
    from dfine_jax.config import Config
    from dfine_jax.data.read.dataset import Dataset
    from dfine_jax.training.run.setup import StartWeights
    from dfine_jax.weights.load import LoadedModel


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``train`` to the command line."""
    parser = subparsers.add_parser(
        "train",
        help="train a detector on a dataset",
        description="Train a detector; the averaged weights are evaluated after each epoch and kept as DIR/best, the "
        "whole state as DIR/last. Values that follow from the data are printed before the first step.",
        epilog="examples:\n"
        "  dfine train n --data cells --out runs/cells --size 320x320 --epochs 60 --batch-size 8\n"
        "  dfine train s --data cells --out runs/cells --weights dfine-s-coco\n"
        "  dfine train rtdetrv2-r18 --data cells --out runs/cells --weights rtdetrv2-r18-coco\n"
        "  dfine train s --method deim --data cells --out runs/cells --backbone imagenet\n"
        "  dfine train s --task segment --method dfine-seg --data cells --out runs/cells --weights dfine-s-coco\n"
        "  dfine train experiments/deim_coco.py:m --data coco --out runs/m --backbone imagenet\n"
        "  dfine train n --data cells --out runs/cells optim.lr=4e-4 data.augment=none\n"
        "  dfine train n --data cells --out runs/cells --resume\n"
        "  dfine train n --data cells --out runs/cells --resume log.tensorboard=false",
    )
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="[FAMILY-]VARIANT, as in the examples (an unknown one is answered with all there are); an experiment file "
        "with get_config(), as FILE.py or FILE.py:VARIANT; a plan (.json)",
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="configuration values, such as optim.lr=2e-4")
    _add_files(parser)
    _add_run(parser)
    _add_hosts(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    run_options = parser.add_argument_group("run")
    run_options.add_argument(
        "--method",
        metavar="NAME",
        help=f"whose recipe, {METHOD_HELP} (default: that of the weights, else the family's)",
    )
    run_options.add_argument(
        "--task",
        choices=TASKS,
        help="what to train: boxes, or boxes and masks (default: that of the weights, else the variant's)",
    )
    run_options.add_argument(
        "--size", metavar="HxW", help="input size in pixels, multiples of the model's grid (default: that of --weights)"
    )
    run_options.add_argument(
        "--epochs", metavar="N", type=int, help="default: from the number of images; schedules follow, also a file's"
    )
    run_options.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        help="images per step over all devices (default: 8 on CPU, else the recipe's); rates follow, also a file's",
    )
    run_options.add_argument(
        "--augment",
        choices=("standard", "dense", "none"),
        help="augmentation, as data.augment=... (default: the recipe's)",
    )
    run_options.add_argument("--max-hours", metavar="H", type=float, help="stop in good order after this time")
    run_options.add_argument(
        "--no-export", dest="export", action="store_false",
        help="leave out the ONNX file that is made of the best weights at the end, where jax2onnx is installed",
    )  # fmt: skip
    run_options.add_argument("--save-plan", metavar="FILE", type=Path, help="write the configuration as .json")
    run_options.add_argument(
        "--dry-run",
        action="store_true",
        help="check all that can be checked without compiling, print the plan and end",
    )
    run_options.add_argument(
        "--for",
        dest="card",
        metavar="CARD",
        help="with --dry-run: compile the step for a graphics card that need not be there (t4, rtx3090, rtx4090, a100, "
        "a100-80, h100) and print what memory it takes and whether it fits; minutes, needs the extra cuda",
    )


def _add_files(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    files.add_argument(
        "--data", metavar="DIR", required=True, type=Path, help="dataset: folder or file (docs/data.md), or tfds:NAME"
    )
    files.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder of the run (default: runs/RECIPE, and where that is there runs/RECIPE-2 and so on)",
    )
    files.add_argument(
        "--weights", metavar="W", help="start from these: checkpoint, .pth, .safetensors, published name"
    )
    files.add_argument(
        "--activation",
        choices=("relu", "silu"),
        help=f"of the decoder of --weights, where the file does not say it: {ACTIVATION_HELP}",
    )
    files.add_argument(
        "--backbone", metavar="W", help="pretrained backbone: an official file, or imagenet to download it"
    )
    files.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out exactly where it stopped; key=value then only for what changes no result",
    )


def _add_hosts(parser: argparse.ArgumentParser) -> None:
    hosts = parser.add_argument_group("several hosts", "start the same command on each, with its own --process")
    hosts.add_argument("--coordinator", metavar="ADDRESS:PORT", help="of the machine with --process 0")
    hosts.add_argument("--processes", metavar="N", type=int, help="how many there are")
    hosts.add_argument("--process", metavar="I", type=int, help="which one this is, from 0")


def run(options: argparse.Namespace) -> int:
    """Train; the status is 0 also when the run was asked to stop and can be resumed."""
    told = name_folder(options)
    options.typed += ["--out", str(options.out)] if told else []  # the command that is kept says which run it is of
    check_options(options)
    from dfine_jax.data.read.sources import read_dataset

    if options.augment:
        options.overrides.insert(0, f"data.augment={options.augment}")
    train_data = read_dataset(options.data, "train")
    val_data, missing = _val_data(options, train_data)

    # Here and not above: mistakes in paths and options are told before jax takes its seconds to load.
    from dfine_jax.training.run import hosts

    if options.processes is not None:
        hosts.join(options.coordinator, options.processes, options.process)
    with hosts.EndingTogether():
        finished = _run(options, train_data, val_data, told, missing)
    if not options.dry_run and hosts.index() == 0:
        from dfine_jax.commands.train_export import export_best

        # Of several hosts the others would wait for this one.
        if note := export_best(options.out, wanted=finished and options.export and hosts.count() == 1):
            print(note)
    return 0


def _run(
    options: argparse.Namespace, train_data: Dataset, val_data: Dataset | None, told: list[str], missing: list[str]
) -> bool:
    """Train, and say how it ended; whether the run is finished.

    Args:
      told, missing: lines before and behind those of the plan.
    """
    from dfine_jax.training.report.run_page import Origin
    from dfine_jax.training.run.loop import train
    from dfine_jax.training.run.setup import check

    loaded = None
    if options.weights:
        from dfine_jax.weights.load import load_checkpoint

        loaded = load_checkpoint(options.weights, activation=options.activation)
    config, notes = resumed_config(options) if options.resume else plan(options, train_data, loaded)
    notes = [*told, *notes, *missing]
    check(config, train_data, val_data)
    if options.dry_run:
        _rehearse(config, options, loaded, train_data, val_data, notes)
    if options.save_plan:
        write_plan(options.save_plan, config)
    if options.dry_run:
        print("\n".join(notes))
        return False
    start = None if options.resume else start_weights(config, loaded, options.backbone, train_data, notes)
    result = train(
        config,
        train_data,
        val_data,
        options.out,
        resume=options.resume,
        start=start,
        notes=notes,
        max_hours=options.max_hours,
        kept_programs=options.kept_programs,
        origin=Origin(f"dfine {shlex.join(options.typed)}", _resume_command(options), str(options.data)),
    )
    if not result.finished:
        print(f"stopped; to continue: {_resume_command(options)}")
    elif result.best_ap >= 0:
        what = "mask AP" if result.metrics and result.metrics.masks and config.train.best_by == "masks" else "AP"
        print(f"done: {what} {result.best_ap:.3f} in epoch {result.best_epoch}, kept in {options.out / 'best'}")
        if result.best_ap > 0:  # else nothing is found at any threshold
            print("its best threshold is kept with it and is the default of dfine predict")
    else:
        print(f"done: weights in {options.out / 'last'}")
    return result.finished


def _rehearse(
    config: Config,
    options: argparse.Namespace,
    loaded: LoadedModel | None,
    train_data: Dataset,
    val_data: Dataset | None,
    notes: list[str],
) -> None:
    """What a run checks and says before it compiles; nothing is written, no weights are made."""
    import jax

    from dfine_jax.families import of
    from dfine_jax.training.run.checkpoint import load_training
    from dfine_jax.training.run.setup import check_same_data, claim, describe, make_loaders, opening_notes
    from dfine_jax.training.step.optimizer import make_optimizer
    from dfine_jax.training.step.state import TrainState, create_state

    if options.out.exists() and not options.resume:
        claim(options.out, False)
    loader, _ = make_loaders(config, train_data, val_data)
    key = jax.random.key(config.train.seed)

    def first_state() -> TrainState:
        start = None if options.resume else start_weights(config, loaded, options.backbone, train_data, notes)
        variables = start.variables if start else of(config.model).init(config.model, key)
        return create_state(variables, make_optimizer(config.model, config.optim), key)

    shapes = jax.eval_shape(first_state)
    done = 0
    if options.resume:
        state, stored, _ = load_training(options.out / "last", shapes)
        check_same_data(describe(config, train_data, None), stored, options.out)
        done = int(state.step) // loader.steps_per_epoch
    sizes_px = loader.sizes_px(config.train.epochs, done)
    notes += opening_notes(config, loader, shapes.params, sizes_px)
    if options.card:
        from dfine_jax.commands.train_card import card_notes

        notes += card_notes(config, options.card, sizes_px, loader.slots)


def _resume_command(options: argparse.Namespace) -> str:
    words = [options.recipe, "--data", options.data, "--out", options.out, "--resume"]
    given = [name for name in ("coordinator", "processes", "process") if getattr(options, name) is not None]
    words += [word for name in given for word in (f"--{name}", getattr(options, name))]
    return f"dfine train {shlex.join(map(str, words))}"


def _val_data(options: argparse.Namespace, train_data: Dataset) -> tuple[Dataset | None, list[str]]:
    """Validation images, or None and a line that says there are none."""
    from dfine_jax.data.read.dataset import check_same_categories
    from dfine_jax.data.read.layout import MissingSplitError
    from dfine_jax.data.read.sources import read_dataset

    try:
        val_data = read_dataset(options.data, "val")
    except MissingSplitError as error:
        return None, [f"{error}; training goes without evaluation, and without {options.out / 'best'}"]
    check_same_categories(train_data, val_data)
    return val_data, []


def start_weights(
    config: Config, loaded: LoadedModel | None, backbone: str | None, data: Dataset, notes: list[str]
) -> StartWeights | None:
    """The given weights, class-dependent rows matched by class name; what happened is added to ``notes``.

    Args:
      backbone: pretrained, a file or ``imagenet``, where there are no weights.

    Raises:
      UserError: frozen parts would start from nothing, or the weights cannot be had or do not fit.
    """
    from dfine_jax.families import of

    family = of(config.model)
    if not loaded and not backbone:
        frozen = [name for name in family.frozen if getattr(config.model, name)]
        if frozen:
            raise UserError(
                f"{' and '.join(f'model.{name}=true' for name in frozen)}: frozen parts need pretrained weights; give "
                "--backbone imagenet (what the published recipes start from), --backbone FILE or --weights, or set "
                + " ".join(f"model.{name}=false" for name in frozen)
            )
        name = f"{config.model.family}-{config.model.variant}-coco"
        cures = [f"--weights {name}"] * (name in family.published) + ["--backbone imagenet"] * bool(family.backbones)
        notes.append(f"all weights start from nothing; with {' or '.join(cures) or '--backbone FILE'} fewer epochs do")
        return None
    import jax

    from dfine_jax.training.run.setup import StartWeights
    from dfine_jax.weights.load import transfer, with_backbone

    fresh = family.init(config.model, jax.random.fold_in(jax.random.key(config.train.seed), 0))
    if loaded:
        moved = transfer(loaded, fresh, data.names, config.model)
        known = sum(origin is not None for origin in moved.origins.values())
        origin = loaded.metadata.source_file or "the checkpoint"
        notes.append(f"weights from {origin}: {known} of {len(data.names)} classes known by name")
        notes += moved.notes()
        return StartWeights(moved.variables, loaded.metadata)
    from dfine_jax.converters.torch.backbone import import_backbone
    from dfine_jax.weights.hub import fetch_backbone

    assert backbone is not None
    file = fetch_backbone(config.model) if backbone == "imagenet" else Path(backbone)
    variables = with_backbone(fresh, import_backbone(file, config.model))
    notes.append(f"backbone from {file.name}")
    return StartWeights(variables)
