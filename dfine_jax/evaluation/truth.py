"""What is annotated, as evaluation compares it: boxes from a dataset's columns, masks drawn from its file once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from dfine_jax.data.read.annotations import decode
from dfine_jax.data.read.coco import usable_outline
from dfine_jax.data.read.coco_pieces import OutlineEntry, coco_lists, in_pieces
from dfine_jax.data.read.dataset import Dataset
from dfine_jax.data.read.index import file_content, read_columns
from dfine_jax.data.read.names import name_at
from dfine_jax.data.read.outlines import Outline, in_run_lengths
from dfine_jax.data.read.records import image_ids, sizes_px
from dfine_jax.errors import UserError
from dfine_jax.evaluation.detections import Objects
from dfine_jax.evaluation.encoded_masks import EncodedMasks

# A dataset, its annotation file in COCO JSON, the content of such a file, or what ``annotated`` made of one.
Truth = Dataset | Path | str | Mapping[str, Any] | Objects


def annotated(truth: Truth, masks: bool = False) -> Objects:
    """All annotations with a listed category, crowd regions included; a dataset's file is not read again for boxes.

    Args:
      masks: read the file for outlines and draw them, each at the size of its picture.

    Raises:
      UserError: the file is missing or wrong, or an outline cannot be drawn.
    """
    if isinstance(truth, Objects):
        return truth
    text: Any = None
    source = Path("annotations")
    if isinstance(truth, Mapping):
        images = [{"file_name": "", **image} for image in truth["images"]]  # pictures are not asked for here
        text = json.dumps({**truth, "images": images}).encode()
        arrays, classes, _ = decode(text, source)
    else:
        source = Path(truth.annotation_file if isinstance(truth, Dataset) else truth)
        columns = truth.columns if isinstance(truth, Dataset) else None
        columns = columns or read_columns(source)
        arrays, classes = columns.shared.arrays, columns.classes
    ids = np.array(classes.ids, np.int64)
    image_id = np.repeat(arrays["image_id"], np.diff(arrays["objects"]))
    label = arrays["label"]
    use = label >= 0
    names = "box_xywh_px", "area_px", "crowd", "annotation_id"
    everything: Any = image_id, ids[label], *(arrays[name] for name in names)
    *columns, numbers = everything if use.all() else [column[use] for column in everything]
    objects = Objects(*columns, annotation_id=numbers)
    if not masks:
        return objects
    sizes = _sizes(arrays, truth)
    with contextlib.nullcontext(text) if text is not None else file_content(source) as content:
        drawn = _drawn(content, source, arrays, sizes)
    return dataclasses.replace(objects, masks=drawn if use.all() else drawn.select(use))


def _sizes(arrays: Mapping[str, np.ndarray], truth: Truth) -> Int64[np.ndarray, "m 2"]:
    """(width, height) by image; a dataset has looked at pictures of which the file does not say it."""
    if not isinstance(truth, Dataset):
        return arrays["size_px"]
    sizes = arrays["size_px"].copy()
    ids = image_ids(truth.records)
    order = np.argsort(arrays["image_id"], kind="stable")
    sizes[order[np.searchsorted(arrays["image_id"], ids, sorter=order)]] = sizes_px(truth.records)
    return sizes


def _drawn(text: Any, source: Path, arrays: dict[str, np.ndarray], sizes: Int64[np.ndarray, "m 2"]) -> EncodedMasks:
    """Masks of all annotations in the order of the columns; a short piece of the file is looked at at a time."""
    image = np.repeat(np.arange(len(sizes)), np.diff(arrays["objects"]))
    numbers = arrays["annotation_id"]
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    counts, bounds = bytearray(), np.zeros((len(numbers), 2), np.int64)
    for piece in in_pieces(coco_lists(text, source)["annotations"], OutlineEntry, source):
        entries = [entry for entry in piece.entries if entry.segmentation]
        if not entries or not len(ordered):
            continue
        ids = np.array([entry.id for entry in entries], np.int64)
        place = np.searchsorted(ordered, ids).clip(max=len(ordered) - 1)
        for entry, found in zip(entries, place.tolist(), strict=True):
            if ordered[found] != entry.id:
                continue  # without a box it is no object
            row = int(order[found])
            width, height = sizes[image[row]].tolist()
            picture = Path(name_at(arrays, int(image[row]))).name
            if not width or not height:
                raise UserError(f"{source}: image {picture!r} has no width and height, which its masks need; add them")
            outline = usable_outline(entry.segmentation, (width, height), entry.id, picture, source)
            start = len(counts)
            counts += encoded_outline(outline, (width, height))
            bounds[row] = start, len(counts)
    return EncodedMasks(bytes(counts), bounds, sizes[image][:, ::-1])


def encoded_outline(outline: Outline, size_px: tuple[int, int]) -> bytes:
    """An outline as pycocotools draws it in a picture of (width, height), compressed; nothing where there is none."""
    return b"" if outline is None else in_run_lengths(outline, *size_px).counts
