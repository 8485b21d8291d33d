"""Images in, detections out, whatever runs the network."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast, overload

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image

from dfine_jax.data.picture.any_image import any_pixels, is_one_picture
from dfine_jax.data.picture.draw import draw_boxes
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.picture.object_masks import MapMasks, ObjectMasks
from dfine_jax.data.read.dataset import Classes
from dfine_jax.errors import UserError
from dfine_jax.serving.artefact import is_artefact
from dfine_jax.serving.backends.base import Backend, PixelPredictions
from dfine_jax.system.waiting import waiting

if TYPE_CHECKING:
    from dfine_jax.weights.load import LoadedModel

# Path, content of a picture file, open binary file, PIL image, or array (``data.any_image``).
ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True)
class DetectionResult:
    """Detections of one image, best first."""

    boxes_xyxy_px: Float32[np.ndarray, "n 4"]  # pixels of the given image; may reach beyond its edges
    scores: Float32[np.ndarray, " n"]
    labels: np.ndarray  # int32 [n], class indices
    names: tuple[str, ...]  # class name of each detection
    category_ids: tuple[int, ...]  # original category id of each detection
    size_px: tuple[int, int]  # (width, height) of the image
    object_masks: ObjectMasks | None = None  # of models that segment; small, other than their pixels

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.scores)

    @property
    def masks(self) -> Bool[np.ndarray, "n h w"] | None:
        """Masks in the size of the image, made anew each time: a byte for each pixel of each object."""
        return None if self.object_masks is None else self.object_masks.all()

    def draw(self, image: ImageSource, font_file: str | None = None) -> Image.Image:
        """Picture with masks, boxes and labels; ``image`` is the one that was given to the detector."""
        picture = Image.fromarray(any_pixels(image))
        if picture.size != self.size_px:
            raise UserError(
                f"the picture is {picture.width}x{picture.height}, the detections belong to one of "
                f"{self.size_px[0]}x{self.size_px[1]}; give the image that was detected in"
            )
        return draw_boxes(
            picture, self.boxes_xyxy_px, self.labels, self.names, self.scores, font_file, self.object_masks
        )

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Entries of a COCO results file: original category ids, bbox as (x, y, width, height) in pixels.

        Those of models that segment have a segmentation: compressed run lengths of the size of the image.
        """
        corners = self.boxes_xyxy_px.astype(float)
        bbox = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).round(2)
        rows = zip(self.category_ids, bbox.tolist(), self.scores.astype(float).round(5).tolist(), strict=True)
        entries = [{"image_id": image_id, "category_id": c, "bbox": b, "score": s} for c, b, s in rows]
        if self.object_masks is not None:
            for i, entry in enumerate(entries):
                encoded = self.object_masks.rle(i)
                entry["segmentation"] = {**encoded, "counts": encoded["counts"].decode()}
        return entries

    def to_supervision(self) -> Any:
        """The same as ``supervision.Detections``, class names under ``data["class_name"]``."""
        import supervision

        return supervision.Detections(
            xyxy=self.boxes_xyxy_px,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels.astype(int),
            data={"class_name": np.array(self.names, dtype=str)},
        )


class Detector:
    """Detects objects in images: ``Detector("runs/cells/best")("photo.jpg")``.

    Exported files (``.onnx``, ``.xml``, ``.engine``) run without importing jax.

    Args:
      model: checkpoint folder, weights file, published name, exported file, or the result of ``load_checkpoint``
        or ``open_model``.
      threshold: smallest score of a detection.
      batch_size: images per run of the network (default: the batch an exported file was made for, otherwise 1). In JAX
        every run has this size, a shorter one is padded, so that the network is compiled once.
      num_top: most detections of an image.
      mask_threshold: smallest probability of a pixel of an object, of models that segment.
      runtime, device, threads: of exported files, see ``backends.registry.open_artefact``.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel | OpenedModel,
        threshold: float = 0.5,
        *,
        batch_size: int | None = None,
        num_top: int = 300,
        mask_threshold: float = 0.5,
        runtime: str | None = None,
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        for name, value in (("threshold", threshold), ("mask_threshold", mask_threshold)):
            if not 0 <= value <= 1:
                raise UserError(f"{name}={value} must lie between 0 and 1")
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        if not isinstance(model, OpenedModel):
            model = open_model(model, runtime=runtime, device=device, threads=threads)
        self.threshold = threshold
        self.batch_size = batch_size or model.batch or 1
        self.num_top = num_top
        self.mask_threshold = mask_threshold
        self.classes = model.classes
        self.segments = model.segments
        self._preprocess = model.preprocess
        self.input_size_px = self._preprocess.height_px, self._preprocess.width_px
        self._backend = model.backend

    def prepare(self) -> None:
        """Compile now what the first detection would compile; exported files need none of it."""
        self._backend.prepare((self.batch_size, *self.input_size_px, 3))

    @overload
    def __call__(self, images: ImageSource) -> DetectionResult: ...

    @overload
    def __call__(self, images: Iterable[ImageSource]) -> list[DetectionResult]: ...

    def __call__(self, images: ImageSource | Iterable[ImageSource]) -> DetectionResult | list[DetectionResult]:
        """Detections of one image, or a list of them for a list. Several threads may call one detector.

        Args:
          images: path, content of a picture file (bytes), open binary file, PIL image, or an array (uint8 [h, w, 3] in
            RGB; grey, RGBA and uint16 are taken too); or a list or generator of these. Files and PIL images with an
            EXIF orientation are turned upright; arrays are taken as they are.

        Raises:
          UserError: a file is missing or no image, or something is of another kind; the message says what is taken.
        """
        if is_one_picture(images):
            return next(self._detect([cast(ImageSource, images)]))
        if isinstance(images, (dict, set, frozenset)) or not isinstance(images, Iterable):
            images = [cast(ImageSource, images)]  # refused as what it is
        return list(self._detect(cast(Iterable[ImageSource], images)))

    def _detect(self, sources: Iterable[ImageSource]) -> Iterator[DetectionResult]:
        height, width = self.input_size_px
        upcoming = iter(sources)
        while pictures := [any_pixels(source) for source in itertools.islice(upcoming, self.batch_size)]:
            rows = self.batch_size if self._backend.compiles_per_shape else len(pictures)
            batch = np.zeros((rows, height, width, 3), np.uint8)
            views_px = np.ones((rows, 4))
            for row, picture in enumerate(pictures):
                batch[row] = self._preprocess(picture)
                views_px[row] = self._preprocess.view_px((picture.shape[1], picture.shape[0]))
            found = self._backend.detect(batch, views_px, self.num_top, self.threshold)
            for row, picture in enumerate(pictures):
                yield self._result(found, row, (picture.shape[1], picture.shape[0]))

    def _result(self, found: PixelPredictions, row: int, size_px: tuple[int, int]) -> DetectionResult:
        keep = found.scores[row] >= self.threshold
        labels, boxes_px, masks = found.labels[row][keep], found.boxes_xyxy_px[row][keep], None
        if found.masks_logit is not None:
            view_px = self._preprocess.view_px(size_px)
            masks = MapMasks(
                found.masks_logit[row][np.flatnonzero(keep)], boxes_px, view_px, size_px, self.mask_threshold
            )
        return DetectionResult(
            boxes_xyxy_px=boxes_px,
            scores=found.scores[row][keep],
            labels=labels,
            names=tuple(self.classes.names[i] for i in labels),
            category_ids=tuple(self.classes.ids[i] for i in labels),
            size_px=size_px,
            object_masks=masks,
        )


class OpenedModel(NamedTuple):
    """A network that runs, and what its inputs and outputs mean."""

    backend: Backend
    classes: Classes
    preprocess: Preprocess
    batch: int | None  # the only one it runs; None: any
    segments: bool = False  # makes masks too


def open_model(
    model: str | os.PathLike[str] | LoadedModel,
    *,
    runtime: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> OpenedModel:
    """Anything that detects: an exported file in its runtime, everything else in JAX.

    Raises:
      UserError: nothing of that kind is there, it is damaged, or its runtime is absent.
    """
    if isinstance(model, (str, os.PathLike)) and is_artefact(model):
        from dfine_jax.serving.backends.registry import open_artefact

        with waiting(f"loading {model}"):
            backend = open_artefact(model, runtime=runtime, device=device, threads=threads)
        described = backend.artefact
        segments = described.task == "segment"
        return OpenedModel(backend, described.classes, described.preprocess, described.input.batch, segments)
    for name, value in (("runtime", runtime), ("device", device), ("threads", threads)):
        if value is not None:
            raise UserError(f"{name}={value} is for exported files; JAX is told by JAX_PLATFORMS and XLA_FLAGS")
    from dfine_jax.serving.backends.jax_model import JaxBackend

    if isinstance(model, (str, os.PathLike)):
        from dfine_jax.weights.load import load_checkpoint

        with waiting(f"loading {model}"):
            model = load_checkpoint(model)
    metadata = model.metadata
    backend = JaxBackend(model.model, model.variables, metadata.preprocess.scale, model.grid_px)
    return OpenedModel(backend, metadata.classes, metadata.preprocess, None, model.segments)
