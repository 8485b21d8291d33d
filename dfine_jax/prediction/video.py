"""Frames out of videos, streams and cameras, and drawn frames into a video. Needs PyAV, imported where it is used."""

from __future__ import annotations

import itertools
import os
import secrets
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from dfine_jax.errors import UserError
from dfine_jax.prediction.addresses import CAMERA, is_stream, public_name
from dfine_jax.prediction.addresses import VIDEO_EXTENSIONS as EXTENSIONS
from dfine_jax.system.files import telling
from dfine_jax.system.installed import pip_install

__all__ = ["EXTENSIONS", "Frame", "VideoReader", "VideoWriter", "is_stream", "public_name", "require_av"]

_TIMEOUT_S = (15.0, 15.0)  # to open a stream, and to wait for its next data
_DEFAULT_RATE = Fraction(25)
_TICKS = Fraction(1, 90_000)  # time base of written videos: fits all usual frame rates
_JUMP_S = 1.0  # a timestamp this far behind the last one starts a new count
_ENCODERS = ("libx264", "libopenh264", "mpeg4")
_BT709, _UNTAGGED = 1, 2  # numbers of colour spaces in H.264
_HD_PX = 720  # from this height on untagged videos are BT.709, as players take them
_MPEG_RANGE = 1


class Frame(NamedTuple):
    """A picture of a video."""

    index: int  # of all frames of the video, from 0
    time_s: float  # since the first frame, increasing
    image: UInt8[np.ndarray, "h w 3"]  # upright, RGB


def require_av() -> ModuleType:
    """The PyAV module.

    Raises:
      UserError: not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"videos, streams and cameras need PyAV ({error}); install it with {pip_install('video')}"
        ) from error
    # FFmpeg's messages stay off, as PyAV has them: passed on to Python, a message of a thread of a codec waits for the
    # interpreter, which the thread that closes the codec holds until that one ends.
    return av


class VideoReader:
    """Frames of a video file, a stream (``rtsp://``, ``http://``, ...) or a camera, in order; a context manager.

    Rotation and mirroring that the file asks for are applied. Times come from the file, so a variable frame rate is
    kept; missing or backward timestamps are replaced by the usual distance of frames. Damaged packets are skipped and
    counted, and a source that breaks off ends the iteration: ``problem`` then says why.

    Args:
      source: path, URL, or number of a camera.
      every: deliver one of so many frames.
      seconds: end after this time of the video; None: at its end.

    Raises:
      UserError: PyAV is absent, or the source is missing, unreachable, or holds no frame.
    """

    def __init__(self, source: str, every: int = 1, seconds: float | None = None) -> None:
        if every < 1:
            raise UserError(f"every={every} must be at least 1 (each frame)")
        if seconds is not None and not seconds > 0:
            raise UserError(f"seconds={seconds} must be positive")
        self._av = require_av()
        self.name = public_name(source)
        self._every, self._seconds = every, seconds
        self._container = self._open(source)
        self.damaged = 0  # packets that could not be decoded
        self.problem: str | None = None  # why reading ended before the end
        try:
            self._start(source)
        except UserError:
            self._container.close()
            raise

    def _start(self, source: str) -> None:
        if not self._container.streams.video:
            raise UserError(f"{self.name} has no pictures, only other streams; give a video")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.live = is_stream(source) and self._container.duration is None
        self.rate = self._stream.average_rate or self._stream.guessed_rate or _DEFAULT_RATE  # frames per second
        self._frames = self._decoded()
        first = next(self._frames, None)
        if first is None:
            reason = self.problem or (f"{self.damaged} damaged packets" if self.damaged else "it is empty")
            raise UserError(f"{self.name} holds no frame that can be decoded ({reason}); record or convert it again")
        self._frames = itertools.chain([first], self._frames)
        aspect = Fraction(self._stream.sample_aspect_ratio or 1)
        matrix = _display_matrix(first)
        turned = matrix is not None and abs(matrix[0, 1]) > abs(matrix[0, 0])
        self.pixel_aspect = 1 / aspect if turned else aspect  # width of a pixel by its height; 1 for nearly all videos

    @property
    def expected_frames(self) -> int | None:
        """How many frames will be delivered, as far as the file says; None for live sources."""
        total = self._stream.frames
        if not total and self._container.duration is not None:
            total = round(self._container.duration / 1_000_000 * self.rate)
        if self._seconds is not None and (total or not self.live):
            total = min(total or sys.maxsize, round(self._seconds * self.rate))
        return -(-total // self._every) if total else None

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the source."""
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """Frames, once; only the delivered ones are converted to RGB."""
        clock = _Clock(float(1 / self.rate))
        for index, frame in enumerate(self._frames):
            time_s = clock(frame.time)
            if self._seconds is not None and time_s >= self._seconds:
                return
            if index % self._every == 0:
                yield Frame(index, time_s, _upright(_rgb(frame), _display_matrix(frame)))

    def _decoded(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except self._av.FFmpegError as error:
                self.problem = _reason(self._av, error)
                return
            if packet is None:
                return
            try:
                frames = packet.decode()
            except self._av.FFmpegError:
                self.damaged += 1
                continue
            yield from frames

    def _open(self, source: str) -> Any:
        camera = bool(CAMERA.fullmatch(source)) and is_stream(source)
        try:
            if camera:
                return self._open_camera(source)
            if is_stream(source):
                return self._av.open(source, timeout=_TIMEOUT_S)
            if not Path(source).is_file():
                raise UserError(f"video {source} does not exist")
            return self._av.open(source)
        except self._av.FFmpegError as error:
            if camera:
                raise UserError(
                    f"camera {source} cannot be opened ({_reason(self._av, error)}); check its number and your "
                    "permission to use it"
                ) from error
            cure = "check the address" if is_stream(source) else "it is damaged or no video; convert it with ffmpeg"
            raise UserError(f"{self.name} cannot be opened ({_reason(self._av, error)}); {cure}") from error

    def _open_camera(self, source: str) -> Any:
        number = int(source.removeprefix("/dev/video"))
        if sys.platform == "darwin":
            return self._av.open(str(number), format="avfoundation", options={"framerate": "30"})
        if sys.platform == "win32":
            names = [device.name for device in self._av.enumerate_input_devices("dshow")]
            if number >= len(names):
                raise UserError(f"there is no camera {number}; found: {', '.join(names) or 'none'}")
            return self._av.open(f"video={names[number]}", format="dshow")
        return self._av.open(f"/dev/video{number}", format="v4l2")


class VideoWriter:
    """Pictures into an H.264 video (MP4) that browsers play; a context manager, which also completes a broken run.

    The first picture decides the size; later ones of another size are fitted into it. Nothing is written before it, and
    the file has its name only when it is complete.

    Args:
      path: file to write; its folder is made.
      rate: usual frames per second, a hint; each picture is shown from its own time on.
      pixel_aspect: width of a pixel by its height.
    """

    def __init__(self, path: Path, rate: Fraction = _DEFAULT_RATE, pixel_aspect: Fraction | None = None) -> None:
        self._av = require_av()
        self.path = path
        self.frames = 0
        self._rate, self._pixel_aspect = rate, pixel_aspect
        self._container: Any = None
        self._stream: Any = None
        self._part: Path | None = None  # becomes the file when it is complete
        self._failed = False
        self._last_tick = -1

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the file. UserError when that fails, unless another error is on its way."""
        if self._container is None or self._part is None:
            return
        try:
            with self._container:
                if not self._failed:
                    self._encode(None)
            if not self._failed:
                with telling(self.path):
                    os.replace(self._part, self.path)
        except self._av.FFmpegError as failure:
            if error is None:
                raise self._unwritable(failure) from failure
        finally:
            self._part.unlink(missing_ok=True)

    def write(self, picture: Image.Image, time_s: float) -> None:
        """Append an RGB picture that is shown from ``time_s`` on; times must increase.

        Raises:
          UserError: the file cannot be written.
        """
        try:
            if self._container is None:
                self._start(picture.size)
            size = (self._stream.width, self._stream.height)
            if picture.size != size:
                picture = _even(picture) if _even_size(picture.size) == size else ImageOps.pad(picture, size)
            frame = self._av.VideoFrame.from_image(picture)
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            self._last_tick = max(round(time_s / _TICKS), self._last_tick + 1)
            frame.pts, frame.time_base = self._last_tick, _TICKS
            self._encode(frame)
        except self._av.FFmpegError as error:
            self._failed = True
            raise self._unwritable(error) from error
        self.frames += 1

    def _start(self, size_px: tuple[int, int]) -> None:
        with telling(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_dir():
            raise UserError(f"video {self.path} cannot be written (it is a folder); choose another place")
        self._part = self.path.with_name(f".part-{secrets.token_hex(4)}.mp4")
        self._container = self._av.open(str(self._part), "w", format="mp4", options={"movflags": "+faststart"})
        encoder = next(name for name in _ENCODERS if name in self._av.codecs_available)
        # Without B-frames decoding times equal display times, which MP4 needs for a right duration of uneven frames.
        options = {"bf": "0", "crf": "21", "preset": "veryfast"} if encoder == "libx264" else {"bf": "0"}
        self._stream = self._container.add_stream(encoder, rate=self._rate, options=options)
        self._stream.width, self._stream.height = _even_size(size_px)
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = _TICKS
        context = self._stream.codec_context
        context.time_base = _TICKS
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _MPEG_RANGE
        if self._pixel_aspect is not None:
            context.sample_aspect_ratio = self._pixel_aspect

    def _encode(self, frame: Any) -> None:
        self._container.mux(self._stream.encode(frame))

    def _unwritable(self, error: Any) -> UserError:
        return UserError(f"video {self.path} cannot be written ({_reason(self._av, error)}); choose another place")


class _Clock:
    """Seconds since the first frame, always increasing."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._start_s: float | None = None
        self._now_s = 0.0

    def __call__(self, stamp_s: float | None) -> float:
        """Time of the next frame, whose timestamp may be missing or behind."""
        if self._start_s is None:
            self._start_s = stamp_s or 0.0
            return self._now_s
        now_s = None if stamp_s is None else stamp_s - self._start_s
        if now_s is None or now_s <= self._now_s:
            behind = 0.0 if now_s is None else self._now_s - now_s
            self._now_s += self._interval_s
            if behind > _JUMP_S and stamp_s is not None:
                self._start_s = stamp_s - self._now_s
        else:
            self._now_s = now_s
        return self._now_s


def _rgb(frame: Any) -> UInt8[np.ndarray, "h w 3"]:
    untagged_hd = frame.colorspace == _UNTAGGED and frame.height >= _HD_PX
    return frame.reformat(format="rgb24", src_colorspace="ITU709" if untagged_hd else None).to_ndarray()


def _display_matrix(frame: Any) -> np.ndarray | None:
    """The first two rows and columns of the frame's display matrix; None when it is shown as stored."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32)[:9].reshape(3, 3)[:2, :2]


def _upright(image: UInt8[np.ndarray, "h w 3"], matrix: np.ndarray | None) -> UInt8[np.ndarray, "h w 3"]:
    """The picture turned by quarters and mirrored as the matrix maps (x, y), y downwards, as row vectors."""
    if matrix is None:
        return image
    (a, b), (c, d) = matrix.astype(float)
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _even_size(size_px: tuple[int, int]) -> tuple[int, int]:
    """Video colours are stored for blocks of 2x2 pixels."""
    return size_px[0] + size_px[0] % 2, size_px[1] + size_px[1] % 2


def _even(picture: Image.Image) -> Image.Image:
    """The picture with its last column or row repeated where a side is odd."""
    pixels = np.asarray(picture)
    return Image.fromarray(np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge"))


def _reason(av: ModuleType, error: Any) -> str:
    if isinstance(error, av.ExitError):
        return f"no data for {_TIMEOUT_S[1]:.0f} seconds"
    return str(error.strerror or error).strip()
