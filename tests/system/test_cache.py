"""Where things are kept between runs."""

from __future__ import annotations

from dfine_jax.system.cache import cache_dir


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("DFINE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "dfine_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir().name in ("dfine_jax", "cache")
