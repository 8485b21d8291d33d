"""Pictures of what the model is given: a batch as one image, with its boxes and, where it has them, masks drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from dfine_jax.data.augment import masks as object_masks
from dfine_jax.data.load.batch import Batch
from dfine_jax.data.picture.draw import class_colour, draw_boxes
from dfine_jax.data.read.dataset import Record, open_record

_GAP_PX = 6
_MASK_SHARE = 0.45  # of the class colour over the picture


def batch_grid(batches: Sequence[Batch], names: Sequence[str], count: int) -> Image.Image:
    """The first ``count`` training images, augmented and mixed as the model sees them, with their objects."""
    pictures = []
    for batch in batches:
        for row in range(len(batch.images)):
            valid = batch.valid[row]
            image, labels = Image.fromarray(batch.images[row]), batch.labels[row][valid]
            centre, half = np.split(batch.boxes_cxcywh[row][valid] * np.tile(image.size, 2), [2], axis=1)
            boxes = np.concatenate([centre - half / 2, centre + half / 2], axis=1)
            if batch.masks is not None:
                image = _tinted(image, batch.masks[row][valid], labels)
            shown = [names[int(label)] for label in labels]
            pictures.append(draw_boxes(image, boxes, labels, shown))
    return tiled(pictures[:count])


def annotated_grid(records: Sequence[Record], names: Sequence[str], cell_px: int = 480) -> Image.Image:
    """Pictures as they are annotated, with their masks where outlines were read, each shrunk to fit a square."""
    pictures = []
    for record in records:
        image = open_record(record)
        scale = min(1.0, cell_px / max(image.size))
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        masks = _shrunk_masks(record, image.size) if record.outlines else None
        if masks is not None:
            image = _tinted(image, object_masks.drawn(masks, image.height, image.width, 1), record.labels)
        labels = [names[int(label)] for label in record.labels]
        pictures.append(draw_boxes(image, record.boxes_xyxy_px * scale, record.labels, labels))
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


def _tinted(image: Image.Image, masks: UInt8[np.ndarray, "g h w"], labels: Int32[np.ndarray, " g"]) -> Image.Image:
    """The picture with masks, in quarters, as veils of the colours of their classes."""
    for mask, label in zip(masks, labels, strict=True):
        area = Image.fromarray((mask * (_MASK_SHARE * 255 / 4)).astype(np.uint8)).resize(image.size)
        image.paste(class_colour(int(label)), (0, 0, *image.size), area)
    return image
