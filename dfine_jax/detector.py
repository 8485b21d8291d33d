"""Images in, detections out, whatever runs the network."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from dfine_jax.data.images import Preprocess, read_image, to_rgb
from dfine_jax.draw import draw_boxes
from dfine_jax.errors import UserError

if TYPE_CHECKING:
    from dfine_jax.typing import Detections
    from dfine_jax.weights import LoadedModel

ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray


class Backend(Protocol):
    """Something that runs the network on preprocessed images."""

    def predict(self, images: UInt8[np.ndarray, "b h w 3"]) -> tuple[np.ndarray, np.ndarray]:
        """Class logits float32 [b, q, k] and boxes_cxcywh float32 [b, q, 4], fractions of the image."""
        ...


class JaxBackend:
    """The model itself; compiled once for each shape of input."""

    def __init__(self, model: Any, variables: Any) -> None:
        import jax
        import jax.numpy as jnp

        def forward(variables: Any, images: Any) -> tuple[Any, Any]:
            out = model.apply(variables, images.astype(jnp.float32) / 255, train=False)
            return out.logits, out.boxes_cxcywh

        self._variables = jax.device_put(variables)
        self._forward = jax.jit(forward)

    def predict(self, images: UInt8[np.ndarray, "b h w 3"]) -> tuple[np.ndarray, np.ndarray]:
        """Class logits [b, q, k] and boxes_cxcywh [b, q, 4]."""
        logits, boxes_cxcywh = self._forward(self._variables, images)
        return np.asarray(logits, np.float32), np.asarray(boxes_cxcywh, np.float32)


class Classes(NamedTuple):
    """What the class indices mean."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]  # of the annotation file the model was trained on


@dataclasses.dataclass(frozen=True)
class DetectionResult:
    """Detections of one image, best first."""

    boxes_xyxy_px: Float32[np.ndarray, "n 4"]  # pixels of the given image; may reach beyond its edges
    scores: Float32[np.ndarray, " n"]
    labels: np.ndarray  # int32 [n], class indices
    names: tuple[str, ...]  # class name of each detection
    category_ids: tuple[int, ...]  # original category id of each detection
    size_px: tuple[int, int]  # (width, height) of the image
    masks: np.ndarray | None = None  # bool [n, h, w] of models that segment

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.scores)

    def draw(self, image: ImageSource, font_file: str | None = None) -> Image.Image:
        """Picture with boxes and labels; ``image`` is the one that was given to the detector."""
        picture = Image.fromarray(_pixels(image))
        if picture.size != self.size_px:
            raise UserError(
                f"the picture is {picture.width}x{picture.height}, the detections belong to one of "
                f"{self.size_px[0]}x{self.size_px[1]}; give the image that was detected in"
            )
        return draw_boxes(picture, self.boxes_xyxy_px, self.labels, self.names, self.scores, font_file)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Entries of a COCO results file: original category ids, bbox as (x, y, width, height) in pixels."""
        corners = self.boxes_xyxy_px.astype(float)
        bbox = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).round(2)
        rows = zip(self.category_ids, bbox.tolist(), self.scores.astype(float).round(5).tolist(), strict=True)
        return [{"image_id": image_id, "category_id": c, "bbox": b, "score": s} for c, b, s in rows]

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

    Args:
      model: checkpoint folder, weights file, published name, or the result of ``load_checkpoint``.
      threshold: smallest score of a detection.
      batch_size: images per run of the network. Every run has this size, a shorter one is padded, so that the network
        is compiled once.
      num_top: most detections of an image.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel,
        threshold: float = 0.5,
        *,
        batch_size: int = 1,
        num_top: int = 300,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold={threshold} must lie between 0 and 1")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        loaded = _load(model)
        self.threshold = threshold
        self.batch_size = batch_size
        self.num_top = num_top
        self.classes = Classes(loaded.metadata.class_names, loaded.metadata.category_ids)
        self.input_size_px = loaded.metadata.input_size_px
        self._preprocess = Preprocess(*self.input_size_px)
        self._backend: Backend = JaxBackend(loaded.model, loaded.variables)

    @overload
    def __call__(self, images: ImageSource) -> DetectionResult: ...

    @overload
    def __call__(self, images: Sequence[ImageSource]) -> list[DetectionResult]: ...

    def __call__(self, images: ImageSource | Sequence[ImageSource]) -> DetectionResult | list[DetectionResult]:
        """Detections of one image, or a list of them for a list.

        Args:
          images: path, PIL image, uint8 array [h, w, 3] in RGB, or a list of these.

        Raises:
          UserError: a file is missing or no image, or an array is of another type or shape.
        """
        if isinstance(images, (str, os.PathLike, Image.Image, np.ndarray)):
            return next(self._detect([images]))
        return list(self._detect(images))

    def _detect(self, sources: Sequence[ImageSource]) -> Iterator[DetectionResult]:
        height, width = self.input_size_px
        for start in range(0, len(sources), self.batch_size):
            pictures = [_pixels(source) for source in sources[start : start + self.batch_size]]
            batch = np.zeros((self.batch_size, height, width, 3), np.uint8)
            for row, picture in enumerate(pictures):
                batch[row] = self._preprocess(picture)
            logits, boxes_cxcywh = self._backend.predict(batch)
            for row, picture in enumerate(pictures):
                yield self._result(logits[row], boxes_cxcywh[row], (picture.shape[1], picture.shape[0]))

    def _result(self, logits: np.ndarray, boxes_cxcywh: np.ndarray, size_px: tuple[int, int]) -> DetectionResult:
        from dfine_jax.postprocess import detections

        found: Detections = detections(logits, boxes_cxcywh, size_px, self.threshold, self.num_top)
        return DetectionResult(
            boxes_xyxy_px=found.boxes_xyxy_px,
            scores=found.scores,
            labels=found.labels,
            names=tuple(self.classes.names[i] for i in found.labels),
            category_ids=tuple(self.classes.category_ids[i] for i in found.labels),
            size_px=size_px,
        )


def _load(model: str | os.PathLike[str] | LoadedModel) -> LoadedModel:
    if not isinstance(model, (str, os.PathLike)):
        return model
    from dfine_jax.weights import load_checkpoint

    return load_checkpoint(model)


def _pixels(source: ImageSource) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of anything the detector takes."""
    if isinstance(source, Image.Image):
        return np.asarray(to_rgb(source))
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise UserError(
                f"array of type {source.dtype} and shape {list(source.shape)} is not an image; "
                "give uint8 [height, width, 3] in RGB order"
            )
        return source
    return read_image(source)
