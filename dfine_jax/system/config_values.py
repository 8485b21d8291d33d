"""Configurations from plain values and from ``section.key=value``, with near names for unknown keys."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from dfine_jax.config import Config, ConfigError

Sections = Callable[[Mapping[str, Any]], Mapping[str, type]]  # classes of the sections that a family decides


def from_dict(cls: type, values: dict[str, Any], where: str = "", sections: Sections | None = None) -> Any:
    """Build a configuration dataclass from plain values.

    Args:
      where: before the names of keys, in messages.
      sections: of the values of a ``Config``, wherever it is met: classes of its sections ``model`` and ``loss``.

    Raises:
      ConfigError: a key is unknown, missing or of another type.
    """
    hints = _hints(cls, values, sections)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"unknown configuration key {where + unknown[0]!r}{_near(unknown[0], fields)}")
    out = {}
    for name, field in fields.items():
        if name in values:
            out[name] = _coerce(hints[name], values[name], where + name, sections)
        elif field.default is dataclasses.MISSING and not _all_default(hints[name]):
            raise ConfigError(f"configuration key {where + name!r} is missing")
        elif field.default is dataclasses.MISSING:
            out[name] = hints[name]()
    return cls(**out)


def _hints(cls: type, values: Mapping[str, Any], sections: Sections | None) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return hints | dict(sections(values)) if cls is Config and sections else hints


def _all_default(hint: Any) -> bool:
    """Whether it is a section whose fields all have defaults."""
    section = isinstance(hint, type) and dataclasses.is_dataclass(hint)
    return section and all(field.default is not dataclasses.MISSING for field in dataclasses.fields(hint))


def known_only(
    cls: type, values: dict[str, Any], prefix: str = "", sections: Sections | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Values without keys that the dataclass or its sections do not have, and those keys, dotted."""
    hints = _hints(cls, values, sections)
    kept, unknown = {}, []
    for name, value in values.items():
        hint = hints.get(name)
        if hint is None:
            unknown.append(prefix + name)
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, dict):
            kept[name], deeper = known_only(hint, value, f"{prefix}{name}.", sections)
            unknown += deeper
        else:
            kept[name] = value
    return kept, unknown


def override(config: Any, assignments: typing.Sequence[str]) -> Any:
    """Apply ``section.key=value`` strings, for example ``optim.lr=2e-4``; values are JSON or bare words.

    Raises:
      ConfigError: malformed assignment, unknown key (the near ones are suggested) or a value of the wrong type.
    """
    for text in assignments:
        key, sep, raw = text.partition("=")
        if not sep:
            raise ConfigError(f"{text!r} is not an assignment; write section.key=value, for example optim.lr=2e-4")
        config = _replace(config, key.strip().split("."), raw.strip(), key.strip(), config)
    return config


def keys(config: Any, prefix: str = "") -> list[str]:
    """All dotted keys of a configuration, for help texts and suggestions."""
    out = []
    for name in hints_of(config):
        value = getattr(config, name)
        out += keys(value, f"{prefix}{name}.") if dataclasses.is_dataclass(value) else [prefix + name]
    return out


def _replace(config: Any, path: list[str], raw: str, full: str, whole: Any) -> Any:
    hints = typing.get_type_hints(type(config))
    if path[0] not in hints:
        raise ConfigError(f"unknown configuration key {full!r}{_near(full, keys(whole))}")
    current = getattr(config, path[0])
    if dataclasses.is_dataclass(current):
        if len(path) == 1:
            raise ConfigError(f"{full!r} is a section; set one of its keys: {', '.join(hints_of(current))}")
        return dataclasses.replace(config, **{path[0]: _replace(current, path[1:], raw, full, whole)})
    if len(path) > 1:
        raise ConfigError(f"unknown configuration key {full!r}: {path[0]!r} is a value, not a section")
    try:
        value = json.loads(raw)
    except json.JSONDecodeError:
        value = raw
    return dataclasses.replace(config, **{path[0]: _coerce(hints[path[0]], value, full, None)})


def hints_of(config: Any) -> list[str]:
    """Field names of a configuration section."""
    return [f.name for f in dataclasses.fields(config)]


def _near(key: str, candidates: typing.Iterable[str]) -> str:
    names = list(candidates)
    close = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
    tail = key.rsplit(".", 1)[-1]
    close = [n for n in names if n.rsplit(".", 1)[-1] == tail] + close
    return f"; did you mean {', '.join(dict.fromkeys(close))}?" if close else ""


def _coerce(hint: Any, value: Any, where: str, sections: Sections | None) -> Any:
    origin = typing.get_origin(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"configuration section {where!r} must be a mapping, not {value!r}")
        return from_dict(hint, value, where + ".", sections)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{where}={value!r} is not one of {', '.join(map(repr, typing.get_args(hint)))}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _coerce(next(a for a in typing.get_args(hint) if a is not type(None)), value, where, sections)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}={value!r} must be a list, for example [1,2]")
        return tuple(_coerce(typing.get_args(hint)[0], v, where, sections) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where}={value!r} must be of type {hint.__name__}")
    return value
