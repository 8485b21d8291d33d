"""Pictures that exported files are checked on."""

from __future__ import annotations

import logging

import pytest
from PIL import Image

from dfine_jax.converters.gate import report
from dfine_jax.converters.gate.data import open_data


def test_folders_of_pictures_are_searched_as_everywhere(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    for name in ("a.png", ".ipynb_checkpoints/a-checkpoint.png", "elsewhere/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "set").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "set" / "a.png")
    (tmp_path / ".ipynb_checkpoints").rename(tmp_path / "set" / ".ipynb_checkpoints")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    found = open_data(tmp_path / "set", "val")
    assert [source.name for source in found.sources] == ["a.png", "b.png"]
    assert "1 in hidden or housekeeping folders left out" in caplog.text


@pytest.mark.parametrize(
    ("change", "text"), [(-0.00001, "0.0000"), (0.0, "0.0000"), (0.0123, "+0.0123"), (-0.0004, "-0.0004")]
)
def test_a_change_of_nothing_has_no_sign(change, text):
    assert report._signed(change) == text
