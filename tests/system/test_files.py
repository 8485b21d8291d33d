"""Text, writing and searching: what files of users' machines look like."""

from __future__ import annotations

import errno
import os

import pytest

from dfine_jax.errors import UserError
from dfine_jax.system import files, search

TEXT = '{"name": "Zelle é 細胞"}\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_is_read_whatever_unicode_it_is_in(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_bytes(TEXT.encode(encoding))
    assert files.read_text(path) == TEXT
    assert files.read_json(path) == {"name": "Zelle é 細胞"}
    assert files.utf8(path.read_bytes(), path) == TEXT.encode()


def test_line_ends_are_those_of_unix(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\rthree\n")
    assert files.read_text(path) == "one\ntwo\nthree\n"


def test_other_encodings_are_named_with_file_and_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\ntwo\nGrüße\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt, line 3: byte 0xfc is not UTF-8 text; save the file as UTF-8"):
        files.read_text(path)
    path.write_bytes("ab\nc".encode("utf-16") + b"\x00\xd8")
    with pytest.raises(UserError, match=r"a\.txt, line 2: .* UTF-16-LE"):
        files.read_text(path)


def test_what_is_not_json_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{\n"a": }')
    with pytest.raises(UserError, match=r"a\.json is not JSON .*line 2, column 6"):
        files.read_json(path)
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        files.read_json(path)
    with pytest.raises(UserError, match=r"none\.json: No such file"):
        files.read_json(tmp_path / "none.json")


def test_a_file_is_written_whole_with_usual_permissions(tmp_path):
    path = tmp_path / "new" / "a.txt"
    files.write_whole(path, "é")
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert path.read_bytes() == "é".encode() and path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    files.write_whole(path, b"2")
    assert path.read_bytes() == b"2" and path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_permissions_follow_the_umask_and_need_not_be_known_to_the_file_system(tmp_path, monkeypatch):
    (tmp_path / "old").write_text("x")

    def refused(*args: object, **options: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", refused)  # as on FAT
    before = os.umask(0o027)
    try:
        files.write_whole(tmp_path / "new", "y")
        files.write_whole(tmp_path / "old", "y")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640 and (tmp_path / "old").read_text() == "y"


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.txt: No space left on device; free some space"):
        files.write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_too_long_is_told():
    with pytest.raises(UserError, match="File name too long; choose a shorter name"):
        files.write_whole("/tmp/" + "x" * 300, "")


def tree(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_hidden_and_housekeeping_files_are_left_out_and_counted(tmp_path):
    root = tmp_path / ".data"  # named by the user, so it counts
    tree(root, "a.jpg", "b/c.JPG", ".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/b/._c.jpg", "._a.jpg", "x.txt")
    found = search.find_files(root, (".jpg",))
    assert [p.relative_to(root).as_posix() for p in found.files] == ["a.jpg", "b/c.JPG"]
    assert found.left_out == ("._a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/b/._c.jpg")
    assert found.note().startswith("3 in hidden or housekeeping folders left out (first: ._a.jpg)")


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    root = tmp_path / "data"
    tree(root, "a.jpg")
    tree(tmp_path / "elsewhere", "b.jpg", "deep/c.jpg")
    (root / "more").symlink_to(tmp_path / "elsewhere")
    (root / "up").symlink_to(root)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path)
    found = search.find_files(root, (".jpg",))
    assert [p.relative_to(root).as_posix() for p in found.files] == ["a.jpg", "more/b.jpg", "more/deep/c.jpg"]
    assert "up" in found.repeated and "links repeat" in found.note()


def test_a_link_to_a_folder_above_brings_no_sibling(tmp_path):
    tree(tmp_path / "images", "train/a.jpg", "val/b.jpg")
    (tmp_path / "images" / "train" / "up").symlink_to("..")
    found = search.find_files(tmp_path / "images" / "train", (".jpg",))
    assert [path.name for path in found.files] == ["a.jpg"] and found.repeated == ("up",)
