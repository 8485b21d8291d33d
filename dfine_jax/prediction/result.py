"""Detections of one image: a sequence that can be printed, filtered, drawn, saved and handed on."""

from __future__ import annotations

import dataclasses
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Bool, Float32, Int
from PIL import Image

from dfine_jax.data.picture.any_image import any_pixels
from dfine_jax.data.picture.draw import draw_boxes
from dfine_jax.data.picture.object_masks import ObjectMasks
from dfine_jax.errors import UserError
from dfine_jax.prediction import result_forms
from dfine_jax.prediction.foreign_names import Elsewhere, MaskArray
from dfine_jax.prediction.sources import Given

_BOXES = "the boxes are boxes_xyxy_px, the rest scores, labels and names"


@dataclasses.dataclass(frozen=True)
class Detection:
    """One object."""

    name: str  # of the class
    score: float
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the image; may reach beyond its edges
    category_id: int  # as the training data call the class
    label: int  # class index
    track_id: int | None = None  # number of the object in its video; None: not followed
    object_masks: ObjectMasks | None = dataclasses.field(default=None, repr=False, compare=False)  # its own only

    @property
    def mask(self) -> Bool[np.ndarray, "h w"] | None:
        """Mask in the size of the image, made anew each time; None of models that make boxes only."""
        return None if self.object_masks is None else self.object_masks.full(0)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DetectionResult:
    """Detections of one image, best first.

    ``for detection in result``, ``result[0]`` and ``len(result)`` are about single ``Detection`` values; a slice, a
    boolean mask or a list of numbers gives a result: ``result[result.scores > 0.8]``. Two are equal when they say the
    same, whatever the picture. A result holds what was given to the detector, not a copy of it, so that it can be
    drawn; a pickled one holds the path at most.
    """

    boxes_xyxy_px: Float32[np.ndarray, "n 4"]  # pixels of the given image; may reach beyond its edges
    scores: Float32[np.ndarray, " n"]
    labels: np.ndarray  # int32 [n], class indices
    names: tuple[str, ...]  # class name of each detection
    category_ids: tuple[int, ...]  # original category id of each detection
    size_px: tuple[int, int]  # (width, height) of the image
    object_masks: ObjectMasks | None = None  # of models that segment; small, other than their pixels
    source: Given | None = None  # the picture
    track_ids: np.ndarray | None = None  # int64 [n], numbers of objects in their video, -1 for none; None: not followed

    boxes = Elsewhere(_BOXES)
    xyxy = Elsewhere(_BOXES)
    conf = Elsewhere("here it is scores")
    confidence = Elsewhere("here it is scores")
    cls = Elsewhere("here it is labels, by name names")
    class_id = Elsewhere("here it is labels, by name names")
    plot = Elsewhere("call draw() for a PIL image, show() to see it, save(path) for a file")
    render = Elsewhere("call draw() for a PIL image, show() to see it, save(path) for a file")
    pandas = Elsewhere("call to_pandas()")
    to_df = Elsewhere("call to_pandas()")
    to_csv = Elsewhere("call to_pandas().to_csv(path); of many pictures dfine predict --results r.csv")
    tojson = Elsewhere("call to_json()")
    summary = Elsewhere("call to_dict(); str(result) is one line")
    save_txt = Elsewhere("to_yolo() is the text of a label file; of many pictures dfine predict --labels DIR")
    save_crop = Elsewhere("PIL's picture.crop(detection.box) cuts one out; of many pictures dfine predict --crops DIR")
    crop = Elsewhere("PIL's picture.crop(detection.box) cuts one out; of many pictures dfine predict --crops DIR")
    orig_img = Elsewhere("the picture is what was given to the detector, draw() shows it with boxes")
    orig_shape = Elsewhere("here it is size_px, as (width, height)")
    path = Elsewhere("name is that of the picture's file")
    filter = Elsewhere("write result[result.scores > 0.8]; detector(image, classes=[...]) keeps classes")

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        """Each detection, best first."""
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, key: int) -> Detection: ...

    @overload
    def __getitem__(
        self, key: slice | Sequence[int] | Sequence[bool] | Int[np.ndarray, " k"] | Bool[np.ndarray, " n"]
    ) -> DetectionResult: ...

    def __getitem__(self, key: Any) -> Detection | DetectionResult:
        """A detection by number; a result of some of them by slice, boolean mask or numbers.

        Raises:
          IndexError: there is no such detection, or a mask of another length.
        """
        if not isinstance(key, (slice, list, tuple, np.ndarray)):
            return self._one(operator.index(key))
        rows = np.arange(len(self))[key if isinstance(key, (slice, np.ndarray)) else np.array(key or [], _kind(key))]
        return dataclasses.replace(
            self,
            boxes_xyxy_px=self.boxes_xyxy_px[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
            names=tuple(self.names[i] for i in rows),
            category_ids=tuple(self.category_ids[i] for i in rows),
            object_masks=None if self.object_masks is None else self.object_masks.select(rows),
            track_ids=None if self.track_ids is None else self.track_ids[rows],
        )

    def _one(self, i: int) -> Detection:
        if not -len(self) <= i < len(self):
            raise IndexError(f"detection {i} of {len(self)}")
        i %= len(self)
        x0, y0, x1, y1 = self.boxes_xyxy_px[i].tolist()
        masks = None if self.object_masks is None else self.object_masks.select([i])
        number = -1 if self.track_ids is None else int(self.track_ids[i])
        return Detection(
            name=self.names[i],
            score=float(self.scores[i]),
            box=(x0, y0, x1, y1),
            category_id=self.category_ids[i],
            label=int(self.labels[i]),
            track_id=None if number < 0 else number,
            object_masks=masks,
        )

    def __eq__(self, other: object) -> bool:
        """Whether boxes, scores, classes, masks and numbers of objects are the same."""
        if not isinstance(other, DetectionResult):
            return NotImplemented
        return (
            (self.size_px, self.names, self.category_ids) == (other.size_px, other.names, other.category_ids)
            and np.array_equal(self.labels, other.labels)
            and np.array_equal(self.scores, other.scores)
            and np.array_equal(self.boxes_xyxy_px, other.boxes_xyxy_px)
            and _same_masks(self.object_masks, other.object_masks)
            and _same_numbers(self.track_ids, other.track_ids)
        )

    def __repr__(self) -> str:
        """One line: how many of each class, with the best score."""
        best = {name: score for name, score in zip(reversed(self.names), reversed(self.scores.tolist()), strict=True)}
        counts = Counter(self.names).most_common()
        found = ", ".join(f"{count} {name} {best[name]:.2f}" for name, count in counts)
        what = f"{len(self)} object{'s' * (len(self) != 1)}: {found}" if len(self) else "nothing found"
        where = f" in {self.name}" if self.name else ""
        return f"<{what}{where}>"

    def __getstate__(self) -> dict[str, Any]:
        """Without pixels of the picture, see the class."""
        return {**self.__dict__, "source": None if self.source is None else self.source.stored}

    @property
    def name(self) -> str:
        """File name of the picture; empty where it has none."""
        return "" if self.source is None else self.source.name

    @property
    def masks(self) -> Bool[np.ndarray, "n h w"] | None:
        """Masks in the size of the image, made anew each time: a byte for each pixel of each object."""
        return None if self.object_masks is None else self.object_masks.all().view(MaskArray)

    def draw(self, image: Any = None, font_file: str | None = None, *, enlarge: bool = False) -> Image.Image:
        """Picture with masks, boxes and labels.

        Args:
          image: the one that was given to the detector; None: as it was given then, files are read again.
          font_file: TrueType font for class names that the installed fonts cannot write.
          enlarge: pictures under 320 pixels become larger, so that labels can be read; else the size stays.

        Raises:
          UserError: another picture, one that cannot be read any more, or none is held (of generators and pickled
            results).
        """
        picture = Image.fromarray(self._pixels() if image is None else any_pixels(image))
        if picture.size != self.size_px:
            raise UserError(
                f"the picture is {picture.width}x{picture.height}, the detections belong to one of "
                f"{self.size_px[0]}x{self.size_px[1]}; give the image that was detected in"
            )
        return draw_boxes(
            picture, self.boxes_xyxy_px, self.labels, self.names, self.scores, font_file, self.object_masks, enlarge,
            self.track_ids,
        )  # fmt: skip

    def save(self, path: str | PathLike[str], **options: Any) -> Path:
        """Write the drawn picture; the path is returned.

        Args:
          path: a file whose ending says the format (.jpg, .png, ...), or a folder that exists.
          options: of ``draw``.

        Raises:
          UserError: an ending that is no picture's, or as ``draw``.
        """
        return result_forms.save(self, Path(path), options)

    def show(self, **options: Any) -> None:
        """Open the drawn picture in the system's viewer, or in the notebook; ``options`` are those of ``draw``."""
        self.draw(**options).show(title=self.name or None)

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """Entries of a COCO results file: original category ids, bbox as (x, y, width, height) in pixels.

        Those of models that segment have a segmentation: compressed run lengths of the size of the image. Objects that
        are followed have a track_id.

        Args:
          image_id: None: the name of the picture's file.
        """
        return result_forms.coco(self, image_id)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``image`` (name or None), ``width``, ``height`` and ``objects``.

        Each object has name, category_id, label, score, box (x0, y0, x1, y1 in pixels), of models that segment
        segmentation (COCO's run lengths) and, if it is followed, track_id.
        """
        return result_forms.plain(self)

    def to_json(self, **options: Any) -> str:
        """``to_dict`` as JSON; ``options`` are those of ``json.dumps``."""
        return result_forms.to_json(self, options)

    def to_pandas(self) -> Any:
        """A row for each object: name, category_id, label, score, x0, y0, x1, y1, and track_id if followed.

        Needs pandas.
        """
        return result_forms.to_pandas(self)

    def to_yolo(self, scores: bool = False) -> str:
        """Lines of a YOLO label file: class index and box, or of a model that segments the outline, in shares.

        Args:
          scores: at the end of each line, as YOLO's programs write them.
        """
        return result_forms.to_yolo(self, scores)

    def to_supervision(self) -> Any:
        """The same as ``supervision.Detections``, class names under ``data["class_name"]``. Needs supervision."""
        return result_forms.to_supervision(self)

    def _repr_png_(self) -> bytes | None:
        return result_forms.png(self)

    def _repr_html_(self) -> str:
        return result_forms.html(self)

    def _pixels(self) -> np.ndarray:
        if self.source is None:
            raise UserError("this result holds no picture; give the image that was detected in")
        return self.source.pixels()


def _kind(key: Sequence[Any]) -> type:
    return bool if key and all(isinstance(value, (bool, np.bool_)) for value in key) else int


def _same_masks(ours: ObjectMasks | None, theirs: ObjectMasks | None) -> bool:
    if ours is None or theirs is None or ours is theirs:
        return ours is theirs
    return len(ours) == len(theirs) and all(ours.rle(i) == theirs.rle(i) for i in range(len(ours)))


def _same_numbers(ours: np.ndarray | None, theirs: np.ndarray | None) -> bool:
    return ours is theirs if ours is None or theirs is None else np.array_equal(ours, theirs)
