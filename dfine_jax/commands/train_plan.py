"""What ``dfine train`` will do: the configuration from a variant, a file or a plan, the data and the options."""

from __future__ import annotations

import argparse
import dataclasses
import json
import runpy
from pathlib import Path
from typing import TYPE_CHECKING

from dfine_jax.errors import UserError

if TYPE_CHECKING:
    from dfine_jax.config import Config
    from dfine_jax.data.dataset import Dataset
    from dfine_jax.training.recipes import Recipe
    from dfine_jax.weights import LoadedModel


def plan(options: argparse.Namespace, data: Dataset, loaded: LoadedModel | None) -> tuple[Config, list[str]]:
    """Configuration of a new run, and lines that show it: what was derived, what was given.

    Raises:
      UserError: the recipe, the file or a value is wrong.
    """
    from dfine_jax.config import override
    from dfine_jax.training.plan_text import plan_lines
    from dfine_jax.training.recipes import dense_windows

    from_file = is_file(options.recipe)
    recipe = _from_file(options, data) if from_file else _derived(options, data, loaded)
    config, reasons, given = recipe.config, dict(recipe.reasons), _given(options)
    if loaded:
        stored = loaded.metadata.config.model
        activations = {name: getattr(stored, name) for name in ("decoder_activation", "mlp_activation")}
        reasons |= dict.fromkeys((f"model.{name}" for name in activations), "as in the weights")
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **activations))
    before = config.data.augment
    config = override(config, options.overrides)
    if config.data.augment == "deim" != before:
        windows = {key: value for key, value in dense_windows(config).items() if key not in given}
        reasons |= dict.fromkeys(windows, "for data.augment=deim")
        config = override(config, [f"{key}={value}" for key, value in windows.items()])
    if config.model.num_classes != len(data.names):
        raise UserError(
            f"model.num_classes={config.model.num_classes}, but the data has {len(data.names)} classes; leave it out"
        )
    origin = "file" if from_file else "table"
    return config, [recipe.headline, *plan_lines(config, recipe.table, given, reasons, origin=origin)]


def is_file(recipe: str) -> bool:
    """Whether the recipe is an experiment file or a plan, and not a variant."""
    return ".py:" in recipe or recipe.endswith((".py", ".json"))


def _given(options: argparse.Namespace) -> set[str]:
    """Keys that the command line sets."""
    given = {text.partition("=")[0].strip() for text in options.overrides}
    if options.size:
        given |= {"data.height_px", "data.width_px"}
    for name in ("epochs", "batch_size"):
        if getattr(options, name):
            given.add(f"train.{name}")
    return given


def _derived(options: argparse.Namespace, data: Dataset, loaded: LoadedModel | None) -> Recipe:
    import jax

    from dfine_jax.training.recipes import default_config

    return default_config(
        options.recipe,
        len(data.names),
        len(data),
        method=options.method or (loaded.metadata.config.train.method if loaded else "dfine"),
        batch_size=options.batch_size,
        epochs=options.epochs,
        size_px=parse_size(options.size) if options.size else (640, 640),
        start="detector" if loaded else "backbone" if options.backbone else "nothing",
        accelerator=jax.default_backend() != "cpu",
        batch_multiple=jax.device_count(),
    )


def _from_file(options: argparse.Namespace, data: Dataset) -> Recipe:
    """The configuration of a file; with --epochs or --batch-size, scaled to them as a table would be."""
    from dfine_jax.training.recipes import Recipe, headline, rescaled

    path, _, variant = options.recipe.rpartition(".py:")
    file = f"{path}.py" if path else options.recipe
    table = _read(file, variant if path else None)
    table = dataclasses.replace(table, model=dataclasses.replace(table.model, num_classes=len(data.names)))
    config = table
    if options.epochs or options.batch_size:
        config = rescaled(table, len(data), epochs=options.epochs, batch_size=options.batch_size)
    if options.size:
        height_px, width_px = parse_size(options.size)
        size = dataclasses.replace(config.data, height_px=height_px, width_px=width_px)
        config = dataclasses.replace(config, data=size)
    return Recipe(config, table, headline(config, f"file {options.recipe}", len(data)), {})


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    """``640`` or ``480x640`` (height x width) as (height_px, width_px)."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"{option} {text}: write height x width in pixels, for example 640x640")
    return int(parts[0]), int(parts[-1])


def _read(file: str, variant: str | None) -> Config:
    from dfine_jax.config import Config, from_dict

    if not Path(file).is_file():
        raise UserError(f"experiment file {file} does not exist")
    if file.endswith(".json"):
        try:
            config = from_dict(Config, json.loads(Path(file).read_text()))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{file} is not a plan written by --save-plan ({error})") from error
    else:
        get_config = runpy.run_path(file).get("get_config")
        try:
            config = get_config(*([variant] if variant else [])) if callable(get_config) else None
        except (TypeError, ValueError) as error:
            raise UserError(f"{file}: get_config({variant or ''}) fails: {error}") from error
        if not isinstance(config, Config):
            raise UserError(f"{file} must define get_config() that returns a dfine_jax.config.Config")
    return config
