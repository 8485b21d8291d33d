"""VGG Image Annotator: regions of all pictures in one JSON file (project or export) or one CSV file."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dfine_jax.data.formats.finder import Finder
from dfine_jax.data.formats.parsing import number
from dfine_jax.data.formats.picture import Picture, Thing, box, class_name, ellipse, outline
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.values import flag
from dfine_jax.errors import UserError
from dfine_jax.system.files import read_json, read_text

TITLE = "VGG Image Annotator (VIA)"
ENDINGS = (".json", ".csv")
_USUAL = ("class", "label", "type", "name", "category", "object", "class_name", "object_name")
_ONLY_CLASS = "object"  # of files whose regions have no attributes
_WITHOUT_AREA = ("point", "polyline")
_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")


def recognises(parsed: Any) -> bool:
    """Whether parsed JSON, or the text of a CSV file, is of this format."""
    if isinstance(parsed, str):
        return all(column in parsed.split("\n", 1)[0] for column in _COLUMNS)
    if not isinstance(parsed, dict):
        return False
    entries = parsed.get("_via_img_metadata", parsed)
    if not isinstance(entries, dict) or not entries:
        return "_via_img_metadata" in parsed
    return all(isinstance(entry, dict) and "filename" in entry and "regions" in entry for entry in entries.values())


def read(files: Sequence[Path], finder: Finder, notes: Notes) -> tuple[list[Picture], None]:
    """Pictures of the files; classes in no order of their own.

    Raises:
      UserError: a file or region that cannot be used, or an attribute that would have to be guessed.
    """
    pictures: list[Picture] = []
    for file in files:
        entries = list(_entries(file, notes))
        attribute = _attribute(file, entries)
        if attribute is None and any(regions for *_, regions in entries):
            notes.add(f"files name no class; all their regions are called {_ONLY_CLASS!r}", str(file))
        for name, where, regions in entries:
            path = finder.find(name, file, where=where)
            if path is None:
                continue
            things = []
            for position, (shape, attributes) in enumerate(regions):
                with notes.leaving_out():
                    thing = _thing(shape, attributes, attribute, f"{where}, region {position}", notes)
                    things += [thing] if thing else []
            pictures.append(Picture(path, where, None, things, finder.split_below(file, of_all=True)))
    return pictures, None


Region = tuple[dict[str, Any], dict[str, Any]]  # shape attributes, region attributes


def _entries(file: Path, notes: Notes) -> Iterator[tuple[str, str, list[Region]]]:
    """(picture, place in the file, regions) of each picture."""
    if file.suffix.lower() == ".csv":
        yield from _csv_entries(file)
        return
    parsed = read_json(file)
    for key, entry in parsed.get("_via_img_metadata", parsed).items():
        where = f"{file}, {key}"
        with notes.leaving_out():
            if not isinstance(entry["filename"], str) or not entry["filename"].strip():
                raise UserError(f"{where} has filename {entry['filename']!r}; it must name the picture")
            regions = entry["regions"]
            regions = list(regions.values()) if isinstance(regions, dict) else regions  # of VIA 1
            if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
                raise UserError(f"{where} has regions that are no list; export the file again")
            yield entry["filename"], where, [_region(region, where) for region in regions]


def _region(region: dict[str, Any], where: str) -> Region:
    shape, attributes = region.get("shape_attributes"), region.get("region_attributes") or {}
    if not isinstance(shape, dict) or not isinstance(attributes, dict):
        raise UserError(f"{where} has a region without shape_attributes; export the file again")
    return shape, attributes


def _csv_entries(file: Path) -> Iterator[tuple[str, str, list[Region]]]:
    regions: dict[str, list[Region]] = {}
    places: dict[str, str] = {}
    reader = csv.DictReader(io.StringIO(read_text(file)))
    try:
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            name = (row.get("filename") or "").lstrip("#").strip()
            if not name:
                raise UserError(f"{where} has no filename; correct the line")
            places.setdefault(name, where)
            try:
                shape, attributes = (json.loads(row.get(column) or "{}") for column in _COLUMNS[1:])
            except json.JSONDecodeError as error:
                raise UserError(f"{where} has attributes that are not JSON ({error.msg}); export it again") from None
            own = regions.setdefault(name, [])
            if shape:  # a row without is a picture without regions
                own.append(_region({"shape_attributes": shape, "region_attributes": attributes}, where))
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: {error}; export the file again") from None
    yield from ((name, places[name], found) for name, found in regions.items())


def _attribute(file: Path, entries: list[tuple[str, str, list[Region]]]) -> str | None:
    """The attribute that holds the class; None when regions have none at all."""
    counts = Counter(key for *_, regions in entries for _, attributes in regions for key in attributes)
    if not counts:
        return None
    usual = [key for key in counts if key.strip().lower() in _USUAL]
    if len(counts) == 1 or len(usual) == 1:
        return (usual or list(counts))[0]
    raise UserError(
        f"{file}: regions have the attributes {', '.join(sorted(counts))}; which is the class? Call that one 'class', "
        "and no other class, label, type, name or category"
    )


def _thing(
    shape: dict[str, Any], attributes: dict[str, Any], attribute: str | None, where: str, notes: Notes
) -> Thing | None:
    kind = shape.get("name")
    if kind in _WITHOUT_AREA:
        notes.add("points and lines, which have no area, were left out", where)
        return None
    name = _ONLY_CLASS if attribute is None else class_name(_value(attributes.get(attribute), where), where)

    def value(key: str) -> float:
        return number(shape.get(key), key, where)

    if kind == "rect":
        return box(name, value("x"), value("y"), value("x") + value("width"), value("y") + value("height"))
    if kind == "circle":
        return ellipse(name, value("cx"), value("cy"), value("r"), value("r"))
    if kind == "ellipse":
        degrees = number(shape.get("theta", 0), "theta", where) * 180 / 3.141592653589793
        return ellipse(name, value("cx"), value("cy"), value("rx"), value("ry"), degrees)
    if kind == "polygon":
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys) or len(xs) < 3:
            raise UserError(f"{where} is a polygon without three points; draw it again")
        return outline(name, [[number(v, "a coordinate", where) for pair in zip(xs, ys, strict=True) for v in pair]])
    raise UserError(f"{where} has shape {kind!r}; known are rect, circle, ellipse and polygon")


def _value(value: Any, where: str) -> Any:
    """A class name; of check boxes the only one that is ticked."""
    if isinstance(value, dict):
        ticked = [key for key, on in value.items() if flag(on)]
        if len(ticked) != 1:
            raise UserError(f"{where} has {len(ticked)} classes ticked; an object has one")
        return ticked[0]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
