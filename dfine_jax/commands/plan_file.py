"""Plans as ``.json`` files: a configuration, and what it was derived from, so that it can be derived anew."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from dfine_jax import stored
from dfine_jax.config import Config
from dfine_jax.errors import UserError
from dfine_jax.files import read_json, write_whole
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

    A plan is data: nothing that it names is run or read.

    Raises:
      UserError: there is no such file, or it is not a plan, or one of a newer format.
    """
    if not Path(file).is_file():
        raise UserError(f"plan {file} does not exist; --save-plan writes one")
    values = read_json(file)
    if not isinstance(values, dict):
        raise UserError(f"{file} is not a plan written by --save-plan (it holds no sections of a configuration)")
    values = stored.current(values, file, unmarked=True)
    version = stored.version_of(values)
    origin = values.get(_ORIGIN)
    sections = {key: value for key, value in values.items() if key not in (_ORIGIN, *stored.stamp())}
    config = stored.build(Config, sections, file, version)
    if origin is not None and not isinstance(origin, dict):
        raise UserError(f"{file}: {_ORIGIN} must be a mapping, not {origin!r}")
    return config, None if origin is None else stored.build(Origin, origin, f"{file}: {_ORIGIN}", version)


def write_plan(file: Path, config: Config, origin: Origin | None) -> None:
    """Write what ``read_plan`` reads."""
    values = {**stored.stamp(), **dataclasses.asdict(config)}
    if origin:
        values[_ORIGIN] = dataclasses.asdict(origin)
    write_whole(file, json.dumps(values, indent=2) + "\n")
