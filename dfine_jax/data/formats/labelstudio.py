"""Label Studio: exports JSON (tasks with annotations) and JSON-MIN; coordinates are percent of the picture."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from dfine_jax.data.formats.finder import Finder
from dfine_jax.data.formats.parsing import number, points
from dfine_jax.data.formats.picture import ROTATED, Picture, Thing, box, class_name, ellipse, outline, rotated_box
from dfine_jax.data.picture.images import EXTENSIONS, upright_size
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.values import flag, size_of
from dfine_jax.errors import UserError
from dfine_jax.system.files import read_json

TITLE = "Label Studio"
ENDINGS = (".json",)
_SHAPES = ("rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels", "keypointlabels")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what uploads put in front of a name


def recognises(parsed: Any) -> bool:
    """Whether a parsed file is of this format."""
    if not isinstance(parsed, list) or not parsed or not all(isinstance(task, dict) for task in parsed[:20]):
        return False
    full = all(isinstance(task.get("data"), dict) and "annotations" in task for task in parsed[:20])
    return full or all("id" in task and _address(task) for task in parsed[:20])


def read(files: Sequence[Path], finder: Finder, notes: Notes) -> tuple[list[Picture], None]:
    """Pictures of the files; classes in no order of their own.

    Raises:
      UserError: a file that cannot be used.
    """
    pictures: list[Picture] = []
    for file in files:
        for position, task in enumerate(read_json(file)):
            where = f"{file}, task {task.get('id', position) if isinstance(task, dict) else position}"
            with notes.leaving_out():
                picture = _picture(task, where, file, finder, notes)
                pictures += [picture] if picture else []
    return pictures, None


def _picture(task: Any, where: str, file: Path, finder: Finder, notes: Notes) -> Picture | None:
    if not isinstance(task, dict):
        raise UserError(f"{where} is no task; export the project as JSON or JSON-MIN")
    results = _results(task, where, notes)
    if results is None:
        return None
    data = task["data"] if isinstance(task.get("data"), dict) else task
    address = _address(data)
    if address is None:
        raise UserError(f"{where} names no picture; export the project as JSON or JSON-MIN")
    path = _find(address, where, file, finder)
    if path is None:
        return None
    shown = _size(results, where)
    width, height = shown or upright_size(path)
    things = []
    for position, result in enumerate(_joined(results)):
        place = f"{where}, result {position}"
        with notes.leaving_out():
            thing = _thing(result, (width / 100, height / 100), place, notes)
            things += [thing] if thing else []
    return Picture(path, where, shown, things, finder.split_below(file, of_all=True))


def _size(results: list[Any], where: str) -> tuple[int, int] | None:
    """(width, height) of the picture that was annotated, None where no region says it.

    Raises:
      UserError: regions of several sizes, or of a picture that was turned: what their percents are of is not certain.
    """
    regions = [result for result in results if isinstance(result, dict)]
    turned = next((region["image_rotation"] for region in regions if region.get("image_rotation")), 0)
    if number(turned, "image_rotation", where) % 360:
        raise UserError(
            f"{where} was annotated on the picture turned by {turned} degrees (image_rotation), which is not read; "
            "turn it back in Label Studio and export again, or turn the file and annotate that"
        )
    sizes = {size_of(region.get("original_width"), region.get("original_height")) for region in regions} - {None}
    if len(sizes) > 1:
        raise UserError(f"{where} has regions of pictures of {len(sizes)} sizes (original_width); export it again")
    return next(iter(sizes), None)


def _joined(results: list[Any]) -> list[Any]:
    """Results with the labels of the controls ``Rectangle`` and ``Labels`` on one region, which are two of one id."""
    labels = {one["id"]: one["value"]["labels"] for one in results if _has(one, "labels", "labels")}
    out, used = [], set()
    for one in results:
        kind = f"{one.get('type')}labels" if isinstance(one, dict) else ""
        if kind in _SHAPES and _has(one, one["type"]) and one["id"] in labels and kind not in one["value"]:
            used.add(one["id"])
            one = {**one, "value": {**one["value"], kind: labels[one["id"]]}}
        out.append(one)
    return [one for one in out if not (_has(one, "labels", "labels") and one["id"] in used)]


def _has(result: Any, kind: str, key: str | None = None) -> bool:
    """Whether a result is of a kind and has an id and a value, with a key if one is given."""
    if not isinstance(result, dict) or result.get("type") != kind or not isinstance(result.get("id"), (str, int)):
        return False
    return isinstance(result.get("value"), dict) and (key is None or key in result["value"])


def _results(task: dict[str, Any], where: str, notes: Notes) -> list[Any] | None:
    """Regions of a task; None when nobody has annotated it."""
    if "annotations" not in task:  # JSON-MIN: a list under the name of the control
        found = [value for key, value in task.items() if isinstance(value, list) and _are_regions(value)]
        if not found and not any(isinstance(value, list) for value in task.values()):
            notes.add("tasks without annotation; they are left out", where)
            return None
        return [region for regions in found for region in regions]
    annotations = task["annotations"]
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise UserError(f"{where} has annotations that are no list; export the project again")
    done = [one for one in annotations if not _flag(one, "was_cancelled", where)]
    if not done:
        notes.add("tasks without annotation; they are left out", where)
        return None
    if len(done) > 1:
        notes.add("tasks with several annotations; the ground truth, else the last one is used", where)
    marked = [one for one in done if _flag(one, "ground_truth", where)]
    results = (marked or sorted(done, key=lambda one: str(one.get("updated_at") or "")))[-1].get("result")
    if not isinstance(results, list):
        raise UserError(f"{where} has an annotation without result; export the project again")
    return results


def _flag(annotation: dict[str, Any], key: str, where: str) -> bool:
    value = flag(annotation.get(key))
    if value is None:
        raise UserError(f"{where} has {key} {annotation[key]!r}; it must be true or false")
    return value


def _are_regions(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) and any(key in value for key in _SHAPES) for value in values)


def _address(data: dict[str, Any]) -> str | None:
    """Where the picture of a task is: under 'image', else under the only key whose value ends like a picture."""
    if isinstance(data.get("image"), str):
        return data["image"]
    found = [v for v in data.values() if isinstance(v, str) and _name(v).lower().endswith(EXTENSIONS)]
    return found[0] if len(found) == 1 else None


def _name(address: str) -> str:
    """The path in an address: of local files it is the parameter d, of uploads it follows the project."""
    parts = urlsplit(address.replace("\\", "/"))
    local = parse_qs(parts.query).get("d")
    path = local[0] if local else unquote(parts.path)
    return re.sub(r"^/?data/(upload/(\d+/)?|local-files/?)", "", path)


def _find(address: str, where: str, file: Path, finder: Finder) -> Path | None:
    name = _name(address)
    folder, short = os.path.split(name)
    without = os.path.join(folder, _UPLOADED.sub("", short))
    if without != name and not finder.has(short):
        name = without
    return finder.find(name, file, where=where)


def _thing(result: Any, scale: tuple[float, float], where: str, notes: Notes) -> Thing | None:
    if not isinstance(result, dict):
        raise UserError(f"{where} is no region; export the project again")
    value = result["value"] if isinstance(result.get("value"), dict) else result
    kind = next((key for key in _SHAPES if key in value), None)
    if kind is None:
        if result.get("type") in ("rectangle", "polygon", "ellipse", "brush"):
            raise UserError(f"{where} is a {result['type']} without label; label the region")
        notes.add("results that are no regions, such as choices and texts, were left out", where)
        return None
    if kind == "keypointlabels":
        notes.add("points and lines, which have no area, were left out", where)
        return None
    if kind == "brushlabels":
        raise UserError(
            f"{where} is painted with a brush, which is not read; export the project as COCO, or draw polygons"
        )
    labels = value[kind]
    if not isinstance(labels, list) or len(labels) != 1:
        raise UserError(f"{where} has the labels {labels!r}; an object has one class")
    name = class_name(labels[0], where)

    def pixels(key: str, axis: int) -> float:
        return number(value.get(key), key, where) * scale[axis]

    degrees = number(value.get("rotation") or 0, "rotation", where)
    if kind == "rectanglelabels":
        x, y, width, height = pixels("x", 0), pixels("y", 1), pixels("width", 0), pixels("height", 1)
        if degrees % 360 == 0:
            return box(name, x, y, x + width, y + height)
        notes.add(ROTATED, where)
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        return rotated_box(name, corners, (x, y), degrees)
    if kind == "ellipselabels":
        return ellipse(name, pixels("x", 0), pixels("y", 1), pixels("radiusX", 0), pixels("radiusY", 1), degrees)
    flat = points(value.get("points"), where)
    if len(flat) < 6:
        raise UserError(f"{where} is a polygon of {len(flat) // 2} points; it needs three")
    return outline(name, [[coordinate * scale[i % 2] for i, coordinate in enumerate(flat)]])
