"""What ``dfine train`` will do: the configuration from a variant, a file or a plan, the data and the options."""

from __future__ import annotations

import argparse
import dataclasses
import json
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dfine_jax.errors import UserError

if TYPE_CHECKING:
    from dfine_jax.commands.plan_file import Origin
    from dfine_jax.config import Config
    from dfine_jax.data.dataset import Dataset
    from dfine_jax.training.recipes import Recipe
    from dfine_jax.weights import LoadedModel


class _Found(NamedTuple):
    """A configuration on the way to a plan."""

    recipe: Recipe
    origin: Origin | None
    given: set[str]  # keys
    table: str = "file"  # what to call what it was derived from
    notes: tuple[str, ...] = ()


class Plan(NamedTuple):
    """A new run."""

    config: Config
    notes: list[str]  # lines that show it: what was derived, what was given
    origin: Origin | None  # what to store with it; None: not known


def plan(options: argparse.Namespace, data: Dataset, loaded: LoadedModel | None) -> Plan:
    """What the command line asks for.

    Raises:
      UserError: the recipe, the file or a value is wrong.
    """
    from dfine_jax.training.plan_text import plan_lines
    from dfine_jax.weights import check_same_architecture

    asked = _asked(options, data, loaded)
    if options.recipe.endswith(".json"):
        found = _from_plan(asked, len(data.names), loaded)
    else:
        found = _found(asked, len(data.names), loaded)
    recipe, config = found.recipe, found.recipe.config
    if loaded:
        check_same_architecture(loaded.metadata.config.model, config.model)
    if config.model.num_classes != len(data.names):
        raise UserError(
            f"model.num_classes={config.model.num_classes}, but the data has {len(data.names)} classes; leave it out"
        )
    lines = plan_lines(config, recipe.table, found.given, recipe.reasons, origin=found.table)
    lines += _warnings(config, len(data))
    return Plan(config, [recipe.headline, *found.notes, *lines], found.origin)


def _warnings(config: Config, num_images: int) -> list[str]:
    """What can hardly be meant."""
    from dfine_jax.data.plan import Sampling

    steps = config.train.epochs * Sampling(num_images, config.train.batch_size, 0, config.data).steps_per_epoch
    warmup = config.optim.warmup_steps
    if warmup < steps:
        return []
    cure = "a variant (n, s, m, l, x), --epochs or --batch-size fits it to the data"
    return [f"the rates never leave their warm-up: optim.warmup_steps={warmup} in a run of {steps} steps; {cure}"]


def is_file(recipe: str) -> bool:
    """Whether the recipe is an experiment file or a plan, and not a variant."""
    return ".py:" in recipe or recipe.endswith((".py", ".json"))


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    """``640`` or ``480x640`` (height x width) as (height_px, width_px)."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"{option} {text}: write height x width in pixels, for example 640x640")
    return int(parts[0]), int(parts[-1])


def _asked(options: argparse.Namespace, data: Dataset, loaded: LoadedModel | None) -> Origin:
    """The command line, the data and the machine as the origin of a configuration."""
    import jax

    from dfine_jax.commands.plan_file import Origin

    file = is_file(options.recipe)
    as_in_weights = _as_in_weights(loaded, input_too=not file) if loaded else ()
    method = options.method or (loaded.metadata.config.train.method if loaded else "dfine")
    return Origin(
        options.recipe,
        len(data),
        devices=jax.device_count(),
        accelerator=jax.default_backend() != "cpu" or options.card is not None,
        method=None if file else method,
        start=None if file else "detector" if loaded else "backbone" if options.backbone else "nothing",
        epochs=options.epochs,
        batch_size=options.batch_size,
        size_px=parse_size(options.size) if options.size else (),
        as_in_weights=as_in_weights,
        overrides=tuple(options.overrides),
    )


def _as_in_weights(loaded: LoadedModel, *, input_too: bool) -> tuple[str, ...]:
    """Assignments: the architecture, and size and resizing of the input (640x640 for other programs' files)."""
    from dfine_jax.weights import bound_fields

    data = loaded.metadata.config.data
    fields = bound_fields(loaded.metadata.config.model)
    values = [f"model.{name}={json.dumps(value)}" for name, value in fields.items()]
    if input_too:
        values += [f"data.{name}={getattr(data, name)}" for name in ("height_px", "width_px", "resize")]
    return tuple(values)


def _check_weights(recipe: Config, asked: Origin, loaded: LoadedModel, derived: Iterable[str] = ()) -> None:
    """What the recipe and the values given say of the architecture is what the weights say.

    Fields that a table of variants decides, and those that a plan took from weights (``derived``), are the weights' to
    decide; what somebody has set is not changed behind their back.

    Raises:
      UserError: the variant, a field that was set, or a value given is another one; the message has both.
    """
    from dfine_jax.config import override
    from dfine_jax.variants import VARIANTS
    from dfine_jax.weights import bound_fields

    stored = bound_fields(loaded.metadata.config.model)
    planned = bound_fields(recipe.model)
    if planned["variant"] != stored["variant"]:
        raise UserError(
            f"{asked.recipe} is of variant {planned['variant']}, the weights are of variant {stored['variant']}; train "
            f"{stored['variant']}, or give weights of {planned['variant']}"
        )
    table = VARIANTS.get(recipe.model.variant, recipe.model)
    activations = ("decoder_activation", "mlp_activation")  # of the method, in experiment files
    for name, value in planned.items():
        if value not in (stored[name], getattr(table, name)) and name not in (*activations, *derived):
            raise UserError(_contradiction(f"model.{name}", value, asked.recipe, stored[name]))
    given = bound_fields(override(recipe, asked.overrides).model)
    for section, _, name in (_key(text).partition(".") for text in asked.overrides):
        if section == "model" and name in stored and given[name] != stored[name]:
            raise UserError(_contradiction(f"model.{name}", given[name], "the command line", stored[name]))


def _contradiction(field: str, value: object, where: str, stored: object) -> str:
    return (
        f"{field} is {value!r} in {where}, but {stored!r} in the weights, which compute something else with another "
        f"value; leave {field} out, or give weights that have it"
    )


def _found(origin: Origin, num_classes: int, loaded: LoadedModel | None = None) -> _Found:
    recipe = _derive(origin, num_classes, loaded)
    return _Found(recipe, origin, _given(origin), "file" if is_file(origin.recipe) else "table")


def _from_plan(asked: Origin, num_classes: int, loaded: LoadedModel | None) -> _Found:
    """A plan as it is, or, with --epochs or --batch-size, derived anew from its origin."""
    from dfine_jax.commands.plan_file import read_plan
    from dfine_jax.training.recipes import Recipe, headline

    file = asked.recipe
    stored, origin = read_plan(file)
    stored = dataclasses.replace(stored, model=dataclasses.replace(stored.model, num_classes=num_classes))
    if loaded:
        derived = [_key(text).removeprefix("model.") for text in origin.as_in_weights] if origin else []
        _check_weights(stored, asked, loaded, derived)
    both = origin and dataclasses.replace(
        origin,
        size_px=asked.size_px or origin.size_px,
        as_in_weights=origin.as_in_weights + asked.as_in_weights,
        overrides=origin.overrides + asked.overrides,
    )
    options = {"--epochs": asked.epochs, "--batch-size": asked.batch_size}
    flags = " and ".join(name for name, value in options.items() if value)
    if flags:
        _check_origin(file, stored, origin, flags)
        assert both is not None
        both = dataclasses.replace(
            both,
            num_images=asked.num_images,
            devices=asked.devices,
            epochs=asked.epochs or both.epochs,
            batch_size=asked.batch_size or both.batch_size,
        )
        return _found(both, num_classes)._replace(notes=(f"{file} is derived anew from {both.recipe} for {flags}",))
    config = _sized(stored, asked.size_px)
    recipe = Recipe(config, stored, headline(config, f"file {file}", asked.num_images), {})
    recipe = _changed(recipe, asked.as_in_weights, asked.overrides)
    if origin and origin.num_images != asked.num_images:
        note = f"{file} was derived for {origin.num_images} images; --epochs or --batch-size derives it anew"
        return _Found(recipe, both, _given(asked), notes=(note,))
    return _Found(recipe, both, _given(asked))


def _check_origin(file: str, stored: Config, origin: Origin | None, flags: str) -> None:
    """The plan is what its origin gives."""
    from dfine_jax.training.plan_text import differing
    from dfine_jax.variants import VARIANTS

    if origin is None:
        raise UserError(
            f"{file} does not say what it was derived from, so {flags} cannot derive it anew; give {flags} with the "
            "recipe it came from, or write the values into the file"
        )
    cure = f"give {flags} to: dfine train {origin.recipe}"
    if origin.recipe not in VARIANTS:
        raise UserError(
            f"{file} was made from {origin.recipe}, which a plan does not run, so {flags} cannot derive it anew; {cure}"
        )
    names = sorted(differing(stored, _derive(origin, stored.model.num_classes).config))
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(
            f"{file} is not what {origin.recipe} gives ({', '.join(names[:3])}{more}): changed by hand, or derived by "
            f"another version; {cure}, with such values as section.key=value"
        )


def _derive(origin: Origin, num_classes: int, loaded: LoadedModel | None = None) -> Recipe:
    """The configuration that follows from an origin, which the weights to start from do not contradict."""
    from dfine_jax.training.recipes import default_config

    if is_file(origin.recipe):
        recipe = _of_file(origin, num_classes)
    else:
        recipe = default_config(
            origin.recipe,
            num_classes,
            origin.num_images,
            method=origin.method or "dfine",
            batch_size=origin.batch_size,
            epochs=origin.epochs,
            size_px=(origin.size_px[0], origin.size_px[1]) if origin.size_px else (640, 640),
            start=origin.start or "nothing",
            accelerator=origin.accelerator,
            batch_multiple=origin.devices,
        )
    if loaded:
        _check_weights(recipe.config, origin, loaded)
    as_in_weights = origin.as_in_weights
    if origin.size_px:
        as_in_weights = tuple(text for text in as_in_weights if _key(text) not in ("data.height_px", "data.width_px"))
    return _changed(recipe, as_in_weights, origin.overrides)


def _of_file(origin: Origin, num_classes: int) -> Recipe:
    """The configuration of an experiment file; with epochs or a batch size, scaled to them as a table would be."""
    from dfine_jax.training.recipes import Recipe, headline, rescaled

    table = _read(*_parts(origin.recipe))
    table = dataclasses.replace(table, model=dataclasses.replace(table.model, num_classes=num_classes))
    config = table
    if origin.epochs or origin.batch_size:
        config = rescaled(table, origin.num_images, epochs=origin.epochs, batch_size=origin.batch_size)
    config = _sized(config, origin.size_px)
    return Recipe(config, table, headline(config, f"file {origin.recipe}", origin.num_images), {})


def _sized(config: Config, size_px: tuple[int, ...]) -> Config:
    if not size_px:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, height_px=size_px[0], width_px=size_px[1]))


def _changed(recipe: Recipe, as_in_weights: Iterable[str], overrides: Iterable[str]) -> Recipe:
    """With what is taken from the weights, then the values given; mosaic that is given gets its epochs."""
    from dfine_jax.config import override
    from dfine_jax.training.recipes import dense_windows

    as_in_weights, overrides = list(as_in_weights), list(overrides)
    reasons = recipe.reasons | dict.fromkeys(map(_key, as_in_weights), "as in the weights")
    config = override(recipe.config, as_in_weights)
    before = config.data.augment
    config = override(config, overrides)
    if config.data.augment == "deim" != before:
        given = set(map(_key, overrides))
        windows = {key: value for key, value in dense_windows(config).items() if key not in given}
        reasons |= dict.fromkeys(windows, "for data.augment=deim")
        config = override(config, [f"{key}={value}" for key, value in windows.items()])
    return dataclasses.replace(recipe, config=config, reasons=reasons)


def _given(origin: Origin) -> set[str]:
    """Keys that were given and not derived."""
    given = set(map(_key, origin.overrides))
    if origin.size_px:
        given |= {"data.height_px", "data.width_px"}
    return given | {f"train.{name}" for name in ("epochs", "batch_size") if getattr(origin, name)}


def _key(assignment: str) -> str:
    return assignment.partition("=")[0].strip()


def _parts(recipe: str) -> tuple[str, str | None]:
    """Experiment file, and the variant asked of it, if any."""
    path, _, variant = recipe.rpartition(".py:")
    return (f"{path}.py", variant) if path else (recipe, None)


def _read(file: str, variant: str | None) -> Config:
    from dfine_jax.config import Config

    if not Path(file).is_file():
        raise UserError(f"experiment file {file} does not exist")
    get_config = runpy.run_path(file).get("get_config")
    try:
        config = get_config(*([variant] if variant else [])) if callable(get_config) else None
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: get_config({variant or ''}) fails: {error}") from error
    if not isinstance(config, Config):
        raise UserError(f"{file} must define get_config() that returns a dfine_jax.config.Config")
    return config
