"""Datasets as folders of the formats that can be read, and what a format cannot hold, counted."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dfine_jax.data.edit.items import WHOLE, Item, Items
from dfine_jax.data.formats.placing import Mode, Placement, new_folder
from dfine_jax.data.picture.images import EXTENSIONS
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.outlines import RunLengths, checked, parse_segmentation
from dfine_jax.errors import UserError
from dfine_jax.system.search import is_housekeeping

_DO_NOT_FIT = "outlines do not fit their boxes; the boxes are written"
_SEARCHED = ("yolo", "voc", "labelme", "labelstudio")  # whose pictures or files are found by searching a folder
_ROUNDING_PX = 1.0  # boxes of whole pixels around outlines of fractions


@dataclasses.dataclass(frozen=True)
class Target:
    """What a writer gets: the dataset, where the pictures go, and the folder."""

    items: Items
    folder: Path
    placement: Placement
    notes: Notes

    @property
    def names(self) -> dict[Any, str]:
        """Class names by category id."""
        return {category["id"]: category["name"] for category in self.items.categories}

    def place(self, split: str) -> Path:
        """The folder of a split; that of the dataset where there are no splits."""
        folder = self.folder if split == WHOLE else self.folder / split
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def shapes(self, item: Item, *, parts: bool = False, masks: bool = False, crowds: bool = False) -> list[Shape]:
        """Objects of a picture as the format can hold them; what is lost is noted.

        Args:
          item: the picture.
          parts: polygons of several parts can be held.
          masks: masks can be held.
          crowds: crowds can be held.
        """
        out = []
        for annotation in item.annotations:
            where = f"{item.path}, annotation {annotation.get('id')}"
            crowd = bool(annotation.get("iscrowd"))
            if annotation["category_id"] not in self.names:
                self.notes.add("objects of unlisted classes are left out", where)
                continue
            if crowd and not crowds:
                self.notes.add("crowd regions cannot be held; they are left out", where)
                continue
            x, y, w, h = map(float, annotation["bbox"])
            box = (x, y, x + w, y + h)
            segmentation = annotation.get("segmentation")
            polygons: list[list[float]] = []
            mask = None
            lost = ""
            if isinstance(segmentation, list):
                polygons = [part for part in segmentation if isinstance(part, list) and len(part) >= 6]
                if len(polygons) > 1 and not parts:
                    lost = "polygons of several parts cannot be held; their boxes are written"
                elif polygons and not _fits(_extent(polygons), box):
                    lost = _DO_NOT_FIT
            elif isinstance(segmentation, dict):
                extent = _mask_extent(segmentation, item.size_px)
                if not masks:
                    lost = "masks cannot be held; their boxes are written"
                elif extent is None:
                    lost = "masks are empty, damaged or of another size than their picture; their boxes are written"
                elif not _fits(extent, box):
                    lost = _DO_NOT_FIT
                else:
                    mask = segmentation
            if lost:
                self.notes.add(lost, where)
                polygons = []
            out.append(
                Shape(
                    self.names[annotation["category_id"]],
                    annotation["category_id"],
                    box,
                    polygons,
                    mask,
                    crowd,
                    annotation.get("score"),
                )
            )
        return out


@dataclasses.dataclass(frozen=True)
class Shape:
    """An object, in pixels of the upright picture."""

    name: str
    category_id: Any
    xyxy_px: tuple[float, float, float, float]
    polygons_px: list[list[float]]
    run_lengths: dict[str, Any] | None
    crowd: bool
    score: float | None = None  # of detections


def _extent(polygons: list[list[float]]) -> list[float]:
    return [pick(pick(part[axis::2]) for part in polygons) for pick in (min, max) for axis in (0, 1)]


def _mask_extent(mask: dict[str, Any], size_px: tuple[int, int]) -> list[float] | None:
    """Corners around a mask; None where it is none of a picture of (width, height)."""
    from pycocotools import mask as coco_mask

    try:
        outline = checked(parse_segmentation(mask), *size_px)
    except (TypeError, ValueError, OverflowError):
        return None
    if not isinstance(outline, RunLengths):
        return None
    encoded: Any = {"size": [outline.height_px, outline.width_px], "counts": outline.counts}
    x, y, width, height = coco_mask.toBbox(encoded).tolist()
    return [x, y, x + width, y + height] if width and height else None


def _fits(extent: Sequence[float], box: tuple[float, float, float, float]) -> bool:
    """Whether the extent of an outline is its box, give or take rounding; most formats that hold one lack the other."""
    return all(abs(a - b) <= _ROUNDING_PX for a, b in zip(extent, box, strict=True))


def formats() -> dict[str, tuple[Callable[[Target], None], bool, bool]]:
    """(writer, whether pictures may stay where they are, whether names have no folders) by name.

    CVAT and Label Studio know pictures by names below a folder, so what leads out of the new one is nothing to them.
    """
    from dfine_jax.data.formats import write_json, write_labelstudio, write_text

    return {
        "coco": (write_json.write_coco, True, False),
        "yolo": (write_text.write_yolo, False, False),
        "voc": (write_text.write_voc, False, True),
        "labelme": (write_json.write_labelme, True, False),
        "via": (write_json.write_via, True, False),
        "cvat": (write_text.write_cvat, False, False),
        "labelstudio": (write_labelstudio.write_labelstudio, False, False),
    }


_STEMS = ("yolo", "voc", "labelme")  # with a file for each picture, called as it is without its ending
FORMATS = ("coco", "yolo", "voc", "labelme", "via", "cvat", "labelstudio")


def write(items: Items, form: str, out: Path, mode: Mode | None, names: Mapping[Path, str] | None = None) -> Notes:
    """Write a dataset as a new folder, whole or not at all.

    Args:
      items: the dataset.
      form: one of ``FORMATS``.
      out: the folder, which must not exist, or be empty.
      mode: where pictures go; None refers to them where they are if the format can, else links them.
      names: of pictures in the new folder, where they are linked or copied; else by their place below their common one.

    Returns:
      What the format cannot hold.

    Raises:
      UserError: something is there already, the system refuses, or the mode does not fit the format.
    """
    writer, can_refer, flat = formats()[form]
    if mode == "refer" and not can_refer:
        raise UserError(f"{form} needs its pictures in its own folders; link or copy them")
    chosen: Mode = mode or ("refer" if can_refer else "link")
    notes = Notes()
    if form != "coco":
        _check_names(items, form)
        for split in [split for split, own in items.splits.items() if not own]:
            notes.add("splits without pictures cannot be held", split)
        items = dataclasses.replace(items, splits={split: own for split, own in items.splits.items() if own})
    pictures = {split: [item.path for item in own] for split, own in items.splits.items()}
    with new_folder(out) as folder:
        placement = Placement(pictures, chosen, flat=flat, stems=form in _STEMS, given=names)
        _check_found_again(pictures, placement, form)
        for path in placement.renamed if chosen != "refer" else ():
            notes.add("pictures were renamed, because names without ending must differ", str(path))
        writer(Target(items, folder, placement, notes))
    return notes


def _check_names(items: Items, form: str) -> None:
    """UserError for class names that files of text cannot hold, or that reading would take for another."""
    for category in items.categories:
        name = category["name"]
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise UserError(
                f"class {name!r} has control characters, which {form} cannot hold; rename it (--to coco keeps it)"
            )


def _check_found_again(pictures: Mapping[str, Sequence[Path]], placement: Placement, form: str) -> None:
    """UserError for pictures that a reader of the format would not find: hidden ones, and those without an ending."""
    for split, own in pictures.items():
        for path in own:
            name = placement.name(split, path)
            hidden = form in _SEARCHED and any(map(is_housekeeping, name.parts))
            if hidden or (form in ("yolo", "voc") and name.suffix.lower() not in EXTENSIONS):
                why = "is hidden" if hidden else "does not end like a picture's (.jpg, .png, ...)"
                raise UserError(
                    f"the name of {path} {why}, so that it would not be found as {form}; rename the picture"
                )


def used_names(splits: Mapping[str, Sequence[Item]]) -> set[Any]:
    """Ids of the classes that have objects."""
    return {a["category_id"] for own in splits.values() for item in own for a in item.annotations}


def note_unused(target: Target) -> None:
    """Note classes without objects, for formats that know the classes by their objects only."""
    used = used_names(target.items.splits)
    if not used.intersection(target.names):
        raise UserError("no picture has an object; the format knows classes by their objects only: take coco or yolo")
    for number, name in target.names.items():
        if number not in used:
            target.notes.add("classes without objects cannot be held", name)
