"""``dfine train``: train a variant or an experiment file on a folder of annotated images."""

from __future__ import annotations

import argparse
import dataclasses
import runpy
from pathlib import Path
from typing import TYPE_CHECKING

from dfine_jax.errors import UserError

if TYPE_CHECKING:
    from dfine_jax.config import Config
    from dfine_jax.data.coco import Dataset
    from dfine_jax.training.loop import Start
    from dfine_jax.weights import LoadedModel


_CPU_BATCH_SIZE = 8


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``train`` to the command line."""
    parser = subparsers.add_parser(
        "train",
        help="train on a folder of images with COCO annotations",
        description="Train D-FINE; the averaged weights are evaluated after each epoch and kept as DIR/best, the whole "
        "state as DIR/last. Values that follow from the data are printed before the first step.",
        epilog="examples:\n"
        "  dfine train n --data cells --out runs/cells --size 320x320 --epochs 60 --batch-size 8\n"
        "  dfine train s --data cells --out runs/cells --weights dfine-s-coco\n"
        "  dfine train n --data cells --out runs/cells optim.lr=4e-4 data.augment=none\n"
        "  dfine train n --data cells --out runs/cells --resume",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="n, s, m, l, x, or an experiment file with get_config()")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="configuration values, such as optim.lr=2e-4")
    files = parser.add_argument_group("files")
    files.add_argument(
        "--data", metavar="DIR", required=True, type=Path, help="COCO or YOLO folder, data.yaml, or tfds:NAME"
    )
    files.add_argument("--out", metavar="DIR", required=True, type=Path, help="folder of the run")
    files.add_argument(
        "--weights", metavar="W", help="start from these: checkpoint, .pth, .safetensors, published name"
    )
    files.add_argument("--resume", action="store_true", help="continue the run in --out exactly where it stopped")
    run_options = parser.add_argument_group("run")
    run_options.add_argument("--size", metavar="HxW", help="input size in pixels, multiples of 32 (default: 640x640)")
    run_options.add_argument("--epochs", metavar="N", type=int, help="default: the recipe's")
    run_options.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        help="images per step over all devices (default: 8 on CPU, else the recipe's)",
    )


def run(options: argparse.Namespace) -> int:
    """Train; the status is 0 also when the run was asked to stop and can be resumed."""
    from dfine_jax.data.dataset import check_same_categories
    from dfine_jax.data.sources import read_dataset

    _check_options(options)
    train_data = read_dataset(options.data, "train")
    val_data = read_dataset(options.data, "val")
    check_same_categories(train_data, val_data)

    # Here and not above: mistakes in paths and options are told before jax takes its seconds to load.
    from dfine_jax.host_memory import keep_freed_memory
    from dfine_jax.training.loop import train

    keep_freed_memory()
    stored = _stored_config(options) if options.resume else None
    loaded = None
    if options.weights:
        from dfine_jax.weights import load_checkpoint

        loaded = load_checkpoint(options.weights)
    config, notes = (stored, []) if stored else plan(options, train_data, loaded)
    start = start_weights(config, loaded, train_data, notes) if loaded else None
    result = train(config, train_data, val_data, options.out, resume=options.resume, start=start, notes=notes)
    if not result.finished:
        print(f"stopped; the same command with --resume continues ({options.out / 'last'})")
    elif result.best_ap >= 0:
        print(f"done: AP {result.best_ap:.3f} in epoch {result.best_epoch}, kept in {options.out / 'best'}")
    return 0


def plan(options: argparse.Namespace, data: Dataset, loaded: LoadedModel | None) -> tuple[Config, list[str]]:
    """Configuration of a new run, and a line for each value that was derived."""
    from dfine_jax.config import override
    from dfine_jax.training.recipes import default_config

    size = parse_size(options.size) if options.size else None
    classes = len(data.names)
    if Path(options.recipe).suffix == ".py":
        config, notes = _experiment(options.recipe, classes), []
        if size:
            config = dataclasses.replace(
                config, data=dataclasses.replace(config.data, height_px=size[0], width_px=size[1])
            )
        changes = {"epochs": options.epochs, "batch_size": options.batch_size}
        changes = {name: value for name, value in changes.items() if value is not None}
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))
    else:
        config, notes = default_config(
            options.recipe,
            classes,
            len(data),
            batch_size=options.batch_size or _default_batch_size(),
            epochs=options.epochs,
            size_px=size or (640, 640),
            from_scratch=loaded is None,
        )
    if loaded:
        stored = loaded.metadata.config.model
        activations = {name: getattr(stored, name) for name in ("decoder_activation", "mlp_activation")}
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **activations))
    config = override(config, options.overrides)
    if config.model.num_classes != classes:
        raise UserError(
            f"model.num_classes={config.model.num_classes}, but the data has {classes} classes; leave it out"
        )
    return config, notes


def _check_options(options: argparse.Namespace) -> None:
    for name, value in (("--epochs", options.epochs), ("--batch-size", options.batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value} must be at least 1")
    if options.size:
        parse_size(options.size)
    derived_from = {
        "train.epochs": "--epochs N",
        "train.batch_size": "--batch-size N",
        "data.height_px": "--size HxW",
        "data.width_px": "--size HxW",
    }
    for text in options.overrides:
        key = text.partition("=")[0].strip()
        if key in derived_from:
            raise UserError(f"{text}: rates and schedules depend on this value; give it as {derived_from[key]}")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is a file; give a folder for the run")


def start_weights(config: Config, loaded: LoadedModel, data: Dataset, notes: list[str]) -> Start:
    """The given weights, class-dependent rows matched by class name; what happened is added to ``notes``."""
    import jax

    from dfine_jax.models.dfine import init_variables
    from dfine_jax.training.loop import Start
    from dfine_jax.weights import transfer

    key = jax.random.fold_in(jax.random.key(config.train.seed), 0)
    moved = transfer(loaded, init_variables(config.model, key), data.names)
    origin = loaded.metadata.source_file or "the checkpoint"
    notes.append(f"weights from {origin}: {len(moved.copied)} of {len(data.names)} classes known by name")
    if moved.fresh:
        notes.append(f"classes that start anew: {', '.join(moved.fresh[:10])}{' …' if len(moved.fresh) > 10 else ''}")
    return Start(moved.variables, loaded.metadata)


def parse_size(text: str) -> tuple[int, int]:
    """``640`` or ``480x640`` (height x width) as (height_px, width_px)."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"--size {text}: write height x width in pixels, for example 640x640")
    return int(parts[0]), int(parts[-1])


def _stored_config(options: argparse.Namespace) -> Config:
    """Configuration of the run to resume; nothing that shapes the run can be given again."""
    from dfine_jax.training.checkpoint import load_metadata, replaced_path

    given = [
        f"--{name.replace('_', '-')}" for name in ("weights", "size", "epochs", "batch_size") if getattr(options, name)
    ]
    given += list(options.overrides)
    if given:
        raise UserError(f"--resume continues with the settings of the run; leave out {', '.join(given)}")
    last = options.out / "last"
    if not any((path / "metadata.json").is_file() for path in (last, replaced_path(last))):
        raise UserError(f"{options.out} holds no run to resume; leave out --resume to start one")
    config = load_metadata(last).config
    if Path(options.recipe).suffix != ".py" and options.recipe != config.model.variant:
        raise UserError(f"the run in {options.out} is of variant {config.model.variant}, not {options.recipe}")
    return config


def _default_batch_size() -> int | None:
    """A batch that fits the memory of a common computer without accelerator; otherwise the recipe's."""
    import jax

    return _CPU_BATCH_SIZE if jax.default_backend() == "cpu" else None


def _experiment(file: str, classes: int) -> Config:
    from dfine_jax.config import Config

    if not Path(file).is_file():
        raise UserError(f"experiment file {file} does not exist")
    get_config = runpy.run_path(file).get("get_config")
    config = get_config() if callable(get_config) else None
    if not isinstance(config, Config):
        raise UserError(f"{file} must define get_config() that returns a dfine_jax.config.Config")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=classes))
