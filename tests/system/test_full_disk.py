"""Writing where the disk is full, read-only or has no room for a name: one line of error, and no half of a file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from rectangles import RectangleBackend, opened, scene

from dfine_jax import cli
from dfine_jax.data.picture.images import save_picture
from dfine_jax.errors import UserError
from dfine_jax.prediction import detector
from dfine_jax.system.files import replacing, require_writable, write_whole

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of this system")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))


@contextlib.contextmanager
def full(size):
    """In the block no file becomes larger than so many bytes, as on a full disk; pytest's own log may."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_nothing_is_half_written_and_the_old_file_stays(tmp_path):
    old, new = tmp_path / "old.png", tmp_path / "sub" / "new.png"
    save_picture(NOISE.crop((0, 0, 4, 4)), old)
    content = old.read_bytes()
    for path in (old, new):
        with full(1000), pytest.raises(UserError, match=rf"{path}: File too large; .*choose another folder"):
            save_picture(NOISE, path)
        with full(1000), pytest.raises(UserError, match="File too large"):
            write_whole(path, bytes(5000))
    assert old.read_bytes() == content
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["old.png"]


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as stream:
        stream.write(b"new")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_links_and_devices_are_written_through(tmp_path):
    (tmp_path / "real").write_text("old")
    os.symlink("real", tmp_path / "link")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    code = "import sys; print(open(sys.argv[1]).read())"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        write_whole(tmp_path / "pipe", "through")
        assert reader.communicate()[0] == "through\n"
    write_whole("/dev/null", "gone")
    assert not Path("/dev/null").is_file()
    with pytest.raises(UserError, match="/dev/full: No space left on device; free some space"):
        write_whole("/dev/full", "much")


@pytest.mark.parametrize("name", ["stdout", "fd/1"])
def test_output_into_a_pipe_by_its_name(name):
    code = f"from dfine_jax.system.files import write_whole; write_whole('/dev/{name}', 'through')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    assert done.stdout == b"through"


def test_a_place_is_tried_before_the_work(tmp_path):
    require_writable(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="/proc/nowhere"):
        require_writable("/proc/nowhere")
    with pytest.raises(UserError, match="Not a directory"):
        require_writable(Path(__file__) / "below")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(detector, "open_model", lambda *_, **__: opened(RectangleBackend(), (160, 160)))
    monkeypatch.setattr("dfine_jax.commands.predict.require_model", lambda model: None)  # there is no file
    image = np.asarray(NOISE.resize((320, 320))) // 8
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.maximum(image, scene(320, 320, ("red", 20, 40, 120, 100)))).save(folder / f"{name}.png")
    return folder


def run(capsys, *arguments) -> str:
    assert cli.main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dfine: error: ") and error.count("\n") == 1, error
    return error


def test_predict_on_a_full_disk(pictures, tmp_path, capsys):
    out, crops, results = tmp_path / "out", tmp_path / "crops", tmp_path / "r.json"
    for arguments in (["--out", out], ["--crops", crops], ["--out", out, "--json", results]):
        with full(2000):
            error = run(capsys, "predict", "model", pictures, *arguments)
        assert "File too large" in error and "choose another folder" in error
    left = [p for p in tmp_path.rglob("*") if p.is_file() and pictures not in p.parents]
    assert left == [results] and isinstance(json.loads(results.read_text()), list)  # what was found before, complete


def test_predict_whose_results_do_not_fit(pictures, tmp_path, capsys):
    results = tmp_path / "r.json"
    results.write_text("old")
    with full(20):
        error = run(capsys, "predict", "model", pictures, "--json", results)
    assert "r.json: File too large" in error
    assert results.read_text() == "old" and sorted(p.name for p in tmp_path.iterdir()) == ["in", "r.json"]


def test_a_video_on_a_full_disk(tmp_path):
    pytest.importorskip("av")
    from dfine_jax.prediction.video import VideoWriter

    with (
        full(3000),
        pytest.raises(UserError, match=r"video .*out.mp4 cannot be written"),
        VideoWriter(tmp_path / "out.mp4") as video,
    ):
        for i in range(60):
            video.write(NOISE.rotate(i), i / 25)
    assert not list(tmp_path.iterdir())


def test_read_only_places_and_long_names(pictures, tmp_path, capsys):
    assert "/proc/out" in run(capsys, "predict", "model", pictures, "--out", "/proc/out")
    assert "/proc" in run(capsys, "predict", "model", pictures, "--json", "/proc/r.json")
    long = tmp_path / ("x" * 300)
    assert "File name too long; choose a shorter name" in run(capsys, "predict", "model", pictures, "--out", long)
    assert "File name too long" in run(capsys, "predict", "model", long)
    assert "File name too long" in run(capsys, "predict", "model", pictures, "--json", tmp_path / ("x" * 300 + ".json"))


def test_without_a_home(tmp_path):
    code = "from dfine_jax.system.cache import cache_dir; print(cache_dir())"
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "DFINE_CACHE", "XDG_CACHE_HOME")}
    for home in ({}, {"HOME": "/proc/nonexistent"}, {"DFINE_CACHE": "~nobody-of-that-name/x"}):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | home, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "dfine_jax.cli", "predict", "model", tmp_path / "no.jpg"],
        env=environment | {"HOME": "/proc/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.startswith("dfine: error: ") and done.stderr.count("\n") == 1


def test_output_that_is_full():
    command = [sys.executable, "-m", "dfine_jax.cli", "doctor"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("dfine: error: No space left on device; free some space")


def test_mistakes_of_the_program_are_not_hidden(monkeypatch):
    from dfine_jax.commands import doctor

    def fail(options):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(doctor, "run", fail)
    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main(["doctor"])
