"""Images in, detections out, whatever runs the network."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, overload

import numpy as np
from PIL import Image

from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.dataset import Classes
from dfine_jax.errors import UserError
from dfine_jax.prediction.arguments import Share, require_count, require_model, require_share
from dfine_jax.prediction.between import Chosen, Preprocessed, result_of
from dfine_jax.prediction.class_filter import class_labels
from dfine_jax.prediction.foreign_names import Elsewhere, joined, refuse_options
from dfine_jax.prediction.result import DetectionResult
from dfine_jax.prediction.sources import Given, frames, given, several
from dfine_jax.serving.artefact import is_artefact
from dfine_jax.serving.backends.base import Backend
from dfine_jax.system.installed import require
from dfine_jax.system.waiting import waiting

if TYPE_CHECKING:
    from dfine_jax.weights.load import LoadedModel

_CALL_OPTIONS = ("threshold", "classes", "bgr")
_OPTIONS = ("threshold", "batch_size", "num_top", "mask_threshold", "runtime", "device", "threads")
_THRESHOLD = 0.5  # of weights that do not know a better one
_SHOWN = 5  # class names of a detector that is printed

# Path, address, content of a picture file, open binary file, PIL image, or array (``data.picture.any_image``). A path
# may be that of a folder or a pattern, an array a batch: then there are several results.
ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray
ClassNames = str | int | Sequence[str | int]  # names, or category ids of the training data


class Detector:
    """Detects objects in images: ``Detector("runs/cells/best")("photo.jpg")``. ``stream`` is for more than fits.

    Exported files (``.onnx``, ``.xml``, ``.engine``) run without importing jax.

    Args:
      model: checkpoint folder, weights file, published name, exported file, or the result of ``load_checkpoint``
        or ``open_model``.
      threshold: smallest score of a detection; None: that of the best F1 in the evaluation of the weights, where they
        know it (``best_threshold``), else 0.5.
      batch_size: images per run of the network (default: the batch an exported file was made for, otherwise 1). In JAX
        every run has this size, a shorter one is padded, so that the network is compiled once.
      num_top: most detections of an image; None: as many as the model's family answers with, 300 mostly.
      mask_threshold: smallest probability of a pixel of an object, of models that segment.
      runtime: of an exported file; None: by its ending.
      device: of an exported file, in the words of its runtime; None: its default.
      threads: of an exported file, for one run on the CPU; None: the runtime's default.
    """

    threshold, mask_threshold = Share(), Share()
    predict = Elsewhere("call it: detector(image)")
    from_pretrained = Elsewhere("call Detector(name), such as the name of published weights")
    val = Elsewhere("call dfine_jax.evaluate, or dfine evaluate")
    export = Elsewhere("call dfine export")

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel | OpenedModel,
        threshold: float | None = None,
        *,
        batch_size: int | None = None,
        num_top: int | None = None,
        mask_threshold: float = 0.5,
        runtime: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        **unknown: Any,
    ) -> None:
        refuse_options("Detector", unknown, _OPTIONS)
        self.mask_threshold = mask_threshold
        if threshold is not None:
            self.threshold = threshold
        require_count("batch_size", batch_size)
        require_count("num_top", num_top)
        self._name = str(model) if isinstance(model, (str, os.PathLike)) else "of a loaded model"
        if not isinstance(model, OpenedModel):
            model = open_model(model, runtime=runtime, device=device, threads=threads)
        self.best_threshold = model.best_threshold
        if threshold is None:
            self.threshold = _default_threshold(model.best_threshold)
        self.batch_size = batch_size or model.batch or 1
        self.num_top = model.backend.rules.num_top if num_top is None else num_top
        self.cuts_masks = model.backend.rules.cut_to_boxes  # they count within their boxes alone
        self.classes = model.classes
        self.segments = model.segments
        self._preprocess = model.preprocess
        self.input_size_px = self._preprocess.height_px, self._preprocess.width_px
        self._backend = model.backend

    def prepare(self) -> None:
        """Compile now what the first detection would compile; exported files need none of it."""
        self._backend.prepare((self.batch_size, *self.input_size_px, 3))

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by label."""
        return self.classes.names

    @property
    def device(self) -> str:
        """What the network runs on, in the words of its runtime."""
        return str(self._backend.describe().get("device", "unknown"))

    @property
    def threshold_told(self) -> str:
        """The threshold for people: with ``(best F1)`` where it is that of the evaluation of the weights."""
        return f"{self.threshold:g}" + " (best F1)" * (self.threshold == self.best_threshold)

    def __repr__(self) -> str:
        """One line: model, classes, input size, threshold, runtime and device."""
        shown = ", ".join(self.names[:_SHOWN]) + ", ..." * (len(self.names) > _SHOWN)
        height, width = self.input_size_px
        does = "boxes and masks" if self.segments else "boxes"
        runs = self._backend.describe().get("runtime", "unknown")
        count = f"{len(self.names)} class{'es' * (len(self.names) != 1)}"
        return (
            f"<Detector {self._name}: {does} of {count} ({shown}), input {height}x{width}, threshold "
            f"{self.threshold_told}, {runs} on {self.device}>"
        )

    def __reduce__(self) -> NoReturn:
        """A running network cannot be sent elsewhere."""
        raise TypeError("a Detector cannot be pickled or copied, its runtime is open here; make one in each process")

    @overload
    def __call__(
        self,
        images: ImageSource,
        *,
        threshold: float | None = None,
        classes: ClassNames | None = None,
        bgr: bool = False,
    ) -> DetectionResult: ...

    @overload
    def __call__(
        self,
        images: Iterable[ImageSource],
        *,
        threshold: float | None = None,
        classes: ClassNames | None = None,
        bgr: bool = False,
    ) -> list[DetectionResult]: ...

    def __call__(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        threshold: float | None = None,
        classes: ClassNames | None = None,
        bgr: bool = False,
        **unknown: Any,
    ) -> DetectionResult | list[DetectionResult]:
        """Detections of one image, or a list of them for several. Several threads may call one detector.

        Args:
          images: path, http address, content of a picture file (bytes), open binary file, PIL image, or an array or
            tensor on the host (uint8 [h, w, 3] in RGB; grey, RGBA, uint16 and floating point from 0 to 1 are taken
            too). Several: a list or generator of these, a folder, a pattern (``"shots/*.jpg"``), or a batch
            [n, h, w, 3]. Files and PIL images with an EXIF orientation are turned upright; arrays are not.
          threshold: instead of the detector's own.
          classes: only these, by name or category id.
          bgr: arrays are in the channel order of OpenCV (``cv2.imread``).

        Raises:
          UserError: a file is missing or no image, or something is of another kind; the message says what is taken.
        """
        refuse_options("a detector", unknown, _CALL_OPTIONS)
        chosen = self.chosen(threshold, classes)
        pictures = several(images, bgr)
        if pictures is None:
            return next(self._detect([given(images, bgr)], chosen))
        return list(self._detect(pictures, chosen))

    def stream(
        self,
        images: ImageSource | int | Iterable[ImageSource],
        *,
        threshold: float | None = None,
        classes: ClassNames | None = None,
        bgr: bool = False,
    ) -> Iterator[DetectionResult]:
        """Results one by one, for what does not fit into memory: as a call, and videos, streams and cameras (0).

        Each result holds its picture until it is let go.
        """
        chosen = self.chosen(threshold, classes)
        pictures = frames(images) or several(images, bgr)
        if pictures is None:
            pictures = iter([given(images, bgr)])
        return self._detect((dataclasses.replace(picture, held=True) for picture in pictures), chosen)

    def track(
        self,
        frames: ImageSource | int | Iterable[ImageSource],
        tracker: str = "bytetrack",
        *,
        threshold: float | None = None,
        classes: ClassNames | None = None,
        bgr: bool = False,
        rate: float | None = None,
    ) -> Iterator[DetectionResult]:
        """As ``stream``, of the frames of one video in their order: results have ``track_ids``, numbers of objects.

        Objects that are known are followed down to a score of 0.1, see ``tracking.Tracker``. Needs the extra ``track``.

        Args:
          tracker: one of ``tracking.TRACKERS``.
          rate: frames per second; None: as the video says, 30 for pictures.

        Raises:
          UserError: as ``stream``; no such tracker, or the package trackers is absent.
        """
        from dfine_jax.prediction import tracking

        smallest = self.chosen(threshold, None).threshold
        low = tracking.low_threshold_of(tracker, smallest)
        tracking.require_trackers()
        results = self.stream(frames, threshold=low, classes=classes, bgr=bgr)
        return tracking.tracked(results, tracker, smallest, rate)

    def chosen(self, threshold: float | None = None, classes: ClassNames | None = None) -> Chosen:
        """What ``detect_preprocessed`` keeps; None: the threshold of the detector, all classes.

        Raises:
          UserError: no such threshold, or a class that the model does not have.
        """
        if threshold is not None:
            require_share("threshold", threshold)
        labels = None if classes is None else class_labels(joined(classes), self.classes)
        return Chosen(self.threshold if threshold is None else threshold, labels)

    def preprocess(self, image: ImageSource, *, bgr: bool = False) -> Preprocessed:
        """First half of a call, for programs that do it in threads of their own; image, ``bgr`` and errors as there."""
        return self._preprocessed(given(image, bgr))

    def detect_preprocessed(self, pictures: Sequence[Preprocessed], choices: Sequence[Chosen]) -> list[DetectionResult]:
        """Second half of a call: one run of the network over at most ``batch_size`` pictures.

        Args:
          choices: what to keep of each, from ``chosen``.
        """
        if not pictures:
            return []
        if len(pictures) > self.batch_size:
            raise ValueError(f"{len(pictures)} pictures for a batch of {self.batch_size}")
        rows = self.batch_size if self._backend.compiles_per_shape else len(pictures)
        batch = np.zeros((rows, *self.input_size_px, 3), np.uint8)
        views_px = np.ones((rows, 4))
        for row, picture in enumerate(pictures):
            batch[row], views_px[row] = picture.image, picture.view_px
        lowest = min(chosen.threshold for chosen in choices)
        found = self._backend.detect(batch, views_px, self.num_top, lowest)
        together = enumerate(zip(pictures, choices, strict=True))
        return [
            result_of(found, row, picture, chosen, self.classes, self.mask_threshold)
            for row, (picture, chosen) in together
        ]

    def _preprocessed(self, source: Given) -> Preprocessed:
        pixels = source.pixels()
        size_px = pixels.shape[1], pixels.shape[0]
        return Preprocessed(self._preprocess(pixels), self._preprocess.view_px(size_px), size_px, source)

    def _detect(self, sources: Iterable[Given], chosen: Chosen) -> Iterator[DetectionResult]:
        upcoming = iter(sources)
        while batch_of := list(itertools.islice(upcoming, self.batch_size)):
            pictures = [self._preprocessed(source) for source in batch_of]
            yield from self.detect_preprocessed(pictures, [chosen] * len(pictures))


def _default_threshold(best: float | None) -> float:
    return _THRESHOLD if best is None else best


class OpenedModel(NamedTuple):
    """A network that runs, and what its inputs and outputs mean."""

    backend: Backend
    classes: Classes
    preprocess: Preprocess
    batch: int | None  # the only one it runs; None: any
    segments: bool = False  # makes masks too
    best_threshold: float | None = None  # score of the best F1 in the evaluation of the weights


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
    require_model(model)
    if isinstance(model, (str, os.PathLike)) and is_artefact(model):
        from dfine_jax.serving.backends.registry import open_artefact

        with waiting(f"loading {model}"):
            backend = open_artefact(model, runtime=runtime, device=device, threads=threads)
        described = backend.artefact
        segments = described.task == "segment"
        return OpenedModel(
            backend, described.classes, described.preprocess, described.input.batch, segments, described.best_threshold
        )
    for name, value in (("runtime", runtime), ("device", device), ("threads", threads)):
        if value is not None:
            raise UserError(f"{name}={value} is for exported files; JAX is told by JAX_PLATFORMS and XLA_FLAGS")
    for library in ("jax", "flax"):
        require(
            library, f"{model} is no exported file, so it" if isinstance(model, (str, os.PathLike)) else "this model"
        )
    from dfine_jax.serving.backends.jax_model import JaxBackend

    if isinstance(model, (str, os.PathLike)):
        from dfine_jax.weights.load import load_checkpoint

        with waiting(f"loading {model}"):
            model = load_checkpoint(model)
    metadata = model.metadata
    backend = JaxBackend(model.model, model.variables, metadata.preprocess.scale, model.grid_px, model.rules)
    best = metadata.best_threshold
    return OpenedModel(backend, metadata.classes, metadata.preprocess, None, model.segments, best)
