"""Repair of the categories of COCO files: ids and names of their own, and the same ones in all splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfine_jax.data.edit.repair_objects import whole_number
from dfine_jax.data.read.categories import trimmed
from dfine_jax.data.read.notes import Notes
from dfine_jax.errors import UserError


def repaired_categories(
    entries: list[Any], source: Path, changes: Notes, left: Notes
) -> tuple[list[dict[str, Any]], dict[Any, int]]:
    """Categories with ids and names of their own, and the id by what annotations may call it.

    Args:
      entries: as in the file.
      source: the file.
      changes: takes what is cured.
      left: takes what is not.

    Raises:
      UserError: there are none.
    """
    out: list[dict[str, Any]] = []
    ids: dict[Any, int] = {}
    by_name: dict[str, int] = {}
    for position, entry in enumerate(entries):
        where = f"category {position}: {str(entry)[:60]}"
        number = whole_number(entry.get("id")) if isinstance(entry, dict) else None
        if number is None:
            changes.add("categories without an id were left out", where)
            continue
        name = entry.get("name")
        if number in ids and _name(name) != _name(next(c["name"] for c in out if c["id"] == ids[number])):
            left.add("categories share an id with another; give each class its own id", where)
            continue
        if number != entry["id"] or isinstance(entry["id"], bool) or not isinstance(entry["id"], int):
            changes.add("ids of categories were made whole numbers", where)
        plain = _name(name)
        if not plain:
            plain = f"class {number}"
            changes.add("categories without a name were called by their id", where)
        elif plain != name:
            changes.add("names of categories were trimmed or made text", f"{name!r} is {plain!r}")
        if plain in by_name:
            if number != by_name[plain]:
                changes.add("categories of the same name were joined", f"{where} with id {by_name[plain]}")
            else:
                changes.add("categories listed twice were listed once", where)
            ids[number] = by_name[plain]
            continue
        ids[number] = by_name[plain] = number
        out.append({**entry, "id": number, "name": plain})
    if not out:
        raise UserError(f"{source}: no usable categories; only a person can say what the classes are")
    return out, ids


def give_the_same_classes(splits: Sequence[tuple[dict[str, Any], Notes]]) -> None:
    """Number the classes of all splits as the first does, by name; those that it lacks get new ids.

    Args:
      splits: repaired content, which is changed, and what takes the changes.
    """
    listed = [[(category["id"], category["name"]) for category in content["categories"]] for content, _ in splits]
    if all(sorted(own) == sorted(listed[0]) for own in listed):
        return
    everything = {category["name"]: category for content, _ in reversed(splits) for category in content["categories"]}
    ids = {name: number for number, name in listed[0]}
    for name in everything:
        ids.setdefault(name, max(ids.values()) + 1)
    for (content, changes), own in zip(splits, listed, strict=True):
        moved = {number: ids[name] for number, name in own}
        for number, name in own:
            if number != ids[name]:
                changes.add(
                    "categories were numbered as in the other splits, by name", f"{name}: {number} is {ids[name]}"
                )
        for name in sorted(ids.keys() - {name for _, name in own}):
            changes.add("categories of other splits were listed, too", name)
        content["categories"] = [{**everything[name], "id": number} for name, number in ids.items()]
        content["annotations"] = [{**a, "category_id": moved[a["category_id"]]} for a in content["annotations"]]


def _name(name: Any) -> str:
    if isinstance(name, str):
        return trimmed(name)
    return str(name) if type(name) in (int, float) else ""
