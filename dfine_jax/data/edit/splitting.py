"""Dividing a dataset into splits with the same shares of every class, keeping pictures that belong together.

Iterative stratification (Sechidis, Tsoumakas, Vlahavas: On the stratification of multi-label data, 2011): the rarest
class is dealt out first, each of its pictures to the split that lacks most of it.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np

from dfine_jax.data.edit.items import Item
from dfine_jax.errors import UserError

_NO_OBJECT = object()  # pictures without objects are dealt out like a class


def group_keys(items: Sequence[Item], pattern: str) -> list[str]:
    """What the pattern finds in the path of each picture: its first group, else all of the match.

    A picture where it finds nothing is on its own.

    Raises:
      UserError: no regular expression, or one that finds nothing anywhere.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--group {pattern!r} is no regular expression ({error})") from None
    keys = []
    for item in items:
        path = item.path.as_posix()
        match = expression.search(item.path.name) or expression.search(path)
        found = None if match is None else match[1] if expression.groups else match[0]
        keys.append(f"match {found}" if found is not None else f"alone {path}")
    if not any(key.startswith("match ") for key in keys):
        raise UserError(f"--group {pattern!r} finds nothing in names such as {items[0].path}; correct the expression")
    return keys


def divide(items: Sequence[Item], shares: dict[str, float], seed: int, keys: Sequence[str]) -> dict[str, list[Item]]:
    """The pictures of each split, in their order.

    Args:
      items: all pictures.
      shares: of the pictures, by split; they sum to 1.
      seed: of the order in which equals are dealt out.
      keys: pictures with the same one stay together.

    Raises:
      UserError: fewer pictures or groups than splits.
    """
    names = list(shares)
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    if len(groups) < len(names):
        raise UserError(f"{len(groups)} pictures or groups of pictures cannot be divided into {len(names)} splits")
    units = list(groups.values())
    chosen = _deal(
        [_classes(items, unit) for unit in units], [len(unit) for unit in units], list(shares.values()), seed
    )
    split_of = {index: names[chosen[number]] for number, unit in enumerate(units) for index in unit}
    return {name: [item for index, item in enumerate(items) if split_of[index] == name] for name in names}


def _classes(items: Sequence[Item], unit: Sequence[int]) -> dict[Hashable, int]:
    """Pictures of a unit by class."""
    counts: dict[Hashable, int] = {}
    for index in unit:
        present = {a["category_id"] for a in items[index].annotations if not a.get("iscrowd")}
        for key in present or {_NO_OBJECT}:
            counts[key] = counts.get(key, 0) + 1
    return counts


def _deal(counts: list[dict[Hashable, int]], sizes: list[int], shares: list[float], seed: int) -> list[int]:
    """The split of each unit."""
    rng = np.random.default_rng(seed)
    share = np.array(shares)
    lacking = share * sum(sizes)  # pictures that each split still is to get
    members: dict[Hashable, list[int]] = {}
    for unit in rng.permutation(len(counts)).tolist():
        for key in counts[unit]:
            members.setdefault(key, []).append(unit)
    lacking_of = {key: share * sum(counts[unit][key] for unit in units) for key, units in members.items()}
    rest = {key: len(units) for key, units in members.items()}
    chosen = [-1] * len(counts)
    while rest:
        key = min(rest, key=lambda k: (rest[k], str(k)))
        for unit in sorted((u for u in members[key] if chosen[u] < 0), key=lambda u: -counts[u][key]):
            order = np.lexsort((rng.random(len(share)), -lacking, -np.round(lacking_of[key], 9)))
            split = chosen[unit] = int(order[0])
            lacking[split] -= sizes[unit]
            for other, number in counts[unit].items():
                lacking_of[other][split] -= number
                if other in rest:
                    rest[other] -= 1
        del rest[key]
    _fill_empty(chosen, sizes, len(share))
    return chosen


def _fill_empty(chosen: list[int], sizes: list[int], count: int) -> None:
    """Each split gets at least one unit: the smallest of the split that has most of them."""
    for split in range(count):
        if split not in chosen:
            largest = max(range(count), key=chosen.count)
            unit = min((u for u in range(len(chosen)) if chosen[u] == largest), key=lambda u: sizes[u])
            chosen[unit] = split


def parse_shares(text: str | None, val: float | None, test: float | None) -> dict[str, float]:
    """Shares by split from ``0.8/0.1/0.1`` (train, validation, test) or from those of validation and test.

    Raises:
      UserError: no shares, both ways at once, or shares that leave nothing to train on.
    """
    if text is not None:
        if val is not None or test is not None:
            raise UserError("give --shares, or --val and --test, not both")
        try:
            parts = [float(part) for part in text.split("/")]
        except ValueError:
            parts = []
        if len(parts) not in (2, 3) or any(not 0 <= part for part in parts) or not 0 < sum(parts) < float("inf"):
            raise UserError(f"--shares {text}: write shares of train, validation and test such as 0.8/0.1/0.1 or 80/20")
        if max(parts) < 1 and abs(sum(parts) - 1) > 0.01:
            raise UserError(f"--shares {text}: the shares sum to {sum(parts):g}; they must sum to 1 (or to 100)")
        values = [part / sum(parts) for part in parts]
    else:
        val, test = 0.2 if val is None and test is None else val or 0.0, test or 0.0
        values = [1 - val - test, val, test]
    shares = {name: value for name, value in zip(("train", "val", "test"), values, strict=False) if value > 0}
    if values[0] <= 0 or any(not 0 <= value < 1 for value in values) or len(shares) < 2:
        raise UserError("shares must be above 0 and below 1, and leave pictures to train on; for example --val 0.2")
    return shares
