"""A run of the detector over pictures and videos: pixels in, drawn files, crops and results out, and what was found."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from dfine_jax.data.picture.images import save_picture
from dfine_jax.errors import UserError
from dfine_jax.prediction.ahead import Ahead
from dfine_jax.prediction.class_filter import keep_classes
from dfine_jax.prediction.detector import Detector
from dfine_jax.prediction.following import Following, FollowPlan
from dfine_jax.prediction.inputs import Clip, Inputs, Picture, image_ids, result_stems
from dfine_jax.prediction.outputs import ResultsFile, save_crops, save_labels, save_masks, uninterrupted
from dfine_jax.prediction.result import DetectionResult
from dfine_jax.prediction.tiling import Tiling, detect_tiled
from dfine_jax.prediction.tracking import low_threshold_of
from dfine_jax.prediction.video import VideoReader, VideoWriter
from dfine_jax.system.wording import counted

if TYPE_CHECKING:
    from dfine_jax.prediction.datasets import Annotations

T = TypeVar("T")


class Job(NamedTuple):
    """What to detect in, and where results go."""

    inputs: Inputs
    ids: list[int | str]  # of the pictures, in results
    clip_ids: list[str]
    picture_files: list[Path]  # relative to the folders below
    clip_files: list[Path]
    drawn: Path | None  # folder of pictures and videos with boxes
    crops: Path | None  # folder of cut-out objects
    labels: Path | None  # folder of YOLO label files
    masks: Path | None  # folder of pictures of object numbers
    font: str | None
    every: int  # of so many frames one is used
    seconds: float | None  # end of each video
    any_size: bool  # pictures beyond the usual limit are decoded
    follow: FollowPlan | None = None  # videos, and pictures of a folder as frames of one


@dataclasses.dataclass
class Tally:
    """What was found in one picture or video so far."""

    name: str
    objects: Counter[str] = dataclasses.field(default_factory=Counter)
    is_clip: bool = False
    frames: int = 0  # of a clip
    rate: float | None = None  # frames per second, without the first, slow batch
    following: Following | None = None

    def __str__(self) -> str:
        """One line, and one for each count."""
        objects = self.objects if self.following is None else self.following.objects
        found = ", ".join(f"{count} {name}" for name, count in objects.most_common()) or "nothing found"
        if not self.is_clip:
            return f"{self.name}: {found}"
        rate = "" if self.rate is None else f" at {self.rate:.1f} per second"
        if self.following is not None:
            found = f"{counted(objects.total(), 'object')} followed" + f" ({found})" * bool(objects)
        counts = [] if self.following is None else self.following.counts
        return "\n".join([f"{self.name}: {counted(self.frames, 'frame')}{rate}: {found}", *(f"  {c}" for c in counts)])


class Prediction:
    """A job and its run: ``tallies`` says what was found, ``failures`` what could not be read, ``notes`` the rest.

    Args:
      tiling: detect in tiles; None: in the image as a whole.
      labels: class indices to keep; None: all.
      results: takes the detections as they come; table: a second one.
      annotations: takes those of pictures.
    """

    def __init__(
        self,
        job: Job,
        detector: Detector,
        results: ResultsFile,
        tiling: Tiling | None = None,
        labels: frozenset[int] | None = None,
        table: ResultsFile | None = None,
        annotations: Annotations | None = None,
    ) -> None:
        self.tallies: list[Tally] = []
        self.failures: list[str] = []
        self.notes: list[str] = []
        self._job, self._detector, self._annotations = job, detector, annotations
        self._results = [results] if table is None else [results, table]
        self._tiling, self._labels = tiling, labels
        follow, threshold = job.follow, detector.threshold
        self._low_threshold = threshold if follow is None else low_threshold_of(follow.tracker, threshold)
        self._stems = result_stems(job.picture_files)
        self._names = [str(name) for name in image_ids(job.inputs, None)]  # whatever ids annotations give
        self._at_once = 1 if tiling else detector.batch_size  # pictures in memory: as many again are read ahead

    def run(self) -> None:
        """Pictures first, then videos; a KeyboardInterrupt passes through and leaves complete files."""
        self._pictures()
        for clip, name, file in zip(self._job.inputs.clips, self._job.clip_ids, self._job.clip_files, strict=True):
            self._clip(clip, name, file)

    def _pictures(self) -> None:
        pictures = self._job.inputs.pictures
        if not pictures:
            return
        with (
            tqdm(total=len(pictures), unit="image", desc="predict", disable=None) as bar,
            Ahead(_read(pictures, self._job.any_size), self._at_once) as ahead,
        ):
            for batch in _batches(self._readable(ahead, bar), self._at_once):
                found = self._detect([image for _, image in batch], bar)
                for (i, image), result in zip(batch, found, strict=True):
                    with uninterrupted():
                        tally = self._tally(pictures[i])
                        if tally.following is not None:
                            result = tally.following.take(result, image, tally.frames, None)
                        for results in self._results:
                            results.take(result, self._job.ids[i])
                        if self._annotations is not None:
                            self._annotations.add(pictures[i].path, self._names[i], result)
                        self._keep(image, result, i, tally.following)
                        tally.objects.update(result.names)
                        tally.frames += 1
                    bar.update()

    def _tally(self, picture: Picture) -> Tally:
        """A new one, or with tracking that of the folder, which is a video."""
        if self._job.follow is None:
            self.tallies.append(Tally(picture.place))
            return self.tallies[-1]
        folder = str(picture.path.parent)
        if not self.tallies or self.tallies[-1].name != folder:
            following = Following(self._job.follow, folder, self._detector.threshold, None)
            self.tallies.append(Tally(folder, is_clip=True, following=following))
        return self.tallies[-1]

    def _clip(self, clip: Clip, name: str, file: Path) -> None:
        try:
            with VideoReader(clip.source, self._job.every, self._job.seconds) as reader:
                tally = Tally(name, is_clip=True)
                if self._job.follow is not None:
                    rate = float(reader.rate / self._job.every)
                    tally.following = Following(self._job.follow, name, self._detector.threshold, rate)
                self.tallies.append(tally)
                try:
                    self._frames(reader, file, tally)
                except KeyboardInterrupt:  # which is how a live source ends
                    if not reader.live:
                        raise
                if reader.damaged:
                    self.notes.append(f"{name}: {reader.damaged} damaged packets were skipped")
                if reader.problem:
                    self.failures.append(f"{name} broke off after {counted(tally.frames, 'frame')} ({reader.problem})")
        except UserError as error:
            self.failures.append(str(error))
            if self.tallies and self.tallies[-1].is_clip and not self.tallies[-1].frames:
                self.tallies.pop()

    def _frames(self, reader: VideoReader, file: Path, tally: Tally) -> None:
        target = self._job.drawn / file if self._job.drawn else None
        rate = reader.rate / self._job.every
        started, first = 0.0, 0
        with (
            VideoWriter(target, rate, reader.pixel_aspect) if target else nullcontext() as writer,
            tqdm(total=reader.expected_frames, unit="frame", desc=tally.name, disable=None) as bar,
            Ahead(reader, self._at_once, newest=reader.live) as ahead,
        ):
            for frames in _batches(ahead, self._at_once):
                for frame, result in zip(frames, self._detect([f.image for f in frames], bar), strict=True):
                    with uninterrupted():
                        if tally.following is not None:
                            result = tally.following.take(result, frame.image, frame.index, frame.time_s)
                        for results in self._results:
                            results.take_frame(result, tally.name, frame.index, frame.time_s)
                        if writer is not None:
                            writer.write(self._drawn(frame.image, result, tally.following), frame.time_s)
                        stem = file.with_name(f"{file.stem}_{frame.index:06d}")
                        self._keep_parts(frame.image, result, stem.with_name(f"{stem.name}.jpg"), stem)
                        tally.objects.update(result.names)
                        tally.frames += 1
                    bar.update()
                if first:
                    tally.rate = (tally.frames - first) / (time.perf_counter() - started)
                else:
                    started, first = time.perf_counter(), tally.frames
                if ahead.dropped:
                    bar.set_postfix_str(f"{ahead.dropped} dropped")

    def _detect(self, images: list[np.ndarray], bar: Any) -> list[DetectionResult]:
        if self._tiling is None:
            found = self._detector(images, threshold=self._low_threshold)
        else:

            def progress(done: int, total: int) -> None:
                bar.set_postfix_str(f"tile {done}/{total}")

            found = [detect_tiled(self._detector, image, self._tiling, progress) for image in images]
        if self._labels is None:
            return found
        return [keep_classes(result, self._labels) for result in found]

    def _drawn(self, image: np.ndarray, result: DetectionResult, following: Following | None) -> Image.Image:
        picture = result.draw(image, self._job.font, enlarge=True)
        return picture if following is None else following.mark(picture, result.size_px, self._job.font)

    def _keep(self, image: np.ndarray, result: DetectionResult, i: int, following: Following | None) -> None:
        file = self._job.picture_files[i]
        if self._job.drawn is not None:
            save_picture(self._drawn(image, result, following), self._job.drawn / file, quality=92)
        self._keep_parts(image, result, file, self._stems[i])

    def _keep_parts(self, image: np.ndarray, result: DetectionResult, file: Path, stem: Path) -> None:
        """What is written besides the drawn picture: ``file`` names pictures of its kind, ``stem`` all others."""
        if self._job.crops is not None:
            transparent = result.object_masks is not None
            save_crops(image, result, self._job.crops, stem.with_name(f"{stem.name}.png") if transparent else file)
        if self._job.labels is not None:
            save_labels(result, self._job.labels / stem.with_name(f"{stem.name}.txt"))
        if self._job.masks is not None:
            save_masks(result, self._job.masks / stem.with_name(f"{stem.name}.png"))

    def _readable(self, read: Iterable[tuple[int, Any]], bar: Any) -> Iterator[tuple[int, np.ndarray]]:
        for i, image in read:
            if isinstance(image, UserError):
                self.failures.append(str(image))
                bar.update()
            else:
                yield i, image


def _read(pictures: list[Picture], any_size: bool) -> Iterator[tuple[int, np.ndarray | UserError]]:
    """Index and pixels of each picture, or why it cannot be read."""
    for i, picture in enumerate(pictures):
        try:
            image = picture.read(any_size)
        except UserError as error:
            image = error
        yield i, image


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items; the last may be shorter."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
