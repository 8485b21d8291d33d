"""YOLO text labels (boxes and polygons) as COCO content, so that everything after the reading is one pipeline.

A ``data.yaml`` names the classes and the image folders; beside ``images/.../a.jpg`` lies ``labels/.../a.txt`` (or
``a.txt`` in the same folder) with one object per line: ``class x y width height`` or ``class x1 y1 x2 y2 x3 y3 ...``,
fractions of the picture; with ``kpt_shape`` in the description, keypoints follow the box. A missing or empty file is a
picture without objects.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from dfine_jax.data.picture.images import upright_size
from dfine_jax.data.read.categories import trimmed
from dfine_jax.data.read.dataset import listed
from dfine_jax.data.read.layout import FOLDERS
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.yolo_label_files import label_candidates, label_files, note_labels_without_picture
from dfine_jax.data.read.yolo_labels import ORIENTED, Line, check_boxes, check_polygons, read_labels
from dfine_jax.data.read.yolo_pictures import Place, find_pictures
from dfine_jax.errors import UserError
from dfine_jax.system.files import read_text

_DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NOTHING = ("", "null", "Null", "NULL", "~")  # YAML's ways to leave a value out


def find_description(root: Path) -> Path | None:
    """The YAML file that describes a YOLO dataset: the usual names first, else the only one in the folder that does.

    Raises:
      UserError: several others do, so that the user has to name one.
    """
    for name in _DESCRIPTIONS:
        if (root / name).is_file():
            return root / name
    files = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    if len(files) < 2:
        return files[0] if files else None
    found = [file for file in files if _describes(file)]
    if len(found) > 1:
        names = listed([file.name for file in found])
        raise UserError(f"{root} holds {len(found)} YOLO descriptions ({names}); name one of them: --data {found[0]}")
    return found[0] if found else None


def _describes(file: Path) -> bool:
    try:
        settings = _parse(file)
    except UserError:
        return False
    return isinstance(settings, dict) and "names" in settings and any(key in settings for key in ("train", "val"))


def read_yolo(
    description: Path, split: str, *, drop_unlisted: bool = False, notes: Notes | None = None
) -> dict[str, Any] | None:
    """COCO content of a split; image files by absolute path, category ids are YOLO's class numbers.

    Args:
      description: the YAML file.
      split: train, val or test.
      drop_unlisted: objects of classes that are not among the names stay in the content, to be dropped and counted
        later; else they are an error.
      notes: takes what is changed or left out.

    Returns:
      None when the description names no such split.

    Raises:
      UserError: the description or a label file is malformed, names folders that do not exist, or lacks
        classes that labels have.
    """
    notes = Notes() if notes is None else notes
    settings = _load(description)
    entry = next((found for name in FOLDERS[split] if (found := _texts(settings.get(name), description, name))), None)
    if entry is None:
        return None
    names = _names(settings, description, notes)
    base = description.parent / _text(settings.get("path"))
    pictures = find_pictures(Place(description, base), entry, notes)
    if not pictures:
        raise UserError(f"{description}: no images in {entry[0] if len(entry) == 1 else entry} of split {split}")
    labels = label_files(pictures, notes)
    if not labels:
        places = " or ".join(str(path) for path in label_candidates(pictures[0]))
        raise UserError(
            f"{description}: no label files for the {len(pictures)} images of split {split}; expected the labels of "
            f"{pictures[0].name} in {places}"
        )
    lines = _lines(labels, _keypoints(settings, description), notes)
    note_labels_without_picture(pictures, labels, notes)
    if not drop_unlisted:
        _check_classes(lines, names, description, split)
    return _content(pictures, lines, names, notes)


def _lines(labels: dict[Path, Path], keypoints: tuple[int, int] | None, notes: Notes) -> dict[Path, list[Line]]:
    """Objects by picture."""
    read = {picture: read_labels(file, keypoints, notes) for picture, file in labels.items()}
    everything = [line for lines in read.values() for line in lines]
    check_boxes(everything, notes)
    kept = check_polygons(everything, notes)
    for line in kept:
        if not line.is_box and len(line.values) + 1 != ORIENTED:  # those have a note of their own
            notes.add("lines with more columns than a box are outlines, for masks; boxes are those around", line.where)
    if len(kept) == len(everything):
        return read
    return {picture: [line for line in lines if line.is_box] for picture, lines in read.items()}


def _check_classes(lines: dict[Path, list[Line]], names: dict[int, str], description: Path, split: str) -> None:
    everything = [line for found in lines.values() for line in found]
    unlisted = [line for line in everything if line.category not in names]
    if not unlisted:
        return
    first = unlisted[0]
    raise UserError(
        f"{description}: {len(unlisted)} of {len(everything)} objects of split {split} have a class number that "
        f"'names' does not have, such as {first.category} in {first.where}; "
        f"it has {listed([f'{number} {name}' for number, name in names.items()])}; YOLO counts classes from 0: "
        "correct the labels, add the class to 'names', or remove the lines (dfine check --data DIR reports all "
        "problems)"
    )


def _content(
    pictures: list[Path], lines: dict[Path, list[Line]], names: dict[int, str], notes: Notes
) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for path in pictures:
        try:
            width, height = upright_size(path)
        except UserError as error:
            notes.refuse(str(error), "pictures that cannot be opened were left out")
            continue
        image = {"id": len(images) + 1, "file_name": str(path), "width": width, "height": height}
        images.append(image)
        for line in lines.get(path, []):
            annotations.append(_annotation(line, len(annotations) + 1, image))
    categories = [{"id": number, "name": name} for number, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


class _Loader(yaml.BaseLoader):
    """Scalars are the text that is written: YAML's own rules make a Boolean of ``no`` and 8 of ``010``."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As the base class, but a key that is given twice is an error instead of replacing the first."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or mapping", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=True)


def _parse(description: Path) -> Any:
    text = read_text(description)
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a loader that makes texts, lists and mappings only
    except yaml.YAMLError as error:
        raise UserError(f"{description} is not YAML ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise UserError(f"{description} is not usable YAML (nested too deeply)") from None


def _load(description: Path) -> dict[str, Any]:
    settings = _parse(description)
    if not isinstance(settings, dict) or "names" not in settings:
        raise UserError(f"{description} is no YOLO dataset: it needs 'names' and the folders 'train' and 'val'")
    return settings


def _text(value: Any) -> str:
    """A scalar of the description; empty when it is left out."""
    return "" if not isinstance(value, str) or value in _NOTHING else value.strip()


def _texts(value: Any, description: Path, key: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if any(isinstance(item, (dict, list)) for item in values):
        raise UserError(f"{description}: {key!r} must be a folder, a list of pictures, or several of them")
    return [text for item in values if (text := _text(item))]


def _names(settings: dict[str, Any], description: Path, notes: Notes) -> dict[int, str]:
    """Class names by number, exactly as written but for blanks around them."""
    written = settings["names"]
    malformed = UserError(f"{description}: 'names' must list the classes, or give each number a name")
    if isinstance(written, list):
        written = {str(number): name for number, name in enumerate(written)}
    if not isinstance(written, dict) or not written or any(isinstance(name, (dict, list)) for name in written.values()):
        raise malformed
    names: dict[int, str] = {}
    for key, name in written.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10):
            swapped = "; write the number first, '0: cat'" if str(name).isdigit() else ""
            raise UserError(f"{malformed}; {key!r} is no number (0, 1, 2, ...){swapped}")
        number = int(key)
        plain = trimmed(str(name))
        if plain != name:
            notes.add("class names had blanks around them, which were removed", f"{description}: {name!r}")
        if not plain:
            raise UserError(f"{description}: class {number} of 'names' is empty; give it a name")
        if number in names:
            raise UserError(f"{description}: 'names' gives class {number} twice; give each class one name")
        if plain in names.values():
            raise UserError(
                f"{description}: two classes are called {plain!r}; classes are told apart by name, rename one"
            )
        names[number] = plain
    count = _text(settings.get("nc"))
    if count and count != str(len(names)):
        notes.add(
            "number of classes contradicts the names, which count", f"{description}: nc {count}, {len(names)} names"
        )
    return names


def _keypoints(settings: dict[str, Any], description: Path) -> tuple[int, int] | None:
    shape = settings.get("kpt_shape")
    if shape is None or shape in _NOTHING:
        return None
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(isinstance(v, str) and v.isascii() and v.isdigit() for v in shape)
        or shape[1] not in ("2", "3")
        or int(shape[0]) < 1
    ):
        raise UserError(f"{description}: kpt_shape is {shape!r}; it must be [number of keypoints, 2 or 3]")
    return int(shape[0]), int(shape[1])


def _annotation(line: Line, number: int, image: dict[str, Any]) -> dict[str, Any]:
    width, height = image["width"], image["height"]
    out = {"id": number, "image_id": image["id"], "category_id": line.category, "iscrowd": 0}
    if line.is_box:
        x, y, w, h = (value * side for value, side in zip(line.values, (width, height) * 2, strict=True))
        return {**out, "bbox": [x - w / 2, y - h / 2, w, h], "area": w * h}
    xs, ys = ([value * side for value in line.values[axis::2]] for axis, side in ((0, width), (1, height)))
    polygon = [value for point in zip(xs, ys, strict=True) for value in point]
    following = [*range(1, len(xs)), 0]
    area = abs(sum(xs[i] * ys[j] - xs[j] * ys[i] for i, j in enumerate(following))) / 2
    bbox = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {**out, "bbox": bbox, "area": area, "segmentation": [polygon]}
