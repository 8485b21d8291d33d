"""Pictures of what the model is given: a batch as one image, with its boxes and, where it has them, masks drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from dfine_jax.data.augment import masks as object_masks
from dfine_jax.data.load.batch import Batch
from dfine_jax.data.picture.draw import draw_boxes
from dfine_jax.data.picture.object_masks import MapMasks
from dfine_jax.data.read.dataset import Record, open_record

_GAP_PX = 6
_QUARTERS_LOGIT = np.array([-20, -np.log(3), 0, np.log(3), 20], np.float16)  # of 0 to 4 quarters, as probabilities


def batch_grid(batches: Sequence[Batch], names: Sequence[str], count: int) -> Image.Image:
    """The first ``count`` training images, augmented and mixed as the model sees them, with their objects."""
    pictures = []
    for batch in batches:
        for row in range(len(batch.images)):
            valid = batch.valid[row]
            image, labels = Image.fromarray(batch.images[row]), batch.labels[row][valid]
            centre, half = np.split(batch.boxes_cxcywh[row][valid] * np.tile(image.size, 2), [2], axis=1)
            boxes = np.concatenate([centre - half / 2, centre + half / 2], axis=1)
            masks = None if batch.masks is None else _shown(batch.masks[row][valid], boxes, image.size)
            shown = [names[int(label)] for label in labels]
            pictures.append(draw_boxes(image, boxes, labels, shown, masks=masks, enlarge=True))
    return tiled(pictures[:count])


def annotated_grid(records: Sequence[Record], names: Sequence[str], cell_px: int = 480) -> Image.Image:
    """Pictures as they are annotated, with their masks where outlines were read, each shrunk to fit a square."""
    pictures = []
    for record in records:
        image = open_record(record)
        scale = min(1.0, cell_px / max(image.size))
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        boxes, masks = record.boxes_xyxy_px * scale, None
        shrunk = _shrunk_masks(record, image.size) if record.outlines else None
        if shrunk is not None:
            masks = _shown(object_masks.drawn(shrunk, image.height, image.width, 1), boxes, image.size)
        labels = [names[int(label)] for label in record.labels]
        pictures.append(draw_boxes(image, boxes, record.labels, labels, masks=masks, enlarge=True))
    return tiled(pictures)


def _shrunk_masks(record: Record, size_px: tuple[int, int]) -> object_masks.Masks | None:
    """Masks of a record in its picture of another (width, height)."""
    annotated_px = record.width_px, record.height_px
    scale = size_px[0] / annotated_px[0], size_px[1] / annotated_px[1]
    return object_masks.moved(object_masks.make_masks(record.outlines, annotated_px), scale, (0, 0))


def tiled(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in cells of the size of the largest, on white, about as many across as down."""
    width, height = (max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    columns = math.ceil(math.sqrt(len(pictures) * height / width))
    rows = math.ceil(len(pictures) / columns)
    size = (columns * (width + _GAP_PX) + _GAP_PX, rows * (height + _GAP_PX) + _GAP_PX)
    sheet = Image.new("RGB", size, "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        left, top = _GAP_PX + column * (width + _GAP_PX), _GAP_PX + row * (height + _GAP_PX)
        sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
    return sheet


def _shown(
    masks: UInt8[np.ndarray, "g h w"], boxes_xyxy_px: Float[np.ndarray, "g 4"], size_px: tuple[int, int]
) -> MapMasks:
    """Masks in quarters as those that a network answers with are shown, but not cut at their boxes."""
    return MapMasks(_QUARTERS_LOGIT[masks], boxes_xyxy_px, (0, 0, *size_px), size_px, cut_to_boxes=False)
