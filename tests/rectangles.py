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
    """The bounding box of every connected patch of one colour, scored by the share of it that has the colour.

    With a stride it makes masks too: logits of the share of each cell that the patch covers.
    """

    def __init__(self, mask_stride: int | None = None) -> None:
        self.batches: list[int] = []
        self.mask_stride = mask_stride

    def predict(self, images):
        self.batches.append(len(images))
        logits = np.full((len(images), QUERIES, 3), -9.0, np.float32)
        boxes = np.full((len(images), QUERIES, 4), 0.5, np.float32)
        stride = self.mask_stride or 1
        shares = np.zeros((len(images), QUERIES, images.shape[1] // stride, images.shape[2] // stride), np.float32)
        for row, image in enumerate(images):
            for query, (label, box, patch) in enumerate(self._patches(image)[:QUERIES]):
                ys, xs = ndimage.find_objects(patch)[0]
                logits[row, query, label] = 4 * float(patch[ys, xs].mean())
                boxes[row, query] = box
                cells = patch.reshape(shares.shape[2], stride, shares.shape[3], stride)
                shares[row, query] = cells.mean((1, 3))
        return Answer(logits, boxes, None if self.mask_stride is None else 18 * shares - 9)

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
                    found.append((label, box, (patches == i).astype(np.uint8)))
        return found


def opened(backend: Backend | None = None, size_px: tuple[int, int] = (64, 64)) -> OpenedModel:
    """What ``detector.open_model`` returns for a model; ``size_px`` is (height, width) of its input."""
    backend = backend or RectangleBackend()
    segments = getattr(backend, "mask_stride", None) is not None
    return OpenedModel(backend, CLASSES, Preprocess(*size_px), None, segments)


def scene(width: int, height: int, *rectangles: tuple[str, int, int, int, int]) -> np.ndarray:
    """Picture with rectangles (colour, x0, y0, x1, y1), ends exclusive."""
    image = np.full((height, width, 3), 20, np.uint8)
    for colour, x0, y0, x1, y1 in rectangles:
        image[y0:y1, x0:x1] = COLOURS[colour]
    return image


def with_disc(image: np.ndarray, colour: str, x: float, y: float, radius: float) -> np.ndarray:
    """A disc in place, and which pixels it covers."""
    down, across = np.indices(image.shape[:2]) + 0.5
    disc = (across - x) ** 2 + (down - y) ** 2 < radius**2
    image[disc] = COLOURS[colour]
    return disc
