"""Objects followed from frame to frame: each gets a number that it keeps. By the package trackers (extra ``track``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from dfine_jax.errors import UserError
from dfine_jax.system.installed import require

if TYPE_CHECKING:
    from dfine_jax.prediction.result import DetectionResult

NO_TRACK = -1  # number of a detection that belongs to no track, or to one that is not confirmed yet
LOW_SCORE = 0.1  # a known object is followed down to this score, which ByteTrack's second association is for
_RATE = 30.0  # frames per second, where nothing is known; what the package counts its own times in


class _Algorithm(NamedTuple):
    """A tracker of the package."""

    class_name: str
    thresholds: tuple[str, ...]  # its options that say which scores start a track, or are of the first association
    follows_low_scores: bool  # has a second association for those below
    looks_at_frames: bool = False  # to tell the movement of the camera


_ALGORITHMS = {
    "bytetrack": _Algorithm("ByteTrackTracker", ("track_activation_threshold", "high_conf_det_threshold"), True),
    "sort": _Algorithm("SORTTracker", ("track_activation_threshold",), False),
    "ocsort": _Algorithm("OCSORTTracker", ("high_conf_det_threshold",), False),
    "botsort": _Algorithm("BoTSORTTracker", ("track_activation_threshold", "high_conf_det_threshold"), True, True),
    "cbiou": _Algorithm("CBIoUTracker", ("track_activation_threshold", "high_conf_det_threshold"), True),
}
TRACKERS = tuple(_ALGORITHMS)


class Tracker:
    """Gives the detections of one video the numbers of their objects; a new one for each video.

    Scores from ``threshold`` on start a track. An object that is known is followed down to ``low_threshold``, so
    results should be made with that: what is below ``threshold`` and belongs to no track is left out of the answer. A
    box that is there for several classes counts once, for the best of them. Numbers start at 1 when an object has been
    seen in two or three frames, as the algorithm wants; until then they are ``NO_TRACK``. Classes are not compared: an
    object that looks now like this and now like that remains one.

    Args:
      name: one of ``TRACKERS``.
      threshold: smallest score of a detection.
      rate: frames per second; times that are given to ``update`` go before it.

    Raises:
      UserError: another name, or the package is absent.
    """

    def __init__(self, name: str, threshold: float, rate: float | None = None) -> None:
        check_tracker(name)
        algorithm = _ALGORITHMS[name]
        options = dict.fromkeys(algorithm.thresholds, threshold)
        self._tracker = getattr(require_trackers(), algorithm.class_name)(frame_rate=float(rate or _RATE), **options)
        self._supervision = require("supervision", "tracking")
        self._threshold = threshold
        self._looks_at_frames = algorithm.looks_at_frames
        self.low_threshold = low_threshold_of(name, threshold)

    def update(
        self, result: DetectionResult, time_s: float | None = None, image: UInt8[np.ndarray, "h w 3"] | None = None
    ) -> DetectionResult:
        """The next frame's detections with ``track_ids``, best first.

        Args:
          result: from ``low_threshold`` on.
          time_s: of the frame; None: one frame after the last. Times must increase; give them for all frames or none.
          image: the frame in RGB, for ``botsort``.
        """
        result = result[_distinct(result.boxes_xyxy_px)]
        rows = np.flatnonzero(result.scores >= self.low_threshold)
        given = self._supervision.Detections(
            xyxy=result.boxes_xyxy_px[rows].astype(float),
            confidence=result.scores[rows].astype(float),
            class_id=result.labels[rows].astype(int),
            data={"row": rows},
        )
        frame = image[..., ::-1] if self._looks_at_frames and image is not None else None
        followed = self._tracker.update(given, frame=frame, timestamp=time_s)
        ids = np.full(len(result), NO_TRACK, np.int64)
        if len(followed):
            known = followed.tracker_id >= 0
            ids[followed.data["row"][known]] = followed.tracker_id[known] + 1
        keep = (result.scores >= self._threshold) | (ids != NO_TRACK)
        return dataclasses.replace(result, track_ids=ids)[keep]


def tracked(
    results: Iterable[DetectionResult], name: str, threshold: float, rate: float | None = None
) -> Iterator[DetectionResult]:
    """Results of the frames of one video, one by one as they come, with ``track_ids``; as ``Tracker``.

    Args:
      results: made from ``low_threshold_of(name, threshold)`` on; of videos they know their times and rate.
      rate: frames per second; None: as the video says, else 30.
    """
    tracker: Tracker | None = None
    for result in results:
        source = result.source
        if tracker is None:
            tracker = Tracker(name, threshold, rate or (source and source.rate) or None)
        image = source.pixels() if source is not None and _ALGORITHMS[name].looks_at_frames else None
        yield tracker.update(result, None if source is None or rate else source.time_s, image)


def low_threshold_of(name: str, threshold: float) -> float:
    """The score that detections for a tracker are made from, so that known objects can be followed below ``threshold``.

    Raises:
      UserError: no tracker has this name.
    """
    check_tracker(name)
    return min(LOW_SCORE, threshold) if _ALGORITHMS[name].follows_low_scores else threshold


def check_tracker(name: str) -> None:
    """UserError for a name that no tracker has."""
    if name not in _ALGORITHMS:
        raise UserError(f"tracker {name!r} is none of {', '.join(TRACKERS)}")


def require_trackers() -> ModuleType:
    """The package trackers.

    Raises:
      UserError: it is absent, or OpenCV, which it brings, lacks libraries of the system.
    """
    try:
        return require("trackers", "tracking")
    except ImportError as error:  # UserError is none: libGL of OpenCV's wheel for desktops
        raise UserError(
            f"tracking needs OpenCV, which cannot be loaded ({error}); on a machine without a screen: pip uninstall "
            "opencv-python, then pip install opencv-python-headless"
        ) from error


def _distinct(boxes_xyxy_px: Float[np.ndarray, "n 4"]) -> Int[np.ndarray, " k"]:
    """Rows whose box no better row has: a query answers with its box for every class that it scores."""
    if not len(boxes_xyxy_px):
        return np.zeros(0, int)
    first: Any = np.unique(boxes_xyxy_px, axis=0, return_index=True)[1]
    return np.sort(first)
