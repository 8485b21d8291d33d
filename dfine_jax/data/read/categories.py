"""The classes that a COCO file lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from dfine_jax.data.read.dataset import Classes
from dfine_jax.data.read.values import first_repeated, is_id, shown
from dfine_jax.errors import RepairableError, UserError


def trimmed(name: str) -> str:
    """A class name as all readers take it: without blanks around it, and on one line."""
    return " ".join(name.split()) if any(blank in name for blank in "\t\n\v\f\r") else name.strip()


def read_categories(listed: list[Any], used: Int64[np.ndarray, " n"], source: Path) -> Classes:
    """Classes in ascending order of their ids, which is that of the labels; names as ``trimmed``.

    Args:
      listed: entries of ``categories``.
      used: the category of every annotation.
      source: what to call the file.

    Raises:
      UserError: an entry is no category, none are listed, or ids or names repeat.
    """
    for entry in listed:
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or not isinstance(entry.get("name"), str):
            unknown = isinstance(entry, dict) and entry.get("id") is None  # which annotations are of it
            refusal = UserError if unknown else RepairableError
            raise refusal(
                f"{source}: category {shown(entry, 300)} needs an integer 'id' of at most 64 bits and a 'name'"
            )
        if not trimmed(entry["name"]):
            raise RepairableError(f"{source}: category {entry['id']} has an empty name; name the class")
    listed = _without_group_entry(listed, used)
    if not listed:
        raise UserError(f"{source}: no categories; the file must list the classes")
    ids = np.array([entry["id"] for entry in listed], np.int64)
    repeated = first_repeated(ids)
    if repeated is not None:
        names_of_it = {trimmed(entry["name"]) for entry in listed if entry["id"] == ids[repeated]}
        refusal = UserError if len(names_of_it) > 1 else RepairableError
        raise refusal(f"{source}: category id {ids[repeated]} is listed twice; give each class its own id")
    listed = sorted(listed, key=lambda entry: entry["id"])
    names = [trimmed(entry["name"]) for entry in listed]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RepairableError(
                f"{source}: two categories are called {name!r}, blanks aside; they are told apart by name, rename one"
            )
        seen.add(name)
    return Classes(tuple(names), tuple(entry["id"] for entry in listed))


def _without_group_entry(listed: list[dict[str, Any]], used: Int64[np.ndarray, " n"]) -> list[dict[str, Any]]:
    """Roboflow exports start with an entry that only names the group of all the others; it is no class."""
    groups = [e for e in listed if e.get("supercategory") == "none"]
    others = [e for e in listed if e.get("supercategory") != "none"]
    if len(groups) != 1 or not others or any(e.get("supercategory") != groups[0]["name"] for e in others):
        return listed
    return listed if (used == groups[0]["id"]).any() else others
