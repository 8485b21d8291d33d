"""What exported files are checked and calibrated on: pictures, with annotations where there are any."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dfine_jax.data.picture.images import EXTENSIONS, read_image
from dfine_jax.data.read import layout, tfds, yolo
from dfine_jax.data.read.dataset import Dataset, Record, open_record
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.picture_files import pictures_below
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.errors import UserError

logger = logging.getLogger(__name__)

PictureSource = Record | Path  # a picture of a dataset, wherever it keeps it, or a file


@dataclasses.dataclass(frozen=True)
class CheckData:
    """What ``--data`` holds."""

    name: str  # as given; empty: nothing was given
    sources: Sequence[PictureSource]
    dataset: Dataset | None  # with objects; None: AP cannot be measured
    no_ap: str  # why, in words

    def require_ap(self, max_ap_drop: float | None) -> None:
        """UserError where a limit on AP is given that could not be checked."""
        if max_ap_drop is not None and self.dataset is None:
            raise UserError(
                f"--max-ap-drop {max_ap_drop}: AP cannot be measured ({self.no_ap}); give --data DIR with annotations"
            )


def open_data(data: Path | str | None, split: str) -> CheckData:
    """Everything ``read_dataset`` recognises, or a folder of images.

    Raises:
      UserError: it does not exist, is damaged, holds no images, or is annotated but not for this split.
    """
    if data is None:
        return CheckData("", (), None, "no --data given")
    dataset = _annotated(data, split)
    if dataset is None:
        files = _image_files(Path(data))
        return CheckData(str(data), tuple(files), None, f"{data} has no annotations")
    if not dataset.max_objects:
        return CheckData(str(data), dataset.records, None, f"{dataset.annotation_file} annotates no object")
    return CheckData(str(data), dataset.records, dataset, "")


def calibration_sources(data: Path | str) -> Sequence[PictureSource]:
    """Pictures of the training split, so that AP is measured on others; of a mere folder of images, all.

    Raises:
      UserError: it does not exist, is damaged, or holds no images.
    """
    try:
        return read_dataset(data, "train").records
    except layout.MissingSplitError:
        if not Path(data).is_dir():
            raise
    files = _image_files(Path(data))
    if any(layout.locate(data, split) is not None for split in ("val", "test")):
        logger.warning("%s has no training split; int8 is calibrated on the images that AP is measured on", data)
    return tuple(files)


def read_source(source: PictureSource) -> UInt8[np.ndarray, "h w 3"]:
    """The picture; of a dataset the pixels that its boxes refer to, of a file the upright ones."""
    return read_image(source) if isinstance(source, Path) else np.asarray(open_record(source))


def pictures(data: CheckData, count: int) -> tuple[list[np.ndarray], str]:
    """Pictures to compare on, all different, and where they are from.

    At least one is not square, because a square one looks the same with width and height exchanged.
    """
    found = [read_source(source) for source in data.sources[:count]]
    if len(found) == count and all(picture.shape[0] == picture.shape[1] for picture in found):
        found.pop()
    drawn = [_drawn(i) for i in range(count - len(found))]
    parts = [f"{len(found)} of {data.name}"] * bool(found)
    parts += [f"{len(drawn)} generated picture{'s' * (len(drawn) > 1)}"] * bool(drawn)
    return found + drawn, " and ".join(parts)


def _drawn(number: int) -> np.ndarray:
    from dfine_jax.data.read.synthetic import draw_scene

    return np.asarray(draw_scene(np.random.default_rng((7, number)), 320)[0])[: 256 - 16 * number]


def _annotated(data: Path | str, split: str) -> Dataset | None:
    """None: a folder without annotations of any split."""
    try:
        return read_dataset(data, split, whole=True)  # type: ignore[arg-type]
    except layout.MissingSplitError:
        root = Path(data)
        if str(data).startswith(tfds.PREFIX) or root.is_file() or yolo.find_description(root) is not None:
            raise
        others = [other for other in layout.FOLDERS if other != split and layout.locate(root, other) is not None]
        if others:
            raise UserError(
                f"{data} has annotations for {' and '.join(others)}, but none for {split}; add --split {others[0]}"
            ) from None
        return None


def _image_files(folder: Path) -> list[Path]:
    notes = Notes()
    files = pictures_below(folder, notes)
    for line in notes.lines():
        logger.warning("%s", line)
    if not files:
        raise UserError(f"{folder} holds no images ({', '.join(EXTENSIONS)})")
    return files
