"""Names of what is detected in: ids, result files and entries of annotations never stand for two pictures."""

from __future__ import annotations

import http.server
import io
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfine_jax.errors import UserError
from dfine_jax.prediction.inputs import Clip, Inputs, Picture, clip_ids, find_inputs, image_ids, result_files
from dfine_jax.prediction.sources import several


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path, "PNG")
    return path


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Folders d1 and d2, both with 0.png; d1 with 1.png too."""
    monkeypatch.chdir(tmp_path)
    for name in ("d1/0.png", "d1/1.png", "d2/0.png"):
        picture(tmp_path / name)
    return tmp_path


def annotated(path: Path, **ids) -> Path:
    path.write_text(json.dumps({"images": [{"file_name": name, "id": i} for name, i in ids["images"]]}))
    return path


def test_ids_of_equal_names_carry_folders(two):
    assert image_ids(find_inputs(["d1", "d2"]), None) == ["d1/0.png", "1.png", "d2/0.png"]
    assert image_ids(find_inputs(["d1/0.png", "d2/0.png"]), None) == ["d1/0.png", "d2/0.png"]
    picture(two / "x" / "d1" / "0.png")
    assert image_ids(find_inputs(["d1", "d2", "x/d1"]), None) == [
        f"{two.name}/d1/0.png", "1.png", "d2/0.png", "x/d1/0.png"
    ]  # fmt: skip
    assert image_ids(find_inputs(["d1", "x", "d2"]), None)[2] == "x/d1/0.png"  # not the id that d1/0.png takes


def test_a_file_that_is_named_twice_is_taken_once(two):
    found = find_inputs(["d1", "d1/0.png", "./d1"])
    assert [p.name for p in found.pictures] == ["0.png", "1.png"]
    assert found.notes == ["3 files that are named more than once are taken once"]


def test_patterns_are_the_files_like_them(two):
    picture(two / "d1" / "10.png")
    picture(two / "d1" / "[x].png")
    assert [p.name for p in find_inputs(["d1/*.png"]).pictures] == ["0.png", "1.png", "10.png", "[x].png"]
    assert [p.name for p in find_inputs(["**/0.png", "d1/[x].png"]).pictures] == ["d1/0.png", "d2/0.png", "[x].png"]
    assert find_inputs([str(two / "*" / "0.png")]).pictures[1] == Picture(two / "d2" / "0.png", "d2/0.png")
    with pytest.raises(UserError, match=r"no file is like d1/\*.gif; check the pattern"):
        find_inputs(["d1/*.gif"])


def test_numbers_count_by_their_value_where_order_matters(tmp_path):
    names = ["frame_9.png", "frame_10.png", "frame_100.png", "run2/1.png", "run10/1.png", "x²/1.png"]
    for name in names:
        picture(tmp_path / name)
    for source in (tmp_path, f"{tmp_path}/**/*.png"):
        assert [Path(one.value).relative_to(tmp_path).as_posix() for one in several(str(source))] == names


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_name_is_not_the_current_folder(two, empty):
    for read in (lambda: find_inputs(["d1", empty]), lambda: several(empty)):
        with pytest.raises(UserError, match="an empty name was given"):
            read()


def test_a_thousand_equal_names_are_quick(tmp_path):
    pictures = [Picture(tmp_path / f"{i}" / "a.png", "a.png") for i in range(3000)]
    assert len(set(image_ids(Inputs(pictures, [], []), None))) == 3000
    assert len(set(result_files(Inputs(pictures[:300], [], []))[0])) == 300


def test_annotations_are_looked_up_with_their_folders(two):
    file = annotated(two / "a.json", images=[("d1/0.png", 1), ("d2\\0.png", 2), ("./d1/1.png", 3)])
    assert image_ids(find_inputs(["d1", "d2"]), file) == [1, 3, 2]
    assert image_ids(find_inputs(["d2/0.png"]), file) == [2]
    picture(two / "other" / "1.png")
    assert image_ids(find_inputs(["other"]), file) == [3]  # the only one of that base name
    picture(two / "other" / "0.png")
    with pytest.raises(UserError, match=r"2 images named 0.png \(d1/0.png, d2/0.png\), none in the folder of other/0"):
        image_ids(find_inputs(["other/0.png"]), file)


def test_one_entry_for_two_pictures_is_refused_with_both_names(two):
    file = annotated(two / "a.json", images=[("0.png", 7), ("1.png", 8)])
    assert image_ids(find_inputs(["d1"]), file) == [7, 8]
    with pytest.raises(UserError, match=r"\(id 7\) for both d1/0.png and d2/0.png"):
        image_ids(find_inputs(["d1", "d2"]), file)
    both = annotated(two / "b.json", images=[("d1/0.png", 7), ("d2/0.png", 7)])
    with pytest.raises(UserError, match=r"\(id 7\) for both"):
        image_ids(find_inputs(["d1/0.png", "d2"]), both)


def test_a_name_that_is_listed_twice_is_refused(two):
    file = annotated(two / "a.json", images=[("0.png", 7), ("./0.png", 8)])
    with pytest.raises(UserError, match=r"lists './0.png' twice, with ids 7 and 8"):
        image_ids(find_inputs(["d1/0.png"]), file)


def test_accents_in_both_forms_are_one_name(tmp_path):
    composed, decomposed = "\u00e9.png", "e\u0301.png"
    picture(tmp_path / decomposed)
    file = annotated(tmp_path / "a.json", images=[(composed, 4)])
    assert image_ids(find_inputs([str(tmp_path)]), file) == [4]


def test_result_files_do_not_meet():
    def names(pictures, clips=()):
        inputs = Inputs(
            [Picture(Path(n), n) for n in pictures], [Clip(n, n, str(Path(n).with_suffix(""))) for n in clips], []
        )
        return [[p.as_posix() for p in found] for found in result_files(inputs)]

    assert names(["a.png", "A.PNG", "a.jpg", "a.tif"])[0] == ["a.png", "A_2.png", "a.jpg", "a_3.png"]
    assert names(["\u00e9.png", "e\u0301.png"])[0] == ["\u00e9.png", "e\u0301_2.png"]
    assert names(["a.png", "a_2.png", "a.tif"])[0] == ["a.png", "a_2.png", "a_3.png"]
    # crops of frames are called clip_000012_0.jpg
    assert names(["clip_000012.jpg"], ["clip.mp4"]) == [["clip_000012.jpg"], ["clip_2.mp4"]]
    assert names(["clip_000012.png"], ["clip.mp4", "clip.avi"])[1] == ["clip.mp4", "clip_2.mp4"]


def test_ids_of_videos_differ(two):
    clips = [Clip(f"{d}/a.mp4", "a.mp4", "a") for d in ("d1", "d2")] + [Clip("0", "camera0", "camera0")] * 2
    assert clip_ids(Inputs([], clips, [])) == ["d1/a.mp4", "d2/a.mp4", "camera0", "camera0 (2)"]


def test_hidden_and_unreadable_pictures_are_counted_and_links_followed(tmp_path):
    root = tmp_path / "in"
    for name in ("a.png", ".ipynb_checkpoints/a-checkpoint.png", "b.HEIC", "c.dng", "d.jfif", "e.mpo", "f.avif"):
        picture(root / name)
    picture(tmp_path / "elsewhere" / "g.png")
    os.symlink(tmp_path / "elsewhere", root / "more")
    os.symlink(root, root / "loop")
    os.symlink(tmp_path / "gone.png", root / "lost.png")
    found = find_inputs([str(root)])
    assert [p.name for p in found.pictures] == ["a.png", "d.jfif", "e.mpo", "f.avif", "more/g.png"]
    assert "1 in hidden or housekeeping folders left out (first: .ipynb_checkpoints/a-" in found.notes[0]
    assert "1 links that lead nowhere left out (first: lost.png)" in found.notes[0]
    assert "2 pictures of kinds that cannot be read (.dng, .heic) left out" in found.notes[1]
    with pytest.raises(UserError, match="holds no images.*left out.*name another folder"):
        (root / "empty").mkdir()
        picture(root / "empty" / "b.heic")
        find_inputs([str(root / "empty")])


class Server(http.server.BaseHTTPRequestHandler):
    """Pictures with and without an ending, a stream, and one that wants a password."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        kinds = {"/a.png": "image/png", "/snapshot": "image/jpeg", "/live.jpg": "multipart/x-mixed-replace", "/x": ""}
        if path not in kinds and path != "/secret.png":
            self.send_error(404)
            return
        if path == "/secret.png" and self.headers.get("Authorization") != "Basic bWU6cHc=":
            self.send_error(401)
            return
        stream = io.BytesIO()
        Image.new("RGB", (8, 6), "red").save(stream, "PNG")
        self.send_response(200)
        if kinds.get(path, "image/png"):
            self.send_header("Content-Type", kinds.get(path, "image/png"))
        self.end_headers()
        self.wfile.write(stream.getvalue())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_picture_at_an_address_is_a_picture(server):
    names = ("a.png?width=3", "snapshot", "live.jpg", "clip.mp4", "none.png")
    found = find_inputs([f"http://{server}/{name}" for name in names])
    assert [p.name for p in found.pictures] == ["a.png", "snapshot", "none.png"]
    assert [c.name.rpartition("/")[2] for c in found.clips] == ["live.jpg", "clip.mp4"]
    for found_picture in found.pictures[:2]:
        np.testing.assert_array_equal(found_picture.read()[0, 0], (255, 0, 0))
    with pytest.raises(UserError, match="none.png: the server answers 404"):
        found.pictures[2].read()
    (secret,) = find_inputs([f"http://me:pw@{server}/secret.png"]).pictures
    assert secret.read().shape == (6, 8, 3) and "pw" not in secret.place
    (absent,) = find_inputs(["http://127.0.0.1:9/a.png"]).pictures
    with pytest.raises(UserError, match="http://127.0.0.1:9/a.png cannot be read"):
        absent.read()
