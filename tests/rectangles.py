"""A detector that really detects, in NumPy: rectangles of pure red, green or blue on a dark ground."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.dataset import Classes
from dfine_jax.ops.postprocess import Answer
from dfine_jax.prediction.detector import OpenedModel
from dfine_jax.serving.backends.base import Backend

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
CLASSES = Classes(tuple(COLOURS), (7, 3, 90))
QUERIES = 20
SMALLEST_PX = 2  # of the network's input


class RectangleBackend(Backend):
    """The bounding box of every connected patch of one colour, scored by the share of it that has the colour."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, images):
        self.batches.append(len(images))
        logits = np.full((len(images), QUERIES, 3), -9.0, np.float32)
        boxes = np.full((len(images), QUERIES, 4), 0.5, np.float32)
        for row, image in enumerate(images):
            for query, (label, fill, box) in enumerate(self._patches(image)[:QUERIES]):
                logits[row, query, label] = 4 * fill
                boxes[row, query] = box
        return Answer(logits, boxes)

    @staticmethod
    def _patches(image):
        height, width = image.shape[:2]
        found = []
        for label in range(3):
            others = np.delete(image, label, 2).max(2)
            patches, _ = ndimage.label((image[..., label] > 127) & (others < 100))
            for i, (ys, xs) in enumerate(ndimage.find_objects(patches), start=1):
                if min(ys.stop - ys.start, xs.stop - xs.start) >= SMALLEST_PX:
                    box = [(xs.start + xs.stop) / 2 / width, (ys.start + ys.stop) / 2 / height]
                    box += [(xs.stop - xs.start) / width, (ys.stop - ys.start) / height]
                    found.append((label, float((patches[ys, xs] == i).mean()), box))
        return found


def opened(backend: Backend | None = None, size_px: tuple[int, int] = (64, 64)) -> OpenedModel:
    """What ``detector.open_model`` returns for a model; ``size_px`` is (height, width) of its input."""
    return OpenedModel(backend or RectangleBackend(), CLASSES, Preprocess(*size_px), None)


def scene(width: int, height: int, *rectangles: tuple[str, int, int, int, int]) -> np.ndarray:
    """Picture with rectangles (colour, x0, y0, x1, y1), ends exclusive."""
    image = np.full((height, width, 3), 20, np.uint8)
    for colour, x0, y0, x1, y1 in rectangles:
        image[y0:y1, x0:x1] = COLOURS[colour]
    return image
