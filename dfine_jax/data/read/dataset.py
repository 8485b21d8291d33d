"""A dataset as the rest of the program sees it, whatever format it came in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import Float32, Int32, Int64
from PIL import Image

from dfine_jax.data.picture.images import open_annotated
from dfine_jax.data.read.outlines import Outline
from dfine_jax.errors import UserError

if TYPE_CHECKING:
    from dfine_jax.data.read.index import Columns

_LISTED = 5


@dataclasses.dataclass(frozen=True)
class Classes:
    """Names of classes by label, and what annotation files call them."""

    names: tuple[str, ...]
    ids: tuple[int, ...]  # category ids

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.names)


class Stored(Protocol):
    """A picture inside something that is not a folder; travels to loader processes by pickle."""

    def read(self) -> bytes:
        """The encoded picture."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One image and its usable objects; boxes are pixels of the image as annotated."""

    image_id: int
    path: Path
    width_px: int
    height_px: int
    boxes_xyxy_px: Float32[np.ndarray, "g 4"]
    labels: Int32[np.ndarray, " g"]
    areas_px: Float32[np.ndarray, " g"]  # as annotated: of the mask where there is one
    annotation_ids: Int64[np.ndarray, " g"]  # as ``coco.segmentations`` has them
    outlines: tuple[Outline, ...] = ()  # once ``coco.with_outlines`` has read them
    stored: Stored | None = None  # where the picture is when it is not a file; ``path`` then only names it
    upright: bool = False  # annotated as a viewer shows it, by its EXIF orientation; else as its pixels are stored


@dataclasses.dataclass(frozen=True)
class Changes:
    """What reading an annotation file changed, in annotations."""

    crowd: int = 0  # dropped
    degenerate: int = 0  # dropped: no area left inside the image
    unknown_category: int = 0  # dropped, where that is asked for: category that the file does not list
    clamped: int = 0  # kept, cut at the border of the image
    empty: int = 0  # no objects: their box is an empty list or null, which some tools write for the background
    ignored: int = 0  # dropped like crowd regions: marked ``ignore`` or ``difficult``
    areas: int = 0  # kept, with an area computed from the mask or the box because the given one cannot be
    drawn: int = 0  # kept, with the box of their mask because they have none of their own

    def __str__(self) -> str:
        """One line, empty when nothing happened."""
        parts = [
            f"{self.crowd} crowd regions dropped" * bool(self.crowd),
            f"{self.ignored} objects marked ignore or difficult dropped" * bool(self.ignored),
            f"{self.degenerate} boxes without area dropped" * bool(self.degenerate),
            f"{self.unknown_category} annotations of unlisted categories dropped" * bool(self.unknown_category),
            f"{self.clamped} boxes cut at the image border" * bool(self.clamped),
            f"{self.empty} annotations without a box taken as no object" * bool(self.empty),
            f"{self.drawn} boxes made from masks" * bool(self.drawn),
            f"{self.areas} impossible areas replaced by that of mask or box" * bool(self.areas),
        ]
        return ", ".join(part for part in parts if part)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A split: images (with or without objects) in the order of the file."""

    records: Sequence[Record]  # made when they are asked for (records.Records), or a tuple of some of them
    classes: Classes
    annotation_file: Path  # COCO JSON; of other formats, the same content in the cache
    changes: Changes
    columns: Columns | None = None  # all annotations of the file, crowd regions included

    def __len__(self) -> int:
        """Number of images."""
        return len(self.records)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by label."""
        return self.classes.names

    @property
    def max_objects(self) -> int:
        """Largest number of objects in one image."""
        from dfine_jax.data.read.records import objects_per_image

        return int(objects_per_image(self.records).max(initial=0))


def listed(names: Sequence[str]) -> str:
    """The first of them and how many there are beside; of a hundred classes, too, a line that can be read."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def open_record(record: Record) -> Image.Image:
    """The picture of a record, RGB, of the annotated size. Errors as ``open_annotated``."""
    stored = None if record.stored is None else record.stored.read()
    return open_annotated(record.path, record.width_px, record.height_px, stored, upright=record.upright)


def check_same_categories(train: Dataset, val: Dataset) -> None:
    """UserError unless both splits list the same category ids with the same names."""
    if train.classes == val.classes:
        return
    ours, theirs = (dict(zip(d.classes.ids, d.classes.names, strict=True)) for d in (train, val))
    wrong = next(i for i in sorted(ours.keys() | theirs.keys()) if ours.get(i) != theirs.get(i))
    raise UserError(
        f"categories differ: id {wrong} is {ours.get(wrong, 'absent')!r} in {train.annotation_file} and "
        f"{theirs.get(wrong, 'absent')!r} in {val.annotation_file}; give both files the same categories"
    )
