"""Plans as ``.json`` files: a configuration, and what it was derived from, so that it can be derived anew."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from dfine_jax.config import Config, from_dict
from dfine_jax.errors import UserError
from dfine_jax.training.recipes import Method, Start

_ORIGIN = "origin"  # beside the sections of the configuration


@dataclasses.dataclass(frozen=True)
class Origin:
    """All that a configuration follows from, apart from the number of classes."""

    recipe: str  # variant, or experiment file as it was given
    num_images: int
    devices: int = 1
    accelerator: bool = False
    method: Method | None = None  # None: that of the file
    start: Start | None = None
    epochs: int | None = None  # as given, like all below
    batch_size: int | None = None
    size_px: tuple[int, ...] = ()  # height, width
    as_in_weights: tuple[str, ...] = ()  # assignments: what is taken from the weights to start from
    overrides: tuple[str, ...] = ()  # assignments


def read_plan(file: str) -> tuple[Config, Origin | None]:
    """The configuration and its origin, which hand-written files and those of early versions do not tell.

    Raises:
      UserError: there is no such file, or it is not a plan.
    """
    if not Path(file).is_file():
        raise UserError(f"plan {file} does not exist; --save-plan writes one")
    try:
        values = json.loads(Path(file).read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is not a plan written by --save-plan ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} is not a plan written by --save-plan (it holds no sections of a configuration)")
    origin = values.pop(_ORIGIN, None)
    return from_dict(Config, values), None if origin is None else from_dict(Origin, origin, f"{_ORIGIN}.")


def write_plan(file: Path, config: Config, origin: Origin | None) -> None:
    """Write what ``read_plan`` reads."""
    values = dataclasses.asdict(config)
    if origin:
        values[_ORIGIN] = dataclasses.asdict(origin)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=2) + "\n")
