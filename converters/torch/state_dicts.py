"""The state dict to take from what a file holds, whatever it is wrapped in.

Programs nest state dicts in dictionaries (``model``, ``state_dict``, ``ema.module`` ...) and put the names of wrappers
before or inside the names of tensors (``module.``, ``_orig_mod.``, ``model.``, ``ema_model.`` ...). Neither is listed
here: a state dict is found by a tensor that every model of a family has (an anchor), what stands before the name of
that tensor is its prefix.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from dfine_jax import families
from dfine_jax.errors import UserError
from dfine_jax.families.family import Anchor

logger = logging.getLogger(__name__)

T = TypeVar("T")
_LISTED = 4
_OPTIMISER = {"state", "param_groups"}  # entries of an optimiser's state, whose tensors are no weights
_DEEPEST = 8  # containers inside each other
_MOST = 10_000  # containers looked into
_MOST_MODELS = 64  # of one dictionary: sorting the names out takes time for each of them

# Names that wrappers of modules put anywhere between others: torch.compile, DDP, FSDP, checkpointing, Fabric.
_WRAPPERS = frozenset(
    ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_ddp_module")
)
_AVERAGED = re.compile(r"(^|[_.\d-])(ema|swa|avg|averaged?|shadow|polyak|teacher)($|[_.\d-])", re.IGNORECASE)
_HUMP = re.compile(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # where words meet in emaModel and EMAModel
_OF_A_LOSS = re.compile(r"^\w*(crit|loss)", re.IGNORECASE)  # may be beside a model in the state of a run
_WEIGHTS = ("weight", "bias", "running_mean", "running_var")


class Selected(NamedTuple, Generic[T]):
    """A state dict under plain names."""

    tensors: dict[str, T]
    place: str  # entries and prefix in the file, for example ema.module; empty: the file itself
    averaged: bool
    others: tuple[str, ...]  # places of the state dicts that were not taken
    description: str = ""  # beside them, of weights that this library wrote (converters/torch/description.py)
    beside: Mapping[str, Any] = {}  # other entries of the file, dictionaries and plain values


class _Candidate(NamedTuple, Generic[T]):
    tensors: dict[str, T]
    place: tuple[str, ...]
    averaged: bool


def select_state_dict(content: Any, kind: type[T], anchors: Sequence[Anchor] | None = None) -> Selected[T]:
    """The averaged weights of a file where it has all of them, else its weights, without wrappers.

    Args:
      content: what the file holds.
      kind: type of the tensors.
      anchors: tensors of which what is looked for has one; None: those of all families' detectors.

    Raises:
      UserError: there are none; the message says what there is instead.
    """
    anchors = families.anchors() if anchors is None else anchors
    dicts = list(_dicts(content, kind))
    found = [candidate for place, items in dicts for candidate in _models(place, items, kind, anchors)]
    if not found:
        whole = next((items for place, items in dicts if not place and _is_state_dict(items, kind)), None)
        nested = [items for _, items in dicts if _is_state_dict(items, kind)]
        if whole is None and len(nested) != 1:
            raise UserError(_nothing(content, [place for place, items in dicts if _is_state_dict(items, kind)], kind))
        # Of no known model: what is wrong with it is for the caller to say.
        items = nested[0] if whole is None else whole
        tensors = {str(key): value for key, value in items.items() if isinstance(value, kind)}
        return Selected(_without(tensors, _common_prefix(tensors)), "", False, ())
    plain = [candidate for candidate in found if not candidate.averaged]
    averaged = [one for one in found if one.averaged and (not plain or _has_all(one, plain[0]))]
    taken = (averaged or plain)[0]
    others = tuple(_told(candidate.place) for candidate in found if candidate is not taken)
    return Selected(taken.tensors, _told(taken.place, empty=""), taken.averaged, others)


def _has_all(averaged: _Candidate[Any], plain: _Candidate[Any]) -> bool:
    """Whether averages are of all weights of a model, and not of a part of it, or of another that it learns from."""
    return all(
        name in averaged.tensors and _shape(averaged.tensors[name]) == _shape(value)
        for name, value in plain.tensors.items()
        if name.endswith(_WEIGHTS) and not _OF_A_LOSS.search(name)
    )


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape)


def tell(selected: Selected[Any], source: object) -> None:
    """Say which weights of the file were taken, where there is something to say."""
    place = selected.place or "those of the file itself"
    if selected.others:
        what = "averaged weights" if selected.averaged else "weights"
        logger.info("%s: %s taken (%s), not those of %s", source, what, place, ", ".join(selected.others))
    elif selected.averaged:
        logger.info("%s: averaged weights taken (%s)", source, place)


def _dicts(content: Any, kind: type) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Dictionaries in the content with where they are, outer ones first, each once."""
    level: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen: set[int] = set()
    for _ in range(_DEEPEST):
        following: list[tuple[tuple[str, ...], Any]] = []
        for place, value in level:
            if id(value) in seen or len(seen) > _MOST or isinstance(value, (str, bytes, kind)):
                continue
            if isinstance(value, Mapping):
                seen.add(id(value))
                if _OPTIMISER <= set(value):
                    continue
                yield place, value
                following += [((*place, str(key)), item) for key, item in value.items() if _has_entries(item)]
            elif isinstance(value, (list, tuple)):
                seen.add(id(value))
                following += [((*place, str(i)), item) for i, item in enumerate(value[:_MOST]) if _has_entries(item)]
        level = following


def _has_entries(value: Any) -> bool:
    return isinstance(value, (Mapping, list, tuple)) and bool(value)


def _models(
    place: tuple[str, ...], items: Mapping[Any, Any], kind: type[T], anchors: Sequence[Anchor]
) -> Iterator[_Candidate[T]]:
    """The models of a dictionary of tensors, one for each prefix under which there is an anchor."""
    tensors = {key: value for key, value in items.items() if isinstance(key, str) and isinstance(value, kind)}
    prefixes = list(dict.fromkeys(prefix for key in tensors if (prefix := _prefix(key, anchors)) is not None))
    if len(prefixes) > _MOST_MODELS:
        raise UserError(f"{_told(place)} holds {len(prefixes)} models; save one of them alone")
    counted = "n_averaged" in tensors  # torch.optim.swa_utils.AveragedModel
    for prefix in prefixes:
        longer = [other for other in prefixes if other != prefix and other[: len(prefix)] == prefix]
        mine: dict[str, T] = {}
        for key, value in tensors.items():
            parts = tuple(key.split("."))
            if parts[: len(prefix)] != prefix or any(parts[: len(other)] == other for other in longer):
                continue
            name = ".".join(part for part in parts[len(prefix) :] if part not in _WRAPPERS)
            if name in mine:
                raise UserError(f"{_told(place)} holds two tensors for {name} (one is {key}); save one model alone")
            mine[name] = value
        if not prefix:
            mine.pop("n_averaged", None)
        where = (*place, *(part for part in prefix if part != "_orig_mod"))
        averaged = bool(_AVERAGED.search(_HUMP.sub("_", ".".join(where)))) or (counted and prefix[:1] == ("module",))
        yield _Candidate(mine, where, averaged)


def _prefix(key: str, anchors: Sequence[Anchor]) -> tuple[str, ...] | None:
    """What stands before an anchor in a name, wrappers inside the anchor overlooked; None for other names."""
    parts = key.split(".")
    for anchor in anchors:
        if parts[-1] != anchor.name[-1]:
            continue
        position = len(parts)
        for wanted in reversed(anchor.name):
            position -= 1
            while position > 0 and parts[position] in _WRAPPERS and parts[position] != wanted:
                position -= 1
            if position < 0 or parts[position] != wanted:
                break
        else:
            prefix = tuple(parts[:position])
            return prefix[:-1] if anchor.outer and prefix[-1:] == (anchor.outer,) else prefix
    return None


def _is_state_dict(items: Mapping[Any, Any], kind: type) -> bool:
    return bool(items) and all(isinstance(value, kind) for value in items.values())


def _common_prefix(tensors: Mapping[str, Any]) -> str:
    """Wrappers that all names start with."""
    prefix = ""
    while names := [key[len(prefix) :].split(".") for key in tensors]:
        first = names[0][0]
        if first not in _WRAPPERS or any(len(parts) < 2 or parts[0] != first for parts in names):
            break
        prefix += f"{first}."
    return prefix


def _without(tensors: dict[str, T], prefix: str) -> dict[str, T]:
    return {key.removeprefix(prefix): value for key, value in tensors.items()}


def _told(place: tuple[str, ...], empty: str = "the file itself") -> str:
    return ".".join(place) or empty


def _nothing(content: Any, places: list[tuple[str, ...]], kind: type) -> str:
    """Why a file without weights of a detector has none."""
    cure = "save one with torch.save({'model': model.state_dict()}, FILE)"
    if isinstance(content, kind):
        return f"it holds a single tensor and no state dict; {cure}"
    if not isinstance(content, Mapping):
        return f"it holds a {type(content).__name__} and no state dict; {cure}"
    if not content:
        return f"it is an empty dictionary; {cure}"
    entries = ", ".join(str(key) for key in list(content)[:_LISTED]) + (" ..." if len(content) > _LISTED else "")
    optimiser = any(isinstance(item, Mapping) and _OPTIMISER <= set(item) for item in (content, *content.values()))
    if optimiser and not places:
        return f"it holds the state of an optimiser ({entries}) without the weights of a model; {cure}"
    if places:
        names = ", ".join(map(_told, places[:_LISTED]))
        return f"it holds several state dicts ({names}), none of them of a model known here"
    lists = [str(key) for key, value in content.items() if isinstance(value, (list, tuple)) and value]
    if any(isinstance(item, kind) for key in lists for item in content[key]):
        return f"it holds tensors without names (in {lists[0]}), which cannot be told apart; {cure}"
    if any(isinstance(value, kind) for value in content.values()):
        other = next(str(key) for key, value in content.items() if not isinstance(value, kind))
        return f"it is not a state dict: {other!r} is not a tensor; {cure}"
    return f"it holds no state dict, only {entries}; {cure}"
