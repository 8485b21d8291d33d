"""What a runtime must offer, and everything around it that is the same for all of them."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, UInt8

from dfine_jax.errors import UserError
from dfine_jax.ops.postprocess import Answer, AnswerRules, ranked, to_pixels
from dfine_jax.serving.artefact import MASKS, SIZES_INPUT, Artefact

Views = Float[np.ndarray, "b 4"]  # left, top, width, height in pixels of the original, see Preprocess.view_px


class PixelPredictions(NamedTuple):
    """Detections of each image, best first."""

    scores: Float32[np.ndarray, "b n"]
    labels: Int32[np.ndarray, "b n"]
    boxes_xyxy_px: Float[np.ndarray, "b n 4"]  # in the original images
    # Of models that segment, of the view, at their own size; of the first rows alone where only those were asked for.
    masks_logit: Float[np.ndarray, "b m h w"] | None = None
    rules: AnswerRules = AnswerRules()  # to be followed by whoever makes results of them


class Session(Protocol):
    """One exported file in one runtime. Two methods; heavy packages are imported inside the constructor.

    Several threads may call ``run`` of one session.
    """

    artefact: Artefact
    input_dtypes: dict[str, np.dtype]  # as the graph declares them
    max_batch: int | None  # largest batch of one run where the file accepts several; None: no limit

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name; the arrays returned are the caller's."""
        ...

    def describe(self) -> dict[str, Any]:
        """Runtime, version, device and threads that actually run, for reports."""
        ...


class Backend(abc.ABC):
    """Something that runs the network on preprocessed images. Several threads may use one."""

    rules = AnswerRules()
    compiles_per_shape = True  # batches of another size cost a compilation, so callers fill them up

    @abc.abstractmethod
    def predict(self, images: UInt8[np.ndarray, "b h w 3"]) -> Answer:
        """The network's answer in float32 NumPy."""

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """What the first run on images of this shape would do once (compile), where that takes time of its own."""
        return None

    def detect(
        self, images: UInt8[np.ndarray, "b h w 3"], view_px: Views, num_top: int | None = None, threshold: float = 0.0
    ) -> PixelPredictions:
        """What is found in the original images.

        Args:
          view_px: what each image shows of its original (``Preprocess.view_px``).
          num_top: most detections of an image; None: as many as the model's family answers with.
          threshold: score from which masks are needed; there are none of the rows after the last one that reaches it
            in any of the images.
        """
        answer = self._answer(images)
        num_top = self.rules.num_top if num_top is None else num_top
        best = ranked(np.asarray(answer.logits, np.float32), num_top)
        scores, labels, query = (np.asarray(column) for column in best)
        boxes_cxcywh = np.asarray(answer.boxes_cxcywh, np.float32)[np.arange(len(query))[:, None], query]
        masks = answer.masks_logit
        masks = None if masks is None else self._rows(masks, query[:, : rows_from(threshold, scores)])
        return PixelPredictions(scores, labels, in_view(boxes_cxcywh, view_px), masks, self.rules)

    def _answer(self, images: UInt8[np.ndarray, "b h w 3"]) -> Answer:
        """As ``predict``, with arrays wherever they are."""
        return self.predict(images)

    def _rows(self, masks_logit: Any, query: Int[np.ndarray, "b m"]) -> Float[np.ndarray, "b m h w"]:
        """Maps of some queries of each image; of what ``_answer`` answers with."""
        return masks_logit[np.arange(len(query))[:, None], query]

    def describe(self) -> dict[str, Any]:
        """Runtime, version, device and threads that actually run, for reports."""
        return {}


class ArtefactBackend(Backend):
    """An exported file: arranges inputs as the file wants them, and batches of any size into those it accepts."""

    compiles_per_shape = False

    def __init__(self, session: Session) -> None:
        self.session = session
        self.artefact = session.artefact
        self.rules = session.artefact.rules

    def describe(self) -> dict[str, Any]:
        """As ``Backend.describe``."""
        return self.session.describe()

    def predict(self, images: UInt8[np.ndarray, "b h w 3"]) -> Answer:
        """As ``Backend.predict``; only raw graphs have these outputs.

        Raises:
          UserError: the graph selects detections itself, or its outputs are not what the file declares.
        """
        if self.artefact.graph != "raw":
            raise UserError("a complete graph has no logits; ask it for detections, or export with --graph raw")
        out = self._run(images, None)
        logits, boxes = (np.asarray(out[name], np.float32) for name in ("logits", "boxes"))
        queries, classes = logits.shape[1:] if logits.ndim == 3 else (0, 0)
        if classes != len(self.artefact.class_names) or boxes.shape != (len(images), queries, 4):
            raise UserError(
                f"outputs have shapes {list(logits.shape)} and {list(boxes.shape)}, expected [b, queries, "
                f"{len(self.artefact.class_names)}] and [b, queries, 4]; the file is damaged, export it again"
            )
        return Answer(logits, boxes, self._masks(out, (len(images), queries)))

    def detect(
        self, images: UInt8[np.ndarray, "b h w 3"], view_px: Views, num_top: int | None = None, threshold: float = 0.0
    ) -> PixelPredictions:
        """As ``Backend.detect``.

        Raises:
          UserError: the outputs are not what the file declares.
        """
        if self.artefact.graph == "raw":
            return super().detect(images, view_px, num_top, threshold)
        view_px = np.asarray(view_px)
        out = self._run(images, view_px[:, 2:])
        scores, boxes = (np.asarray(out[name], np.float32) for name in ("scores", "boxes"))
        labels = np.asarray(out["labels"]).astype(np.int32)
        if scores.ndim != 2 or labels.shape != scores.shape or boxes.shape != (*scores.shape, 4):
            raise UserError(
                f"outputs have shapes {list(scores.shape)}, {list(labels.shape)}, {list(boxes.shape)}, expected "
                "[b, n], [b, n], [b, n, 4]; the file is damaged, export it again"
            )
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.artefact.class_names):
            raise UserError(f"labels up to {labels.max()} for {len(self.artefact.class_names)} classes; export again")
        boxes = boxes + view_px[:, None, [0, 1, 0, 1]].astype(np.float32)
        masks = self._masks(out, scores.shape)
        scores = scores[:, :num_top]
        masks = None if masks is None else masks[:, : rows_from(threshold, scores)]
        labels, boxes = labels[:, :num_top], boxes[:, :num_top]
        return PixelPredictions(scores, labels, boxes, masks, self.rules)

    def _masks(self, out: Mapping[str, np.ndarray], rows: tuple[int, ...]) -> Float[np.ndarray, "b n h w"] | None:
        """Logits of the masks of so many images and rows, in the type of the file."""
        size_hw = self.artefact.mask_size_hw
        if size_hw is None:
            return None
        masks = out[MASKS]
        if masks.shape != (*rows, *size_hw):
            raise UserError(
                f"output {MASKS} has shape {list(masks.shape)}, expected {[*rows, *size_hw]}; the file is damaged, "
                "export it again"
            )
        return masks

    def feeds(self, images: UInt8[np.ndarray, "b h w 3"], size_px: np.ndarray | None) -> dict[str, np.ndarray]:
        """Inputs by name, in the layout and type of the file."""
        spec = self.artefact.input
        if images.dtype != np.uint8 or images.shape[1:] != (*spec.size_hw, 3):
            raise UserError(
                f"images are {images.dtype} {list(images.shape)}, the file takes "
                f"{spec.size_hw[0]}x{spec.size_hw[1]} pixels; preprocess with the file's own description"
            )
        values = images if spec.dtype == "uint8" else self.artefact.preprocess.to_float(images)
        if spec.layout == "NCHW":
            values = values.transpose(0, 3, 1, 2)
        out = {spec.name: np.ascontiguousarray(values, spec.dtype)}
        if size_px is not None:
            out[SIZES_INPUT] = np.ascontiguousarray(size_px)
        declared = self.session.input_dtypes
        if set(out) != set(declared) or out[spec.name].dtype != declared[spec.name]:
            raise UserError(f"the graph takes {_typed(declared)}, its description says {spec.name} {spec.dtype}")
        return {name: value.astype(declared[name], copy=False) for name, value in out.items()}

    def _run(self, images: np.ndarray, size_px: np.ndarray | None) -> dict[str, np.ndarray]:
        step = self.artefact.input.batch or min(max(len(images), 1), self.session.max_batch or len(images))
        parts = [
            self._run_one(images[i : i + step], None if size_px is None else size_px[i : i + step], step)
            for i in range(0, len(images), step)
        ]
        return parts[0] if len(parts) == 1 else {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    def _run_one(self, images: np.ndarray, size_px: np.ndarray | None, batch: int) -> dict[str, np.ndarray]:
        count = len(images)
        if count < batch:
            images = np.concatenate([images, np.zeros((batch - count, *images.shape[1:]), np.uint8)])
            size_px = None if size_px is None else np.concatenate([size_px, np.ones((batch - count, 2))])
        out = self.session.run(self.feeds(images, size_px))
        absent = [name for name in self.artefact.outputs if name not in out]
        if absent:
            raise UserError(f"the graph has no output {absent[0]!r} ({', '.join(out)}); export it again")
        return {name: value[:count] for name, value in out.items()}


def in_view(boxes_cxcywh: Float[np.ndarray, "b n 4"], view_px: Views) -> Float[np.ndarray, "b n 4"]:
    """Corners in pixels of the original images, in the type of the boxes; not clipped."""
    view_px = np.asarray(view_px, boxes_cxcywh.dtype)
    corners = np.asarray(to_pixels(boxes_cxcywh, view_px[:, 2:]))
    return corners + view_px[:, None, [0, 1, 0, 1]]


def rows_from(threshold: float, scores: Float[np.ndarray, "b n"]) -> int:
    """How many rows there are up to the last one that reaches a score in any of the images; all for a score of 0."""
    if threshold <= 0:  # also those that are no numbers
        return scores.shape[1]
    reached = np.flatnonzero((scores >= threshold).any(0))
    return int(reached[-1]) + 1 if len(reached) else 0


def failed(path: object, runtime: str, feeds: Mapping[str, np.ndarray], error: Exception) -> UserError:
    """The error for a file that loads but does not run: what it was given, and the runtime's last word on it."""
    given = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"...{lines[-1][-200:]}" if lines and len(lines[-1]) > 200 else (lines or ["no reason given"])[-1]
    return UserError(f"{path}: {runtime} fails on {given} ({reason}); export the model again")


def _typed(dtypes: dict[str, np.dtype]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
