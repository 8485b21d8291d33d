"""YOLO text labels (boxes and polygons) as COCO content, so that everything after the reading is one pipeline.

A ``data.yaml`` names the classes and the image folders; beside ``images/.../a.jpg`` lies ``labels/.../a.txt`` (or
``a.txt`` in the same folder) with one object per line: ``class x y width height`` or ``class x1 y1 x2 y2 x3 y3 ...``,
fractions of the picture. A missing or empty file is a picture without objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dfine_jax.data.dataset import listed
from dfine_jax.data.images import EXTENSIONS, upright_size
from dfine_jax.data.layout import FOLDERS
from dfine_jax.errors import UserError

_DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_BOX_COLUMNS, _LEAST_POLYGON_COLUMNS = 5, 7


def find_description(root: Path) -> Path | None:
    """The YAML file that describes a YOLO dataset: the usual names first, else the only one in the folder."""
    for name in _DESCRIPTIONS:
        if (root / name).is_file():
            return root / name
    others = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    return others[0] if len(others) == 1 else None


def read_yolo(description: Path, split: str, *, drop_unlisted: bool = False) -> dict[str, Any] | None:
    """COCO content of a split; image files by absolute path, category ids are YOLO's class numbers.

    Args:
      description: the YAML file.
      split: train, val or test.
      drop_unlisted: objects of classes that are not among the names stay in the content, to be dropped and counted
        later; else they are an error.

    Returns:
      None when the description names no such split.

    Raises:
      UserError: the description or a label file is malformed, names folders that do not exist, or lacks
        classes that labels have.
    """
    settings = _load(description)
    entry = next((settings[name] for name in FOLDERS[split] if settings.get(name)), None)
    if entry is None:
        return None
    names = _names(settings, description)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    unlisted: list[str] = []
    found_labels = 0
    for path in _pictures(description, settings, entry):
        width, height = upright_size(path)
        image = {"id": len(images) + 1, "file_name": str(path), "width": width, "height": height}
        images.append(image)
        label_file = _label_file(path)
        if label_file is None:
            continue
        found_labels += 1
        for line, category, points, is_box in _objects(label_file):
            if category not in names:
                unlisted.append(f"{category} in {label_file}, line {line}")
            annotations.append(_annotation(len(annotations) + 1, image, category, points, is_box))
    if not images:
        raise UserError(f"{description}: no images in {entry} of split {split}")
    if not found_labels:
        raise UserError(
            f"{description}: no label files for the {len(images)} images of split {split}; expected {images[0]['id']} "
            f"as {_candidates(Path(images[0]['file_name']))[0]}"
        )
    if unlisted and not drop_unlisted:
        raise UserError(
            f"{description}: {len(unlisted)} of {len(annotations)} objects of split {split} have a class number that "
            f"'names' does not have, such as {unlisted[0]}; "
            f"it has {listed([f'{number} {name}' for number, name in names.items()])}; YOLO counts classes from 0: "
            "correct the labels, add the class to 'names', or remove the lines (dfine check --data DIR reports all "
            "problems)"
        )
    categories = [{"id": number, "name": name} for number, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _load(description: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(description.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{description} is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(settings, dict) or "names" not in settings:
        raise UserError(f"{description} is no YOLO dataset: it needs 'names' and the folders 'train' and 'val'")
    return settings


def _names(settings: dict[str, Any], description: Path) -> dict[int, str]:
    names = settings["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(isinstance(number, int) for number in names):
        raise UserError(f"{description}: 'names' must list the classes, or give each number a name")
    return {number: str(name) for number, name in names.items()}


def _pictures(description: Path, settings: dict[str, Any], entry: Any) -> Iterator[Path]:
    for name in entry if isinstance(entry, list) else [entry]:
        place = _resolve(description, settings, str(name))
        if place.is_dir():
            files = sorted(path for path in place.rglob("*") if path.suffix.lower() in EXTENSIONS)
            yield from (path.absolute() for path in files)
        else:
            for line in place.read_text(encoding="utf-8").splitlines():
                if line.strip():
                    path = Path(line.strip())
                    yield path if path.is_absolute() else (place.parent / path).absolute()


def _resolve(description: Path, settings: dict[str, Any], name: str) -> Path:
    """A folder or list of images; exports disagree on what relative paths start from."""
    here = description.parent
    base = here / str(settings.get("path") or "")
    stripped = Path(*[part for part in Path(name).parts if part not in ("..", ".")])
    for candidate in (base / name, here / name, here / stripped):
        if candidate.exists():
            return candidate
    raise UserError(f"{description}: {base / name} does not exist; correct the path there")


def _candidates(picture: Path) -> list[Path]:
    parts = list(picture.parts)
    out = []
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        out.append(Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt"))
    return [*out, picture.with_suffix(".txt")]


def _label_file(picture: Path) -> Path | None:
    return next((path for path in _candidates(picture) if path.is_file()), None)


def _objects(label_file: Path) -> Iterator[tuple[int, int, list[float], bool]]:
    """(line number, class, numbers after it, whether they are a box) of each object."""
    for number, line in enumerate(label_file.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            category, points = int(float(words[0])), [float(word) for word in words[1:]]
        except ValueError:
            raise UserError(f"{label_file}, line {number}: {line.strip()!r} is not all numbers") from None
        is_box = len(words) == _BOX_COLUMNS
        if not is_box and (len(words) < _LEAST_POLYGON_COLUMNS or len(words) % 2 == 0):
            raise UserError(
                f"{label_file}, line {number} has {len(words)} columns; write 'class x y width height' or 'class' and "
                "at least three points"
            )
        yield number, category, points, is_box


def _annotation(number: int, image: dict[str, Any], category: int, points: list[float], is_box: bool) -> dict[str, Any]:
    width, height = image["width"], image["height"]
    out = {"id": number, "image_id": image["id"], "category_id": category, "iscrowd": 0}
    if is_box:
        x, y, w, h = (value * side for value, side in zip(points, (width, height) * 2, strict=True))
        return {**out, "bbox": [x - w / 2, y - h / 2, w, h], "area": w * h}
    xs, ys = ([value * side for value in points[axis::2]] for axis, side in ((0, width), (1, height)))
    polygon = [value for point in zip(xs, ys, strict=True) for value in point]
    following = [*range(1, len(xs)), 0]
    area = abs(sum(xs[i] * ys[j] - xs[j] * ys[i] for i, j in enumerate(following))) / 2
    bbox = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {**out, "bbox": bbox, "area": area, "segmentation": [polygon]}
