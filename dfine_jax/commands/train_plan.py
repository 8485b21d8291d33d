"""What ``dfine train`` will do: the configuration from a variant, a file or a plan, the data and the options.

A plan is a configuration in a ``.json`` file: data, taken as it is; nothing that it names is run or read.
"""

from __future__ import annotations

import argparse
import dataclasses
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfine_jax.config import Config
from dfine_jax.errors import UserError
from dfine_jax.families import sections
from dfine_jax.system import stored
from dfine_jax.system.config_values import override
from dfine_jax.system.files import read_json, write_whole

if TYPE_CHECKING:
    from dfine_jax.data.read.dataset import Dataset
    from dfine_jax.training.plan.recipes import Recipe
    from dfine_jax.weights.load import LoadedModel


def plan(options: argparse.Namespace, data: Dataset, loaded: LoadedModel | None) -> tuple[Config, list[str]]:
    """What the command line asks for, and lines that show what of it was derived and what was given.

    A recipe, then what the weights decide, then the values given.

    Raises:
      UserError: the recipe, the file or a value is wrong.
    """
    from dfine_jax.training.plan.plan_text import plan_lines
    from dfine_jax.training.plan.recipes import dense_windows

    recipe = _recipe(options, data, loaded)
    config, reasons = recipe.config, dict(recipe.reasons)
    given = {text.partition("=")[0].strip() for text in options.overrides}
    if loaded:
        _check_weights(config, options, given, loaded)
        config, decided = _as_in_weights(config, options, loaded)
        reasons |= dict.fromkeys(decided, "as in the weights")
    before = config.data.augment
    config = override(config, options.overrides)
    if config.data.augment == "dense" != before:
        windows = {key: value for key, value in dense_windows(config).items() if key not in given}
        config = override(config, [f"{key}={value}" for key, value in windows.items()])
        reasons |= dict.fromkeys(windows, "for data.augment=dense")
    if config.model.num_classes != len(data.names):
        raise UserError(
            f"model.num_classes={config.model.num_classes}, but the data has {len(data.names)} classes; leave it out"
        )
    given |= {"data.height_px", "data.width_px"} if options.size else set()
    given |= {f"train.{name}" for name in ("epochs", "batch_size") if getattr(options, name)}
    recipe = dataclasses.replace(recipe, config=config, reasons=reasons)
    return config, [recipe.headline, *plan_lines(recipe, given), *_warnings(config, len(data))]


def _warnings(config: Config, num_images: int) -> list[str]:
    """A line about a warm-up that outlasts the run."""
    from dfine_jax.data.load.plan import Sampling

    steps = config.train.epochs * Sampling(num_images, config.train.batch_size, 0, config.data).steps_per_epoch
    warmup = config.optim.warmup_steps
    if warmup < steps:
        return []
    cure = "a variant, --epochs or --batch-size fits it to the data"
    return [f"the rates never leave their warm-up: optim.warmup_steps={warmup} in a run of {steps} steps; {cure}"]


def is_file(recipe: str) -> bool:
    """Whether the recipe is an experiment file or a plan, and not a variant."""
    return ".py:" in recipe or recipe.endswith((".py", ".json"))


def is_plan(recipe: str) -> bool:
    """Whether the recipe is a plan."""
    return recipe.endswith(".json")


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    """``640`` or ``480x640`` (height x width) as (height_px, width_px)."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"{option} {text}: write height x width in pixels, for example 640x640")
    return int(parts[0]), int(parts[-1])


def read_plan(file: str) -> Config:
    """The configuration in a plan.

    Raises:
      UserError: there is no such file, or it is not a plan, or one of a newer format.
    """
    if not Path(file).is_file():
        raise UserError(f"plan {file} does not exist; --save-plan writes one")
    values = read_json(file)
    if not isinstance(values, dict):
        raise UserError(f"{file} is not a plan written by --save-plan (it holds no sections of a configuration)")
    values = stored.current(values, file, unmarked=True)
    parts = {key: value for key, value in values.items() if key not in stored.stamp()}
    return stored.build(Config, parts, file, stored.version_of(values), sections)


def write_plan(file: Path, config: Config) -> None:
    """Write what ``read_plan`` reads."""
    from dfine_jax.training.report.run_files import plan_text

    write_whole(file, plan_text(config))


def _recipe(options: argparse.Namespace, data: Dataset, loaded: LoadedModel | None) -> Recipe:
    """The configuration before weights and values given: derived for a variant, else that of a file."""
    import jax

    from dfine_jax.families import of, of_recipe, task
    from dfine_jax.training.plan.recipes import Recipe, default_config, headline, rescaled

    size_px = parse_size(options.size) if options.size else None
    of_weights = _of_weights(options.recipe, loaded)
    if not is_file(options.recipe):
        family, variant = of_recipe(options.recipe)
        own = of_weights.model if of_weights else family.variants[variant]
        return default_config(
            options.recipe,
            len(data.names),
            len(data),
            method=options.method or (of_weights.train.method if of_weights else ""),
            task=options.task or task(own),
            batch_size=options.batch_size,
            epochs=options.epochs,
            size_px=size_px,
            start="detector" if loaded else "backbone" if options.backbone else "nothing",
            accelerator=jax.default_backend() != "cpu" or options.card is not None,
            batch_multiple=jax.device_count(),
        )
    table = _of_plan(options) if is_plan(options.recipe) else _of_experiment(options.recipe)
    model = of(table.model).with_classes(table.model, len(data.names), data.names)
    config = table = dataclasses.replace(table, model=model)
    if options.epochs or options.batch_size:
        config = rescaled(table, len(data), epochs=options.epochs, batch_size=options.batch_size)
    if size_px:
        input_of = dataclasses.replace(config.data, height_px=size_px[0], width_px=size_px[1])
        config = dataclasses.replace(config, data=input_of)
    return Recipe(config, table, headline(config, f"file {options.recipe}", len(data)), {}, source="file")


def _of_weights(recipe: str, loaded: LoadedModel | None) -> Config | None:
    """The weights' configuration, if they are of the family of a variant."""
    from dfine_jax.families import of_recipe

    if loaded is None or is_file(recipe) or loaded.metadata.config.model.family != of_recipe(recipe)[0].name:
        return None
    return loaded.metadata.config


def _of_plan(options: argparse.Namespace) -> Config:
    from dfine_jax.families import recipe_name

    config = read_plan(options.recipe)
    values = {"--epochs": options.epochs, "--batch-size": options.batch_size}
    flags = [f"{name} {value}" for name, value in values.items() if value]
    if flags:
        name = recipe_name(config.model)
        raise UserError(
            f"{options.recipe} is a configuration, from which no other rates and schedules are derived; for "
            f"{' '.join(flags)}: dfine train {name} --method {config.train.method} {' '.join(flags)}, "
            "with what else the plan was given"
        )
    return config


def _of_experiment(recipe: str) -> Config:
    """What ``get_config()`` of an experiment file returns, or ``get_config(VARIANT)`` for FILE.py:VARIANT."""
    path, _, variant = recipe.rpartition(".py:")
    file = f"{path}.py" if path else recipe
    variants = [variant] if path else []
    if not Path(file).is_file():
        raise UserError(f"experiment file {file} does not exist")
    get_config = runpy.run_path(file).get("get_config")
    try:
        config = get_config(*variants) if callable(get_config) else None
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: get_config({''.join(variants)}) fails: {error}") from error
    if not isinstance(config, Config):
        raise UserError(f"{file} must define get_config() that returns a dfine_jax.config.Config")
    return config


def _as_in_weights(config: Config, options: argparse.Namespace, loaded: LoadedModel) -> tuple[Config, list[str]]:
    """With the architecture of the weights and, for a variant, their input; the keys of these.

    Fields that training adapts to are the weights' where they are those of the variant for the weights' task.
    The input of other programs' files is that of their model; ``--size`` decides the size.
    """
    from dfine_jax.families import of, task
    from dfine_jax.weights.load import bound_fields

    of_weights, family = loaded.metadata.config, of(config.model)
    table = family.tasks[task(of_weights.model)](family.variants.get(config.model.variant, config.model))
    kept = {name for name in family.adaptable if getattr(config.model, name) != getattr(table, name)}
    fields = {name: value for name, value in bound_fields(of_weights.model).items() if name not in kept}
    names = () if is_file(options.recipe) else ("resize", "border", "enlarge")
    names = names if options.size or not names else ("height_px", "width_px", *names)
    if names and of_weights.data.interpolation:  # else it is that of the recipe, or of the family
        names = (*names, "interpolation")
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **fields),
        data=dataclasses.replace(config.data, **{name: getattr(of_weights.data, name) for name in names}),
    )
    return config, [f"model.{name}" for name in fields] + [f"data.{name}" for name in names]


def _check_weights(recipe: Config, options: argparse.Namespace, given: set[str], loaded: LoadedModel) -> None:
    """What the recipe and the values given say of the architecture is what the weights say.

    Fields that have the value of the table of variants are the weights' to decide; what somebody has set is not changed
    behind their back.

    Raises:
      UserError: the variant, a field that was set, or a value given is another one; the message has both.
    """
    from dfine_jax.families import of, recipe_name
    from dfine_jax.weights.load import bound_fields

    stated = bound_fields(loaded.metadata.config.model)
    planned, family = bound_fields(recipe.model), of(recipe.model)
    ours, theirs = recipe_name(recipe.model), recipe_name(loaded.metadata.config.model)
    if ours != theirs:
        raise UserError(
            f"{options.recipe} is of variant {ours}, the weights are of variant {theirs}; train {theirs}, or give "
            f"weights of {ours}"
        )
    table = family.variants.get(recipe.model.variant, recipe.model)
    for name, value in planned.items():
        if value not in (stated[name], getattr(table, name)) and name not in family.of_method | family.adaptable:
            raise UserError(_contradiction(name, value, options.recipe, stated[name]))
    for name, value in bound_fields(override(recipe, options.overrides).model).items():
        if f"model.{name}" in given and value != stated[name] and name not in family.adaptable:
            raise UserError(_contradiction(name, value, "the command line", stated[name]))


def _contradiction(name: str, value: Any, where: str, stated: Any) -> str:
    field = f"model.{name}"
    return (
        f"{field} is {value!r} in {where}, but {stated!r} in the weights, which compute something else with another "
        f"value; leave {field} out, or give weights that have it"
    )
