"""The families of detectors by name: the only room that knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dfine_jax.config import Config, ConfigError, ModelSection, check_shared
from dfine_jax.errors import UserError
from dfine_jax.ops.grid import on_grid

if TYPE_CHECKING:
    from dfine_jax.families.family import Anchor, Family, Published

NAMES = ("dfine", "rtdetrv2", "rfdetr")
FIRST = NAMES[0]  # its variants need no family before them; of files written when it was the only one
# For the help of commands, which load no family.
ACTIVATION_HELP = "relu, or silu for DEIM"
TASKS = ("detect", "segment")
METHOD_HELP = "such as deim or dfine-seg"


def named(name: str) -> Family[Any, Any, Any, Any]:
    """The family of this name.

    Raises:
      UserError: there is none.
    """
    match name:
        case "dfine":
            from dfine_jax.families.dfine.family import DFINE

            return DFINE
        case "rtdetrv2":
            from dfine_jax.families.rtdetr.family import RTDETR

            return RTDETR
        case "rfdetr":
            from dfine_jax.families.rfdetr.family import RFDETR

            return RFDETR
        case _:
            raise UserError(f"unknown family {name!r}; there are {', '.join(NAMES)}")


def every() -> list[Family[Any, Any, Any, Any]]:
    """All families."""
    return [named(name) for name in NAMES]


def of(model: ModelSection) -> Family[Any, Any, Any, Any]:
    """The family of a model's configuration."""
    return named(model.family)


def sections(values: Mapping[str, Any]) -> dict[str, type]:
    """Classes of the sections ``model`` and ``loss`` of a stored configuration (``config_values.from_dict``)."""
    model = values.get("model")
    found = named(str(model.get("family", FIRST)) if isinstance(model, Mapping) else FIRST)
    return {"model": found.Model, "loss": found.Loss}


def of_recipe(name: str) -> tuple[Family[Any, Any, Any, Any], str]:
    """Family and variant of ``[family-]variant``.

    Raises:
      UserError: there is no such variant.
    """
    before = next((family for family in NAMES if name.startswith(f"{family}-")), "")
    found, variant = named(before or FIRST), name[len(before) + 1 :] if before else name
    if variant not in found.variants:
        raise UserError(f"unknown recipe {name!r}; choose one of {', '.join(recipes())} or a file with get_config()")
    return found, variant


def recipes() -> list[str]:
    """All names that ``of_recipe`` takes, without needless prefixes."""
    return [recipe_name(model) for own in every() for model in own.variants.values()]


def recipe_name(model: ModelSection) -> str:
    """The name of a model's variant, as ``of_recipe`` takes it."""
    return model.variant if model.family == FIRST else f"{model.family}-{model.variant}"


def published() -> dict[str, Published]:
    """Published detectors of all families, by name."""
    return {name: entry for own in every() for name, entry in own.published.items()}


def anchors() -> list[Anchor]:
    """Tensors by which the state dict of a detector is found."""
    return [form.anchor for own in every() for form in own.formats]


def smallest() -> ModelSection:
    """The model that checks and demonstrations take."""
    found = named(FIRST)
    return found.variants[found.smallest]


def task(model: ModelSection) -> str:
    """What a model does: ``detect``, or ``segment`` where it makes masks of the objects too."""
    return "detect" if of(model).mask_stride(model) is None else "segment"


def title(model: ModelSection) -> str:
    """A model's name for people."""
    segments = "-seg" if task(model) == "segment" and not model.variant.startswith("seg-") else ""
    return f"{of(model).title}{segments}-{model.variant.upper()}"


def validate(config: Config) -> None:
    """Check what types cannot: values, and that the input fits the model.

    Raises:
      ConfigError: a value makes no sense; the message names the key.
    """
    check_shared(config)
    own = of(config.model)
    own.check(config.model, config.loss)
    unknown = [part for part in config.train.remat if part not in own.parts]
    if unknown:
        raise ConfigError(f"train.remat={unknown[0]!r} is not one of {', '.join(map(repr, own.parts))}")
    for name in ("layer_decay", "component_decay"):
        if getattr(config.optim, name) != 1 and not own.layered:
            raise ConfigError(f"optim.{name}: {own.title} has no such rates; leave it at 1")
    grid_px = own.grid_px(config.model)
    for name in ("height_px", "width_px"):
        side = getattr(config.data, name)
        if side % grid_px:
            near = on_grid(side, grid_px)
            raise ConfigError(f"data.{name}={side} must be a multiple of {grid_px}, for example {near}")
