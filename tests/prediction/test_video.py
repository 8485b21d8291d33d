"""Frames and times as the file means them; damage, ends and interruptions; videos that are written."""

from __future__ import annotations

import builtins
import http.server
import io
import socket
import threading
import time
import wave
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from PIL import Image
from rectangles import scene
from videos import write_video

from dfine_jax.errors import UserError
from dfine_jax.prediction import video
from dfine_jax.prediction.addresses import is_stream, public_name
from dfine_jax.prediction.ahead import Ahead
from dfine_jax.prediction.video import VideoReader, VideoWriter

av = pytest.importorskip("av")
CORNERS = (("red", 0, 0, 60, 40), ("green", 60, 0, 120, 40), ("blue", 0, 40, 60, 80))  # the fourth stays dark


def moving(count: int, width: int = 120, height: int = 80) -> list[np.ndarray]:
    return [scene(width, height, ("red", 4 * i, 10, 4 * i + 20, 30)) for i in range(count)]


def quadrants(image: np.ndarray) -> list[str]:
    """Names of the colours in the middle of the quarters, row by row."""
    height, width = image.shape[:2]
    names = []
    for y in (height // 4, 3 * height // 4):
        for x in (width // 4, 3 * width // 4):
            pixel = image[y, x].astype(int)
            names.append(("red", "green", "blue")[pixel.argmax()] if pixel.max() > 120 else "dark")
    return names


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, moving(12))
    return path


def test_frames_have_index_time_and_pixels(clip):
    with VideoReader(str(clip)) as reader:
        frames = list(reader)
        assert (reader.expected_frames, reader.live, reader.rate, reader.damaged) == (12, False, 10, 0)
    assert [f.index for f in frames] == list(range(12))
    np.testing.assert_allclose([f.time_s for f in frames], np.arange(12) / 10, atol=1e-4)
    for frame, expected in zip(frames, moving(12), strict=True):
        assert frame.image.shape == (80, 120, 3)
        assert np.abs(frame.image.astype(int) - expected).mean() < 4


@pytest.mark.parametrize(
    ("every", "seconds", "expected"),
    [(5, None, [0, 5, 10]), (1, 0.35, [0, 1, 2, 3]), (2, 0.5, [0, 2, 4]), (100, 9.0, [0])],
)
def test_skipping_and_ending_early(clip, every, seconds, expected):
    with VideoReader(str(clip), every, seconds) as reader:
        assert [f.index for f in reader] == expected
        assert reader.expected_frames == len(expected)


def test_a_variable_frame_rate_is_kept_through_reading_and_writing(tmp_path):
    times = [0.0, 0.1, 0.15, 0.9, 1.0, 3.0]
    write_video(tmp_path / "in.mkv", moving(6), times)
    with VideoReader(str(tmp_path / "in.mkv")) as reader, VideoWriter(tmp_path / "out.mp4", reader.rate) as writer:
        read = [frame.time_s for frame in reader if writer.write(Image.fromarray(frame.image), frame.time_s) is None]
    np.testing.assert_allclose(read, times, atol=2e-3)
    with VideoReader(str(tmp_path / "out.mp4")) as reader:
        np.testing.assert_allclose([frame.time_s for frame in reader], times, atol=2e-3)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert 3.0 < container.duration / 1e6 < 3.5


def test_messages_of_ffmpeg_do_not_call_into_python(tmp_path):
    """One of a codec's thread would wait for the interpreter while its owner, being closed, waits for the thread."""
    write_video(tmp_path / "in.mp4", moving(2), [0.0, 0.1])
    with VideoReader(str(tmp_path / "in.mp4")) as reader:
        assert len(list(reader)) == 2
    assert av.logging.get_level() is None


# What the four quarters show after turning counter-clockwise and then mirroring, both as the file asks.
@pytest.mark.parametrize(
    ("rotation", "mirror", "expected"),
    [
        (0, False, ["red", "green", "blue", "dark"]),
        (90, False, ["green", "dark", "red", "blue"]),
        (180, False, ["dark", "blue", "green", "red"]),
        (-90, False, ["blue", "red", "dark", "green"]),
        (0, True, ["green", "red", "dark", "blue"]),
        (90, True, ["dark", "green", "blue", "red"]),
        (180, True, ["blue", "dark", "red", "green"]),
        (-90, True, ["red", "blue", "green", "dark"]),
    ],
)
def test_frames_are_upright(tmp_path, rotation, mirror, expected):
    path = tmp_path / "turned.mp4"
    write_video(path, [scene(120, 80, *CORNERS)] * 3, rotation=rotation, mirror=mirror, aspect=Fraction(4, 3))
    with VideoReader(str(path)) as reader:
        frames = list(reader)
        turned = rotation % 180 != 0
        assert reader.pixel_aspect == (Fraction(3, 4) if turned else Fraction(4, 3))
    assert [quadrants(f.image) for f in frames] == [expected] * 3
    assert frames[0].image.shape == ((120, 80, 3) if turned else (80, 120, 3))


def test_timestamps_that_lack_repeat_or_jump_back_still_increase():
    clock = video._Clock(0.1)
    stamps = [100.0, 100.1, None, 100.3, 100.3, 100.45, 5.0, 5.1, 5.3]
    times = [clock(t) for t in stamps]
    np.testing.assert_allclose(times, [0, 0.1, 0.2, 0.3, 0.4, 0.45, 0.55, 0.65, 0.85])


def test_written_videos_have_the_colours_size_and_aspect_of_the_pictures(tmp_path):
    path = tmp_path / "made" / "out.mp4"
    with VideoWriter(path, Fraction(10), Fraction(4, 3)) as writer:
        for i in range(3):
            writer.write(Image.fromarray(scene(121, 81, *CORNERS)), i / 10)
        writer.write(Image.fromarray(scene(240, 80, *CORNERS)), 0.3)  # a stream that changes its size
    assert writer.frames == 4
    with VideoReader(str(path)) as reader:
        frames = list(reader)
        assert reader.pixel_aspect == Fraction(4, 3)
    assert [f.image.shape for f in frames] == [(82, 122, 3)] * 4
    np.testing.assert_allclose(frames[0].image[20, 30], (255, 0, 0), atol=6)
    np.testing.assert_allclose(frames[0].image[20, 90], (0, 255, 0), atol=6)
    np.testing.assert_allclose(frames[3].image[5, 60], (0, 0, 0), atol=6)  # fitted in, with bars
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")


@pytest.mark.parametrize(("height", "colours"), [(480, "ITU601"), (720, "ITU709")])
def test_videos_that_do_not_name_their_colours_are_read_as_players_do(tmp_path, height, colours):
    image = np.full((height, 640, 3), (200, 60, 20), np.uint8)
    write_video(tmp_path / "a.mp4", [image], colours=colours)
    with VideoReader(str(tmp_path / "a.mp4")) as reader:
        (frame,) = reader
    np.testing.assert_allclose(frame.image[100, 100], (200, 60, 20), atol=3)


def test_a_writer_without_frames_leaves_no_file(tmp_path):
    with VideoWriter(tmp_path / "no" / "out.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_video_is_complete(tmp_path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "out.mp4") as writer:
        for i, image in enumerate(moving(6)):
            if i == 4:
                raise KeyboardInterrupt
            writer.write(Image.fromarray(image), i / 10)
    with VideoReader(str(tmp_path / "out.mp4")) as reader:
        assert len(list(reader)) == 4


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(UserError, match="out.mp4 cannot be written"), VideoWriter(tmp_path / "out.mp4") as writer:
        writer.write(Image.fromarray(moving(1)[0]), 0)


def test_unreadable_sources_are_named_with_a_cure(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 100, "NONE", ""))
        sound.writeframes(bytes(200))
    cases = {
        str(tmp_path / "none.mp4"): "video .*none.mp4 does not exist",
        str(tmp_path / "text.mp4"): "text.mp4 cannot be opened .*it is damaged or no video; convert it",
        str(tmp_path / "empty.mp4"): "empty.mp4 cannot be opened",
        str(tmp_path / "sound.wav"): "sound.wav has no pictures, only other streams; give a video",
        "http://user:secret@127.0.0.1:9/x.mp4": r"http://127.0.0.1:9/x.mp4 cannot be opened .*check the address",
        "999": "camera 999 cannot be opened .*check its number",
    }
    for source, message in cases.items():
        with pytest.raises(UserError, match=message):
            VideoReader(source)


def test_no_frames(tmp_path, clip):
    # The index of the file without its frames: everything that is to be decoded is damaged.
    data = clip.read_bytes()
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    (tmp_path / "blank.mp4").write_bytes(data[:start] + bytes(end - start) + data[end:])
    with pytest.raises(UserError, match=r"blank.mp4 holds no frame that can be decoded .*; record or convert it again"):
        VideoReader(str(tmp_path / "blank.mp4"))


def test_a_truncated_video_gives_the_frames_it_has(tmp_path):
    path = tmp_path / "cut.mkv"
    write_video(path, [np.random.default_rng(i).integers(0, 255, (80, 120, 3), np.uint8) for i in range(12)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with VideoReader(str(path)) as reader:
        assert 3 <= len(list(reader)) < 12


def test_damage_in_the_middle_is_counted_and_skipped(tmp_path):
    path = tmp_path / "damaged.mkv"
    write_video(path, [np.random.default_rng(i).integers(0, 255, (80, 120, 3), np.uint8) for i in range(20)])
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 12_000] = bytes(12_000)
    path.write_bytes(data)
    with VideoReader(str(path)) as reader:
        frames = list(reader)
    assert 8 <= len(frames) <= 20
    assert all(b.time_s > a.time_s for a, b in zip(frames, frames[1:], strict=False))
    assert frames[-1].time_s > 1.7  # goes on after the damage


def serve_bytes(data: bytes) -> int:
    """Port on which one client is sent the bytes, then hung up on."""
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        with listener, listener.accept()[0] as client:
            client.sendall(data)

    threading.Thread(target=work, daemon=True).start()
    return listener.getsockname()[1]


def test_a_stream_that_ends(tmp_path):
    buffer = io.BytesIO()
    write_video(buffer, moving(12), container="mpegts")
    port = serve_bytes(buffer.getvalue())
    with VideoReader(f"tcp://127.0.0.1:{port}") as reader:
        assert reader.live
        assert reader.expected_frames is None
        frames = list(reader)
    assert [f.index for f in frames] == list(range(12))
    np.testing.assert_allclose([f.time_s for f in frames], np.arange(12) / 10, atol=1e-3)


def test_a_stream_that_falls_silent_ends_with_a_reason(monkeypatch):
    monkeypatch.setattr(video, "_TIMEOUT_S", (1.5, 0.5))
    buffer = io.BytesIO()
    write_video(buffer, moving(12), container="mpegts")
    listener = socket.create_server(("127.0.0.1", 0))
    clients = []

    def work() -> None:
        clients.append(listener.accept()[0])
        clients[0].sendall(buffer.getvalue())

    threading.Thread(target=work, daemon=True).start()
    with listener, VideoReader(f"tcp://127.0.0.1:{listener.getsockname()[1]}") as reader:
        assert len(list(reader)) >= 10
    assert reader.problem is not None
    clients[0].close()


def test_a_file_on_a_server_is_not_live(clip):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(clip.parent))
    handler.log_message = lambda *_: None  # pyright: ignore
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with VideoReader(f"http://127.0.0.1:{server.server_port}/clip.mp4") as reader:
            assert not reader.live
            assert len(list(reader)) == reader.expected_frames == 12
        server.shutdown()


def test_without_pyav_the_cure_is_named(monkeypatch, clip):
    real = builtins.__import__

    def no_av(name, *args, **kwargs):
        if name.partition(".")[0] == "av":
            raise ImportError("No module named 'av'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_av)
    for make in (partial(VideoReader, str(clip)), partial(VideoWriter, clip)):
        with pytest.raises(UserError, match=r"need PyAV .*pip install .*\[video\]"):
            make()


def test_what_is_a_stream(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_stream("rtsp://camera/1") and is_stream("0") and is_stream("/dev/video2")
    assert not is_stream("clip.mp4") and not is_stream("C:/clip.mp4") and not is_stream("2024")
    (tmp_path / "0").touch()
    (tmp_path / "12").mkdir()
    assert not is_stream("0") and not is_stream("12")
    assert public_name("rtsp://me:pass@host/1") == "rtsp://host/1"


def test_ahead_keeps_the_order_and_hands_errors_over():
    def items():
        yield from range(5)
        raise UserError("broken")

    seen = []
    with pytest.raises(UserError, match="broken"), Ahead(items(), 2) as ahead:
        for item in ahead:
            seen.append(item)
    assert seen == list(range(5))


def test_ahead_of_a_live_source_drops_the_oldest():
    busy, produced = threading.Event(), threading.Event()

    def items():
        yield 0
        assert busy.wait(5)
        yield from range(1, 100)
        produced.set()

    with Ahead(items(), 2, newest=True) as ahead:
        iterator = iter(ahead)
        assert next(iterator) == 0
        busy.set()
        assert produced.wait(5)
        assert list(iterator) == [98, 99]
    assert ahead.dropped == 97


def test_ahead_ends_its_thread_when_the_consumer_leaves():
    taken = []

    def items():
        while True:
            taken.append(None)
            yield len(taken)

    with Ahead(items(), 3) as ahead:
        assert next(iter(ahead)) == 1
    count = len(taken)
    time.sleep(0.05)
    assert len(taken) == count <= 6
