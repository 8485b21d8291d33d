"""Descriptions that were stored as JSON: one rule for checkpoints, plans and what runs keep about their progress.

A description has a number, its format. Every format that was ever written is read, older ones through ``_READERS``. A
change that older programs would misread gets a new number, and they say that a newer dfine_jax wrote the file; a field
that only adds something does not. So an unknown key is left out with a warning in what a newer version wrote, and is a
mistake, with the near names, in what this version or an older one wrote or somebody wrote by hand.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from dfine_jax import __version__
from dfine_jax.errors import UserError
from dfine_jax.system.config_values import Sections, from_dict, known_only

logger = logging.getLogger(__name__)

FORMAT = 2
_VERSION = "library_version"


def stamp() -> dict[str, Any]:
    """Entries of a new description that say how it is to be read."""
    return {"format": FORMAT, _VERSION: __version__}


def current(values: Any, where: object, *, unmarked: bool = False) -> dict[str, Any]:
    """A stored description in the form of today.

    Args:
      values: what the JSON holds.
      where: the file, for messages.
      unmarked: a description without a number is one of format 1 (plans had none).

    Raises:
      UserError: it is of a newer format, or no description.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} is not a description that dfine_jax stored: it holds a {type(values).__name__}")
    found = values.get("format", 1 if unmarked else None)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise UserError(f"{where} is not of format {FORMAT}; it was written by another program")
    if found > FORMAT:
        version = f" ({values[_VERSION]})" if isinstance(values.get(_VERSION), str) else ""
        raise UserError(
            f"{where} was written by a newer dfine_jax{version}: it is of format {found}, this version reads up to "
            f"{FORMAT}; upgrade dfine_jax"
        )
    for number in range(found, FORMAT):
        values = _READERS[number](values)
    return values


def build(
    cls: type, values: Mapping[str, Any], where: object, version: object, sections: Sections | None = None
) -> Any:
    """A dataclass from a part of a description.

    Args:
      version: ``library_version`` of the description, if it has one.
      sections: see ``config_values.from_dict``, for what holds a configuration.

    Raises:
      ConfigError: a key is missing or of another type, or unknown though no newer version wrote it.
    """
    kept = dict(values)
    if _is_newer(version):
        kept, unknown = known_only(cls, kept, sections=sections)
        if unknown:
            logger.warning(
                "%s was written by a newer dfine_jax (%s); left out what this version (%s) does not know: %s",
                where, version, __version__, ", ".join(unknown),
            )  # fmt: skip
    return from_dict(cls, kept, f"{where}: " if where else "", sections)


def version_of(values: Mapping[str, Any]) -> object:
    """The version that wrote a description, as far as it says so."""
    return values.get(_VERSION)


def _is_newer(version: object) -> bool:
    return isinstance(version, str) and _numbers(version) > _numbers(__version__)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:4])


_GONE = {"mask_stride"}  # nothing was trained by it
_AUGMENTS = {"dfine": "standard", "deim": "dense"}  # the first names were those of methods


def _from_1(values: dict[str, Any]) -> dict[str, Any]:
    """What files of format 1 have otherwise, some of them only early ones."""
    values = dict(values)
    progress = values.get("progress")
    if isinstance(progress, dict) and "summed_names" in progress:
        values["progress"] = {**progress, "summed_names": [_term_name(name) for name in progress["summed_names"]]}
    if isinstance(values.get("config"), dict):
        values["config"] = dict(values["config"])
    for section in (values, values.get("config")):
        if not isinstance(section, dict):
            continue
        loss, data = section.get("loss"), section.get("data")
        if isinstance(loss, dict) and "weight_vfl" in loss:
            section["loss"] = {"weight_class" if key == "weight_vfl" else key: value for key, value in loss.items()}
        if isinstance(data, dict):
            section["data"] = {
                k: _AUGMENTS.get(v, v) if k == "augment" else v for k, v in data.items() if k not in _GONE
            }
    values.pop("origin", None)  # of plans: what they were derived from
    return values


def _term_name(name: str) -> str:
    """``loss_giou_aux_0`` of format 1 is the loss term ``giou/aux_0``, ``loss_giou`` ``giou/last``."""
    kind, _, where = name.removeprefix("loss_").partition("_")
    return f"{kind}/{where or 'last'}" if name.startswith("loss_") else name


# To the next format.
_READERS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
