"""Pictures of what the model is given: a batch as one image, with its boxes and, where it has them, masks drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from dfine_jax.data.augment import masks as object_masks
from dfine_jax.data.load.batch import Batch
from dfine_jax.data.picture.captions import strip
from dfine_jax.data.picture.draw import draw_boxes
from dfine_jax.data.picture.object_masks import MapMasks
from dfine_jax.data.read.dataset import Record, open_record

_GAP_PX = 6
_CAPTION_PX, _TITLE_PX = 14, 20  # of letters
_QUARTERS_LOGIT = np.array([-20, -np.log(3), 0, np.log(3), 20], np.float16)  # of 0 to 4 quarters, as probabilities


def batch_grid(
    batches: Sequence[Batch], names: Sequence[str], count: int, files: Sequence[str] = (), title: str = ""
) -> Image.Image:
    """The first ``count`` training images, augmented and mixed as the model sees them, with their objects.

    Args:
      names: of the classes.
      files: what to write under the pictures.
      title: what to write above all of them.
    """
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
    return tiled(pictures[:count], files[:count], title)


def annotated_grid(records: Sequence[Record], names: Sequence[str], cell_px: int = 480) -> Image.Image:
    """Pictures as they are annotated, with their masks where outlines were read and their names, each in a square."""
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
    return tiled(pictures, [record.path.name for record in records], "as they are annotated")


def _shrunk_masks(record: Record, size_px: tuple[int, int]) -> object_masks.Masks | None:
    """Masks of a record in its picture of another (width, height)."""
    annotated_px = record.width_px, record.height_px
    scale = size_px[0] / annotated_px[0], size_px[1] / annotated_px[1]
    return object_masks.moved(object_masks.make_masks(record.outlines, annotated_px), scale, (0, 0))


def tiled(pictures: Sequence[Image.Image], captions: Sequence[str] = (), title: str = "") -> Image.Image:
    """Pictures in cells of the size of the largest, on white, about as many across as down.

    Args:
      captions: of the pictures, below them.
      title: of all, above them.
    """
    width, height = (max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    columns = math.ceil(math.sqrt(len(pictures) * height / width))
    if captions:
        pictures = [_captioned(*pair) for pair in zip(pictures, captions, strict=True)]
        height = max(picture.height for picture in pictures)
    rows = math.ceil(len(pictures) / columns)
    across = columns * (width + _GAP_PX) + _GAP_PX
    heading = strip(across, title, _TITLE_PX) if title else Image.new("RGB", (across, 0))
    sheet = Image.new("RGB", (across, heading.height + rows * (height + _GAP_PX) + _GAP_PX), "white")
    sheet.paste(heading, (0, 0))
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        left, top = _GAP_PX + column * (width + _GAP_PX), heading.height + _GAP_PX + row * (height + _GAP_PX)
        sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
    return sheet


def _captioned(picture: Image.Image, caption: str) -> Image.Image:
    below = strip(picture.width, caption, _CAPTION_PX)
    whole = Image.new("RGB", (picture.width, picture.height + below.height), "white")
    whole.paste(picture, (0, 0))
    whole.paste(below, (0, picture.height))
    return whole


def _shown(
    masks: UInt8[np.ndarray, "g h w"], boxes_xyxy_px: Float[np.ndarray, "g 4"], size_px: tuple[int, int]
) -> MapMasks:
    """Masks in quarters as those that a network answers with are shown, but not cut at their boxes."""
    return MapMasks(_QUARTERS_LOGIT[masks], boxes_xyxy_px, (0, 0, *size_px), size_px, cut_to_boxes=False)
