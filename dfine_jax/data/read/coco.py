"""COCO annotation files as typed records, by the reference's rules (src/data/dataset/coco_dataset.py, convert_coco).

Original category ids, whatever they are, are mapped once to 0..n-1 in ascending order; every annotation that is dropped
or changed is counted, and the counts are logged once.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from dfine_jax.data.picture.images import image_size
from dfine_jax.data.read.coco_pieces import OutlineEntry, coco_lists, in_pieces
from dfine_jax.data.read.dataset import Changes, Dataset, Stored, listed
from dfine_jax.data.read.index import Columns, file_content, read_columns
from dfine_jax.data.read.names import heads_of, name_at
from dfine_jax.data.read.outlines import Outline, drawable
from dfine_jax.data.read.pictures import Places, find_pictures
from dfine_jax.data.read.records import Records, find_usable, named_path, share_usable
from dfine_jax.errors import RepairableError, UserError

logger = logging.getLogger(__name__)


def read_coco(
    annotation_file: Path | str,
    image_dir: Path | str,
    stored: Sequence[Stored] | None = None,
    *,
    upright: bool = False,
    drop_unlisted: bool = False,
) -> Dataset:
    """Read an annotation file and check it against the images.

    Rules of the reference: crowd regions are dropped; boxes become corners, are clamped to the image and kept when
    they still have width and height; images without boxes are kept. Beyond them: an object with a mask alone has the
    mask's box; without a mask an empty list or null as ``bbox`` marks an image without objects; an area that cannot be
    is computed from the mask or the box. All are counted.

    The columns of large files are kept in the cache folder (``index.read_columns``).

    Args:
      annotation_file: COCO JSON.
      image_dir: where its ``file_name`` are looked for, with and without their leading folders.
      stored: the pictures in the order of the file, when they are not files in ``image_dir``.
      upright: sizes and boxes are those of the pictures turned by their EXIF orientation (``Record.upright``).
      drop_unlisted: annotations of categories that the file does not list are dropped and counted, not an error.

    Raises:
      UserError: the file or folder is missing, is not JSON or not COCO, repeats ids, refers to unknown images or
        categories, or lists image files that do not exist or that are one and the same.
    """
    annotation_file, image_dir = Path(annotation_file), Path(image_dir)
    columns = read_columns(annotation_file)
    arrays = columns.shared.arrays
    if stored is None:
        places = find_pictures(arrays, image_dir, annotation_file)
    else:
        places = named_path(image_dir, heads_of(arrays))
    if not drop_unlisted:
        _check_classes(columns, annotation_file)
    usable, shared = columns.usable, columns.shared
    if usable is None:  # sizes are missing in the file, and those of the pictures may change without it
        size_px = _sizes(arrays, places)
        usable = find_usable(arrays, size_px)
        shared = share_usable(usable.kept, size_px)
    records = Records(columns.shared, shared, places, upright=upright, stored=stored)
    notes = columns.notes
    changes = Changes(
        crowd=usable.crowd - notes["ignored"],
        degenerate=usable.degenerate,
        unknown_category=notes["unlisted"],
        clamped=usable.clamped,
        empty=notes["empty"],
        areas=notes["areas"],
        ignored=notes["ignored"],
        drawn=notes["drawn"],
    )
    dataset = Dataset(records, columns.classes, annotation_file, changes, columns)
    logger.info(
        "%s: %d images, %d objects, %d classes",
        annotation_file,
        len(records),
        np.count_nonzero(usable.kept),
        len(columns.classes),
    )
    if str(dataset.changes):
        logger.warning("%s: %s", annotation_file, dataset.changes)
    return dataset


def _sizes(arrays: dict[str, np.ndarray], places: Places) -> Int64[np.ndarray, "m 2"]:
    """Sizes as the file gives them, or those of the pictures where it does not."""
    sizes = arrays["size_px"].copy()
    for position in np.flatnonzero((sizes <= 0).any(1)).tolist():
        sizes[position] = image_size(places.path(name_at(arrays, position)))
    return sizes


def _check_classes(columns: Columns, source: Path) -> None:
    """All objects are of listed categories; crowd regions are dropped anyhow."""
    notes = columns.notes
    if not notes["unlisted"]:
        return
    annotation, image, category = notes["unlisted_examples"][0]
    file = Path(name_at(columns.shared.arrays, image).replace("\\", "/")).name
    ids, names = columns.classes.ids, columns.classes.names
    known = set(map(str, ids))
    as_text = all(value.strip("'\"") in known for *_, value in notes["unlisted_examples"])
    refusal = RepairableError if as_text else UserError
    raise refusal(
        f"{source}: {notes['unlisted']} of {notes['annotations']} annotations have a category_id that 'categories' "
        f"does not list, such as {category} of annotation {annotation} in {file}; "
        f"listed are {listed([f'{i} {name}' for i, name in zip(ids, names, strict=True)])}; add the class to "
        "'categories', or remove the annotations (dfine check --data DIR reports all problems)"
    )


def segmentations(dataset: Dataset) -> Iterator[tuple[int, int, Any]]:
    """Objects that have a ``segmentation``: annotation id, position of its record, polygons or run lengths.

    The file is read again, a short piece at a time: boxes alone need none of this memory.

    Raises:
      UserError: the file is gone or has become unreadable.
    """
    numbers = [record.annotation_ids for record in dataset.records]
    position = np.repeat(np.arange(len(numbers)), [len(ids) for ids in numbers]).tolist()
    position_of = dict(zip(np.concatenate([np.empty(0, np.int64), *numbers]).tolist(), position, strict=True))
    file = dataset.annotation_file
    with file_content(file) as text:
        for piece in in_pieces(coco_lists(text, file)["annotations"], OutlineEntry, file):
            for entry in piece.entries:
                if entry.segmentation and entry.id in position_of:
                    yield entry.id, position_of[entry.id], entry.segmentation


def with_outlines(dataset: Dataset) -> Dataset:
    """The dataset with the outlines of its objects, for masks.

    Raises:
      UserError: as ``segmentations``, or an outline cannot be drawn.
    """
    records, found = tuple(dataset.records), dict[int, Outline]()
    dataset = dataclasses.replace(dataset, records=records)
    for number, position, segmentation in segmentations(dataset):
        record = records[position]
        size_px = record.width_px, record.height_px
        found[number] = usable_outline(segmentation, size_px, number, record.path.name, dataset.annotation_file)
    outlined = (
        dataclasses.replace(record, outlines=tuple(found.get(i) for i in record.annotation_ids.tolist()))
        for record in records
    )
    return dataclasses.replace(dataset, records=tuple(outlined))


def usable_outline(segmentation: Any, size_px: tuple[int, int], number: int, picture: str, source: Path) -> Outline:
    """``segmentation`` of annotation ``number`` in a picture of (width, height).

    Raises:
      UserError: it cannot be drawn.
    """
    try:
        return drawable(segmentation, *size_px)
    except ValueError as error:
        raise RepairableError(
            f"{source}: the mask of annotation {number} in {picture} cannot be used ({error})"
        ) from error
