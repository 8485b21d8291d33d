"""Small videos for tests."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

TICKS = Fraction(1, 90_000)


def write_video(
    path: Path | Any,
    frames: Iterable[np.ndarray],
    times_s: Iterable[float] | None = None,
    *,
    rotation: int = 0,
    mirror: bool = False,
    aspect: Fraction | None = None,
    container: str | None = None,
    colours: str | None = None,
) -> None:
    """H.264 frames shown at ``times_s`` (default: 10 per second), turned by the container by ``rotation`` degrees
    counter-clockwise after mirroring; ``colours`` are those of the conversion, the file does not name them."""
    import av

    frames = list(frames)
    times = list(times_s) if times_s is not None else [i / 10 for i in range(len(frames))]
    with av.open(path if not isinstance(path, Path) else str(path), "w", format=container) as out:
        stream: Any = out.add_stream("libx264", rate=10, options={"bf": "0", "crf": "10", "g": "5"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = TICKS
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation or mirror:
            stream.set_display_rotation(rotation, hflip=mirror)
        for image, time_s in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", dst_colorspace=colours)
            frame.pts, frame.time_base = round(time_s / TICKS), TICKS
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
